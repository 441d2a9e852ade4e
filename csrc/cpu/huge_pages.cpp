#include "huge_pages.h"

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace metasparse::cpu {

void advise_huge_pages(void* data, std::size_t bytes) {
#ifdef __linux__
  // Smaller allocations are mostly recycled by malloc, their pages already there.
  constexpr std::size_t kLarge = std::size_t(8) << 20;
  constexpr std::uintptr_t kPage = 4096;
  if (bytes < kLarge) return;
  const auto begin = (reinterpret_cast<std::uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const auto end = (reinterpret_cast<std::uintptr_t>(data) + bytes) / kPage * kPage;
  // advice: that it is refused changes nothing but the time
  (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace metasparse::cpu
