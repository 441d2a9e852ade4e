#include "parallel.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

namespace metasparse::cpu {

int64_t thread_count() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

void parallel_units(int64_t units, const std::function<void(int64_t)>& body) {
  const int64_t workers = std::min(units, thread_count());
  if (workers <= 1) {
    for (int64_t unit = 0; unit < units; ++unit) body(unit);
    return;
  }
  std::atomic<int64_t> next{0};
  at::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    for (int64_t unit = next++; unit < units; unit = next++) body(unit);
  });
}

}  // namespace metasparse::cpu
