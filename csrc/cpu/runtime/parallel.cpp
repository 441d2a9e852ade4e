#include "parallel.h"

#include <ATen/Parallel.h>

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

}  // namespace

int64_t thread_count() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

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

}  // namespace metasparse::cpu
