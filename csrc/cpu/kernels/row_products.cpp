// A block of products keeps its sums in registers while the rows stream by: each vector loaded
// serves a whole side of the block. The lanes of a sum are added up in float64. Sums of rows widen
// what they read in registers.
#include "row_products.h"

namespace metasparse::cpu::METASPARSE_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kColumnBlock = 4;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kColumnBlock = 2;
#else
constexpr int kVectorBytes = 16;
constexpr int kColumnBlock = 2;
#endif

template <class F>
struct VectorOf {
  typedef F type __attribute__((vector_size(kVectorBytes), aligned(sizeof(F)), may_alias));
};

// out[r][c] = <a_r, b_c>
template <class F>
void multiply_block(const F* const (&a)[kRowBlock], const F* const (&b)[kColumnBlock], int64_t size,
                    double (&out)[kRowBlock][kColumnBlock]) {
  using Vec = typename VectorOf<F>::type;
  constexpr int kLanes = kVectorBytes / sizeof(F);
  Vec sums[kRowBlock][kColumnBlock] = {};
  int64_t k = 0;
  for (; k + kLanes <= size; k += kLanes) {
    Vec column[kColumnBlock];
    for (int c = 0; c < kColumnBlock; ++c) column[c] = *reinterpret_cast<const Vec*>(b[c] + k);
    for (int r = 0; r < kRowBlock; ++r) {
      const Vec row = *reinterpret_cast<const Vec*>(a[r] + k);
      for (int c = 0; c < kColumnBlock; ++c) sums[r][c] += row * column[c];
    }
  }
  for (int r = 0; r < kRowBlock; ++r) {
    for (int c = 0; c < kColumnBlock; ++c) {
      double total = 0;
      for (int lane = 0; lane < kLanes; ++lane) total += sums[r][c][lane];
      for (int64_t rest = k; rest < size; ++rest) total += double(a[r][rest]) * b[c][rest];
      out[r][c] = total;
    }
  }
}

// Blocks that hang over the edge repeat the last row and drop the result.
template <class F, int kRows>
void take_rows(const F* matrix, int64_t first, int64_t count, int64_t size,
               const F* (&rows)[kRows]) {
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = first + r < count ? first + r : count - 1;
    rows[r] = matrix + row * size;
  }
}

template <class F>
void all(const F* a, int64_t begin, int64_t end, const F* b, int64_t b_rows, int64_t size,
         double* out, int64_t stride) {
  for (int64_t i = begin; i < end; i += kRowBlock) {
    const F* rows[kRowBlock];
    take_rows(a, i, end, size, rows);
    for (int64_t j = 0; j < b_rows; j += kColumnBlock) {
      const F* columns[kColumnBlock];
      take_rows(b, j, b_rows, size, columns);
      double block[kRowBlock][kColumnBlock];
      multiply_block<F>(rows, columns, size, block);
      for (int r = 0; r < kRowBlock && i + r < end; ++r) {
        for (int c = 0; c < kColumnBlock && j + c < b_rows; ++c) {
          out[(i + r) * stride + j + c] = block[r][c];
        }
      }
    }
  }
}

template <class F>
void gram(const F* a, int64_t begin, int64_t end, int64_t size, double* out, int64_t stride) {
  for (int64_t i = begin; i < end; i += kRowBlock) {
    const F* rows[kRowBlock];
    take_rows(a, i, end, size, rows);
    const int64_t last = i + kRowBlock < end ? i + kRowBlock : end;
    for (int64_t j = 0; j < last; j += kColumnBlock) {
      const F* columns[kColumnBlock];
      take_rows(a, j, last, size, columns);
      double block[kRowBlock][kColumnBlock];
      multiply_block<F>(rows, columns, size, block);
      for (int r = 0; r < kRowBlock && i + r < end; ++r) {
        for (int c = 0; c < kColumnBlock && j + c <= i + r; ++c) {
          out[(i + r) * stride + j + c] = out[(j + c) * stride + i + r] = block[r][c];
        }
      }
    }
  }
}

typedef double Wide __attribute__((vector_size(kVectorBytes)));
constexpr int kWideLanes = kVectorBytes / sizeof(double);

template <class F>
struct NarrowOf {
  typedef F type
      __attribute__((vector_size(kWideLanes * sizeof(F)), aligned(sizeof(F)), may_alias));
};

template <class F>
Wide widened(const F* x) {
  return __builtin_convertvector(*reinterpret_cast<const typename NarrowOf<F>::type*>(x), Wide);
}

// kRowBlock rows from `row` and kVectors vectors from `column`.
template <class F, int kVectors>
double combine_block(const RowSum<F>& sum, int64_t row, int64_t column, const F* from,
                     const F* to) {
  using Narrow = typename NarrowOf<F>::type;
  const double* coefficients[kRowBlock];
  take_rows(sum.coefficients, row, sum.rows, sum.stride, coefficients);
  Wide sums[kRowBlock][kVectors] = {};
  for (int64_t n = 0; n < sum.b_rows; ++n) {
    Wide b[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      b[v] = widened(sum.b + n * sum.size + column + v * kWideLanes);
    }
    for (int r = 0; r < kRowBlock; ++r) {
      for (int v = 0; v < kVectors; ++v) sums[r][v] += coefficients[r][n] * b[v];
    }
  }
  double product = 0;
  for (int r = 0; r < kRowBlock && row + r < sum.rows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = (row + r) * sum.size + column + v * kWideLanes;
      const Wide value = widened(sum.base + at) + sum.scale * sums[r][v];
      *reinterpret_cast<Narrow*>(sum.out + at) = __builtin_convertvector(value, Narrow);
      if (from == nullptr) continue;
      const Wide products = value * (widened(from + at) - widened(to + at));
      for (int lane = 0; lane < kWideLanes; ++lane) product += products[lane];
    }
  }
  return product;
}

template <class F>
double combine_column(const RowSum<F>& sum, int64_t column, const F* from, const F* to) {
  double product = 0;
  for (int64_t row = 0; row < sum.rows; ++row) {
    double value = 0;
    for (int64_t n = 0; n < sum.b_rows; ++n) {
      value += sum.coefficients[row * sum.stride + n] * sum.b[n * sum.size + column];
    }
    const int64_t at = row * sum.size + column;
    value = sum.base[at] + sum.scale * value;
    sum.out[at] = static_cast<F>(value);
    if (from != nullptr) product += value * (double(from[at]) - to[at]);
  }
  return product;
}

template <class F>
double combine(const RowSum<F>& sum, int64_t begin, int64_t end, const F* from, const F* to) {
  double product = 0;
  int64_t column = begin;
  for (; column + kColumnBlock * kWideLanes <= end; column += kColumnBlock * kWideLanes) {
    for (int64_t row = 0; row < sum.rows; row += kRowBlock) {
      product += combine_block<F, kColumnBlock>(sum, row, column, from, to);
    }
  }
  for (; column + kWideLanes <= end; column += kWideLanes) {
    for (int64_t row = 0; row < sum.rows; row += kRowBlock) {
      product += combine_block<F, 1>(sum, row, column, from, to);
    }
  }
  for (; column < end; ++column) product += combine_column(sum, column, from, to);
  return product;
}

}  // namespace

const RowProductsTable row_products = {{all<float>, gram<float>, combine<float>},
                                       {all<double>, gram<double>, combine<double>}};

}  // namespace metasparse::cpu::METASPARSE_ISA
