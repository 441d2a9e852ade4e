// What the kernels ask of memory beside malloc: huge pages, stores past the caches, and a pool for
// what is kept from call to call.
#pragma once

#include <cstddef>
#include <memory_resource>

namespace metasparse::cpu {

// Asks for huge pages under a large, freshly allocated result. Its first writing is otherwise bound
// by the system handing out 4 KB pages, which takes several times as long as the writing itself.
void advise_huge_pages(void* data, std::size_t bytes);

// Non-temporal stores from this size of a result on: it would be evicted before it is read. Half of
// a large last-level cache.
inline constexpr std::size_t kStreamedBytes = std::size_t{16} << 20;

// A pool on pages of its own, from any thread. What is kept from call to call must not come from
// malloc: carved out of a freed activation, a few kilobytes hold the whole of it in the heap, and
// resident memory grows by about one activation per object.
std::pmr::memory_resource& kept_memory();

}  // namespace metasparse::cpu
