#include "conv_lists.h"

#include <algorithm>
#include <numeric>

namespace metasparse::cpu {

namespace {

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
  EntryWriter(std::vector<int32_t>& source_rows, std::vector<int32_t>& places,
              const ActiveKernels& mask, const ListLayout& layout)
      : mask_(mask),
        taps_(static_cast<int32_t>(layout.taps())),
        kernel_size_(static_cast<int32_t>(layout.kernel_size)),
        tap_place_(layout.tap_place.data()) {
    // A register's worth of slack for readers.
    const size_t size = static_cast<size_t>(mask.rows * mask.columns * taps_ + 16);
    if (source_rows.size() < size) source_rows.resize(size);
    if (places.size() < size) places.resize(size);
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
    return static_cast<int32_t>(mask_.kernel(row, column)) * kernel_size_;
  }

  const ActiveKernels& mask_;
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
  uint8_t* out = active.data();
  for (int64_t o = 0; o < out_channels; ++o, mask += in_channels) {
    for (int64_t i = 0; i < in_channels; ++i) {
      out[transpose ? i * out_channels + o : o * in_channels + i] = mask[i] != T(0);
    }
  }
}

template void ActiveKernels::assign(const float*, int64_t, int64_t, bool);
template void ActiveKernels::assign(const double*, int64_t, int64_t, bool);

int64_t ActiveKernels::longest_row() const {
  int64_t longest = 0;
  for (int64_t row = 0; row < rows; ++row) {
    const uint8_t* of_row = active.data() + row * columns;
    longest = std::max(longest, std::accumulate(of_row, of_row + columns, int64_t{0}));
  }
  return longest;
}

void PairLists::build(const ActiveKernels& mask, const ListLayout& layout, int64_t count) {
  chunks = count;
  const std::vector<uint8_t> none(static_cast<size_t>(mask.columns), 0);
  std::vector<int32_t> kept(static_cast<size_t>(mask.columns) + 1);
  runs.clear();
  EntryWriter writer(source_rows, places, mask, layout);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t begin = chunk * mask.columns / chunks;
    const int64_t end = (chunk + 1) * mask.columns / chunks;
    for (int64_t row = 0; row < mask.rows; row += 2) {
      const uint8_t* a = mask.active.data() + row * mask.columns;
      const uint8_t* b = row + 1 < mask.rows ? a + mask.columns : none.data();
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

void RowLists::build(const ActiveKernels& mask, const ListLayout& layout, int64_t chunks) {
  row_begin.clear();
  std::vector<int32_t> kept(static_cast<size_t>(mask.columns) + 1);
  EntryWriter writer(source_rows, places, mask, layout);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t begin = chunk * mask.columns / chunks;
    const int64_t end = (chunk + 1) * mask.columns / chunks;
    for (int64_t row = 0; row < mask.rows; ++row) {
      row_begin.push_back(writer.end());
      const uint8_t* a = mask.active.data() + row * mask.columns;
      const int32_t count = compact(begin, end, kept.data(), [&](int64_t c) { return a[c]; });
      writer.write(row, kept.data(), count);
    }
  }
  row_begin.push_back(writer.end());
  entries = writer.end();
}

}  // namespace metasparse::cpu
