// Masks as lists of active kernels, in the order in which the engine's inner loops walk them.
#pragma once

#include <cstdint>
#include <limits>
#include <memory_resource>
#include <vector>

#include "conv_types.h"
#include "list_memory.h"

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

// What the entries of lists stand for. Each active kernel has one entry per tap: entry (column,
// tap) reads row column * taps + tap of V, and stands for the weight at place kernel * kernel_size
// + tap_place[tap].
struct ListLayout {
  std::vector<int32_t> tap_place = {0};
  int64_t kernel_size = 1;

  int64_t taps() const { return static_cast<int64_t>(tap_place.size()); }
  bool operator==(const ListLayout&) const = default;
};

// How the kernels of a mask are listed. Rows of lists are output channels, columns are those that
// are summed over; `transposed`, as for the input gradient, the other way round. The columns are
// walked in chunks of equal size, so that the rows of V that one chunk reads stay in the nearest
// cache, and no sum has more terms than `longest_sum`; every chunk has lists of its own.
struct ListPlan {
  ListLayout layout;
  bool transposed = false;
  int64_t cache_chunks = 1;
  int64_t longest_sum = std::numeric_limits<int64_t>::max();

  bool operator==(const ListPlan&) const = default;
};

// Lists are kept from call to call.
template <class Entry>
struct KeptVector : std::pmr::vector<Entry> {
  KeptVector() : std::pmr::vector<Entry>(&list_memory()) {}
};

// For ProductStep: entries of neighbouring rows are merged as PairRun says; a missing last row is
// empty.
struct PairLists {
  KeptVector<PairRun> runs;         // [chunk][pair]
  KeptVector<int32_t> source_rows;  // per entry
  KeptVector<int32_t> places;       // per entry
  int64_t chunks = 0, entries = 0;

  PairLists(const ActiveKernels& kernels, const ListPlan& plan);
};

// For OuterStep: all kernels, pruned or not, column by column.
struct ColumnLists {
  KeptVector<int32_t> places;  // [column][row]
  int64_t chunks = 0, entries = 0;

  ColumnLists(const ActiveKernels& kernels, const ListPlan& plan);
};

// For SampledStep: rows one by one.
struct RowLists {
  KeptVector<int32_t> row_begin;    // [chunk][row], and the end
  KeptVector<int32_t> source_rows;  // per entry
  KeptVector<int32_t> places;       // per entry
  int64_t chunks = 0, entries = 0;

  RowLists(const ActiveKernels& kernels, const ListPlan& plan);
};

}  // namespace metasparse::cpu
