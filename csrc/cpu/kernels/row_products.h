#pragma once
// Scalar products between the rows of two matrices, in float64: a b' without its transpose, and
// only half of it when b is a. And sums of rows with float64 coefficients.
#include <cstdint>

#include "../runtime/isa.h"

namespace metasparse::cpu {

// Rows of a are taken in blocks of this many.
constexpr int64_t kRowBlock = 4;

// out[c] = base[c] + scale * sum over n of coefficients[c][n] b[n], in float64 and rounded once.
// base and out (rows, size) and b (b_rows, size) are dense, the rows of coefficients lie stride
// apart.
template <class F>
struct RowSum {
  const double* coefficients;
  int64_t stride, rows;
  const F* b;
  int64_t b_rows, size;
  double scale;
  const F* base;
  F* out;
};

template <class F>
struct RowProducts {
  // out[i][j] = <a_i, b_j> for i in [begin, end), j in [0, b_rows); begin is a multiple of
  // kRowBlock. a (.., size) and b (b_rows, size) are dense, the rows of out lie stride apart.
  void (*all)(const F* a, int64_t begin, int64_t end, const F* b, int64_t b_rows, int64_t size,
              double* out, int64_t stride);
  // Rows [begin, end) of the lower triangle of a a', up to the diagonal's block, and their mirror
  // image above it.
  void (*gram)(const F* a, int64_t begin, int64_t end, int64_t size, double* out, int64_t stride);
  // Columns [begin, end) of a sum. Gives the scalar product there of the sum, unrounded, and
  // from - to; 0 where these are null.
  double (*combine)(const RowSum<F>& sum, int64_t begin, int64_t end, const F* from, const F* to);
};

struct RowProductsTable {
  RowProducts<float> f32;
  RowProducts<double> f64;
};

}  // namespace metasparse::cpu

METASPARSE_PER_ISA(extern const RowProductsTable row_products;)
