// In place of torch's header, for csrc/cpu/runtime/parallel.cpp: three threads, which stay, so that
// what they keep from call to call is met again; as in OpenMP every calling thread has its own.
#pragma once

#include <cstdint>
#include <functional>

namespace at {

int get_num_threads();
void set_num_threads(int threads);
bool in_parallel_region();

// Of `grain_size` only 1 is asked for: every index is a call of its own.
void parallel_for(int64_t begin, int64_t end, int64_t grain_size,
                  const std::function<void(int64_t, int64_t)>& body);

}  // namespace at
