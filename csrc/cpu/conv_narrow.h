// Convolutions of few input channels, any kernel size, stride and padding: the forward pass and the
// weight gradient of a first layer.
//
// With few input channels the outputs, or their gradients, are most of the memory of a call. They
// are therefore written, and read, where they lie, once, in strips of neighbouring pixels of one
// image. All kernels are computed, pruned ones as zeros.
#pragma once

#include "conv_engine.h"

namespace metasparse::cpu {

template <class T>
void run_narrow_forward(const ConvShape& shape, const ProductOperands<T>& operands);

template <class T>
void run_narrow_weight_grad(const ConvShape& shape, const SampledOperands<T>& operands);

}  // namespace metasparse::cpu
