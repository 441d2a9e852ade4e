// The vector work of a conjugate-gradient step, against sums in double.
#include "../../csrc/cpu/kernels/cg.h"

#include "check.h"

namespace metasparse::check {

using namespace cpu;

namespace {

const CgKernels<float>& kernels(float) { return METASPARSE_COPY_FOR(active_isa(), cg).f32; }
const CgKernels<double>& kernels(double) { return METASPARSE_COPY_FOR(active_isa(), cg).f64; }

template <class T>
std::vector<double> copy(const Array<T>& a) {
  return {a.data(), a.data() + a.size()};
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

template <class T>
bool run_case(int64_t n, bool preconditioned, bool at_end, unsigned seed) {
  const auto& kernel = kernels(T());
  const std::string name =
      text("cg, n=%d%s, %s", int(n), preconditioned ? " with m" : "", kTypeName<T>);
  Random random(seed);
  const Array<T> p(n, at_end), q(n, at_end), m(n, at_end), x(n, at_end), r(n, at_end);
  for (const Array<T>* a : {&p, &q, &m, &x, &r}) a->fill([&] { return random.normal(); });
  const T* const diagonal = preconditioned ? m.data() : nullptr;
  const T alpha = static_cast<T>(random.normal()), beta = static_cast<T>(random.normal());
  const double terms = static_cast<double>(n);

  // The sums are of double, of the values that a step of type T has written.
  const auto old_p = copy(p), old_q = copy(q), old_x = copy(x), old_r = copy(r);
  const auto dots = kernel.curvature(p.data(), q.data(), n);
  const double got[] = {dots.pq, dots.pp, dots.qq};
  bool good = close("curvature", name, got,
                    {dot(old_p, old_q), dot(old_p, old_p), dot(old_q, old_q)}, 1e-13, terms);

  const auto residual = kernel.advance(alpha, p.data(), q.data(), diagonal, n, x.data(), r.data());
  std::vector<double> new_x = old_x, new_r = old_r;
  for (int64_t i = 0; i < n; ++i) {
    new_x[i] += alpha * old_p[i];
    new_r[i] -= alpha * old_q[i];
  }
  good &= close("x", name, x, new_x, kBound<T>, 1);
  good &= close("r", name, r, new_r, kBound<T>, 1);
  std::vector<double> z = copy(r);
  for (int64_t i = 0; preconditioned && i < n; ++i) z[i] *= m[i];
  const double norms[] = {residual.rz, residual.rr};
  good &=
      close("residual", name, norms, {dot(copy(r), z), dot(copy(r), copy(r))}, kBound<T>, terms);

  kernel.turn(beta, r.data(), diagonal, n, p.data());
  for (int64_t i = 0; i < n; ++i) z[i] += beta * old_p[i];
  return good & close("p", name, p, z, kBound<T>, 1);
}

}  // namespace

static Count run(int draws, unsigned seed) {
  std::vector<int64_t> sizes;
  for (int64_t n = 1; n <= 70; ++n) sizes.push_back(n);
  Random random(seed);
  for (int draw = 0; draw < draws; ++draw) sizes.push_back(random.whole(1, 5000));
  Count count;
  for (const int64_t n : sizes) {
    for (const bool preconditioned : {false, true}) {
      for (const bool at_end : {false, true}) {
        count.add(run_case<float>(n, preconditioned, at_end, seed));
        count.add(run_case<double>(n, preconditioned, at_end, seed));
      }
    }
  }
  return count;
}

static const Op op("cg", run);

}  // namespace metasparse::check
