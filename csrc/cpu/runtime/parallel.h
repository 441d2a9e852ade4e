// Threads for the CPU kernels, without torch's headers: the kernels' drivers include this alone.
//
// All that csrc/cpu shares among threads goes through these functions. In a process that was forked
// from one with threads the first call sets torch's number of threads to one: OpenMP's others are
// not there, and what waits for them waits for ever.
#pragma once

#include <cstdint>
#include <functional>

namespace metasparse::cpu {

// How many threads are used now: torch's number, one inside a parallel region.
int64_t thread_count();

// Runs body(unit) once for every unit in [0, units), on torch's threads. Each thread starts on a
// part of its own, the same in every call with as many units, so that it finds in its caches what
// it left there; once that is done it takes units from the others' parts, so uneven ones do not
// make threads wait for each other.
void parallel_units(int64_t units, const std::function<void(int64_t)>& body);

// Calls body(first, last) for parts of [begin, end), at least `grain` long, as at::parallel_for.
void parallel_range(int64_t begin, int64_t end, int64_t grain,
                    const std::function<void(int64_t, int64_t)>& body);

}  // namespace metasparse::cpu
