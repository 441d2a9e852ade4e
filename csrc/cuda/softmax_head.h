#pragma once
// The exact softmax head of T tasks and its implicit gradient, one block per task.
#include <cuda_runtime.h>

#include <cstdint>

namespace metasparse::cuda {

struct HeadShape {
  int64_t tasks, samples, classes, size;  // T, N, C, D
};

// Shared memory of a task's block: its dual problem, N x N and some vectors of N C float64.
size_t softmax_head_shared_bytes(const HeadShape& shape);

// All tensors are dense; the report is (T).
template <class F>
struct HeadSolve {
  HeadShape shape;
  const F* features;      // (T, N, D)
  const int64_t* labels;  // (T, N)
  const F* center;        // (T, C, D)
  const F* lam;           // (T)
  double tolerance;
  int64_t max_iterations;
  F* weight;            // (T, C, D)
  int64_t* iterations;  // Newton steps
  double* residual;     // norm of the gradient over the root mean square of |x_i|
  int64_t* status;      // implicit/head.py's HeadStatus
};

// A task with a label outside [0, C), or whose lambda is not positive, has no answer: weight and
// residual are NaN, its status "not finite".
template <class F>
cudaError_t softmax_head(const HeadSolve<F>& call, cudaStream_t stream);

template <class F>
struct HeadGrad {
  HeadShape shape;
  const F *grad, *weight, *features;  // (T, C, D), (T, C, D), (T, N, D)
  const int64_t* labels;
  const F *center, *lam;
  double tolerance;  // of the linear solve
  F *features_grad, *center_grad, *lam_grad;
};

template <class F>
cudaError_t softmax_head_grad(const HeadGrad<F>& call, cudaStream_t stream);

}  // namespace metasparse::cuda
