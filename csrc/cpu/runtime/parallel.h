// Threads for the CPU kernels, without torch's headers: the kernels' drivers include this alone.
#pragma once

#include <cstdint>
#include <functional>

namespace metasparse::cpu {

// How many threads torch would use now (one inside a parallel region).
int64_t thread_count();

// Runs body(unit) once for every unit in [0, units), on torch's threads. Each thread starts on a
// part of its own, the same in every call with as many units, so that it finds in its caches what
// it left there; once that is done it takes units from the others' parts, so uneven ones do not
// make threads wait for each other.
void parallel_units(int64_t units, const std::function<void(int64_t)>& body);

}  // namespace metasparse::cpu
