// A block of products keeps its sums in registers while the rows stream by: each vector loaded
// serves a whole side of the block. The lanes of a sum are added up in float64.
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

}  // namespace

const RowProductsTable row_products = {{all<float>, gram<float>}, {all<double>, gram<double>}};

}  // namespace metasparse::cpu::METASPARSE_ISA
