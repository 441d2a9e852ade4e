#include "active_kernels.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace metasparse::cpu {

namespace {

int64_t sum_of(const uint8_t* bytes, int64_t count) {
  return std::accumulate(bytes, bytes + count, int64_t{0});
}

// The kernels of a mask, one row per row of the matrix.
struct KernelRows {
  KernelRows(const ActiveKernels& kernels, bool transpose)
      : transposed(transpose),
        rows(transpose ? kernels.in_channels : kernels.out_channels),
        sources(transpose ? kernels.out_channels : kernels.in_channels),
        count(kernels.count) {
    if (!transpose) {
      active = kernels.active;
      return;
    }
    active.resize(kernels.active.size());
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t c = 0; c < sources; ++c) {
        active[row * sources + c] = kernels.active[c * rows + row];
      }
    }
  }

  const uint8_t* row(int64_t r) const { return active.data() + r * sources; }

  // Index o * I + i of the kernel of a row and a source.
  int64_t kernel(int64_t row, int64_t source) const {
    return transposed ? source * rows + row : row * sources + source;
  }

  // As many chunks as the cache asks for, more where sums would be too long otherwise.
  int64_t chunks(const CsrLayout& layout) const {
    int64_t longest = 0;
    for (int64_t r = 0; r < rows; ++r) longest = std::max(longest, sum_of(row(r), sources));
    const int64_t sums =
        longest / layout.max_accumulation + (longest % layout.max_accumulation != 0);
    return std::max(layout.cache_chunks, sums);
  }

  bool transposed;
  int64_t rows, sources, count;
  std::vector<uint8_t> active;
};

// Sources begin .. end - 1 that satisfy `active`, into `kept`; returns how many. Every one is
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
  EntryWriter(KeptVector<int32_t>& source, KeptVector<int32_t>& weight_index,
              const KernelRows& kernels, const TapLayout& layout)
      : kernels_(kernels),
        taps_(static_cast<int32_t>(layout.taps())),
        kernel_size_(static_cast<int32_t>(layout.kernel_size)),
        tap_index_(layout.tap_index.data()) {
    // A register's worth of slack for readers.
    const auto size = static_cast<size_t>(kernels.count * taps_ + 16);
    source.resize(size);
    weight_index.resize(size);
    source_ = source.data();
    weight_index_ = weight_index.data();
  }

  int32_t end() const { return end_; }

  // The entries of `count` kernels of one row; returns how many entries these are.
  int32_t write(int64_t row, const int32_t* channels, int32_t count) {
    for (int32_t j = 0; j < count; ++j) {
      const int32_t weight = weight_of(row, channels[j]);
      for (int32_t tap = 0; tap < taps_; ++tap, ++end_) {
        source_[end_] = channels[j] * taps_ + tap;
        weight_index_[end_] = weight + tap_index_[tap];
      }
    }
    return count * taps_;
  }

  // The same for the kernels of two rows, entries alternating; returns the entries of either.
  int32_t write_pair(int64_t row, const int32_t* channels, int32_t count) {
    for (int32_t j = 0; j < count; ++j) {
      const int32_t first = weight_of(row, channels[j]), second = weight_of(row + 1, channels[j]);
      for (int32_t tap = 0; tap < taps_; ++tap, end_ += 2) {
        source_[end_] = source_[end_ + 1] = channels[j] * taps_ + tap;
        weight_index_[end_] = first + tap_index_[tap];
        weight_index_[end_ + 1] = second + tap_index_[tap];
      }
    }
    return count * taps_;
  }

 private:
  int32_t weight_of(int64_t row, int64_t source) const {
    return static_cast<int32_t>(kernels_.kernel(row, source)) * kernel_size_;
  }

  const KernelRows& kernels_;
  int32_t taps_, kernel_size_;
  const int32_t* tap_index_;
  int32_t* source_;
  int32_t* weight_index_;
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

PairedCsr::PairedCsr(const ActiveKernels& kernels, const CsrLayout& layout) {
  const KernelRows mask(kernels, layout.transposed);
  chunks = mask.chunks(layout);
  const std::vector<uint8_t> none(static_cast<size_t>(mask.sources), 0);
  std::vector<int32_t> kept(static_cast<size_t>(mask.sources) + 1);
  EntryWriter writer(source, weight_index, mask, layout.taps);
  rows.reserve(static_cast<size_t>(chunks * ((mask.rows + 1) / 2)));
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t begin = chunk * mask.sources / chunks;
    const int64_t end = (chunk + 1) * mask.sources / chunks;
    for (int64_t row = 0; row < mask.rows; row += 2) {
      const uint8_t* a = mask.row(row);
      const uint8_t* b = row + 1 < mask.rows ? mask.row(row + 1) : none.data();
      RowPair pair;
      pair.begin = writer.end();
      int32_t count = compact(begin, end, kept.data(), [&](int64_t c) { return a[c] & b[c]; });
      pair.both = writer.write_pair(row, kept.data(), count);
      count = compact(begin, end, kept.data(), [&](int64_t c) { return a[c] & ~b[c]; });
      pair.first = writer.write(row, kept.data(), count);
      count = compact(begin, end, kept.data(), [&](int64_t c) { return b[c] & ~a[c]; });
      pair.second = writer.write(row + 1, kept.data(), count);
      rows.push_back(pair);
    }
  }
  entries = writer.end();
}

DenseIndex::DenseIndex(const ActiveKernels& kernels, const CsrLayout& layout) {
  const KernelRows mask(kernels, layout.transposed);
  if (layout.taps.taps() != 1) throw std::logic_error("DenseIndex need a layout of one tap");
  chunks = mask.chunks(layout);
  entries = mask.rows * mask.sources;
  weight_index.reserve(static_cast<size_t>(entries));
  for (int64_t source = 0; source < mask.sources; ++source) {
    for (int64_t row = 0; row < mask.rows; ++row) {
      weight_index.push_back(
          static_cast<int32_t>(mask.kernel(row, source) * layout.taps.kernel_size) +
          layout.taps.tap_index[0]);
    }
  }
}

Csr::Csr(const ActiveKernels& kernels, const CsrLayout& layout) {
  const KernelRows mask(kernels, layout.transposed);
  chunks = mask.chunks(layout);
  std::vector<int32_t> kept(static_cast<size_t>(mask.sources) + 1);
  EntryWriter writer(source, weight_index, mask, layout.taps);
  row_begin.reserve(static_cast<size_t>(chunks * mask.rows + 1));
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t begin = chunk * mask.sources / chunks;
    const int64_t end = (chunk + 1) * mask.sources / chunks;
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
