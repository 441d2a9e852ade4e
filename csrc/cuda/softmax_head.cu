// Newton-CG for the softmax head, in the dual; csrc/cpu/kernels/softmax_head.cpp has the
// mathematics, and this is the same algorithm with a block in the place of a thread.
//
// A vector holds a float64 per (class, sample), class-major. Thread k owns entries k, k + kThreads,
// ... of every vector: what an entry makes of the same entry of others needs no barrier. Barriers
// stand where a thread reads what another has written, and a sum over the block is one. Sums give
// all threads the same bits, so all take the same branches.
#include <math.h>

#include <limits>

#include "device.cuh"
#include "launch.h"
#include "reduce.cuh"
#include "softmax_head.h"

namespace metasparse::cuda {
namespace {

constexpr int kThreads = 256;
constexpr double kRounding = 0x1p-50;  // of the numbers that a sum of some terms is made of
constexpr int kVectors = 13;           // of the solve: scores, dual and eleven of the iteration

enum Status : int64_t { kConverged = 0, kIterations = 1, kNotFinite = 3 };

struct Pair {
  double *value, *image;  // v and K v, K the Gram matrix of the features
};

// The dual problem of one task.
class Problem {
 public:
  __device__ Problem(const HeadShape& shape, const int64_t* labels, double lambda)
      : samples(static_cast<int>(shape.samples)),
        classes(static_cast<int>(shape.classes)),
        entries(samples * classes),
        lambda(lambda),
        gram(reinterpret_cast<double*>(dynamic_shared())),
        labels_(labels),
        sum(*reinterpret_cast<BlockSum<kThreads>::Slots*>(gram + samples * samples +
                                                          kVectors * entries)) {}

  __device__ double* vector(int index) const { return gram + samples * samples + index * entries; }

  template <class Function>
  __device__ void for_each(const Function& f) const {
    for (int k = threadIdx.x; k < entries; k += kThreads) f(k);
  }

  __device__ double dot(const double* a, const double* b) {
    double own = 0;
    for_each([&](int k) { own += a[k] * b[k]; });
    return sum(own);
  }

  // y += a * x
  __device__ void add_scaled(double a, const double* x, double* y) const {
    for_each([&](int k) { y[k] += a * x[k]; });
  }

  // The sum of K's diagonal.
  __device__ double trace() {
    double own = 0;
    for (int i = threadIdx.x; i < samples; i += kThreads) own += gram[i * samples + i];
    return sum(own);
  }

  // How much of v' K v rounding may hide.
  __device__ double hidden(const double* v, double trace) { return kRounding * trace * dot(v, v); }

  // The sum of |x_i|^2 A_i^2.
  __device__ double squared_terms(const double* dual) {
    double own = 0;
    for_each([&](int k) {
      const int i = k % samples;
      own += gram[i * samples + i] * dual[k] * dual[k];
    });
    return sum(own);
  }

  // 1 where the entry is the sample's own class, else 0.
  __device__ double hot(int k) const { return labels_[k % samples] == k / samples ? 1.0 : 0.0; }

  // image = K v
  __device__ void multiply(const double* v, double* image) const {
    __syncthreads();
    for_each([&](int k) {
      const double* const row = v + k / samples * samples;
      double total = 0;
      for (int j = 0; j < samples; ++j) total += gram[j * samples + k % samples] * row[j];
      image[k] = total;
    });
  }

  // out = S u + lambda p, S the softmax's curvature (diag(p) - p p') / N.
  __device__ void curve(const double* probabilities, const double* u, double factor,
                        const double* p, double* out) const {
    __syncthreads();
    for_each([&](int k) {
      double mean = 0;
      for (int j = k % samples; j < entries; j += samples) mean += probabilities[j] * u[j];
      out[k] = probabilities[k] * (u[k] - mean) / samples + factor * p[k];
    });
  }

  // Probabilities of the scores, and their mean cross-entropy.
  __device__ double evaluate(const double* scores, double* probabilities) {
    __syncthreads();
    double loss = 0;
    for (int i = threadIdx.x; i < samples; i += kThreads) {
      double top = scores[i], total = 0;
      for (int k = i; k < entries; k += samples) top = scores[k] > top ? scores[k] : top;
      for (int k = i; k < entries; k += samples) {
        probabilities[k] = exp(scores[k] - top);
        total += probabilities[k];
      }
      for (int k = i; k < entries; k += samples) probabilities[k] /= total;
      loss += log(total) + top - scores[labels_[i] * samples + i];
    }
    return sum(loss) / samples;
  }

  // The objective's derivative along a step with this image.
  __device__ double slope_along(const double* probabilities, const double* dual,
                                const double* image) {
    double own = 0;
    for_each([&](int k) {
      own += ((probabilities[k] - hot(k)) / samples + lambda * dual[k]) * image[k];
    });
    return sum(own);
  }

  // Conjugate gradients on (S K + lambda) d = rhs, to a relative residual, in the inner product
  // <u, K v>. They leave of rhs what K does not see, and there 1/lambda is the inverse. Overwrites
  // rhs; scratch holds three vectors.
  __device__ void solve_curvature(const double* probabilities, Pair rhs, double tolerance,
                                  Pair solution, double* scratch) {
    const Pair p = {scratch, scratch + entries};
    double* const q = scratch + 2 * entries;
    const double diagonal = trace();
    double squared = dot(rhs.value, rhs.image);
    const double goal = tolerance * tolerance * fmax(squared, hidden(rhs.value, diagonal));
    const double start = isfinite(squared) ? 0.0 : std::numeric_limits<double>::quiet_NaN();
    for_each([&](int k) {
      solution.value[k] = start;
      solution.image[k] = 0;
      p.value[k] = rhs.value[k];
      p.image[k] = rhs.image[k];
    });
    // In exact arithmetic N (C - 1) steps end it; rounding may want a few more.
    for (int step = 0; step < 2 * entries; ++step) {
      if (squared <= hidden(rhs.value, diagonal)) {
        add_scaled(1 / lambda, rhs.value, solution.value);
        add_scaled(1 / lambda, rhs.image, solution.image);
        curve(probabilities, rhs.image, 0, rhs.value, q);
        for_each([&](int k) { rhs.value[k] = -q[k] / lambda; });
        multiply(rhs.value, rhs.image);
        for_each([&](int k) {
          p.value[k] = rhs.value[k];
          p.image[k] = rhs.image[k];
        });
        squared = dot(rhs.value, rhs.image);
      }
      if (!(squared > goal)) return;
      curve(probabilities, p.image, lambda, p.value, q);
      const double curvature = dot(q, p.image);
      if (!(curvature > 0)) return;
      const double alpha = squared / curvature;
      add_scaled(alpha, p.value, solution.value);
      add_scaled(alpha, p.image, solution.image);
      add_scaled(-alpha, q, rhs.value);
      multiply(rhs.value, rhs.image);
      const double previous = squared;
      squared = dot(rhs.value, rhs.image);
      const double beta = squared / previous;
      for_each([&](int k) {
        p.value[k] = rhs.value[k] + beta * p.value[k];
        p.image[k] = rhs.image[k] + beta * p.image[k];
      });
    }
  }

  const int samples, classes, entries;
  const double lambda;
  double* const gram;

 private:
  const int64_t* const labels_;

 public:
  BlockSum<kThreads> sum;
};

size_t shared_bytes(const HeadShape& shape) {
  const auto samples = static_cast<size_t>(shape.samples);
  const size_t numbers = samples * (samples + kVectors * static_cast<size_t>(shape.classes));
  return numbers * sizeof(double) + sizeof(BlockSum<kThreads>::Slots);
}

// out (rows of a, rows of b) = a b', in float64. A warp takes a row of a and four of b.
template <class F>
__device__ void row_products(const F* a, int a_rows, const F* b, int b_rows, int64_t size,
                             double* out) {
  constexpr int kRows = 4;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int groups = (b_rows + kRows - 1) / kRows;
  for (int job = warp; job < a_rows * groups; job += kThreads / kWarpSize) {
    const int row = job / groups, first = job % groups * kRows;
    const int rows = min(kRows, b_rows - first);
    double sums[kRows] = {};
    for (int64_t d = lane; d < size; d += kWarpSize) {
      const double value = a[row * size + d];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r < rows) sums[r] += value * b[(first + r) * size + d];
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const double total = warp_sum(sums[r]);
      if (lane == 0 && r < rows) out[row * b_rows + first + r] = total;
    }
  }
}

template <class F>
__device__ bool has_answer(Problem& problem, const int64_t* labels, F lam) {
  double wrong = lam > 0 ? 0 : 1;
  for (int i = threadIdx.x; i < problem.samples; i += kThreads) {
    wrong += labels[i] < 0 || labels[i] >= problem.classes;
  }
  return problem.sum(wrong) == 0;
}

// ---- the solve ---------------------------------------------------------------------------------

// Where Newton's iteration stands; scores = offset + image throughout.
struct Iterate {
  double *dual, *image, *scores, *probabilities;
  double objective;
};

struct Report {
  int64_t iterations;
  double residual;
  int64_t status;
};

// A line search: moves along the step to where the objective has fallen and its slope is small.
// Returns false, with the dual as it was, where rounding hides any fall; `kept` is scratch. See
// csrc/cpu/kernels/softmax_head.cpp.
__device__ bool search(Problem& problem, Pair step, double slope, double* kept, Iterate& at) {
  constexpr int kMaxTrials = 40;
  constexpr double kArmijo = 1e-4, kLevel = 0.1;
  // The squared norm is a sum of terms of either sign, of this size.
  const double terms = problem.lambda * problem.squared_terms(at.dual);
  const double slack = kRounding * (1 + fabs(at.objective) + terms);
  // Gradients in the scores are at most 2 for a sample.
  const double slopes = 2 / sqrt(static_cast<double>(problem.samples)) +
                        problem.lambda * sqrt(problem.dot(at.dual, at.dual));
  const double level =
      kLevel * fabs(slope) + kRounding * slopes * sqrt(problem.dot(step.image, step.image));
  const double start = at.objective;
  double moved = 0;
  problem.for_each([&](int k) { kept[k] = at.dual[k]; });
  const auto move_to = [&](double length) {
    problem.add_scaled(length - moved, step.value, at.dual);
    problem.add_scaled(length - moved, step.image, at.image);
    problem.add_scaled(length - moved, step.image, at.scores);
    moved = length;
    const double loss = problem.evaluate(at.scores, at.probabilities);
    const double squared = problem.dot(at.dual, at.image);
    at.objective = loss + problem.lambda / 2 * (squared < 0 ? 0 : squared);
  };
  // The objective is convex: it is level between a length where it still falls and one beyond.
  double length = 1, shortest = 0, longest = std::numeric_limits<double>::infinity();
  for (int trial = 0; trial < kMaxTrials; ++trial) {
    move_to(length);
    const bool falls = at.objective <= start + kArmijo * length * slope + slack;
    const double ahead = problem.slope_along(at.probabilities, at.dual, step.image);
    if (falls && fabs(ahead) <= level) return true;
    (falls && ahead < 0 ? shortest : longest) = length;
    length = isfinite(longest) ? (shortest + longest) / 2 : 2 * length;
  }
  if (shortest > 0) {
    move_to(shortest);
    return true;
  }
  problem.for_each([&](int k) { at.dual[k] = kept[k]; });
  return false;
}

// From the scores of the center (vector 0) to those of the minimiser, and its dual (vector 1).
__device__ Report solve(Problem& problem, double tolerance, int64_t max_iterations) {
  const auto vector = [&](int index) { return problem.vector(index); };
  Iterate at = {vector(1), vector(2), vector(0), vector(3), 0};
  const Pair gradient = {vector(4), vector(5)}, rhs = {vector(6), vector(7)};
  const Pair step = {vector(8), vector(9)};
  double* const inner = vector(10);

  const double trace = problem.trace(), scale = sqrt(trace / problem.samples);

  problem.for_each([&](int k) { at.dual[k] = at.image[k] = 0; });
  at.objective = problem.evaluate(at.scores, at.probabilities);
  Report report = {0, 0, kIterations};
  for (;; ++report.iterations) {
    problem.for_each([&](int k) {
      gradient.value[k] =
          (at.probabilities[k] - problem.hot(k)) / problem.samples + problem.lambda * at.dual[k];
    });
    problem.multiply(gradient.value, gradient.image);
    const double squared = problem.dot(gradient.value, gradient.image);
    const double least = problem.hidden(gradient.value, trace);
    // NaN must stay.
    const double norm = sqrt(squared < least ? least : squared);
    report.residual = norm == 0 ? 0 : norm / scale;
    if (!isfinite(report.residual) || !isfinite(at.objective)) {
      report.status = kNotFinite;
      return report;
    }
    // The terms that scores are sums of: their rounding is as far as the residual can fall.
    const double terms = problem.dot(at.scores, at.scores) + trace * problem.squared_terms(at.dual);
    const double rounding = kRounding * sqrt(terms / problem.samples);
    if (report.residual <= fmax(tolerance, rounding)) {
      report.status = kConverged;
      return report;
    }
    if (report.iterations == max_iterations) return report;

    problem.for_each([&](int k) {
      rhs.value[k] = -gradient.value[k];
      rhs.image[k] = -gradient.image[k];
    });
    // The forcing term of Eisenstat and Walker that keeps Newton's quadratic convergence.
    const double forcing = report.residual < 0.1 ? report.residual : 0.1;
    problem.solve_curvature(at.probabilities, rhs, forcing, step, inner);
    const double slope = problem.dot(gradient.value, step.image);
    if (!search(problem, step, slope, rhs.value, at)) return report;
  }
}

template <class F>
__global__ void __launch_bounds__(kThreads, 1)
    solve_head(const __grid_constant__ HeadSolve<F> call) {
  const HeadShape& shape = call.shape;
  const int64_t task = blockIdx.x, size = shape.size;
  const F* const features = call.features + task * shape.samples * size;
  const F* const center = call.center + task * shape.classes * size;
  F* const weight = call.weight + task * shape.classes * size;
  const int64_t* const labels = call.labels + task * shape.samples;
  Problem problem(shape, labels, call.lam[task]);

  Report report = {0, std::numeric_limits<double>::quiet_NaN(), kNotFinite};
  const bool answer = has_answer(problem, labels, call.lam[task]);
  if (answer) {
    row_products(features, problem.samples, features, problem.samples, size, problem.gram);
    row_products(center, problem.classes, features, problem.samples, size, problem.vector(0));
    __syncthreads();
    report = solve(problem, call.tolerance, call.max_iterations);
    __syncthreads();
  }

  const double* const dual = problem.vector(1);
  for (int64_t e = threadIdx.x; e < problem.classes * size; e += kThreads) {
    double value = answer ? center[e] : std::numeric_limits<double>::quiet_NaN();
    if (answer) {
      const double* const row = dual + e / size * problem.samples;
      for (int i = 0; i < problem.samples; ++i) value += row[i] * features[i * size + e % size];
    }
    weight[e] = static_cast<F>(value);
  }
  if (threadIdx.x == 0) {
    call.iterations[task] = report.iterations;
    call.residual[task] = report.residual;
    call.status[task] = report.status;
  }
}

// ---- the implicit gradient ---------------------------------------------------------------------

// With Q the gradient in the weight: (lambda + S K) E = S U, U = X Q', gives the center's gradient
// Q - E X; the features' is by_center' (Q - E X) + by_weight' W. In: scores of the weight (vector
// 0) and of Q (vector 1). Out: by_center in vector 0, by_weight in vector 1, E in vector 2.
__device__ void differentiate(Problem& problem, double tolerance) {
  double *const scores = problem.vector(0), *const direction = problem.vector(1);
  double *const probabilities = problem.vector(3), *const image = problem.vector(6);
  const Pair rhs = {problem.vector(4), problem.vector(5)};
  problem.evaluate(scores, probabilities);
  problem.curve(probabilities, direction, 0, direction, rhs.value);
  problem.multiply(rhs.value, rhs.image);
  problem.solve_curvature(probabilities, rhs, tolerance, {problem.vector(2), image},
                          problem.vector(7));
  problem.for_each([&](int k) {
    // minus the scores of (H + lambda)^-1 Q
    image[k] = (image[k] - direction[k]) / problem.lambda;
    scores[k] = (problem.hot(k) - probabilities[k]) / (problem.samples * problem.lambda);
  });
  problem.curve(probabilities, image, 0, image, direction);
}

template <class F>
__global__ void __launch_bounds__(kThreads, 1)
    differentiate_head(const __grid_constant__ HeadGrad<F> call) {
  const HeadShape& shape = call.shape;
  const int64_t task = blockIdx.x, size = shape.size;
  const int64_t samples = task * shape.samples * size, rows = task * shape.classes * size;
  const F *const features = call.features + samples, *const weight = call.weight + rows;
  const F *const center = call.center + rows, *const grad = call.grad + rows;
  const int64_t* const labels = call.labels + task * shape.samples;
  F *const features_grad = call.features_grad + samples, *const center_grad =
                                                             call.center_grad + rows;
  Problem problem(shape, labels, call.lam[task]);

  const bool answer = has_answer(problem, labels, call.lam[task]);
  if (answer) {
    row_products(features, problem.samples, features, problem.samples, size, problem.gram);
    row_products(weight, problem.classes, features, problem.samples, size, problem.vector(0));
    row_products(grad, problem.classes, features, problem.samples, size, problem.vector(1));
    __syncthreads();
    differentiate(problem, call.tolerance);
    __syncthreads();
  }

  // A thread takes whole columns, and so reads no center gradient but its own.
  const double *const by_center = problem.vector(0), *const by_weight = problem.vector(1);
  const double* const solution = problem.vector(2);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  double lam_grad = 0;
  for (int64_t d = threadIdx.x; d < size; d += kThreads) {
    for (int c = 0; c < problem.classes; ++c) {
      double value = answer ? grad[c * size + d] : nan;
      for (int i = 0; answer && i < problem.samples; ++i) {
        value -= solution[c * problem.samples + i] * features[i * size + d];
      }
      center_grad[c * size + d] = static_cast<F>(value);
      lam_grad += value * (static_cast<double>(center[c * size + d]) - weight[c * size + d]);
    }
    for (int i = 0; i < problem.samples; ++i) {
      double value = answer ? 0 : nan;
      for (int c = 0; answer && c < problem.classes; ++c) {
        const int k = c * problem.samples + i;
        value += by_center[k] * center_grad[c * size + d] + by_weight[k] * weight[c * size + d];
      }
      features_grad[i * size + d] = static_cast<F>(value);
    }
  }
  lam_grad = problem.sum(lam_grad) / problem.lambda;
  if (threadIdx.x == 0) call.lam_grad[task] = static_cast<F>(answer ? lam_grad : nan);
}

Launch shape_of(const HeadShape& shape) {
  return {{static_cast<unsigned>(shape.tasks), 1, 1}, {kThreads, 1, 1}, shared_bytes(shape), 1};
}

}  // namespace

size_t softmax_head_shared_bytes(const HeadShape& shape) {
  constexpr int64_t kReach = 1 << 15;  // keeps the sum within its type
  const bool within = shape.samples < kReach && shape.classes < kReach;
  return within ? shared_bytes(shape) : std::numeric_limits<size_t>::max();
}

template <class F>
cudaError_t softmax_head(const HeadSolve<F>& call, cudaStream_t stream) {
  if (call.shape.tasks == 0) return cudaSuccess;
  return launch(solve_head<F>, shape_of(call.shape), stream, call);
}

template <class F>
cudaError_t softmax_head_grad(const HeadGrad<F>& call, cudaStream_t stream) {
  if (call.shape.tasks == 0) return cudaSuccess;
  return launch(differentiate_head<F>, shape_of(call.shape), stream, call);
}

template cudaError_t softmax_head(const HeadSolve<float>&, cudaStream_t);
template cudaError_t softmax_head(const HeadSolve<double>&, cudaStream_t);
template cudaError_t softmax_head_grad(const HeadGrad<float>&, cudaStream_t);
template cudaError_t softmax_head_grad(const HeadGrad<double>&, cudaStream_t);

}  // namespace metasparse::cuda
