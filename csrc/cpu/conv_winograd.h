// The Winograd scheme: 3x3 kernels at stride 1, any padding, tiles of M x M outputs (M = 2 .. 5).
#pragma once

#include "conv_engine.h"

namespace metasparse::cpu {

template <class T>
ConvScheme<T> winograd_forward(const ConvShape& shape, int tile);

// Again a 3x3 convolution at stride 1: of the gradient, padded by 2 - pad, with the kernels rotated
// by half a turn and their channels exchanged.
template <class T>
ConvScheme<T> winograd_input_grad(const ConvShape& shape, int tile);

template <class T>
ConvScheme<T> winograd_weight_grad(const ConvShape& shape, int tile);

}  // namespace metasparse::cpu
