#pragma once
// Scalar products between the rows of two matrices, in float64: a b' without its transpose, and
// only half of it when b is a.
#include <cstdint>

#include "../runtime/isa.h"

namespace metasparse::cpu {

// Rows of a are taken in blocks of this many.
constexpr int64_t kRowBlock = 4;

template <class F>
struct RowProducts {
  // out[i][j] = <a_i, b_j> for i in [begin, end), j in [0, b_rows); begin is a multiple of
  // kRowBlock. a (.., size) and b (b_rows, size) are dense, the rows of out lie stride apart.
  void (*all)(const F* a, int64_t begin, int64_t end, const F* b, int64_t b_rows, int64_t size,
              double* out, int64_t stride);
  // Rows [begin, end) of the lower triangle of a a', up to the diagonal's block, and their mirror
  // image above it.
  void (*gram)(const F* a, int64_t begin, int64_t end, int64_t size, double* out, int64_t stride);
};

struct RowProductsTable {
  RowProducts<float> f32;
  RowProducts<double> f64;
};

}  // namespace metasparse::cpu

METASPARSE_PER_ISA(extern const RowProductsTable row_products;)
