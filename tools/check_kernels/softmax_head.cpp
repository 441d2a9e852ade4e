// The softmax head: that what comes back satisfies the equations in
// csrc/cpu/kernels/softmax_head.h.
#include "../../csrc/cpu/kernels/softmax_head.h"

#include "check.h"

namespace metasparse::check {

using namespace cpu;

namespace {

using Values = std::vector<double>;

const HeadKernels& kernels() { return METASPARSE_COPY_FOR(active_isa(), softmax_head); }

// A task in plain vectors (C, N), without what pads a row.
struct Problem {
  int64_t samples, classes, stride;
  double lambda;
  Values gram;  // (N, N)
  std::vector<int64_t> labels;

  Values times_gram(const Values& a) const {
    Values out(a.size());
    for (size_t e = 0; e < a.size(); ++e) {
      const int64_t row = static_cast<int64_t>(e) / samples, i = static_cast<int64_t>(e) % samples;
      for (int64_t j = 0; j < samples; ++j) {
        out[e] += a[row * samples + j] * gram[j * samples + i];
      }
    }
    return out;
  }
  Values softmax(const Values& scores) const {
    Values out(scores.size());
    for (int64_t i = 0; i < samples; ++i) {
      double most = scores[i], total = 0;
      for (int64_t c = 0; c < classes; ++c) most = std::max(most, scores[c * samples + i]);
      for (int64_t c = 0; c < classes; ++c) total += std::exp(scores[c * samples + i] - most);
      for (int64_t c = 0; c < classes; ++c) {
        out[c * samples + i] = std::exp(scores[c * samples + i] - most) / total;
      }
    }
    return out;
  }
  // (P - Y) / N
  Values errors(const Values& scores) const {
    Values out = softmax(scores);
    for (int64_t i = 0; i < samples; ++i) out[labels[i] * samples + i] -= 1;
    for (double& v : out) v /= static_cast<double>(samples);
    return out;
  }
  // S u, the softmax's curvature over N
  Values curved(const Values& scores, const Values& u) const {
    const Values p = softmax(scores);
    Values out(u.size());
    for (int64_t i = 0; i < samples; ++i) {
      double mean = 0;
      for (int64_t c = 0; c < classes; ++c) mean += p[c * samples + i] * u[c * samples + i];
      for (int64_t c = 0; c < classes; ++c) {
        const int64_t e = c * samples + i;
        out[e] = p[e] * (u[e] - mean) / static_cast<double>(samples);
      }
    }
    return out;
  }
  // sqrt <a, K a>: of a X in the head's own space
  double norm(const Values& a) const {
    const Values image = times_gram(a);
    double sum = 0;
    for (size_t e = 0; e < a.size(); ++e) sum += a[e] * image[e];
    return std::sqrt(std::max(0.0, sum));
  }
};

double largest(const Values& x) {
  double most = 0;
  for (double v : x) most = std::max(most, std::fabs(v));
  return most;
}

Values sum(double a, const Values& x, double b, const Values& y) {
  Values out(x.size());
  for (size_t e = 0; e < x.size(); ++e) out[e] = a * x[e] + b * y[e];
  return out;
}

Problem drawn_problem(Random& random) {
  Problem p;
  p.samples = random.whole(1, random.one_in(3) ? 40 : 12);
  p.classes = random.whole(1, 12);
  p.stride = (p.samples + kHeadLanes - 1) / kHeadLanes * kHeadLanes;
  p.lambda = std::pow(10, -2 + 3 * random.uniform());
  const int64_t features = random.whole(1, 30);
  Values x(static_cast<size_t>(p.samples * features));
  for (double& v : x) v = random.normal();
  for (int64_t i = 0; i < p.samples; ++i) {
    p.labels.push_back(random.whole(0, p.classes - 1));
    for (int64_t j = 0; j < p.samples; ++j) {
      double product = 0;
      for (int64_t d = 0; d < features; ++d) product += x[i * features + d] * x[j * features + d];
      p.gram.push_back(product);
    }
  }
  return p;
}

// (rows, stride) between guard pages, zero beyond the samples.
class Padded {
 public:
  Padded(const Problem& p, const Values& values, bool at_end)
      : samples_(p.samples),
        stride_(p.stride),
        memory_(static_cast<int64_t>(values.size()) / p.samples * p.stride, at_end) {
    memory_.fill([] { return 0.0; });
    for (size_t e = 0; e < values.size(); ++e) at(e) = values[e];
  }
  double* data() const { return memory_.data(); }
  Values values() const {
    Values out(static_cast<size_t>(memory_.size() / stride_ * samples_));
    for (size_t e = 0; e < out.size(); ++e) out[e] = at(e);
    return out;
  }

 private:
  double& at(size_t e) const {
    const auto place = static_cast<int64_t>(e);
    return memory_[place / samples_ * stride_ + place % samples_];
  }

  int64_t samples_, stride_;
  Array<double> memory_;
};

bool run_case(const Problem& p, bool at_end, unsigned seed) {
  const std::string name =
      text("softmax_head, N=%d C=%d lambda %g", int(p.samples), int(p.classes), p.lambda);
  Random random(seed);
  const auto drawn = [&] {
    Values out(static_cast<size_t>(p.classes * p.samples));
    for (double& v : out) v = random.normal();
    return out;
  };
  const Padded gram(p, p.gram, at_end);
  const Array<int64_t> labels(p.samples, at_end);
  for (int64_t i = 0; i < p.samples; ++i) labels[i] = p.labels[i];
  const HeadTask task = {p.samples, p.stride, p.classes, p.lambda, gram.data(), labels.data()};
  const Array<double> scratch(kernels().scratch_vectors * p.classes * p.stride, at_end);

  // The solution: scores are those of its dual, and the objective's gradient vanishes there.
  constexpr double kTolerance = 1e-9;
  const Values first = drawn(), nothing(first.size());
  const Padded scores(p, first, at_end), dual(p, nothing, at_end);
  for (int64_t e = 0; e < p.classes * p.stride; ++e) dual.data()[e] = NAN;
  scratch.poison();
  const HeadReport report =
      kernels().solve(task, kTolerance, 100, scores.data(), dual.data(), scratch.data());
  bool good =
      holds(report.status == kHeadConverged && report.residual <= kTolerance, "status", name);
  const Values at = scores.values(), a = dual.values();
  good &= close("scores", name, at, sum(1, first, 1, p.times_gram(a)), 1e-10, 1);
  double trace = 0;
  for (int64_t i = 0; i < p.samples; ++i) trace += p.gram[i * p.samples + i];
  const double unit = std::sqrt(trace / static_cast<double>(p.samples));
  const double gradient = p.norm(sum(1, p.errors(at), p.lambda, a)) / unit;
  good &= holds(gradient <= 10 * kTolerance, "gradient of the objective", name);

  // The derivative: (lambda + S K) E = S U, and the two coefficients of the features' gradient.
  const Values u = drawn();
  const Padded direction(p, u, at_end), solution(p, nothing, at_end);
  for (int64_t e = 0; e < p.classes * p.stride; ++e) solution.data()[e] = NAN;
  scratch.poison();
  kernels().implicit(task, 1e-12, scores.data(), direction.data(), solution.data(), scratch.data());
  const Values e = solution.values(), image = p.times_gram(e), rhs = p.curved(at, u);
  const Values residual = sum(1, sum(p.lambda, e, 1, p.curved(at, image)), -1, rhs);
  // In the head's own space. Where K is of low rank, <r, K r> cancels, and conjugate gradients see
  // no more than nine digits of the residual.
  const Values left = p.times_gram(residual), whole = p.times_gram(rhs);
  good &= close("equation of E", name, left, nothing, 2e-9, largest(whole) + 1e-6);
  good &= close("scores' coefficients", name, scores.values(),
                sum(-1 / p.lambda, p.errors(at), 0, nothing), 1e-12);
  const Values inner = sum(1 / p.lambda, image, -1 / p.lambda, u);
  return good & close("direction's coefficients", name, direction.values(), p.curved(at, inner),
                      1e-10, 1e-6 / p.lambda);
}

}  // namespace

static Count run(int draws, unsigned seed) {
  Random random(seed);
  Count count;
  for (int draw = 0; draw < draws; ++draw) {
    const Problem problem = drawn_problem(random);
    for (const bool at_end : {false, true}) count.add(run_case(problem, at_end, seed + draw));
  }
  return count;
}

static const Op op("softmax_head", run);

}  // namespace metasparse::check
