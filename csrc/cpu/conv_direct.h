// The direct scheme: any kernel size, stride and padding.
#pragma once

#include "conv_engine.h"

namespace metasparse::cpu {

template <class T>
ConvScheme<T> direct_forward(const ConvShape& shape);

// gx[h] = sum over taps r of w[r] g[(h + pad - r) / stride], where that division is exact. Input
// rows and columns of one phase (h + pad modulo stride) use the same taps, so each phase is a pass:
// a convolution of g with stride 1 and fewer taps, none of whose products is with a structural
// zero.
template <class T>
ConvScheme<T> direct_input_grad(const ConvShape& shape);

// One pass that gathers as the forward pass does; the gradient's pixels are its columns.
template <class T>
ConvScheme<T> direct_weight_grad(const ConvShape& shape);

}  // namespace metasparse::cpu
