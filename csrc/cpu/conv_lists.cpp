#include "conv_lists.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace metasparse::cpu {

namespace {

int64_t sum_of(const uint8_t* bytes, int64_t count) {
  return std::accumulate(bytes, bytes + count, int64_t{0});
}

// The kernels of a mask, one row per row of the lists.
struct KernelRows {
  KernelRows(const ActiveKernels& kernels, bool transpose)
      : transposed(transpose),
        rows(transpose ? kernels.in_channels : kernels.out_channels),
        columns(transpose ? kernels.out_channels : kernels.in_channels),
        count(kernels.count) {
    if (!transpose) {
      active = kernels.active;
      return;
    }
    active.resize(kernels.active.size());
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t c = 0; c < columns; ++c) {
        active[row * columns + c] = kernels.active[c * rows + row];
      }
    }
  }

  const uint8_t* row(int64_t r) const { return active.data() + r * columns; }

  // Index o * I + i of the kernel in row `row`, column `column`.
  int64_t kernel(int64_t row, int64_t column) const {
    return transposed ? column * rows + row : row * columns + column;
  }

  // As many chunks as the cache asks for, more where sums would be too long otherwise.
  int64_t chunks(const ListPlan& plan) const {
    int64_t longest = 0;
    for (int64_t r = 0; r < rows; ++r) longest = std::max(longest, sum_of(row(r), columns));
    const int64_t sums = longest / plan.longest_sum + (longest % plan.longest_sum != 0);
    return std::max(plan.cache_chunks, sums);
  }

  bool transposed;
  int64_t rows, columns, count;
  std::vector<uint8_t> active;
};

// Columns begin .. end - 1 that satisfy `active`, into `kept`; returns how many. Every column is
// written, and kept by advancing the end: a mask has no pattern that a branch predictor could
// learn, and a missed branch costs more than the entry.
template <class Active>
int32_t compact(int64_t begin, int64_t end, int32_t* kept, Active&& active) {
  int32_t count = 0;
  for (int64_t c = begin; c < end; ++c) {
    kept[count] = static_cast<int32_t>(c);
    count += active(c);
  }
  return count;
}

class EntryWriter {
 public:
  EntryWriter(KeptVector<int32_t>& source_rows, KeptVector<int32_t>& places,
              const KernelRows& kernels, const ListLayout& layout)
      : kernels_(kernels),
        taps_(static_cast<int32_t>(layout.taps())),
        kernel_size_(static_cast<int32_t>(layout.kernel_size)),
        tap_place_(layout.tap_place.data()) {
    // A register's worth of slack for readers.
    const auto size = static_cast<size_t>(kernels.count * taps_ + 16);
    source_rows.resize(size);
    places.resize(size);
    source_rows_ = source_rows.data();
    places_ = places.data();
  }

  int32_t end() const { return end_; }

  // The entries of `count` kernels of one row; returns how many entries these are.
  int32_t write(int64_t row, const int32_t* columns, int32_t count) {
    for (int32_t j = 0; j < count; ++j) {
      const int32_t place = place_of(row, columns[j]);
      for (int32_t tap = 0; tap < taps_; ++tap, ++end_) {
        source_rows_[end_] = columns[j] * taps_ + tap;
        places_[end_] = place + tap_place_[tap];
      }
    }
    return count * taps_;
  }

  // The same for the kernels of two rows, entries alternating; returns the entries of either.
  int32_t write_pair(int64_t row, const int32_t* columns, int32_t count) {
    for (int32_t j = 0; j < count; ++j) {
      const int32_t first = place_of(row, columns[j]), second = place_of(row + 1, columns[j]);
      for (int32_t tap = 0; tap < taps_; ++tap, end_ += 2) {
        source_rows_[end_] = source_rows_[end_ + 1] = columns[j] * taps_ + tap;
        places_[end_] = first + tap_place_[tap];
        places_[end_ + 1] = second + tap_place_[tap];
      }
    }
    return count * taps_;
  }

 private:
  int32_t place_of(int64_t row, int64_t column) const {
    return static_cast<int32_t>(kernels_.kernel(row, column)) * kernel_size_;
  }

  const KernelRows& kernels_;
  int32_t taps_, kernel_size_;
  const int32_t* tap_place_;
  int32_t* source_rows_;
  int32_t* places_;
  int32_t end_ = 0;
};

}  // namespace

template <class T>
void ActiveKernels::assign(const T* mask, int64_t outs, int64_t ins) {
  out_channels = outs;
  in_channels = ins;
  active.resize(static_cast<size_t>(outs * ins));
  if (mask == nullptr) {
    std::fill(active.begin(), active.end(), uint8_t{1});
    count = outs * ins;
    binary = true;
    return;
  }
  uint8_t* out = active.data();
  int32_t nonzeros = 0, others = 0;
#pragma omp simd reduction(+ : nonzeros, others)
  for (int64_t k = 0; k < outs * ins; ++k) {
    const int32_t nonzero = mask[k] != T(0);
    out[k] = static_cast<uint8_t>(nonzero);
    nonzeros += nonzero;
    others += nonzero & (mask[k] != T(1));
  }
  count = nonzeros;
  binary = others == 0;
}

template void ActiveKernels::assign(const float*, int64_t, int64_t);
template void ActiveKernels::assign(const double*, int64_t, int64_t);

PairLists::PairLists(const ActiveKernels& kernels, const ListPlan& plan) {
  const KernelRows mask(kernels, plan.transposed);
  chunks = mask.chunks(plan);
  const std::vector<uint8_t> none(static_cast<size_t>(mask.columns), 0);
  std::vector<int32_t> kept(static_cast<size_t>(mask.columns) + 1);
  EntryWriter writer(source_rows, places, mask, plan.layout);
  runs.reserve(static_cast<size_t>(chunks * ((mask.rows + 1) / 2)));
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t begin = chunk * mask.columns / chunks;
    const int64_t end = (chunk + 1) * mask.columns / chunks;
    for (int64_t row = 0; row < mask.rows; row += 2) {
      const uint8_t* a = mask.row(row);
      const uint8_t* b = row + 1 < mask.rows ? mask.row(row + 1) : none.data();
      PairRun run;
      run.begin = writer.end();
      int32_t count = compact(begin, end, kept.data(), [&](int64_t c) { return a[c] & b[c]; });
      run.both = writer.write_pair(row, kept.data(), count);
      count = compact(begin, end, kept.data(), [&](int64_t c) { return a[c] & ~b[c]; });
      run.first = writer.write(row, kept.data(), count);
      count = compact(begin, end, kept.data(), [&](int64_t c) { return b[c] & ~a[c]; });
      run.second = writer.write(row + 1, kept.data(), count);
      runs.push_back(run);
    }
  }
  entries = writer.end();
}

ColumnLists::ColumnLists(const ActiveKernels& kernels, const ListPlan& plan) {
  const KernelRows mask(kernels, plan.transposed);
  if (plan.layout.taps() != 1) throw std::logic_error("ColumnLists need a layout of one tap");
  chunks = mask.chunks(plan);
  entries = mask.rows * mask.columns;
  places.reserve(static_cast<size_t>(entries));
  for (int64_t column = 0; column < mask.columns; ++column) {
    for (int64_t row = 0; row < mask.rows; ++row) {
      places.push_back(static_cast<int32_t>(mask.kernel(row, column) * plan.layout.kernel_size) +
                       plan.layout.tap_place[0]);
    }
  }
}

RowLists::RowLists(const ActiveKernels& kernels, const ListPlan& plan) {
  const KernelRows mask(kernels, plan.transposed);
  chunks = mask.chunks(plan);
  std::vector<int32_t> kept(static_cast<size_t>(mask.columns) + 1);
  EntryWriter writer(source_rows, places, mask, plan.layout);
  row_begin.reserve(static_cast<size_t>(chunks * mask.rows + 1));
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t begin = chunk * mask.columns / chunks;
    const int64_t end = (chunk + 1) * mask.columns / chunks;
    for (int64_t row = 0; row < mask.rows; ++row) {
      row_begin.push_back(writer.end());
      const uint8_t* a = mask.row(row);
      const int32_t count = compact(begin, end, kept.data(), [&](int64_t c) { return a[c]; });
      writer.write(row, kept.data(), count);
    }
  }
  row_begin.push_back(writer.end());
  entries = writer.end();
}

}  // namespace metasparse::cpu
