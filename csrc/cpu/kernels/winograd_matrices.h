// Winograd's minimal filtering F(M, 3): M neighbouring outputs of a filter of 3 taps from M + 2
// multiplications instead of 3 M,
//
//   y = A' [ (G g) * (B' d) ],   * elementwise, d the M + 2 inputs, g the 3 taps.
//
// It is polynomial multiplication: B' and A' evaluate and interpolate at the points 0, 1, -1, 2,
// -2, 1/2 (as many as M needs) and infinity. Rows of G and B' of one point may be scaled against
// each other; here B' has integers, so that the transform of the images, which is done most often,
// is cheap and exact. Points far from one make the rows uneven in size, which is where rounding
// errors grow: about 2e-7 of the largest output for M = 2, 1e-6 for M = 3, up to 5e-6 for M = 4 and
// 5 (float32).
//
// In two dimensions the same is applied to rows, then to columns: (M + 2)^2 products for M^2
// outputs.
#pragma once

#include "vec.h"

namespace metasparse::cpu::METASPARSE_ISA {

template <int M>
struct Winograd;

template <>
struct Winograd<2> {
  static constexpr double kOutput[2][4] = {{1, 1, 1, 0}, {0, 1, -1, 1}};
  static constexpr double kWeight[4][3] = {{-1, 0, 0}, {.5, .5, .5}, {.5, -.5, .5}, {0, 0, 1}};
  static constexpr double kInput[4][4] = {
      {-1, 0, 1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, -1, 0, 1}};
};

template <>
struct Winograd<3> {
  static constexpr double kOutput[3][5] = {{1, 1, 1, 1, 0}, {0, 1, -1, 2, 0}, {0, 1, 1, 4, 1}};
  static constexpr double kWeight[5][3] = {{1. / 2, 0, 0},
                                           {-1. / 2, -1. / 2, -1. / 2},
                                           {-1. / 6, 1. / 6, -1. / 6},
                                           {1. / 6, 1. / 3, 2. / 3},
                                           {0, 0, 1}};
  static constexpr double kInput[5][5] = {
      {2, -1, -2, 1, 0}, {0, -2, -1, 1, 0}, {0, 2, -3, 1, 0}, {0, -1, 0, 1, 0}, {0, 2, -1, -2, 1}};
};

template <>
struct Winograd<4> {
  static constexpr double kOutput[4][6] = {
      {1, 1, 1, 1, 1, 0}, {0, 1, -1, 2, -2, 0}, {0, 1, 1, 4, 4, 0}, {0, 1, -1, 8, -8, 1}};
  static constexpr double kWeight[6][3] = {{1. / 4, 0, 0},
                                           {-1. / 6, -1. / 6, -1. / 6},
                                           {-1. / 6, 1. / 6, -1. / 6},
                                           {1. / 24, 1. / 12, 1. / 6},
                                           {1. / 24, -1. / 12, 1. / 6},
                                           {0, 0, 1}};
  static constexpr double kInput[6][6] = {{4, 0, -5, 0, 1, 0},  {0, -4, -4, 1, 1, 0},
                                          {0, 4, -4, -1, 1, 0}, {0, -2, -1, 2, 1, 0},
                                          {0, 2, -1, -2, 1, 0}, {0, 4, 0, -5, 0, 1}};
};

template <>
struct Winograd<5> {
  static constexpr double kOutput[5][7] = {{1, 1, 1, 1, 1, 1, 0},
                                           {0, 1, -1, 2, -2, 1. / 2, 0},
                                           {0, 1, 1, 4, 4, 1. / 4, 0},
                                           {0, 1, -1, 8, -8, 1. / 8, 0},
                                           {0, 1, 1, 16, 16, 1. / 16, 1}};
  static constexpr double kWeight[7][3] = {{-1. / 4, 0, 0},
                                           {-1. / 6, -1. / 6, -1. / 6},
                                           {1. / 18, -1. / 18, 1. / 18},
                                           {1. / 72, 1. / 36, 1. / 18},
                                           {-1. / 120, 1. / 60, -1. / 30},
                                           {32. / 45, 16. / 45, 8. / 45},
                                           {0, 0, 1. / 2}};
  static constexpr double kInput[7][7] = {{-4, 8, 5, -10, -1, 2, 0}, {0, 4, -4, -9, 1, 2, 0},
                                          {0, -4, 12, -7, -3, 2, 0}, {0, 2, -3, -4, 3, 2, 0},
                                          {0, -2, 5, 0, -5, 2, 0},   {0, 4, 0, -5, 0, 1, 0},
                                          {0, -4, 8, 5, -10, -1, 2}};
};

template <int M>
struct OutputMatrix {  // A'
  static constexpr int rows = M, columns = M + 2;
  static constexpr double at(int r, int c) { return Winograd<M>::kOutput[r][c]; }
};

template <int M>
struct WeightMatrix {  // G
  static constexpr int rows = M + 2, columns = 3;
  static constexpr double at(int r, int c) { return Winograd<M>::kWeight[r][c]; }
};

template <int M>
struct InputMatrix {  // B'
  static constexpr int rows = M + 2, columns = M + 2;
  static constexpr double at(int r, int c) { return Winograd<M>::kInput[r][c]; }
};

}  // namespace metasparse::cpu::METASPARSE_ISA
