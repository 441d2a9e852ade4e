// Arrays between inaccessible pages. They are there for what a sanitizer cannot see: masked loads
// and stores are intrinsics. A case runs twice, with all arrays ending at the page after them and
// with all beginning after the page before.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <new>

namespace metasparse::check {

class GuardedMemory {
 public:
  GuardedMemory(size_t bytes, bool at_end) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t room = (bytes + page - 1) / page * page;
    size_ = room + 2 * page;
    base_ = static_cast<char*>(
        mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) throw std::bad_alloc();
    mprotect(base_, page, PROT_NONE);
    mprotect(base_ + page + room, page, PROT_NONE);
    data_ = base_ + page + (at_end ? room - bytes : 0);
  }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;
  ~GuardedMemory() { munmap(base_, size_); }

  void* data() const { return data_; }

 private:
  char* base_;
  char* data_;
  size_t size_;
};

template <class T>
class Array {
 public:
  Array(int64_t count, bool at_end)
      : count_(count), memory_(static_cast<size_t>(count) * sizeof(T), at_end) {}

  T* data() const { return static_cast<T*>(memory_.data()); }
  T& operator[](int64_t i) const { return data()[i]; }
  int64_t size() const { return count_; }

  template <class F>
  void fill(F value) const {
    for (int64_t i = 0; i < count_; ++i) data()[i] = static_cast<T>(value());
  }
  // Before a call writes: what it leaves out shows.
  void poison() const {
    fill([] { return std::numeric_limits<double>::quiet_NaN(); });
  }

 private:
  int64_t count_;
  GuardedMemory memory_;
};

}  // namespace metasparse::check
