// The polyphase scheme: 3x3 kernels at stride 2 and padding 1, tiles of M x M outputs (M = 2, 3).
#pragma once

#include "conv_engine.h"

namespace metasparse::cpu {

template <class T>
ConvScheme<T> polyphase_forward(const ConvShape& shape, int tile);

// Two passes: the odd and the even input rows.
template <class T>
ConvScheme<T> polyphase_input_grad(const ConvShape& shape, int tile);

template <class T>
ConvScheme<T> polyphase_weight_grad(const ConvShape& shape, int tile);

}  // namespace metasparse::cpu
