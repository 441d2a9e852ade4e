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
    const int64_t column = f.left + x * f.spread_x;
    if (column < 0 || column >= f.columns) continue;
    row[column % f.phases * f.pitch + column / f.phases] = pixels[x];
  }
}

template <class T>
void fill(const Frame& f, const T* plane, T* to) {
  const bool whole = f.spread_x == 1 && f.left >= 0 && f.left + f.width <= f.columns;
  for (int64_t y = 0; y < f.height; ++y, plane += f.width) {
    const int64_t r = f.top + y * f.spread_y;
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

template <class T, int Count>
void correlate_unrolled(const Taps& taps, const T* frame, const T* weight, T* outputs) {
  constexpr int L = kLanes<T>;
  Vec<T> w[Count];
  METASPARSE_UNROLL
  for (int k = 0; k < Count; ++k) w[k] = broadcast<T>(weight[k]);
  for (int64_t r = 0; r < taps.rows; ++r, frame += taps.row_step, outputs += taps.columns) {
    for (int64_t c = 0; c < taps.columns; c += L) {
      Vec<T> sum{};
      METASPARSE_UNROLL
      for (int k = 0; k < Count; ++k) sum += w[k] * load_unaligned(frame + taps.offsets[k] + c);
      store_some(lanes_between(0, taps.columns - c, L), outputs + c, sum);
    }
  }
}

// Several rows share the broadcast of a weight.
template <class T, int Rows>
void correlate_rows(const Taps& taps, const T* frame, const T* weight, T* outputs) {
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

template <class T>
void correlate_looped(const Taps& taps, const T* frame, const T* weight, T* outputs) {
  constexpr int kTogether = 6;
  int64_t r = 0;
  for (; r + kTogether <= taps.rows; r += kTogether) {
    correlate_rows<T, kTogether>(taps, frame + r * taps.row_step, weight,
                                 outputs + r * taps.columns);
  }
  for (; r < taps.rows; ++r) {
    correlate_rows<T, 1>(taps, frame + r * taps.row_step, weight, outputs + r * taps.columns);
  }
}

template <class T>
void correlate(const Taps& taps, const T* frame, const T* weight, T* outputs) {
  if (taps.count == 9) return correlate_unrolled<T, 9>(taps, frame, weight, outputs);
  correlate_looped(taps, frame, weight, outputs);
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
    {fill<float>, correlate<float>, accumulate<float>, kLanes<float>},
    {fill<double>, correlate<double>, accumulate<double>, kLanes<double>}};

}  // namespace metasparse::cpu::METASPARSE_ISA
