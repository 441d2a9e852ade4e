// Products of small constant matrices with vectors of tiles.
//
// A matrix is a struct with `static constexpr double at(int row, int column)`, `rows` and
// `columns`. Its entries are folded at compile time: zeros vanish, ones and minus ones cost an
// addition.
#pragma once

#include "../vec.h"

namespace metasparse::cpu::METASPARSE_ISA {

template <class Matrix, int Row, int Column>
constexpr bool first_in_row() {
  for (int c = 0; c < Column; ++c) {
    if (Matrix::at(Row, c) != 0) return false;
  }
  return true;
}

template <class Matrix, class T, int Row, int Column>
METASPARSE_INLINE void add_term(Vec<T>& sum, Vec<T> value) {
  constexpr double k = Matrix::at(Row, Column);
  if constexpr (k != 0) {
    if constexpr (first_in_row<Matrix, Row, Column>()) {
      if constexpr (k == 1) {
        sum = value;
      } else if constexpr (k == -1) {
        sum = -value;
      } else {
        sum = broadcast(T(k)) * value;
      }
    } else if constexpr (k == 1) {
      sum += value;
    } else if constexpr (k == -1) {
      sum -= value;
    } else {
      sum = broadcast(T(k)) * value + sum;
    }
  }
}

template <class Matrix, class T, int Row, size_t... Column>
METASPARSE_INLINE Vec<T> row_times(const Vec<T>* in, int in_step, std::index_sequence<Column...>) {
  Vec<T> sum{};
  (add_term<Matrix, T, Row, static_cast<int>(Column)>(sum, in[Column * in_step]), ...);
  return sum;
}

template <class Matrix, class T, size_t... Row>
METASPARSE_INLINE void rows_times(const Vec<T>* in, int in_step, Vec<T>* out, int out_step,
                                  std::index_sequence<Row...>) {
  constexpr auto kColumns = std::make_index_sequence<Matrix::columns>();
  ((out[Row * out_step] = row_times<Matrix, T, static_cast<int>(Row)>(in, in_step, kColumns)), ...);
}

// out[r * out_step] = sum over c of Matrix(r, c) * in[c * in_step]; out must not overlap in.
template <class Matrix, class T>
METASPARSE_INLINE void multiply(const Vec<T>* in, int in_step, Vec<T>* out, int out_step) {
  rows_times<Matrix, T>(in, in_step, out, out_step, std::make_index_sequence<Matrix::rows>());
}

template <class Matrix>
struct Transposed {
  static constexpr int rows = Matrix::columns, columns = Matrix::rows;
  static constexpr double at(int row, int column) { return Matrix::at(column, row); }
};

}  // namespace metasparse::cpu::METASPARSE_ISA
