// Newton-CG for the softmax head, in the dual.
//
// With Z = X W' the scores and P their softmax, the objective's gradient in W is R X, where
// R = (P - Y)/N + lambda A, and a Newton step A + D solves (S K + lambda) D = -R with S the
// block-diagonal curvature (diag(p) - p p')/N. That matrix is self-adjoint and positive in the
// inner product <u, K v>, which is the inner product of the head's own space: conjugate gradients
// run in it, and every vector v is carried along with its image K v.
//
// Where samples repeat or outnumber the features K is singular, and rounding hides small v' K v
// behind a large v: to 1e-8 of |v|. So R itself, not R' K R alone, is brought to zero.
#include "softmax_head.h"

#include <math.h>

namespace metasparse::cpu::METASPARSE_ISA {
namespace {

// Narrower instruction sets split it into several registers.
typedef double Vec
    __attribute__((vector_size(kHeadLanes * sizeof(double)), aligned(sizeof(double)), may_alias));

// By reference: vectors in a call's arguments or result would depend on the instruction set's ABI.
const Vec& vec(const double* p) { return *reinterpret_cast<const Vec*>(p); }
Vec& vec(double* p) { return *reinterpret_cast<Vec*>(p); }

double sum(const Vec& v) {
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

double dot(const double* a, const double* b, int64_t size) {
  Vec even = {}, odd = {};
  int64_t i = 0;
  for (; i + 2 * kHeadLanes <= size; i += 2 * kHeadLanes) {
    even += vec(a + i) * vec(b + i);
    odd += vec(a + i + kHeadLanes) * vec(b + i + kHeadLanes);
  }
  if (i < size) even += vec(a + i) * vec(b + i);
  return sum(even + odd);
}

// y = x + a * y
void scale_add(const double* x, double a, double* y, int64_t size) {
  for (int64_t i = 0; i < size; i += kHeadLanes) vec(y + i) = vec(x + i) + a * vec(y + i);
}

// y += a * x
void add_scaled(double a, const double* x, double* y, int64_t size) {
  for (int64_t i = 0; i < size; i += kHeadLanes) vec(y + i) = vec(y + i) + a * vec(x + i);
}

void copy(const double* x, double* y, int64_t size) {
  for (int64_t i = 0; i < size; i += kHeadLanes) vec(y + i) = vec(x + i);
}

void fill(double value, double* y, int64_t size) {
  for (int64_t i = 0; i < size; i += kHeadLanes) vec(y + i) = value - Vec{};
}

// K v for kClasses rows of v: each vector of K is loaded once for all of them.
template <int kClasses>
void multiply_rows(const HeadTask& task, const double* v, double* image) {
  const int64_t stride = task.stride;
  for (int64_t i = 0; i < stride; i += kHeadLanes) {
    Vec sums[kClasses] = {};
    for (int64_t j = 0; j < task.samples; ++j) {
      const Vec column = vec(task.gram + j * stride + i);
      for (int c = 0; c < kClasses; ++c) sums[c] += column * v[c * stride + j];
    }
    for (int c = 0; c < kClasses; ++c) vec(image + c * stride + i) = sums[c];
  }
}

void multiply(const HeadTask& task, const double* v, double* image) {
  int64_t left = task.classes;
  for (; left >= 5; left -= 5, v += 5 * task.stride, image += 5 * task.stride) {
    multiply_rows<5>(task, v, image);
  }
  switch (left) {
    case 4:
      return multiply_rows<4>(task, v, image);
    case 3:
      return multiply_rows<3>(task, v, image);
    case 2:
      return multiply_rows<2>(task, v, image);
    case 1:
      return multiply_rows<1>(task, v, image);
  }
}

// out = S u + lambda p
void curve(const HeadTask& task, const double* probabilities, const double* u, double lambda,
           const double* p, double* out) {
  const int64_t stride = task.stride, size = stride * task.classes;
  const double share = 1.0 / task.samples;
  for (int64_t i = 0; i < stride; i += kHeadLanes) {
    Vec mean = {};
    for (int64_t k = i; k < size; k += stride) mean += vec(probabilities + k) * vec(u + k);
    for (int64_t k = i; k < size; k += stride) {
      vec(out + k) = share * vec(probabilities + k) * (vec(u + k) - mean) + lambda * vec(p + k);
    }
  }
}

// Probabilities of the scores, and their mean cross-entropy.
double evaluate(const HeadTask& task, const double* scores, double* probabilities) {
  const int64_t stride = task.stride, size = stride * task.classes;
  double loss = 0;
  for (int64_t i = 0; i < task.samples; ++i) {
    double top = scores[i], total = 0;
    for (int64_t k = i; k < size; k += stride) top = scores[k] > top ? scores[k] : top;
    for (int64_t k = i; k < size; k += stride) {
      total += probabilities[k] = exp(scores[k] - top);
    }
    const double share = 1 / total;
    for (int64_t k = i; k < size; k += stride) probabilities[k] *= share;
    loss += log(total) + top - scores[task.labels[i] * stride + i];
  }
  return loss / task.samples;
}

struct Pair {
  double *value, *image;  // v and K v
};

constexpr int64_t kScratchVectors = 11;
constexpr int kMaxTrials = 40;
constexpr double kArmijo = 1e-4;  // the part of the predicted fall that counts as one
constexpr double kLevel = 0.1;    // the part of the slope that counts as none
constexpr double kRounding = 0x1p-50;

// The sum of K's diagonal.
double trace(const HeadTask& task) {
  double sum = 0;
  for (int64_t i = 0; i < task.samples; ++i) sum += task.gram[i * task.stride + i];
  return sum;
}

// How much of v' K v rounding may hide.
double hidden(const HeadTask& task, const double* v) {
  return kRounding * trace(task) * dot(v, v, task.stride * task.classes);
}

// Conjugate gradients on (S K + lambda) d = rhs, to a relative residual. They leave of it what K
// does not see, and there 1/lambda is the inverse.
void solve_curvature(const HeadTask& task, const double* probabilities, Pair rhs, double tolerance,
                     Pair solution, double* scratch) {
  const int64_t size = task.stride * task.classes;
  const Pair r = rhs, p = {scratch, scratch + size};
  double* q = scratch + 2 * size;
  fill(0, solution.value, size);
  fill(0, solution.image, size);
  copy(r.value, p.value, size);
  copy(r.image, p.image, size);
  double squared = dot(r.value, r.image, size);
  const double goal = tolerance * tolerance * fmax(squared, hidden(task, r.value));
  if (!isfinite(squared)) fill(NAN, solution.value, size);
  // In exact arithmetic N (C - 1) steps end it; rounding may want a few more.
  for (int64_t step = 0; step < 2 * size; ++step) {
    if (squared <= hidden(task, r.value)) {
      add_scaled(1 / task.lambda, r.value, solution.value, size);
      add_scaled(1 / task.lambda, r.image, solution.image, size);
      curve(task, probabilities, r.image, 0, r.value, q);
      for (int64_t i = 0; i < size; i += kHeadLanes) vec(r.value + i) = -vec(q + i) / task.lambda;
      multiply(task, r.value, r.image);
      copy(r.value, p.value, size);
      copy(r.image, p.image, size);
      squared = dot(r.value, r.image, size);
    }
    if (!(squared > goal)) return;
    curve(task, probabilities, p.image, task.lambda, p.value, q);
    const double curvature = dot(q, p.image, size);
    if (!(curvature > 0)) return;
    const double alpha = squared / curvature;
    add_scaled(alpha, p.value, solution.value, size);
    add_scaled(alpha, p.image, solution.image, size);
    add_scaled(-alpha, q, r.value, size);
    multiply(task, r.value, r.image);
    const double previous = squared;
    squared = dot(r.value, r.image, size);
    scale_add(r.value, squared / previous, p.value, size);
    scale_add(r.image, squared / previous, p.image, size);
  }
}

// Where Newton's iteration stands; scores = offset + image throughout.
struct Iterate {
  double *dual, *image, *scores, *probabilities;
  double objective;
};

// Rounding may make the square of large coefficients that cancel negative.
double objective(const HeadTask& task, const Iterate& at, double loss) {
  const double squared = dot(at.dual, at.image, task.stride * task.classes);
  return loss + task.lambda / 2 * (squared < 0 ? 0 : squared);
}

// The sum of |x_i|^2 A_i^2.
double squared_terms(const HeadTask& task, const double* dual) {
  double sum = 0;
  for (int64_t i = 0; i < task.samples; ++i) {
    const double norm = task.gram[i * task.stride + i];
    for (int64_t k = i; k < task.stride * task.classes; k += task.stride) {
      sum += norm * dual[k] * dual[k];
    }
  }
  return sum;
}

// The size of the terms that scores are sums of: times rounding it is as far as the residual can
// fall.
double term_size(const HeadTask& task, const Iterate& at) {
  const double squares = dot(at.scores, at.scores, task.stride * task.classes);
  return sqrt((squares + trace(task) * squared_terms(task, at.dual)) / task.samples);
}

// The objective's derivative along a step with this image. Lambda multiplies the dual first: an
// enormous one has duals and images whose products are too small for a double.
double slope_along(const HeadTask& task, const Iterate& at, const double* image) {
  const int64_t size = task.stride * task.classes;
  const double share = 1.0 / task.samples;
  Vec sums = {};
  for (int64_t k = 0; k < size; k += kHeadLanes) {
    const Vec gradient = share * vec(at.probabilities + k) + task.lambda * vec(at.dual + k);
    sums += gradient * vec(image + k);
  }
  double slope = sum(sums);
  for (int64_t i = 0; i < task.samples; ++i) {
    slope -= share * image[task.labels[i] * task.stride + i];
  }
  return slope;
}

// A line search: moves along the step to where the objective has fallen and its slope is small.
// Returns false, with the dual as it was, where rounding hides any fall; `kept` is scratch. A fall
// alone (Armijo) is not enough: where the scores of two classes cross, a step that ends beyond sees
// no curvature, and Newton's iteration crosses there again and again.
bool search(const HeadTask& task, Pair step, double slope, double* kept, Iterate& at) {
  const int64_t size = task.stride * task.classes;
  copy(at.dual, kept, size);
  // The squared norm is a sum of terms of either sign, of this size.
  const double terms = task.lambda * squared_terms(task, at.dual);
  const double slack = kRounding * (1 + fabs(at.objective) + terms);
  // Gradients in the scores are at most 2 for a sample.
  const double slopes = 2 / sqrt(task.samples) + task.lambda * sqrt(dot(at.dual, at.dual, size));
  const double level =
      kLevel * fabs(slope) + kRounding * slopes * sqrt(dot(step.image, step.image, size));
  const double start = at.objective;
  double moved = 0;
  const auto move_to = [&](double length) {
    add_scaled(length - moved, step.value, at.dual, size);
    add_scaled(length - moved, step.image, at.image, size);
    add_scaled(length - moved, step.image, at.scores, size);
    moved = length;
    at.objective = objective(task, at, evaluate(task, at.scores, at.probabilities));
  };
  // The objective is convex: it is level between a length where it still falls and one beyond.
  double length = 1, shortest = 0, longest = INFINITY;
  for (int trial = 0; trial < kMaxTrials; ++trial) {
    move_to(length);
    const bool falls = at.objective <= start + kArmijo * length * slope + slack;
    const double ahead = slope_along(task, at, step.image);
    if (falls && fabs(ahead) <= level) return true;
    (falls && ahead < 0 ? shortest : longest) = length;
    length = isfinite(longest) ? (shortest + longest) / 2 : 2 * length;
  }
  if (shortest > 0) {
    move_to(shortest);
    return true;
  }
  copy(kept, at.dual, size);
  return false;
}

HeadReport solve(const HeadTask& task, double tolerance, int64_t max_iterations, double* scores,
                 double* dual, double* scratch) {
  const int64_t size = task.stride * task.classes;
  const auto vector = [&](int64_t index) { return scratch + index * size; };
  Iterate at = {dual, vector(0), scores, vector(1), 0};
  const Pair gradient = {vector(2), vector(3)}, residual = {vector(4), vector(5)};
  const Pair step = {vector(6), vector(7)};
  double* const inner = vector(8);

  const double scale = sqrt(trace(task) / task.samples);

  fill(0, at.dual, size);
  fill(0, at.image, size);
  fill(0, at.probabilities, size);
  at.objective = evaluate(task, at.scores, at.probabilities);
  HeadReport report = {0, 0, kHeadIterations};
  for (;; ++report.iterations) {
    const double share = 1.0 / task.samples;
    for (int64_t i = 0; i < size; i += kHeadLanes) {
      vec(gradient.value + i) = share * vec(at.probabilities + i) + task.lambda * vec(at.dual + i);
    }
    for (int64_t i = 0; i < task.samples; ++i) {
      gradient.value[task.labels[i] * task.stride + i] -= share;
    }
    multiply(task, gradient.value, gradient.image);
    const double squared = dot(gradient.value, gradient.image, size);
    const double least = hidden(task, gradient.value);
    // NaN must stay.
    const double norm = sqrt(squared < least ? least : squared);
    report.residual = norm == 0 ? 0 : norm / scale;
    if (!isfinite(report.residual) || !isfinite(at.objective)) {
      report.status = kHeadNotFinite;
      return report;
    }
    if (report.residual <= fmax(tolerance, kRounding * term_size(task, at))) {
      report.status = kHeadConverged;
      return report;
    }
    if (report.iterations == max_iterations) return report;

    for (int64_t i = 0; i < size; i += kHeadLanes) {
      vec(residual.value + i) = -vec(gradient.value + i);
      vec(residual.image + i) = -vec(gradient.image + i);
    }
    // The forcing term of Eisenstat and Walker that keeps Newton's quadratic convergence.
    const double forcing = report.residual < 0.1 ? report.residual : 0.1;
    solve_curvature(task, at.probabilities, residual, forcing, step, inner);
    const double slope = dot(gradient.value, step.image, size);
    if (!search(task, step, slope, residual.value, at)) return report;
  }
}

void implicit(const HeadTask& task, double tolerance, double* scores, double* direction,
              double* solution, double* scratch) {
  const int64_t size = task.stride * task.classes;
  double* const probabilities = scratch;
  const Pair rhs = {scratch + size, scratch + 2 * size};
  double* const image = scratch + 3 * size;
  fill(0, probabilities, size);
  evaluate(task, scores, probabilities);
  curve(task, probabilities, direction, 0, direction, rhs.value);
  multiply(task, rhs.value, rhs.image);
  solve_curvature(task, probabilities, rhs, tolerance, {solution, image}, scratch + 4 * size);

  const double share = 1.0 / task.samples;
  for (int64_t i = 0; i < size; i += kHeadLanes) {
    // minus the scores of (H + lambda)^-1 Q
    vec(image + i) = (vec(image + i) - vec(direction + i)) / task.lambda;
    vec(scores + i) = -share / task.lambda * vec(probabilities + i);
  }
  for (int64_t i = 0; i < task.samples; ++i) {
    scores[task.labels[i] * task.stride + i] += share / task.lambda;
  }
  curve(task, probabilities, image, 0, image, direction);
}

}  // namespace

const HeadKernels softmax_head = {kScratchVectors, solve, implicit};

}  // namespace metasparse::cpu::METASPARSE_ISA
