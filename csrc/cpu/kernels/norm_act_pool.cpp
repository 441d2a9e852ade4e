#include "norm_act_pool.h"

#include "gate_codes.h"

namespace metasparse::cpu::METASPARSE_ISA {
namespace {

// ---- loops over contiguous values --------------------------------------------------------------

// A vector of values in memory, or, at the end of a row, the first `count` values of one.
template <class T>
struct Whole {
  METASPARSE_INLINE Vec<T> load(const T* p) const { return load_unaligned(p); }
  METASPARSE_INLINE void store(T* p, Vec<T> v) const { store_unaligned(p, v); }
  METASPARSE_INLINE Vec<T> only(Vec<T> v) const { return v; }

  METASPARSE_INLINE CodeVec<T> load_codes(const uint8_t* p) const {
    return METASPARSE_ISA::load_codes<T>(p);
  }
  METASPARSE_INLINE void store_codes(uint8_t* p, CodeVec<T> codes) const {
    METASPARSE_ISA::store_codes<T>(p, codes);
  }

  // Twice as many values, those of even and of odd place apart.
  METASPARSE_INLINE void load_pairs(const T* p, Vec<T>* even_odd) const {
    const Vec<T> in[2] = {load_unaligned(p), load_unaligned(p + kLanes<T>)};
    deinterleave<T, 2>(in, even_odd);
  }
  METASPARSE_INLINE void store_pairs(T* p, const Vec<T>* even_odd) const {
    Vec<T> out[2];
    interleave<T, 2>(even_odd, out);
    store_unaligned(p, out[0]);
    store_unaligned(p + kLanes<T>, out[1]);
  }
};

template <class T>
struct Part {
  int64_t count;

  METASPARSE_INLINE Lanes first(int64_t values) const {
    return lanes_between(0, values, kLanes<T>);
  }
  METASPARSE_INLINE Vec<T> load(const T* p) const { return load_some(first(count), p); }
  METASPARSE_INLINE void store(T* p, Vec<T> v) const { store_some(first(count), p, v); }
  METASPARSE_INLINE Vec<T> only(Vec<T> v) const { return select(first(count), v, Vec<T>{}); }

  METASPARSE_INLINE CodeVec<T> load_codes(const uint8_t* p) const {
    return METASPARSE_ISA::load_codes<T>(p, static_cast<int>(count));
  }
  METASPARSE_INLINE void store_codes(uint8_t* p, CodeVec<T> codes) const {
    METASPARSE_ISA::store_codes<T>(p, codes, static_cast<int>(count));
  }

  METASPARSE_INLINE void load_pairs(const T* p, Vec<T>* even_odd) const {
    const Vec<T> in[2] = {load_some(first(2 * count), p),
                          load_some(first(2 * count - kLanes<T>), p + kLanes<T>)};
    deinterleave<T, 2>(in, even_odd);
  }
  METASPARSE_INLINE void store_pairs(T* p, const Vec<T>* even_odd) const {
    Vec<T> out[2];
    interleave<T, 2>(even_odd, out);
    store_some(first(2 * count), p, out[0]);
    store_some(first(2 * count - kLanes<T>), p + kLanes<T>, out[1]);
  }
};

#define METASPARSE_BODY __attribute__((always_inline))

// body(i, at, chain) for every vector of [0, count); the chains 0 and 1 are for sums, whose
// additions would otherwise wait for each other.
template <class T, class Body>
METASPARSE_INLINE void each_vector(int64_t count, Body&& body) {
  constexpr int kStep = kLanes<T>;
  int64_t i = 0;
  for (; i + 2 * kStep <= count; i += 2 * kStep) {
    body(i, Whole<T>(), 0);
    body(i + kStep, Whole<T>(), 1);
  }
  if (i + kStep <= count) {
    body(i, Whole<T>(), 0);
    i += kStep;
  }
  if (i < count) body(i, Part<T>{count - i}, 1);
}

// A sum over a channel: in T over a stretch of memory, in double over stretches.
template <class T>
struct Sum {
  double lane[kLanes<T>] = {};

  METASPARSE_INLINE void add(const Vec<T>* chains) {
    const Vec<T> v = chains[0] + chains[1];
    METASPARSE_UNROLL
    for (int l = 0; l < kLanes<T>; ++l) lane[l] += static_cast<double>(v[l]);
  }
  double total() const {
    double sum = 0;
    for (int l = 0; l < kLanes<T>; ++l) sum += lane[l];
    return sum;
  }
};

// ---- the gate ----------------------------------------------------------------------------------

// A stretch of a plane that is processed at once, small enough to stay in the first-level cache:
// whole rows of windows with pooling, any run of values without.
struct Band {
  int64_t in, in_size, out, out_size;
};

constexpr int64_t kBandValues = 1024;

bool gated(const NormActPoolShape& s) { return s.relu || s.pool; }

int64_t out_height(const NormActPoolShape& s) { return s.pool ? s.height / 2 : s.height; }
int64_t out_width(const NormActPoolShape& s) { return s.pool ? s.width / 2 : s.width; }

// Window rows of a band.
int64_t band_rows(const NormActPoolShape& s) {
  const int64_t rows = kBandValues / (2 * s.width);
  return rows < 1 ? 1 : rows;
}

// Room for a band, on the side of the input, in whole cache lines; an odd last row joins the last
// band.
int64_t band_capacity(const NormActPoolShape& s) {
  const int64_t values = s.pool ? (2 * band_rows(s) + 1) * s.width : kBandValues;
  return (values + 15) / 16 * 16;
}

template <class Body>
METASPARSE_INLINE void each_band_of_plane(const NormActPoolShape& s, Body&& body) {
  if (!s.pool) {
    const int64_t size = s.height * s.width;
    for (int64_t begin = 0; begin < size; begin += kBandValues) {
      const int64_t length = size - begin < kBandValues ? size - begin : kBandValues;
      body(Band{begin, length, begin, length});
    }
    return;
  }
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
// maximum of a window wins, a NaN wins over numbers, and ReLU passes NaN.
template <class T>
METASPARSE_INLINE void close_negative(bool relu, Vec<T>& value, CodeVec<T>& code) {
  if (!relu) return;
  const CodeVec<T> closed = value <= Vec<T>{};
  value = closed ? Vec<T>{} : value;
  code = closed ? CodeVec<T>{} + kClosed : code;
}

template <class T>
METASPARSE_INLINE void challenge(Vec<T> rival, int place, Vec<T>& best, CodeVec<T>& code) {
  const CodeVec<T> wins = (rival > best) | (rival != rival);
  best = wins ? rival : best;
  code = wins ? CodeVec<T>{} + place : code;
}

template <class T>
void open_gate(const NormActPoolShape& s, const Band& band, const T* in, T* out, uint8_t* gate) {
  if (!s.pool) {
    each_vector<T>(band.out_size, [&](int64_t i, auto at, int) METASPARSE_BODY {
      Vec<T> value = at.load(in + i);
      CodeVec<T> code{};
      close_negative<T>(s.relu, value, code);
      at.store(out + i, value);
      at.store_codes(gate + i, code);
    });
    return;
  }
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
      close_negative<T>(s.relu, best, code);
      at.store(out + row + j, best);
      at.store_codes(gate + row + j, code);
    });
  }
}

// out = the values that a gate lets through, 0 where it is closed: from x's size to y's.
template <class T>
void gather(const NormActPoolShape& s, const Band& band, const T* in, const uint8_t* gate, T* out) {
  if (!s.pool) {
    each_vector<T>(band.out_size, [&](int64_t i, auto at, int) METASPARSE_BODY {
      at.store(out + i, at.load_codes(gate + i) == 0 ? at.load(in + i) : Vec<T>{});
    });
    return;
  }
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
  if (!s.pool) {
    gather(s, band, in, gate, out);  // a diagonal of zeros and ones is its own transpose
    return;
  }
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

  bool gates_input() const { return !shape.norm_first && gated(shape); }
  bool gates_output() const { return shape.norm_first && gated(shape); }
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
NormSide<T> norm_side(const NormActPoolShape& s, const NormActPoolPoint<T>& at, int64_t sample,
                      const Band& band) {
  const uint8_t* gate = at.gate.data;
  return {s, gate == nullptr ? nullptr : gate + sample * at.gate.stride + band.out, band};
}

template <class T>
T* band_of_input(const Planes<T>& planes, int64_t sample, const Band& band) {
  return planes.data + sample * planes.stride + band.in;
}

template <class T>
T* band_of_output(const Planes<T>& planes, int64_t sample, const Band& band) {
  return planes.data + sample * planes.stride + band.out;
}

double norm_count(const NormActPoolShape& s) {
  const int64_t plane = s.norm_first ? s.height * s.width : out_height(s) * out_width(s);
  return static_cast<double>(s.samples * plane);
}

// ---- forward -----------------------------------------------------------------------------------

struct Moments {
  double count = 0, mean = 0, squares = 0;  // squares: sum of squared distances to the mean

  // Chan, Golub, LeVeque (1979): the moments of two groups together.
  void merge(const Moments& other) {
    const double total = count + other.count, gap = other.mean - mean;
    mean += gap * other.count / total;
    squares += other.squares + gap * gap * count * other.count / total;
    count = total;
  }
};

// Two passes over a few planes: their mean, then distances to it, whose own mean corrects for the
// rounding of the first.
template <class T>
Moments moments_of(const T* data, int64_t stride, int64_t planes, int64_t size) {
  Sum<T> values;
  for (int64_t p = 0; p < planes; ++p) {
    const T* plane = data + p * stride;
    Vec<T> sum[2] = {};
    each_vector<T>(size, [&](int64_t i, auto at, int chain)
                             METASPARSE_BODY { sum[chain] += at.load(plane + i); });
    values.add(sum);
  }
  const double count = static_cast<double>(planes * size);
  const T pivot = static_cast<T>(values.total() / count);
  Sum<T> distances, squares;
  for (int64_t p = 0; p < planes; ++p) {
    const T* plane = data + p * stride;
    Vec<T> sum[2] = {}, square[2] = {};
    each_vector<T>(size, [&](int64_t i, auto at, int chain) METASPARSE_BODY {
      const Vec<T> distance = at.only(at.load(plane + i) - broadcast(pivot));
      sum[chain] += distance;
      square[chain] += distance * distance;
    });
    distances.add(sum);
    squares.add(square);
  }
  const double shift = distances.total();
  return {count, pivot + shift / count, squares.total() - shift * shift / count};
}

template <class T>
Moments channel_moments(const Planes<const T>& values, int64_t samples, int64_t plane) {
  constexpr int64_t kGroupValues = 4096;  // read twice, the second time from a near cache
  const int64_t group = plane >= kGroupValues ? 1 : kGroupValues / plane;
  Moments all;
  for (int64_t n = 0; n < samples; n += group) {
    const int64_t planes = n + group < samples ? group : samples - n;
    all.merge(moments_of(values.data + n * values.stride, values.stride, planes, plane));
  }
  return all;
}

// out = scale (x - mean) + shift
template <class T>
METASPARSE_INLINE void normalise(int64_t count, const T* x, T mean, T scale, T shift, T* out) {
  each_vector<T>(count, [&](int64_t i, auto at, int) METASPARSE_BODY {
    at.store(out + i, (at.load(x + i) - broadcast(mean)) * broadcast(scale) + broadcast(shift));
  });
}

template <class T>
void forward_of_planes(const NormActPoolShape& s, const NormActPoolForward<T>& job, T* scratch) {
  const bool gate_first = gated(s) && !s.norm_first;
  if (gate_first) {  // y holds the gated values until they are normalised in place
    each_band(s, [&](int64_t n, const Band& band) METASPARSE_BODY {
      open_gate(s, band, band_of_input(job.x, n, band), band_of_output(job.y, n, band),
                band_of_output(job.gate, n, band));
    });
  }
  const Planes<const T> in = gate_first ? Planes<const T>{job.y.data, job.y.stride} : job.x;
  const int64_t plane = gate_first ? out_height(s) * out_width(s) : s.height * s.width;
  const Moments moments = channel_moments(in, s.samples, plane);
  const double rstd = 1.0 / __builtin_sqrt(moments.squares / moments.count + job.eps);
  const T mean = static_cast<T>(moments.mean), scale = static_cast<T>(job.weight * rstd),
          shift = static_cast<T>(job.bias);
  *job.mean = mean;
  *job.rstd = static_cast<T>(rstd);
  if (gate_first || !gated(s)) {
    for (int64_t n = 0; n < s.samples; ++n) {
      normalise(plane, in.data + n * in.stride, mean, scale, shift, job.y.data + n * job.y.stride);
    }
    return;
  }
  each_band(s, [&](int64_t n, const Band& band) METASPARSE_BODY {
    normalise(band.in_size, band_of_input(job.x, n, band), mean, scale, shift, scratch);
    open_gate(s, band, scratch, band_of_output(job.y, n, band), band_of_output(job.gate, n, band));
  });
}

// ---- derivatives -------------------------------------------------------------------------------

// out = constant + on_a a + on_x (x - mean)
template <class T>
struct Combination {
  T constant, on_a, on_x, mean;

  METASPARSE_INLINE Vec<T> operator()(Vec<T> a, Vec<T> x) const {
    return broadcast(on_a) * a + (broadcast(on_x) * (x - broadcast(mean)) + broadcast(constant));
  }
};

template <class T>
void combine(int64_t count, const Combination<T>& combination, const T* a, const T* x, T* out) {
  each_vector<T>(count, [&](int64_t i, auto at, int) METASPARSE_BODY {
    at.store(out + i, combination(at.load(a + i), at.load(x + i)));
  });
}

// The sum of a and of a (x - mean). Lanes past the end load a = 0.
template <class T>
struct Projection {
  Sum<T> plain, centred;

  void add(int64_t count, const T* a, const T* x, T mean) {
    Vec<T> sum[2] = {}, product[2] = {};
    each_vector<T>(count, [&](int64_t i, auto at, int chain) METASPARSE_BODY {
      const Vec<T> value = at.load(a + i);
      sum[chain] += value;
      product[chain] += at.only(value * (at.load(x + i) - broadcast(mean)));
    });
    plain.add(sum);
    centred.add(product);
  }
};

template <class T>
void backward_of_planes(const NormActPoolShape& s, const NormActPoolBackward<T>& job, T* scratch) {
  const NormActPoolPoint<T>& at = job.at;
  T *x_buffer = scratch, *grad_buffer = scratch + band_capacity(s);
  Projection<T> sums;
  each_band(s, [&](int64_t n, const Band& band) METASPARSE_BODY {
    const NormSide<T> side = norm_side(s, at, n, band);
    const T* x = side.enter(band_of_input(at.x, n, band), x_buffer);
    const T* h = side.enter_back(band_of_output(job.grad, n, band), grad_buffer);
    sums.add(side.size(), h, x, at.mean);
  });
  const double rstd = at.rstd, scale = at.weight * rstd, count = norm_count(s);
  const double s1 = sums.plain.total(), s2 = rstd * sums.centred.total();
  *job.bias_grad = static_cast<T>(s1);
  *job.weight_grad = static_cast<T>(s2);
  const Combination<T> x_grad{static_cast<T>(-scale * s1 / count), static_cast<T>(scale),
                              static_cast<T>(-scale * rstd * s2 / count), at.mean};
  each_band(s, [&](int64_t n, const Band& band) METASPARSE_BODY {
    const NormSide<T> side = norm_side(s, at, n, band);
    const T* x = side.enter(band_of_input(at.x, n, band), x_buffer);
    const T* h = side.enter_back(band_of_output(job.grad, n, band), grad_buffer);
    T* destination = band_of_input(job.x_grad, n, band);
    T* out = side.result_back(destination, grad_buffer);
    combine(side.size(), x_grad, h, x, out);
    side.leave_back(out, destination);
  });
}

// y' = scale (x' - m) + (w' - scale q) xhat + b', with m = mean x' and q = mean(x' xhat).
template <class T>
Combination<T> tangent_combination(const NormActPoolTangent<T>& job, double m, double q) {
  const double rstd = job.at.rstd, scale = job.at.weight * rstd;
  return {static_cast<T>(job.bias_dot - scale * m), static_cast<T>(scale),
          static_cast<T>((job.weight_dot - scale * q) * rstd), job.at.mean};
}

template <class T>
void tangent_of_planes(const NormActPoolShape& s, const NormActPoolTangent<T>& job, T* scratch) {
  const NormActPoolPoint<T>& at = job.at;
  T *x_buffer = scratch, *dot_buffer = scratch + band_capacity(s);
  Projection<T> sums;
  each_band(s, [&](int64_t n, const Band& band) METASPARSE_BODY {
    const NormSide<T> side = norm_side(s, at, n, band);
    const T* x = side.enter(band_of_input(at.x, n, band), x_buffer);
    const T* dot = side.enter(band_of_input(job.x_dot, n, band), dot_buffer);
    sums.add(side.size(), dot, x, at.mean);
  });
  const double count = norm_count(s);
  const Combination<T> y_dot =
      tangent_combination(job, sums.plain.total() / count, at.rstd * sums.centred.total() / count);
  each_band(s, [&](int64_t n, const Band& band) METASPARSE_BODY {
    const NormSide<T> side = norm_side(s, at, n, band);
    const T* x = side.enter(band_of_input(at.x, n, band), x_buffer);
    const T* dot = side.enter(band_of_input(job.x_dot, n, band), dot_buffer);
    T* destination = band_of_output(job.y_dot, n, band);
    T* out = side.result(destination, dot_buffer);
    combine(side.size(), y_dot, dot, x, out);
    side.leave(out, destination);
  });
}

// The five sums of the double backward pass, in one pass over its three inputs.
template <class T>
struct DoubleProjection {
  Projection<T> grad, dot;
  Sum<T> grad_dot;

  void add(int64_t count, const T* h, const T* v, const T* x, T mean) {
    Vec<T> sum_h[2] = {}, h_x[2] = {}, sum_v[2] = {}, v_x[2] = {}, h_v[2] = {};
    each_vector<T>(count, [&](int64_t i, auto at, int chain) METASPARSE_BODY {
      const Vec<T> centred = at.only(at.load(x + i) - broadcast(mean));
      const Vec<T> hi = at.load(h + i), vi = at.load(v + i);
      sum_h[chain] += hi;
      sum_v[chain] += vi;
      h_x[chain] += hi * centred;
      v_x[chain] += vi * centred;
      h_v[chain] += hi * vi;
    });
    grad.plain.add(sum_h);
    grad.centred.add(h_x);
    dot.plain.add(sum_v);
    dot.centred.add(v_x);
    grad_dot.add(h_v);
  }
};

// on_h h + on_v v + on_x (x - mean) + constant, and y' of the same values, in one pass.
template <class T>
struct DoubleCombination {
  T constant, on_h, on_v, on_x;
  Combination<T> y_dot;

  void apply(int64_t count, const T* h, const T* v, const T* x, T* x_grad, T* y) const {
    each_vector<T>(count, [&](int64_t i, auto at, int) METASPARSE_BODY {
      const Vec<T> hi = at.load(h + i), vi = at.load(v + i), xi = at.load(x + i);
      at.store(x_grad + i,
               broadcast(on_h) * hi + broadcast(on_v) * vi +
                   (broadcast(on_x) * (xi - broadcast(y_dot.mean)) + broadcast(constant)));
      at.store(y + i, y_dot(vi, xi));
    });
  }
};

template <class T>
void double_backward_of_planes(const NormActPoolShape& s, const NormActPoolDoubleBackward<T>& job,
                               T* scratch) {
  const NormActPoolPoint<T>& at = job.tangent.at;
  const int64_t room = band_capacity(s);
  T *x_buffer = scratch, *grad_buffer = x_buffer + room, *dot_buffer = grad_buffer + room;
  DoubleProjection<T> sums;
  each_band(s, [&](int64_t n, const Band& band) METASPARSE_BODY {
    const NormSide<T> side = norm_side(s, at, n, band);
    const T* x = side.enter(band_of_input(at.x, n, band), x_buffer);
    const T* v = side.enter(band_of_input(job.tangent.x_dot, n, band), dot_buffer);
    const T* h = side.enter_back(band_of_output(job.grad, n, band), grad_buffer);
    sums.add(side.size(), h, v, x, at.mean);
  });
  const double rstd = at.rstd, scale = at.weight * rstd, count = norm_count(s);
  const double s1 = sums.grad.plain.total(), s2 = rstd * sums.grad.centred.total();
  const double m = sums.dot.plain.total() / count, q = rstd * sums.dot.centred.total() / count;
  const double s2_dot = rstd * (sums.grad_dot.total() - m * s1 - q * s2);
  const double scale_dot = (job.tangent.weight_dot - scale * q) * rstd;
  *job.weight_grad = static_cast<T>(s2_dot);

  const double on_v = -scale * rstd * s2 / count;
  const double on_xhat = (scale * rstd * q * s2 - scale_dot * s2 - scale * s2_dot) / count;
  const DoubleCombination<T> combination{
      static_cast<T>(-scale_dot * s1 / count - on_v * m), static_cast<T>(scale_dot),
      static_cast<T>(on_v), static_cast<T>(on_xhat * rstd), tangent_combination(job.tangent, m, q)};
  each_band(s, [&](int64_t n, const Band& band) METASPARSE_BODY {
    const NormSide<T> side = norm_side(s, at, n, band);
    const T* x = side.enter(band_of_input(at.x, n, band), x_buffer);
    const T* v = side.enter(band_of_input(job.tangent.x_dot, n, band), dot_buffer);
    const T* h = side.enter_back(band_of_output(job.grad, n, band), grad_buffer);
    T* const x_grad = band_of_input(job.x_grad, n, band);
    T* const y_dot = band_of_output(job.tangent.y_dot, n, band);
    T *x_out = side.result_back(x_grad, grad_buffer), *y_out = side.result(y_dot, dot_buffer);
    combination.apply(side.size(), h, v, x, x_out, y_out);
    side.leave_back(x_out, x_grad);
    side.leave(y_out, y_dot);
  });
}

// ---- small planes ------------------------------------------------------------------------------
// Planes of a few vectors or less would spend the time on their ends, and a channel's planes often
// lie a power of two apart, in the same few sets of every cache. Without pooling, or when their
// height is even, they are copied to lie one below the other and are then one tall plane. Each copy
// asks for what comes next in memory, the plane of the next channel: no hardware foresees it.

constexpr int64_t kSmallPlane = 512;
constexpr int64_t kPackedValues = 1 << 16;

bool packs(const NormActPoolShape& s) {
  const int64_t plane = s.height * s.width;
  return s.samples > 1 && plane <= kSmallPlane && s.samples * plane <= kPackedValues &&
         (!s.pool || s.height % 2 == 0);
}

NormActPoolShape packed(NormActPoolShape s) {
  s.height *= s.samples;
  s.samples = 1;
  return s;
}

template <class T>
class Packer {
 public:
  Packer(const NormActPoolShape& shape, T* scratch)
      : shape_(shape), room_(scratch + buffers(packed(shape))) {}

  // Room for bands, before the packed planes.
  static int64_t buffers(const NormActPoolShape& s) { return 3 * band_capacity(s); }
  // Room for three tensors of x's size, two of y's and the gate.
  static int64_t values(const NormActPoolShape& s) { return 6 * s.samples * s.height * s.width; }

  Planes<const T> input(const Planes<const T>& x) { return copied(x, input_size()); }
  Planes<const T> output(const Planes<const T>& y) { return copied(y, output_size()); }
  Planes<const uint8_t> gate(const Planes<const uint8_t>& gate) {
    if (gate.data == nullptr) return gate;
    const Planes<uint8_t> room = gate_room();
    copy_codes(gate, room);
    return {room.data, 0};
  }
  NormActPoolPoint<T> point(NormActPoolPoint<T> at) {
    at.x = input(at.x);
    at.gate = gate(at.gate);
    return at;
  }

  Planes<T> input_room() { return take(input_size()); }
  Planes<T> output_room() { return take(output_size()); }
  Planes<uint8_t> gate_room() {
    return {reinterpret_cast<uint8_t*>(take(output_size()).data), output_size()};
  }

  void unpack_input(const Planes<T>& from, const Planes<T>& to) const {
    copy({from.data, from.stride}, to, input_size());
  }
  void unpack_output(const Planes<T>& from, const Planes<T>& to) const {
    copy({from.data, from.stride}, to, output_size());
  }
  void unpack_gate(const Planes<uint8_t>& from, const Planes<uint8_t>& to) const {
    if (to.data != nullptr) copy_codes({from.data, from.stride}, to);
  }

 private:
  int64_t input_size() const { return shape_.height * shape_.width; }
  int64_t output_size() const { return out_height(shape_) * out_width(shape_); }

  Planes<T> take(int64_t size) {
    T* const data = room_;
    room_ += shape_.samples * size;
    return {data, size};
  }
  Planes<const T> copied(const Planes<const T>& planes, int64_t size) {
    const Planes<T> room = take(size);
    copy(planes, room, size);
    return {room.data, 0};
  }
  void copy(const Planes<const T>& from, const Planes<T>& to, int64_t size) const {
    for (int64_t n = 0; n < shape_.samples; ++n) {
      const T* source = from.data + n * from.stride;
      T* target = to.data + n * to.stride;
      each_vector<T>(size, [&](int64_t i, auto at, int) METASPARSE_BODY {
        __builtin_prefetch(source + size + i);
        __builtin_prefetch(target + size + i, /*write*/ 1);
        at.store(target + i, at.load(source + i));
      });
    }
  }
  void copy_codes(const Planes<const uint8_t>& from, const Planes<uint8_t>& to) const {
    for (int64_t n = 0; n < shape_.samples; ++n) {
      const uint8_t* source = from.data + n * from.stride;
      uint8_t* target = to.data + n * to.stride;
      each_vector<T>(output_size(), [&](int64_t i, auto at, int) METASPARSE_BODY {
        at.store_codes(target + i, at.load_codes(source + i));
      });
    }
  }

  const NormActPoolShape& shape_;
  T* room_;
};

template <class T>
void forward(const NormActPoolShape& s, const NormActPoolForward<T>& job, T* scratch) {
  if (!packs(s)) return forward_of_planes(s, job, scratch);
  Packer<T> packer(s, scratch);
  NormActPoolForward<T> inner = job;
  inner.x = packer.input(job.x);
  inner.y = packer.output_room();
  if (gated(s)) inner.gate = packer.gate_room();
  forward_of_planes(packed(s), inner, scratch);
  packer.unpack_output(inner.y, job.y);
  packer.unpack_gate(inner.gate, job.gate);
}

template <class T>
void backward(const NormActPoolShape& s, const NormActPoolBackward<T>& job, T* scratch) {
  if (!packs(s)) return backward_of_planes(s, job, scratch);
  Packer<T> packer(s, scratch);
  NormActPoolBackward<T> inner = job;
  inner.at = packer.point(job.at);
  inner.grad = packer.output(job.grad);
  inner.x_grad = packer.input_room();
  backward_of_planes(packed(s), inner, scratch);
  packer.unpack_input(inner.x_grad, job.x_grad);
}

template <class T>
void tangent(const NormActPoolShape& s, const NormActPoolTangent<T>& job, T* scratch) {
  if (!packs(s)) return tangent_of_planes(s, job, scratch);
  Packer<T> packer(s, scratch);
  NormActPoolTangent<T> inner = job;
  inner.at = packer.point(job.at);
  inner.x_dot = packer.input(job.x_dot);
  inner.y_dot = packer.output_room();
  tangent_of_planes(packed(s), inner, scratch);
  packer.unpack_output(inner.y_dot, job.y_dot);
}

template <class T>
void double_backward(const NormActPoolShape& s, const NormActPoolDoubleBackward<T>& job,
                     T* scratch) {
  if (!packs(s)) return double_backward_of_planes(s, job, scratch);
  Packer<T> packer(s, scratch);
  NormActPoolDoubleBackward<T> inner = job;
  inner.tangent.at = packer.point(job.tangent.at);
  inner.tangent.x_dot = packer.input(job.tangent.x_dot);
  inner.tangent.y_dot = packer.output_room();
  inner.grad = packer.output(job.grad);
  inner.x_grad = packer.input_room();
  double_backward_of_planes(packed(s), inner, scratch);
  packer.unpack_output(inner.tangent.y_dot, job.tangent.y_dot);
  packer.unpack_input(inner.x_grad, job.x_grad);
}

int64_t scratch_size(const NormActPoolShape& s) {
  if (!packs(s)) return Packer<float>::buffers(s);
  return Packer<float>::buffers(packed(s)) + Packer<float>::values(s);
}

}  // namespace

extern const NormActPoolKernels<float> norm_act_pool_float = {
    scratch_size, forward<float>, backward<float>, tangent<float>, double_backward<float>};
extern const NormActPoolKernels<double> norm_act_pool_double = {
    scratch_size, forward<double>, backward<double>, tangent<double>, double_backward<double>};

}  // namespace metasparse::cpu::METASPARSE_ISA
