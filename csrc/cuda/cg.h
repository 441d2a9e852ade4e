#pragma once
// One step of conjugate gradients for T systems of size P, in place.
#include <cuda_runtime.h>

#include <cstdint>

namespace metasparse::cuda {

// Vectors are (T, P) and dense; scalars are (T). Only tasks whose status is "running" change.
template <class F>
struct CgSystem {
  F *x, *r, *p;              // iterate, residual, direction
  const F *q, *diagonal;     // A p; the preconditioner's diagonal, or null
  double *rz, *rr;           // r'Mr and r'r
  const double* limit;       // converged when r'r is at most this
  int64_t *status, *counts;  // the states of implicit/cg.py's CGStatus; steps taken
  int64_t tasks, size;
};

// How much device memory a step wants.
int64_t cg_step_workspace(int64_t tasks);

template <class F>
cudaError_t cg_step(const CgSystem<F>& system, void* workspace, cudaStream_t stream);

}  // namespace metasparse::cuda
