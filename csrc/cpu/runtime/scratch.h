// Scratch memory of the CPU kernels: one buffer per thread and purpose, kept between calls.
//
// A kernel asks for what it needs at its start and never frees it. Memory is aligned to a cache
// line, grows to the largest request, and is uninitialised: whoever reads a value has written it in
// the same call. A buffer above the bound is given back after so many requests that are below it,
// so a single huge call does not hold its memory for ever, and a network with a huge layer keeps it
// from step to step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace metasparse::cpu {

class ScratchBuffer {
 public:
  ScratchBuffer() = default;
  ScratchBuffer(const ScratchBuffer&) = delete;
  ScratchBuffer& operator=(const ScratchBuffer&) = delete;
  ~ScratchBuffer() { std::free(data_); }

  // Room for `count` values of T, 64-byte aligned, valid until the next request of this buffer.
  template <class T>
  T* get(int64_t count) {
    constexpr size_t kLine = 64;
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + kLine) / kLine * kLine;
    const bool oversized = capacity_ > kKeepBytes && bytes <= kKeepBytes;
    smaller_ = oversized ? smaller_ + 1 : 0;
    if (bytes > capacity_ || smaller_ > kPatience) {
      std::free(data_);
      data_ = std::aligned_alloc(kLine, bytes);
      capacity_ = data_ == nullptr ? 0 : bytes;
      smaller_ = 0;
      if (data_ == nullptr) throw std::bad_alloc();
    }
    return static_cast<T*>(data_);
  }

 private:
  static constexpr size_t kKeepBytes = size_t{64} << 20;
  static constexpr int kPatience = 1000;  // a step of a ResNet-18 makes some hundred

  void* data_ = nullptr;
  size_t capacity_ = 0;
  int smaller_ = 0;  // requests below the bound since the last one above it
};

}  // namespace metasparse::cpu
