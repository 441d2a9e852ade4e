#include "list_memory.h"

#include <cstddef>
#include <new>

#ifdef __unix__
#include <sys/mman.h>
#endif

namespace metasparse::cpu {

namespace {

#ifdef __unix__
// Whole pages from the system, and back to it.
class Pages final : public std::pmr::memory_resource {
  void* do_allocate(std::size_t bytes, std::size_t) override {
    void* const data =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) throw std::bad_alloc();
    return data;
  }
  void do_deallocate(void* data, std::size_t bytes, std::size_t) override { munmap(data, bytes); }
  bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
    return this == &other;
  }
};

std::pmr::memory_resource& pages() {
  static auto* pages = new Pages;
  return *pages;
}
#else
std::pmr::memory_resource& pages() { return *std::pmr::new_delete_resource(); }
#endif

}  // namespace

std::pmr::memory_resource& list_memory() {
  // Larger blocks are mapped one by one; chunks of small ones grow to some megabytes. Never
  // destroyed: threads may still compute while the process ends.
  constexpr std::pmr::pool_options kOptions = {.max_blocks_per_chunk = 64,
                                               .largest_required_pool_block = 128 << 10};
  static auto* pool = new std::pmr::synchronized_pool_resource(kOptions, &pages());
  return *pool;
}

}  // namespace metasparse::cpu
