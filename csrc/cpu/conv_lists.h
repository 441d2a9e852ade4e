// Masks as lists of active kernels, in the order in which the engine's inner loops walk them.
#pragma once

#include <cstdint>
#include <vector>

#include "conv_types.h"

namespace metasparse::cpu {

// A mask (O, I) of one task as bytes, one row per output row of the product: as it is for the
// forward pass, transposed for the input gradient.
struct ActiveKernels {
  std::vector<uint8_t> active;  // rows x columns
  int64_t rows = 0, columns = 0;
  bool transposed = false;
  bool binary = true;  // every value is 0 or 1

  // `mask` null: all active. The result keeps its memory from one call to the next.
  template <class T>
  void assign(const T* mask, int64_t out_channels, int64_t in_channels, bool transpose);

  // Index o * I + i of the kernel in row `row`, column `column`.
  int64_t kernel(int64_t row, int64_t column) const {
    return transposed ? column * rows + row : row * columns + column;
  }

  // Active kernels of the row that has most.
  int64_t longest_row() const;
};

// What the entries of lists stand for. Each active kernel has one entry per tap: entry (column,
// tap) reads row column * taps + tap of V, and stands for the weight at place kernel * kernel_size
// + tap_place[tap].
struct ListLayout {
  std::vector<int32_t> tap_place = {0};
  int64_t kernel_size = 1;

  int64_t taps() const { return static_cast<int64_t>(tap_place.size()); }
};

// Both kinds of lists walk the columns in chunks of equal size, so that the rows of V that one
// chunk reads stay in the nearest cache; every chunk has lists of its own.

// For ProductStep: entries of neighbouring rows are merged as PairRun says; a missing last row is
// empty.
struct PairLists {
  std::vector<PairRun> runs;         // [chunk][pair]
  std::vector<int32_t> source_rows;  // per entry
  std::vector<int32_t> places;       // per entry
  int64_t chunks = 0, entries = 0;

  void build(const ActiveKernels& mask, const ListLayout& layout, int64_t count);
};

// For SampledStep: rows one by one.
struct RowLists {
  std::vector<int32_t> row_begin;    // [chunk][row], and the end
  std::vector<int32_t> source_rows;  // per entry
  std::vector<int32_t> places;       // per entry
  int64_t entries = 0;

  void build(const ActiveKernels& mask, const ListLayout& layout, int64_t chunks);
};

}  // namespace metasparse::cpu
