// The masked convolution family on the CPU, without torch: what the dispatcher's kernels call.
//
// One call serves `tasks` tasks, each with its own images, weights and masks. For task t
//   y[n, o] = bias[o] + sum over i with m[o, i] != 0 of conv(x[n, i], m[o, i] * w[o, i])
// and the two gradients are this form's partial derivatives. A kernel whose mask is zero is not
// read: a NaN there changes nothing.
#pragma once

#include <cstdint>
#include <vector>

#include "algorithm.h"

namespace metasparse::cpu {

// An operand that is contiguous below its task axis. `task_stride` counts elements; 0 means that
// all tasks share the operand. `data` null means that the operand is absent (no mask: all kernels
// are active; no bias: none is added).
template <class T>
struct PerTask {
  T* data = nullptr;
  int64_t task_stride = 0;

  T* of(int64_t task) const { return data == nullptr ? nullptr : data + task * task_stride; }
};

// Each call computes a sum of terms, usually one; a derivative by the product rule has two. The
// terms share their shape and one pass over the output.

// conv(source, weight * mask); in the input gradient the source is the output's gradient.
template <class T>
struct SpmmTerm {
  PerTask<const T> source, weight, mask;
};

// The weight gradient of images `source` and an output's gradient.
template <class T>
struct SddmmTerm {
  PerTask<const T> grad, source;
};

// The algorithm is any but library, and must serve the op (algorithm.h: unsupported). Outputs are
// contiguous below their task axis, which comes first, and are written completely.

// Sources (T, N, I, H, W), weights (T, O, I, kh, kw), masks (T, O, I), bias (T, O) -> y (T, N, O,
// Ho, Wo).
template <class T>
void masked_conv_forward(const ConvShape& shape, const std::vector<SpmmTerm<T>>& terms,
                         PerTask<const T> bias, T* y, ConvAlgorithm algorithm);

// Sources (T, N, O, Ho, Wo), weights, masks -> grad_x (T, N, I, H, W).
template <class T>
void masked_conv_input_grad(const ConvShape& shape, const std::vector<SpmmTerm<T>>& terms,
                            T* grad_x, ConvAlgorithm algorithm);

// Gradients (T, N, O, Ho, Wo), sources (T, N, I, H, W), mask -> grad_weight (T, O, I, kh, kw).
// Without a mask the gradient of every kernel; with one, the gradient of the active kernels times
// their mask, zeros elsewhere.
template <class T>
void masked_conv_weight_grad(const ConvShape& shape, const std::vector<SddmmTerm<T>>& terms,
                             PerTask<const T> mask, PerTask<T> grad_weight,
                             ConvAlgorithm algorithm);

}  // namespace metasparse::cpu
