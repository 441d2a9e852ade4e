// The gate of a pooled block, ReLU and max-pool, on stretches of a plane that stay in the
// first-level cache; and the way of such a stretch to the norm's side of the gate and back.
#pragma once

#include "norm_act_pool.h"
#include "vector_loop.h"

namespace metasparse::cpu::METASPARSE_ISA {

// A stretch of a plane that is processed at once, whole rows of windows that are few enough to stay
// in the first-level cache.
struct Band {
  int64_t in, in_size, out, out_size;
};

inline constexpr int64_t kBandValues = 1024;

inline int64_t out_height(const NormActPoolShape& s) { return s.height / 2; }
inline int64_t out_width(const NormActPoolShape& s) { return s.width / 2; }

// Window rows of a band.
inline int64_t band_rows(const NormActPoolShape& s) {
  const int64_t rows = kBandValues / (2 * s.width);
  return rows < 1 ? 1 : rows;
}

// Room for a band, on the side of the input, in whole cache lines; an odd last row joins the last
// band.
inline int64_t band_capacity(const NormActPoolShape& s) {
  return ((2 * band_rows(s) + 1) * s.width + 15) / 16 * 16;
}

template <class Body>
METASPARSE_INLINE void each_band_of_plane(const NormActPoolShape& s, Body&& body) {
  const int64_t rows = out_height(s), width = out_width(s), step = band_rows(s);
  for (int64_t row = 0; row < rows; row += step) {
    const int64_t end = row + step < rows ? row + step : rows;
    const int64_t in_end = end == rows ? s.height : 2 * end;
    body(Band{2 * row * s.width, (in_end - 2 * row) * s.width, row * width, (end - row) * width});
  }
}

// body(sample, band) over one channel.
template <class Body>
METASPARSE_INLINE void each_band(const NormActPoolShape& s, Body&& body) {
  for (int64_t n = 0; n < s.samples; ++n) {
    each_band_of_plane(s, [&](const Band& band) METASPARSE_BODY { body(n, band); });
  }
}

// Applies activation and pooling to a band of values and notes what passed. As in PyTorch the first
// maximum of a window wins, and a NaN wins over numbers.
template <class T>
METASPARSE_INLINE void challenge(Vec<T> rival, int place, Vec<T>& best, CodeVec<T>& code) {
  const CodeVec<T> wins = (rival > best) | (rival != rival);
  best = wins ? rival : best;
  code = wins ? CodeVec<T>{} + place : code;
}

template <class T>
void open_gate(const NormActPoolShape& s, const Band& band, const T* in, T* out, uint8_t* gate) {
  const int64_t width = out_width(s);
  for (int64_t row = 0; row < band.out_size; row += width, in += 2 * s.width) {
    each_vector<T>(width, [&](int64_t j, auto at, int) METASPARSE_BODY {
      Vec<T> upper[2], lower[2];
      at.load_pairs(in + 2 * j, upper);
      at.load_pairs(in + s.width + 2 * j, lower);
      Vec<T> best = upper[0];
      CodeVec<T> code{};
      challenge<T>(upper[1], 1, best, code);
      challenge<T>(lower[0], 2, best, code);
      challenge<T>(lower[1], 3, best, code);
      if (s.relu) close_negative<T>(best, code);
      at.store(out + row + j, best);
      at.store_codes(gate + row + j, code);
    });
  }
}

// out = the values that a gate lets through, 0 where it is closed: from x's size to y's.
template <class T>
void gather(const NormActPoolShape& s, const Band& band, const T* in, const uint8_t* gate, T* out) {
  const int64_t width = out_width(s);
  for (int64_t row = 0; row < band.out_size; row += width, in += 2 * s.width) {
    each_vector<T>(width, [&](int64_t j, auto at, int) METASPARSE_BODY {
      Vec<T> upper[2], lower[2];
      at.load_pairs(in + 2 * j, upper);
      at.load_pairs(in + s.width + 2 * j, lower);
      const CodeVec<T> code = at.load_codes(gate + row + j);
      Vec<T> value = code == 0 ? upper[0] : Vec<T>{};
      value = code == 1 ? upper[1] : value;
      value = code == 2 ? lower[0] : value;
      value = code == 3 ? lower[1] : value;
      at.store(out + row + j, value);
    });
  }
}

// The transpose of gather: from y's size to x's, 0 at all places that did not pass.
template <class T>
void scatter(const NormActPoolShape& s, const Band& band, const T* in, const uint8_t* gate,
             T* out) {
  const int64_t width = out_width(s);
  T* const end = out + band.in_size;
  for (int64_t row = 0; row < band.out_size; row += width, out += 2 * s.width) {
    each_vector<T>(width, [&](int64_t j, auto at, int) METASPARSE_BODY {
      const Vec<T> value = at.load(in + row + j);
      const CodeVec<T> code = at.load_codes(gate + row + j);
      const Vec<T> upper[2] = {code == 0 ? value : Vec<T>{}, code == 1 ? value : Vec<T>{}};
      const Vec<T> lower[2] = {code == 2 ? value : Vec<T>{}, code == 3 ? value : Vec<T>{}};
      at.store_pairs(out + 2 * j, upper);
      at.store_pairs(out + s.width + 2 * j, lower);
    });
    if (s.width % 2 == 1) out[s.width - 1] = out[2 * s.width - 1] = 0;
  }
  for (; out < end; ++out) *out = 0;
}

// ---- between memory and the norm ---------------------------------------------------------------
// The norm works on values of x's size when it comes first, and on gated ones, of y's size,
// otherwise. These four bring bands to the norm's side and back, by way of a buffer where they pass
// the gate and in place where they do not; the kernels below are then the same for both orders.

template <class T>
struct NormSide {
  const NormActPoolShape& shape;
  const uint8_t* gate;  // of this band
  const Band& band;

  bool gates_input() const { return !shape.norm_first; }
  bool gates_output() const { return shape.norm_first; }
  int64_t size() const { return shape.norm_first ? band.in_size : band.out_size; }

  // Values of x's kind.
  const T* enter(const T* x, T* buffer) const {
    if (!gates_input()) return x;
    gather(shape, band, x, gate, buffer);
    return buffer;
  }
  // Values of y's kind.
  const T* enter_back(const T* y, T* buffer) const {
    if (!gates_output()) return y;
    scatter(shape, band, y, gate, buffer);
    return buffer;
  }
  T* result(T* y, T* buffer) const { return gates_output() ? buffer : y; }
  void leave(const T* result, T* y) const {
    if (gates_output()) gather(shape, band, result, gate, y);
  }
  T* result_back(T* x, T* buffer) const { return gates_input() ? buffer : x; }
  void leave_back(const T* result, T* x) const {
    if (gates_input()) scatter(shape, band, result, gate, x);
  }
};

template <class T>
NormSide<T> norm_side(const NormActPoolShape& s, const Planes<const uint8_t>& gate, int64_t sample,
                      const Band& band) {
  return {s, gate.data + sample * gate.stride + band.out, band};
}

template <class T>
T* band_of_input(const Planes<T>& planes, int64_t sample, const Band& band) {
  return planes.data + sample * planes.stride + band.in;
}

template <class T>
T* band_of_output(const Planes<T>& planes, int64_t sample, const Band& band) {
  return planes.data + sample * planes.stride + band.out;
}

// The norm's values of a plane.
inline int64_t norm_plane(const NormActPoolShape& s) {
  return s.norm_first ? s.height * s.width : out_height(s) * out_width(s);
}

}  // namespace metasparse::cpu::METASPARSE_ISA
