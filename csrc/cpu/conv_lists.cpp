#include "conv_lists.h"

#include <algorithm>

namespace metasparse::cpu {

namespace {

// Entries are written unconditionally and kept by advancing the end: a mask has no pattern that a
// branch predictor could learn, and a missed branch costs more than the whole entry.
class EntryWriter {
 public:
  EntryWriter(std::vector<int32_t>& source_rows, std::vector<int32_t>& places,
              const ActiveKernels& mask, const ListLayout& layout)
      : taps_(static_cast<int32_t>(layout.taps())),
        kernel_size_(static_cast<int32_t>(layout.kernel_size)),
        tap_place_(layout.tap_place.data()) {
    // Slack for the entries that are written and not kept, and a register's worth for readers.
    const size_t size = static_cast<size_t>((mask.rows * mask.columns + 2) * taps_ + 16);
    if (source_rows.size() < size) source_rows.resize(size);
    if (places.size() < size) places.resize(size);
    source_rows_ = source_rows.data();
    places_ = places.data();
  }

  int32_t end() const { return end_; }

  // The entries of one kernel, kept if `keep` is 1 and dropped if it is 0.
  void write(int64_t column, int64_t kernel, int32_t keep) {
    const int32_t row = static_cast<int32_t>(column) * taps_;
    const int32_t place = static_cast<int32_t>(kernel) * kernel_size_;
    for (int32_t tap = 0; tap < taps_; ++tap) {
      source_rows_[end_ + tap] = row + tap;
      places_[end_ + tap] = place + tap_place_[tap];
    }
    end_ += keep * taps_;
  }

  // The same for two kernels of one column, entries alternating.
  void write_pair(int64_t column, int64_t first, int64_t second, int32_t keep) {
    const int32_t row = static_cast<int32_t>(column) * taps_;
    const int32_t place_a = static_cast<int32_t>(first) * kernel_size_;
    const int32_t place_b = static_cast<int32_t>(second) * kernel_size_;
    for (int32_t tap = 0; tap < taps_; ++tap) {
      const int32_t e = end_ + 2 * tap;
      source_rows_[e] = source_rows_[e + 1] = row + tap;
      places_[e] = place_a + tap_place_[tap];
      places_[e + 1] = place_b + tap_place_[tap];
    }
    end_ += 2 * keep * taps_;
  }

 private:
  int32_t taps_, kernel_size_;
  const int32_t* tap_place_;
  int32_t* source_rows_;
  int32_t* places_;
  int32_t end_ = 0;
};

}  // namespace

template <class T>
void ActiveKernels::assign(const T* mask, int64_t out_channels, int64_t in_channels,
                           bool transpose) {
  transposed = transpose;
  rows = transpose ? in_channels : out_channels;
  columns = transpose ? out_channels : in_channels;
  active.resize(static_cast<size_t>(rows * columns));
  binary = true;
  if (mask == nullptr) {
    std::fill(active.begin(), active.end(), uint8_t{1});
    return;
  }
  for (int64_t k = 0; k < out_channels * in_channels; ++k) {
    binary &= (mask[k] == T(0)) | (mask[k] == T(1));
  }
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      active[static_cast<size_t>(row * columns + column)] = mask[kernel(row, column)] != T(0);
    }
  }
}

template void ActiveKernels::assign(const float*, int64_t, int64_t, bool);
template void ActiveKernels::assign(const double*, int64_t, int64_t, bool);

void PairLists::build(const ActiveKernels& mask, const ListLayout& layout, int64_t chunk_columns) {
  const std::vector<uint8_t> none(static_cast<size_t>(mask.columns), 0);
  runs.clear();
  EntryWriter writer(source_rows, places, mask, layout);
  for (int64_t begin = 0; begin < mask.columns; begin += chunk_columns) {
    const int64_t end = std::min(mask.columns, begin + chunk_columns);
    for (int64_t row = 0; row < mask.rows; row += 2) {
      const uint8_t* a = mask.active.data() + row * mask.columns;
      const uint8_t* b = row + 1 < mask.rows ? a + mask.columns : none.data();
      PairRun run;
      run.begin = writer.end();
      for (int64_t c = begin; c < end; ++c) {
        writer.write_pair(c, mask.kernel(row, c), mask.kernel(row + 1, c), a[c] & b[c]);
      }
      run.both = (writer.end() - run.begin) / 2;
      const int32_t first_begin = writer.end();
      for (int64_t c = begin; c < end; ++c) writer.write(c, mask.kernel(row, c), a[c] & ~b[c] & 1);
      run.first = writer.end() - first_begin;
      const int32_t second_begin = writer.end();
      for (int64_t c = begin; c < end; ++c) {
        writer.write(c, mask.kernel(row + 1, c), b[c] & ~a[c] & 1);
      }
      run.second = writer.end() - second_begin;
      runs.push_back(run);
    }
  }
  entries = writer.end();
}

void RowLists::build(const ActiveKernels& mask, const ListLayout& layout, int64_t chunk_columns) {
  row_begin.clear();
  EntryWriter writer(source_rows, places, mask, layout);
  for (int64_t begin = 0; begin < mask.columns; begin += chunk_columns) {
    const int64_t end = std::min(mask.columns, begin + chunk_columns);
    for (int64_t row = 0; row < mask.rows; ++row) {
      row_begin.push_back(writer.end());
      const uint8_t* a = mask.active.data() + row * mask.columns;
      for (int64_t c = begin; c < end; ++c) writer.write(c, mask.kernel(row, c), a[c]);
    }
  }
  row_begin.push_back(writer.end());
  entries = writer.end();
}

}  // namespace metasparse::cpu
