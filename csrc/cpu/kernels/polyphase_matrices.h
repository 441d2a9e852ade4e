// The polyphase scheme of 3-tap filters at stride 2 and padding 1, M outputs at a time.
//
//   y[p] = w0 x[2p - 1] + w2 x[2p + 1]   two taps on the odd inputs: Winograd's F(M, 2)
//        + w1 x[2p]                      one tap on the even inputs: no transform
//
// F(M, 2) needs M + 1 products, the even phase M: 2 M + 1 points instead of 3 M products. All even
// points use the same weight w1, so a kernel stores M + 2 weights. Point 0 enters the first output
// alone and the last point (infinity) the last output alone, with coefficient one, exactly as the
// even products of these outputs do: they share an accumulator, which leaves 2 M - 1.
//
// Nothing but additions and halvings is needed for M = 2 and 3, so errors stay those of a direct
// sum. Points are numbered: 0 .. M the odd phase, M + 1 .. 2 M the even phase.
#pragma once

#include "vec.h"

namespace metasparse::cpu::METASPARSE_ISA {

template <int M>
struct Polyphase;

template <>
struct Polyphase<2> {
  static constexpr double kInput[3][3] = {{1, -1, 0}, {0, 1, 0}, {0, -1, 1}};
  static constexpr double kWeight[3][2] = {{1, 0}, {1, 1}, {0, 1}};
  static constexpr double kOutput[2][3] = {{1, 1, 0}, {0, 1, 1}};
};

template <>
struct Polyphase<3> {
  static constexpr double kInput[4][4] = {
      {1, 0, -1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, -1, 0, 1}};
  static constexpr double kWeight[4][2] = {{1, 0}, {.5, .5}, {.5, -.5}, {0, 1}};
  static constexpr double kOutput[3][4] = {{1, 1, 1, 0}, {0, 1, -1, 0}, {0, 1, 1, 1}};
};

template <int M>
struct OddInputMatrix {  // M + 1 odd inputs -> points 0 .. M
  static constexpr int rows = M + 1, columns = M + 1;
  static constexpr double at(int r, int c) { return Polyphase<M>::kInput[r][c]; }
};

template <int M>
struct PhaseWeightMatrix {  // 3 taps -> M + 2 weights, the last one for all even points
  static constexpr int rows = M + 2, columns = 3;
  static constexpr double at(int r, int c) {
    if (r == M + 1) return c == 1;
    return c == 1 ? 0 : Polyphase<M>::kWeight[r][c / 2];
  }
};

template <int M>
struct PhaseOutputMatrix {  // 2 M - 1 accumulators -> M outputs
  static constexpr int rows = M, columns = 2 * M - 1;
  static constexpr double at(int r, int c) {
    return c <= M ? Polyphase<M>::kOutput[r][c] : c - M == r;
  }
};

template <int M>
struct OddOutputMatrix {  // points 0 .. M -> M odd inputs' gradients
  static constexpr int rows = M, columns = M + 1;
  static constexpr double at(int r, int c) { return Polyphase<M>::kOutput[r][c]; }
};

}  // namespace metasparse::cpu::METASPARSE_ISA
