// The engine of the masked convolution: runs the passes of a scheme over tasks and blocks of tiles.
#pragma once

#include <memory>
#include <vector>

#include "conv_scheme.h"
#include "isa.h"
#include "masked_conv.h"

namespace metasparse::cpu {

// The passes together write every output; they share one code of the weights, and all run with the
// same instruction set.
template <class T>
struct ConvScheme {
  Isa isa = active_isa();
  std::vector<std::unique_ptr<ConvPass<T>>> passes;
  std::unique_ptr<WeightCode<T>> code;
};

// Where the operands of a task lie, and the shape (O, I, kernel_size) of its weights. All terms go
// through the same passes into the same sums.
template <class T>
struct ProductOperands {
  int64_t tasks, out_channels, in_channels, kernel_size;
  std::vector<ProductTerm<T>> terms;
  PerTask<const T> bias;
  PerTask<T> output;
  bool transposed;  // the input gradient: lists by input channel
};

// Forward pass and input gradient.
template <class T>
void run_product(const ConvScheme<T>& scheme, const ProductOperands<T>& operands);

template <class T>
struct SampledOperands {
  int64_t tasks, out_channels, in_channels, kernel_size;
  std::vector<SampledTerm<T>> terms;
  PerTask<const T> mask;
  T* grad_weight;
};

// Weight gradient; the scheme has one pass.
template <class T>
void run_sampled(const ConvScheme<T>& scheme, const SampledOperands<T>& operands);

}  // namespace metasparse::cpu
