#include "norm_act_pool.h"

#include "gate_bands.h"
#include "plane_packer.h"

namespace metasparse::cpu::METASPARSE_ISA {
namespace {

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

// ---- small planes are packed first -------------------------------------------------------------

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
