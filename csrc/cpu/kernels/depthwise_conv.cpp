#include "depthwise_conv.h"

#include "interleave.h"
#include "vec.h"

namespace metasparse::cpu::METASPARSE_ISA {
namespace {

// ---- frames ------------------------------------------------------------------------------------

// Vectors may write zeros behind a row's pixels: the pitch has room for them.
template <class T>
void fill_row(const Frame& f, const T* pixels, T* row) {
  constexpr int L = kLanes<T>;
  for (int64_t x = 0; x < f.width; x += L) {
    store_unaligned(row + f.left + x, load_some<T>(lanes_between(0, f.width - x, L), pixels + x));
  }
}

template <class T>
void fill_row_of_two_phases(const Frame& f, const T* pixels, T* row) {
  constexpr int L = kLanes<T>;
  T* const even = row + f.left % 2 * f.pitch + f.left / 2;
  T* const odd = row + (f.left + 1) % 2 * f.pitch + (f.left + 1) / 2;
  for (int64_t x = 0; x < f.width; x += 2 * L) {
    const Vec<T> in[2] = {load_some<T>(lanes_between(0, f.width - x, L), pixels + x),
                          load_some<T>(lanes_between(0, f.width - x - L, L), pixels + x + L)};
    Vec<T> out[2];
    deinterleave<T, 2>(in, out);
    store_unaligned(even + x / 2, out[0]);
    store_unaligned(odd + x / 2, out[1]);
  }
}

template <class T>
void fill_row_anyhow(const Frame& f, const T* pixels, T* row) {
  for (int64_t x = 0; x < f.width; ++x) {
    const int64_t column = f.left + x;
    if (column < 0 || column >= f.columns) continue;
    row[column % f.phases * f.pitch + column / f.phases] = pixels[x];
  }
}

template <class T>
void fill(const Frame& f, const T* plane, T* to) {
  const bool whole = f.left >= 0 && f.left + f.width <= f.columns;
  for (int64_t y = 0; y < f.height; ++y, plane += f.width) {
    const int64_t r = f.top + y;
    if (r < 0 || r >= f.rows) continue;
    T* const row = to + r * f.row_size();
    if (whole && f.phases == 1) {
      fill_row(f, plane, row);
    } else if (whole && f.phases == 2) {
      fill_row_of_two_phases(f, plane, row);
    } else {
      fill_row_anyhow(f, plane, row);
    }
  }
}

// ---- products ----------------------------------------------------------------------------------

// Rows of outputs, one row of the frame apart: a vector of the frame is read once for all the taps
// of a column of the kernel that see it.
template <class T, int Height, int Rows>
METASPARSE_INLINE void correlate_columns(const Taps& taps, const T* frame, const T* weight,
                                         T* outputs) {
  constexpr int L = kLanes<T>;
  const int64_t width = taps.count / Height;
  for (int64_t c = 0; c < taps.columns; c += L) {
    Vec<T> sum[Rows] = {};
    for (int64_t kx = 0; kx < width; ++kx) {
      Vec<T> w[Height];
      METASPARSE_UNROLL
      for (int ky = 0; ky < Height; ++ky) w[ky] = broadcast<T>(weight[ky * width + kx]);
      const T* const seen = frame + taps.offsets[kx] + c;
      METASPARSE_UNROLL
      for (int y = 0; y < Rows + Height - 1; ++y) {
        const Vec<T> v = load_unaligned(seen + y * taps.row_step);
        METASPARSE_UNROLL
        for (int ky = 0; ky < Height; ++ky) {
          if (y >= ky && y - ky < Rows) sum[y - ky] += w[ky] * v;
        }
      }
    }
    const Lanes lanes = lanes_between(0, taps.columns - c, L);
    METASPARSE_UNROLL
    for (int r = 0; r < Rows; ++r) store_some(lanes, outputs + r * taps.columns + c, sum[r]);
  }
}

// Rows of outputs any distance apart: they share the broadcast of a weight.
template <class T, int Rows>
METASPARSE_INLINE void correlate_rows(const Taps& taps, const T* frame, const T* weight,
                                      T* outputs) {
  constexpr int L = kLanes<T>;
  for (int64_t c = 0; c < taps.columns; c += L) {
    Vec<T> sum[Rows] = {};
    for (int64_t k = 0; k < taps.count; ++k) {
      const Vec<T> w = broadcast<T>(weight[k]);
      const T* const seen = frame + taps.offsets[k] + c;
      METASPARSE_UNROLL
      for (int r = 0; r < Rows; ++r) sum[r] += w * load_unaligned(seen + r * taps.row_step);
    }
    const Lanes lanes = lanes_between(0, taps.columns - c, L);
    METASPARSE_UNROLL
    for (int r = 0; r < Rows; ++r) store_some(lanes, outputs + r * taps.columns + c, sum[r]);
  }
}

// Height: of the kernel, where rows of outputs are one row of the frame apart, else 0.
template <class T, int Height, int Rows>
METASPARSE_INLINE void correlate_some(const Taps& taps, const T* frame, const T* weight,
                                      T* outputs) {
  if constexpr (Height > 0) {
    correlate_columns<T, Height, Rows>(taps, frame, weight, outputs);
  } else {
    correlate_rows<T, Rows>(taps, frame, weight, outputs);
  }
}

template <class T, int Height>
void correlate_all(const Taps& taps, const T* frame, const T* weight, T* outputs) {
  constexpr int kTogether = 6;
  int64_t r = 0;
  const auto next = [&](auto body, int rows) METASPARSE_BODY {
    body(taps, frame + r * taps.row_step, weight, outputs + r * taps.columns);
    r += rows;
  };
  while (r + kTogether <= taps.rows) next(correlate_some<T, Height, kTogether>, kTogether);
  while (r + 2 <= taps.rows) next(correlate_some<T, Height, 2>, 2);
  while (r < taps.rows) next(correlate_some<T, Height, 1>, 1);
}

template <class T>
void correlate(const Taps& taps, const T* frame, const T* weight, T* outputs) {
  switch (taps.shared_height) {
    case 3:
      return correlate_all<T, 3>(taps, frame, weight, outputs);
    case 5:
      return correlate_all<T, 5>(taps, frame, weight, outputs);
    case 7:
      return correlate_all<T, 7>(taps, frame, weight, outputs);
    default:
      return correlate_all<T, 0>(taps, frame, weight, outputs);
  }
}

// The sum over the taps of one class.
template <class T>
METASPARSE_INLINE Vec<T> sum_of_class(const Classes& classes, int64_t index, const T* frame,
                                      const T* weight) {
  Vec<T> sum{};
  for (int64_t k = classes.first[index]; k < classes.first[index + 1]; ++k) {
    sum += broadcast<T>(weight[k]) * load_unaligned(frame + classes.offsets[k]);
  }
  return sum;
}

// A row of a gradient whose columns are of classes x, x + 1, ... in turn.
template <class T>
void correlate_row(const Classes& classes, int64_t y, const T* frame, const T* weight, T* row) {
  constexpr int L = kLanes<T>;
  const int64_t stride = classes.stride_x, first = y * stride;
  for (int64_t n = 0; n * stride < classes.columns; n += L) {
    T* const to = row + n * stride;
    const int64_t left = classes.columns - n * stride;
    if (stride == 2) {
      const Vec<T> each[2] = {sum_of_class(classes, first, frame + n, weight),
                              sum_of_class(classes, first + 1, frame + n, weight)};
      Vec<T> out[2];
      interleave<T, 2>(each, out);
      store_some(lanes_between(0, left, L), to, out[0]);
      store_some(lanes_between(0, left - L, L), to + L, out[1]);
      continue;
    }
    for (int64_t x = 0; x < stride; ++x) {
      T numbers[L];
      store_unaligned(numbers, sum_of_class(classes, first + x, frame + n, weight));
      for (int64_t l = 0; l < L && l * stride + x < left; ++l) to[l * stride + x] = numbers[l];
    }
  }
}

template <class T>
void correlate_classes(const Classes& classes, const T* frame, const T* weight, T* outputs) {
  for (int64_t r = 0; r < classes.rows; ++r) {
    correlate_row(classes, r % classes.stride_y, frame + r / classes.stride_y * classes.row_step,
                  weight, outputs + r * classes.columns);
  }
}

// Lanes behind the last output read nothing: what lies there may be infinite, and zero times that
// is no zero.
template <class T, int Count>
void accumulate_some(const Taps& taps, const T* frame, const T* grad, T* sums, int64_t first) {
  constexpr int L = kLanes<T>;
  Vec<T> sum[Count];
  METASPARSE_UNROLL
  for (int k = 0; k < Count; ++k) sum[k] = load_unaligned(sums + (first + k) * L);
  const int64_t whole = taps.columns / L * L;
  const auto rest = lane_mask<T>(lanes_between(0, taps.columns - whole, L));
  for (int64_t r = 0; r < taps.rows; ++r, frame += taps.row_step, grad += taps.columns) {
    const T* const seen = frame;
    for (int64_t c = 0; c < whole; c += L) {
      const Vec<T> g = load_unaligned(grad + c);
      METASPARSE_UNROLL
      for (int k = 0; k < Count; ++k) {
        sum[k] += g * load_unaligned(seen + taps.offsets[first + k] + c);
      }
    }
    if (whole == taps.columns) continue;
    const Vec<T> g = load_masked(rest, grad + whole);
    METASPARSE_UNROLL
    for (int k = 0; k < Count; ++k) {
      sum[k] += g * load_masked(rest, seen + taps.offsets[first + k] + whole);
    }
  }
  METASPARSE_UNROLL
  for (int k = 0; k < Count; ++k) store_unaligned(sums + (first + k) * L, sum[k]);
}

template <class T>
void accumulate(const Taps& taps, const T* frame, const T* grad, T* sums) {
  constexpr int kTogether = 9;  // sums that fit the registers of every instruction set
  int64_t k = 0;
  for (; k + kTogether <= taps.count; k += kTogether) {
    accumulate_some<T, kTogether>(taps, frame, grad, sums, k);
  }
  for (; k < taps.count; ++k) accumulate_some<T, 1>(taps, frame, grad, sums, k);
}

}  // namespace

const DepthwiseTable depthwise_conv = {
    {fill<float>, correlate<float>, correlate_classes<float>, accumulate<float>, kLanes<float>},
    {fill<double>, correlate<double>, correlate_classes<double>, accumulate<double>,
     kLanes<double>}};

}  // namespace metasparse::cpu::METASPARSE_ISA
