// Masks as sparse matrices, in the order in which the inner loops walk them.
//
// A matrix of kernels in compressed sparse row form (CSR): its rows are output channels, its
// sources (the column index) are rows of V, and each entry has the index of the weight that it
// stands for.
#pragma once

#include <cstdint>
#include <memory>
#include <memory_resource>
#include <vector>

#include "../kernels/conv/args.h"
#include "../runtime/memory.h"
#include "heuristics.h"

namespace metasparse::cpu {

// The mask (O, I) of one task as bytes: 1 where its kernel is active.
struct ActiveKernels {
  std::vector<uint8_t> active;  // out_channels x in_channels
  int64_t out_channels = 0, in_channels = 0;
  int64_t count = 0;   // how many are active
  bool binary = true;  // every value of the mask is 0 or 1

  // `mask` null: all active. The result keeps its memory from one call to the next.
  template <class T>
  void assign(const T* mask, int64_t outs, int64_t ins);

  bool all() const { return count == out_channels * in_channels; }
};

// What the entries stand for. Each active kernel has one entry per tap: entry (channel, tap) reads
// row channel * taps + tap of V, and is the weight kernel * kernel_size + tap_index[tap].
struct TapLayout {
  std::vector<int32_t> tap_index = {0};
  int64_t kernel_size = 1;

  int64_t taps() const { return static_cast<int64_t>(tap_index.size()); }
  bool operator==(const TapLayout&) const = default;
};

// How a mask becomes a matrix; `transposed`, as for the input gradient, its rows are input
// channels. The channels that are summed over are walked in chunks, equal ranges of channels: so
// many that the rows of V that one chunk reads stay in the nearest cache, and that a row whose
// kernels are spread evenly has at most `max_accumulation` of them in each. Every chunk is a matrix
// of its own.
struct CsrLayout {
  TapLayout taps;
  bool transposed = false;
  int64_t cache_chunks = 1;
  int64_t max_accumulation = heuristics::kAny;
};

// Matrices are kept from call to call.
template <class Entry>
struct KeptVector : std::pmr::vector<Entry> {
  KeptVector() : std::pmr::vector<Entry>(&kept_memory()) {}
};

// Walked by SDDMM.
struct Csr {
  KeptVector<int32_t> row_begin;     // [chunk][row], and the end
  KeptVector<int32_t> source;        // per entry
  KeptVector<int32_t> weight_index;  // per entry
  int64_t chunks = 0, entries = 0;

  Csr(const ActiveKernels& kernels, const CsrLayout& layout);
};

// Walked by SpMM: entries of neighbouring rows are merged as RowPair says; a missing last row is
// empty.
struct PairedCsr {
  KeptVector<RowPair> rows;          // [chunk][pair]
  KeptVector<int32_t> source;        // per entry
  KeptVector<int32_t> weight_index;  // per entry
  int64_t chunks = 0, entries = 0;

  PairedCsr(const ActiveKernels& kernels, const CsrLayout& layout);
};

// Walked by SpMM with all kernels, pruned or not, of one tap.
struct DenseIndex {
  KeptVector<int32_t> weight_index;  // [source][row]
  int64_t chunks = 0, entries = 0;

  DenseIndex(const ActiveKernels& kernels, const CsrLayout& layout);
};

// The matrix of these kernels in this layout (Csr, PairedCsr or DenseIndex), from any thread, kept
// from call to call: a mask comes back in the backward pass, for the next task, in the next step,
// and building it takes as long as transforming them. It is found by the bytes of the mask
// itself, so a mask that was written to, however it was, is never taken for what it had been. Each
// kind of matrix that is kept takes heuristics::kKeptBytes at most; those unused for longest go
// first.
template <class Matrix>
std::shared_ptr<const Matrix> cached(const ActiveKernels& kernels, const CsrLayout& layout);

}  // namespace metasparse::cpu
