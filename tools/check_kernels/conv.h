// Cases of the masked convolution, for one caller (conv.cpp) and for several (threads.cpp).
#pragma once

#include "../../csrc/cpu/conv/algorithm.h"
#include "check.h"

namespace metasparse::check {

// `density` of kernels active; `seed` is of operands and mask.
template <class T>
bool run_conv_case(const cpu::ConvShape& shape, cpu::ConvAlgorithm algorithm, double density,
                   bool at_end, unsigned seed);

// Each algorithm that serves the shape, each type, several densities.
void run_conv_shape(const cpu::ConvShape& shape, unsigned seed, Count& count);

// tasks, samples, in, out, height, width, kernel, stride, padding (two each)
cpu::ConvShape conv_shape(int64_t t, int64_t n, int64_t i, int64_t o, int64_t h, int64_t w,
                          int64_t kh, int64_t kw, int64_t sh, int64_t sw, int64_t ph, int64_t pw);
const std::vector<cpu::ConvShape>& listed_conv_shapes();
cpu::ConvShape drawn_conv_shape(Random& random);

}  // namespace metasparse::check
