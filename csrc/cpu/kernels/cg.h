#pragma once
// The vector work of one conjugate-gradient step, on a chunk of one task's P numbers. Dot products
// are summed in float64; the caller adds up the chunks in order, so that a result does not depend
// on the number of threads.
#include <cstdint>

#include "../runtime/isa.h"

namespace metasparse::cpu {

struct CurvatureDots {
  double pq, pp, qq;
};

struct ResidualDots {
  double rz, rr;
};

template <class F>
struct CgKernels {
  // p'q, p'p, q'q
  CurvatureDots (*curvature)(const F* p, const F* q, int64_t n);
  // x += alpha p and r -= alpha q, then r'z and r'r; z = m r, or r where m is null.
  ResidualDots (*advance)(F alpha, const F* p, const F* q, const F* m, int64_t n, F* x, F* r);
  // p = z + beta p
  void (*turn)(F beta, const F* r, const F* m, int64_t n, F* p);
};

struct CgTable {
  CgKernels<float> f32;
  CgKernels<double> f64;
};

}  // namespace metasparse::cpu

METASPARSE_PER_ISA(extern const CgTable cg;)
