#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "ATen/Parallel.h"

namespace at {

namespace {

constexpr int kThreads = 3;
bool alone = false;

thread_local bool in_parallel = false;

// Two threads that work beside the one that calls.
class Team {
 public:
  using Work = std::function<void(int)>;

  Team() {
    for (int member = 1; member < kThreads; ++member) {
      threads_.emplace_back([this, member] { serve(member); });
    }
  }
  ~Team() {
    start(nullptr);
    for (std::thread& thread : threads_) thread.join();
  }

  void run(const Work& work) {
    start(&work);
    in_parallel = true;
    work(0);
    in_parallel = false;
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return busy_ == 0; });
  }

 private:
  void start(const Work* work) {
    const std::lock_guard<std::mutex> lock(mutex_);
    work_ = work;
    busy_ = kThreads - 1;
    ++round_;
    changed_.notify_all();
  }

  void serve(int member) {
    in_parallel = true;
    for (int64_t round = 1;; ++round) {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [&] { return round_ == round; });
      const Work* const work = work_;
      lock.unlock();
      if (work == nullptr) return;
      (*work)(member);
      lock.lock();
      if (--busy_ == 0) changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  const Work* work_ = nullptr;  // null: to end
  int64_t round_ = 0;
  int busy_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace

int get_num_threads() { return alone ? 1 : kThreads; }

void set_num_threads(int threads) { alone = threads == 1; }  // no other number is asked for

bool in_parallel_region() { return in_parallel; }

void parallel_for(int64_t begin, int64_t end, int64_t /*grain_size*/,
                  const std::function<void(int64_t, int64_t)>& body) {
  thread_local Team team;
  team.run([&](int member) {
    for (int64_t i = begin + member; i < end; i += kThreads) body(i, i + 1);
  });
}

}  // namespace at
