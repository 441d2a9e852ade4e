#pragma once
// The softmax head of one task in its dual form: float64 vectors over (class, sample).
//
// The head W = W0 + A X minimises  (1/N) sum_i CE(W x_i, y_i) + lambda/2 |W - W0|^2,  A (C, N) its
// dual coefficients, X (N, D) the features. Nothing here sees D: a solve needs the scores X W0' and
// the Gram matrix K = X X' alone. Vectors are class-major, (C, stride), stride a multiple of
// kHeadLanes, with zeros beyond the N samples; K is (N, stride).
#include <cstdint>

#include "../runtime/isa.h"

namespace metasparse::cpu {

constexpr int64_t kHeadLanes = 8;

struct HeadTask {
  int64_t samples, stride, classes;
  double lambda;
  const double* gram;
  const int64_t* labels;
};

// The values of implicit/head.py's HeadStatus.
enum HeadState : int64_t { kHeadConverged = 0, kHeadIterations = 1, kHeadNotFinite = 3 };

struct HeadReport {
  int64_t iterations;
  double residual;  // norm of the objective's gradient over the root mean square of |x_i|
  int64_t status;
};

struct HeadKernels {
  // How much scratch either function below wants, in vectors of classes * stride doubles.
  int64_t scratch_vectors;
  // Newton-CG from A = 0: scores (in X W0', out X W') and dual (out A) are (C, stride).
  HeadReport (*solve)(const HeadTask& task, double tolerance, int64_t max_iterations,
                      double* scores, double* dual, double* scratch);
  // Implicit differentiation at weight W along Q. scores (X W') and direction U (X Q') are (C,
  // stride). Solves (lambda + S K) E = S U, S being the softmax's curvature over N; E X is then
  // what Q - lambda (H + lambda)^-1 Q amounts to. The gradient in the features is scores' (Q - E X)
  // + direction' W with the two coefficients that replace the inputs.
  void (*implicit)(const HeadTask& task, double tolerance, double* scores, double* direction,
                   double* solution, double* scratch);
};

}  // namespace metasparse::cpu

METASPARSE_PER_ISA(extern const HeadKernels softmax_head;)
