// Threads for the CPU kernels, without torch's headers: the kernels' drivers include this alone.
#pragma once

#include <cstdint>
#include <functional>

namespace metasparse::cpu {

// How many threads torch would use now (one inside a parallel region).
int64_t thread_count();

// Runs body(unit) once for every unit in [0, units), on torch's threads. Units are handed out one
// by one, in order, so uneven ones do not make threads wait for each other.
void parallel_units(int64_t units, const std::function<void(int64_t)>& body);

}  // namespace metasparse::cpu
