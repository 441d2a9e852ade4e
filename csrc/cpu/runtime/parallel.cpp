#include "parallel.h"

#include <ATen/Parallel.h>

#if !defined(_WIN32)
#include <pthread.h>
#include <sys/stat.h>
#endif

#include <algorithm>
#include <atomic>
#include <vector>

namespace metasparse::cpu {

namespace {

// The units that a worker runs first, and others take from once theirs are done; alone in its cache
// lines, because workers count in theirs.
struct alignas(128) Share {
  std::atomic<int64_t> next;
  int64_t end;
};

#if !defined(_WIN32)
// As far as Linux tells, by the folders of a process's threads; elsewhere it may have some.
bool has_threads() {
  constexpr nlink_t kAlone = 3;  // the folder's own two links, and one a thread
  struct stat threads;
  return stat("/proc/self/task", &threads) != 0 || threads.st_nlink > kAlone;
}

bool had_threads = false;  // when it was forked
std::atomic<bool> lost_threads = false;

[[maybe_unused]] const int watches_forks =
    pthread_atfork(/*prepare*/ [] { had_threads = has_threads(); }, /*parent*/ nullptr,
                   /*child*/ [] { lost_threads = had_threads; });

// What PyTorch's operators share among threads must not wait for the lost ones either.
void use_one_thread_if_others_are_lost() {
  if (lost_threads.load(std::memory_order_relaxed) && lost_threads.exchange(false))
    at::set_num_threads(1);
}
#else
void use_one_thread_if_others_are_lost() {}
#endif

}  // namespace

int64_t thread_count() {
  use_one_thread_if_others_are_lost();
  return at::in_parallel_region() ? 1 : at::get_num_threads();
}

void parallel_units(int64_t units, const std::function<void(int64_t)>& body) {
  const int64_t workers = std::min(units, thread_count());
  if (workers <= 1) {
    for (int64_t unit = 0; unit < units; ++unit) body(unit);
    return;
  }
  std::vector<Share> shares(static_cast<size_t>(workers));
  for (int64_t worker = 0; worker < workers; ++worker) {
    shares[worker].next = worker * units / workers;
    shares[worker].end = (worker + 1) * units / workers;
  }
  at::parallel_for(0, workers, 1, [&](int64_t worker, int64_t) {
    for (int64_t other = worker; other < worker + workers; ++other) {
      Share& share = shares[other % workers];
      for (int64_t unit = share.next++; unit < share.end; unit = share.next++) body(unit);
    }
  });
}

void parallel_range(int64_t begin, int64_t end, int64_t grain,
                    const std::function<void(int64_t, int64_t)>& body) {
  use_one_thread_if_others_are_lost();
  at::parallel_for(begin, end, grain, body);
}

}  // namespace metasparse::cpu
