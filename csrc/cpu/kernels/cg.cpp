// Each loop sees a stretch of kLanes numbers at a time. A dot product keeps kLanes partial sums,
// which the compiler holds in vectors.
#include "cg.h"

namespace metasparse::cpu::METASPARSE_ISA {
namespace {

constexpr int kLanes = 16;

struct Sum {
  double lanes[kLanes] = {};

  double total() const {
    double t = 0;
    for (int l = 0; l < kLanes; ++l) t += lanes[l];
    return t;
  }
};

template <class F>
CurvatureDots curvature(const F* p, const F* q, int64_t n) {
  Sum pq, pp, qq;
  int64_t i = 0;
  const auto add = [&](int64_t at, int lane) {
    const double a = p[at], b = q[at];
    pq.lanes[lane] += a * b;
    pp.lanes[lane] += a * a;
    qq.lanes[lane] += b * b;
  };
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) add(i + l, l);
  }
  for (; i < n; ++i) add(i, 0);
  return {pq.total(), pp.total(), qq.total()};
}

template <bool preconditioned, class F>
ResidualDots advance_with(F alpha, const F* __restrict p, const F* __restrict q,
                          const F* __restrict m, int64_t n, F* __restrict x, F* __restrict r) {
  Sum rz, rr;
  const auto step = [&](int64_t at, int lane) {
    x[at] += alpha * p[at];
    r[at] -= alpha * q[at];
    const double value = r[at];
    rr.lanes[lane] += value * value;
    if constexpr (preconditioned) rz.lanes[lane] += value * (m[at] * r[at]);
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) step(i + l, l);
  }
  for (; i < n; ++i) step(i, 0);
  return {preconditioned ? rz.total() : rr.total(), rr.total()};
}

template <class F>
ResidualDots advance(F alpha, const F* p, const F* q, const F* m, int64_t n, F* x, F* r) {
  return m == nullptr ? advance_with<false>(alpha, p, q, m, n, x, r)
                      : advance_with<true>(alpha, p, q, m, n, x, r);
}

template <class F>
void turn(F beta, const F* __restrict r, const F* __restrict m, int64_t n, F* __restrict p) {
  if (m == nullptr) {
    for (int64_t i = 0; i < n; ++i) p[i] = r[i] + beta * p[i];
  } else {
    for (int64_t i = 0; i < n; ++i) p[i] = m[i] * r[i] + beta * p[i];
  }
}

}  // namespace

const CgTable cg = {{curvature<float>, advance<float>, turn<float>},
                    {curvature<double>, advance<double>, turn<double>}};

}  // namespace metasparse::cpu::METASPARSE_ISA
