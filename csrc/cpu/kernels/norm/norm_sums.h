// The arithmetic of a batch norm on one channel: its statistics, and for each derivative the sums
// that it needs and the combination of its inputs that it is. None of it knows of a gate.
#pragma once

#include "norm_act_pool.h"
#include "vector_loop.h"

namespace metasparse::cpu::METASPARSE_ISA {

// ---- statistics --------------------------------------------------------------------------------

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

template <class T>
METASPARSE_INLINE double total_of(const Vec<T>* chains) {
  Sum<T> sum;
  sum.add(chains);
  return sum.total();
}

// Values [begin, begin + size) of the planes [first, last): few enough to be summed in T, and to be
// read again from a near cache.
struct Section {
  int64_t first, last, begin, size;
};

// body(section) for parts of `samples` planes: a few small planes, or a part of a large one.
template <class Body>
METASPARSE_INLINE void each_section(int64_t samples, int64_t plane, int64_t values, Body&& body) {
  const int64_t planes = plane < values ? values / plane : 1;
  for (int64_t n = 0; n < samples; n += planes) {
    const int64_t end = n + planes < samples ? n + planes : samples;
    for (int64_t begin = 0; begin < plane; begin += values) {
      body(Section{n, end, begin, plane - begin < values ? plane - begin : values});
    }
  }
}

// Two passes over a section: its mean, then distances to it, whose own mean corrects for the
// rounding of the first. first_read(at, n, i) and read_again(at, n, i) give values of plane n.
template <class T, class FirstRead, class ReadAgain>
METASPARSE_INLINE Moments moments_of(const Section& s, FirstRead&& first_read,
                                     ReadAgain&& read_again) {
  Vec<T> sum[2] = {};
  for (int64_t n = s.first; n < s.last; ++n) {
    each_vector<T>(s.size, [&](int64_t i, auto at, int chain)
                               METASPARSE_BODY { sum[chain] += first_read(at, n, s.begin + i); });
  }
  const double count = static_cast<double>((s.last - s.first) * s.size);
  const T pivot = static_cast<T>(total_of<T>(sum) / count);
  Vec<T> distances[2] = {}, squares[2] = {};
  for (int64_t n = s.first; n < s.last; ++n) {
    each_vector<T>(s.size, [&](int64_t i, auto at, int chain) METASPARSE_BODY {
      const Vec<T> distance = at.only(read_again(at, n, s.begin + i) - broadcast(pivot));
      distances[chain] += distance;
      squares[chain] += distance * distance;
    });
  }
  const double shift = total_of<T>(distances);
  return {count, pivot + shift / count, total_of<T>(squares) - shift * shift / count};
}

template <class T, class FirstRead, class ReadAgain>
METASPARSE_INLINE Moments channel_moments(int64_t samples, int64_t size, FirstRead&& first_read,
                                          ReadAgain&& read_again) {
  constexpr int64_t kValues = 4096;
  Moments all;
  each_section(samples, size, kValues, [&](const Section& section) METASPARSE_BODY {
    all.merge(moments_of<T>(section, first_read, read_again));
  });
  return all;
}

// y = scale (x - mean) + shift
template <class T>
struct Normalisation {
  T mean, scale, shift;

  METASPARSE_INLINE Vec<T> operator()(Vec<T> x) const {
    return (x - broadcast(mean)) * broadcast(scale) + broadcast(shift);
  }
};

template <class T>
Normalisation<T> normalisation(const NormActPoolForward<T>& job, const Moments& moments) {
  const double rstd = 1.0 / __builtin_sqrt(moments.squares / moments.count + job.eps);
  *job.mean = static_cast<T>(moments.mean);
  *job.rstd = static_cast<T>(rstd);
  return {*job.mean, static_cast<T>(job.weight * rstd), static_cast<T>(job.bias)};
}

// ---- sums --------------------------------------------------------------------------------------
// A Stretch sums in T over a stretch of values; the whole adds stretches up in double.

// The sum of a and of a (x - mean), of inputs x, a. Lanes past the end hold a = 0.
template <class T>
struct Projection {
  Sum<T> plain, centred;

  struct Stretch {
    Vec<T> plain[2] = {}, centred[2] = {};

    template <class At>
    METASPARSE_INLINE void add(At at, int chain, const Vec<T>* in, T mean) {
      plain[chain] += in[1];
      centred[chain] += at.only(in[1] * (in[0] - broadcast(mean)));
    }
  };

  METASPARSE_INLINE void add(const Stretch& stretch) {
    plain.add(stretch.plain);
    centred.add(stretch.centred);
  }
};

// The five sums of the double backward pass, of inputs x, v, h.
template <class T>
struct DoubleProjection {
  Projection<T> grad, dot;
  Sum<T> grad_dot;

  struct Stretch {
    Vec<T> h[2] = {}, h_x[2] = {}, v[2] = {}, v_x[2] = {}, h_v[2] = {};

    template <class At>
    METASPARSE_INLINE void add(At at, int chain, const Vec<T>* in, T mean) {
      const Vec<T> centred = at.only(in[0] - broadcast(mean));
      v[chain] += in[1];
      h[chain] += in[2];
      v_x[chain] += in[1] * centred;
      h_x[chain] += in[2] * centred;
      h_v[chain] += in[2] * in[1];
    }
  };

  METASPARSE_INLINE void add(const Stretch& stretch) {
    grad.plain.add(stretch.h);
    grad.centred.add(stretch.h_x);
    dot.plain.add(stretch.v);
    dot.centred.add(stretch.v_x);
    grad_dot.add(stretch.h_v);
  }
};

// ---- combinations ------------------------------------------------------------------------------

// constant + on_a a + on_x (x - mean), of inputs x, a.
template <class T>
struct Combination {
  T constant, on_a, on_x, mean;

  METASPARSE_INLINE void operator()(const Vec<T>* in, Vec<T>* out) const {
    out[0] = broadcast(on_a) * in[1] +
             (broadcast(on_x) * (in[0] - broadcast(mean)) + broadcast(constant));
  }
};

// on_h h + on_v v + on_x (x - mean) + constant, and y' of the same values, of inputs x, v, h.
template <class T>
struct DoubleCombination {
  T constant, on_h, on_v, on_x;
  Combination<T> y_dot;

  METASPARSE_INLINE void operator()(const Vec<T>* in, Vec<T>* out) const {
    out[0] = broadcast(on_h) * in[2] + broadcast(on_v) * in[1] +
             (broadcast(on_x) * (in[0] - broadcast(y_dot.mean)) + broadcast(constant));
    y_dot(in, out + 1);
  }
};

// ---- derivatives -------------------------------------------------------------------------------
// Each reads some planes twice, for its sums and for its results. A plane is of x's kind, before
// norm and gate, or of y's, behind them; those of x's kind come first. The kernels bring them to
// the norm's side of the gate and back.

template <class T, int In, int InOfX, int Out, int OutOfX>
struct OperandsOf {
  static constexpr int kIn = In, kInOfX = InOfX, kOut = Out, kOutOfX = OutOfX;

  Planes<const T> in[In];
  Planes<T> out[Out];
  Planes<const uint8_t> gate;
};

template <class T>
struct Backward {
  using Sums = Projection<T>;
  using Operands = OperandsOf<T, 2, 1, 1, 1>;
  const NormActPoolBackward<T>& job;

  const NormActPoolPoint<T>& at() const { return job.at; }
  Operands operands() const { return {{job.at.x, job.grad}, {job.x_grad}, job.at.gate}; }

  Combination<T> combination(const Sums& sums, double count) const {
    const double rstd = job.at.rstd, scale = job.at.weight * rstd;
    const double s1 = sums.plain.total(), s2 = rstd * sums.centred.total();
    *job.bias_grad = static_cast<T>(s1);
    *job.weight_grad = static_cast<T>(s2);
    return {static_cast<T>(-scale * s1 / count), static_cast<T>(scale),
            static_cast<T>(-scale * rstd * s2 / count), job.at.mean};
  }
};

// y' = scale (x' - m) + (w' - scale q) xhat + b', with m = mean x' and q = mean(x' xhat).
template <class T>
Combination<T> tangent_combination(const NormActPoolTangent<T>& job, double m, double q) {
  const double rstd = job.at.rstd, scale = job.at.weight * rstd;
  return {static_cast<T>(job.bias_dot - scale * m), static_cast<T>(scale),
          static_cast<T>((job.weight_dot - scale * q) * rstd), job.at.mean};
}

template <class T>
struct Tangent {
  using Sums = Projection<T>;
  using Operands = OperandsOf<T, 2, 2, 1, 0>;
  const NormActPoolTangent<T>& job;

  const NormActPoolPoint<T>& at() const { return job.at; }
  Operands operands() const { return {{job.at.x, job.x_dot}, {job.y_dot}, job.at.gate}; }

  Combination<T> combination(const Sums& sums, double count) const {
    return tangent_combination(job, sums.plain.total() / count,
                               job.at.rstd * sums.centred.total() / count);
  }
};

template <class T>
struct DoubleBackward {
  using Sums = DoubleProjection<T>;
  using Operands = OperandsOf<T, 3, 2, 2, 1>;
  const NormActPoolDoubleBackward<T>& job;

  const NormActPoolPoint<T>& at() const { return job.tangent.at; }
  Operands operands() const {
    return {{at().x, job.tangent.x_dot, job.grad}, {job.x_grad, job.tangent.y_dot}, at().gate};
  }

  DoubleCombination<T> combination(const Sums& sums, double count) const {
    const double rstd = at().rstd, scale = at().weight * rstd;
    const double s1 = sums.grad.plain.total(), s2 = rstd * sums.grad.centred.total();
    const double m = sums.dot.plain.total() / count, q = rstd * sums.dot.centred.total() / count;
    const double s2_dot = rstd * (sums.grad_dot.total() - m * s1 - q * s2);
    const double scale_dot = (job.tangent.weight_dot - scale * q) * rstd;
    *job.weight_grad = static_cast<T>(s2_dot);

    const double on_v = -scale * rstd * s2 / count;
    const double on_xhat = (scale * rstd * q * s2 - scale_dot * s2 - scale * s2_dot) / count;
    return {static_cast<T>(-scale_dot * s1 / count - on_v * m), static_cast<T>(scale_dot),
            static_cast<T>(on_v), static_cast<T>(on_xhat * rstd),
            tangent_combination(job.tangent, m, q)};
  }
};

}  // namespace metasparse::cpu::METASPARSE_ISA
