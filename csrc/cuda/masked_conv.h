#pragma once
// The masked convolution family for 3x3 kernels, per task t
//   y[n, o] = bias[o] + sum over i with m[o, i] != 0 of conv(x[n, i], m[o, i] * w[o, i])
// and this form's partial derivatives. A kernel whose mask is zero is not read.
#include <cuda_runtime.h>

#include <cstdint>

namespace metasparse::cuda {

// An operand that is dense below its task axis; stride 0: the tasks share it; null: absent.
template <class F>
struct PerTask {
  const F* data = nullptr;
  int64_t task_stride = 0;
};

// Stride and padding are the same in both directions.
struct ConvShape {
  int64_t tasks, samples, in_channels, out_channels;
  int64_t height, width, out_height, out_width;
  int64_t stride, padding;

  static constexpr int64_t kGrid = 65535;  // of most axes of a launch

  // Whether the sizes are within the reach of the grid and of 32-bit offsets.
  bool within_reach() const {
    constexpr int64_t kReach = int64_t{1} << 30;
    return tasks <= kGrid && in_channels <= kGrid && out_channels <= kGrid &&
           samples * in_channels * height * width < kReach &&
           samples * out_channels * out_height * out_width < kReach;
  }
};

// One convolution: weight (T, O, I, 3, 3), mask (T, O, I); source is x (T, N, I, H, W) of the
// forward pass, the gradient (T, N, O, Ho, Wo) of the input gradient.
template <class F>
struct ConvTerm {
  PerTask<F> source, weight, mask;
};

// A sum of one or two convolutions of the same shape, in one pass.
template <class F>
struct ConvSum {
  ConvTerm<F> terms[2];
  int count;
};

enum class ConvOp { forward, input_grad };

// Shared memory of a block, where the shape is within reach.
template <class F>
size_t masked_conv_shared_bytes(ConvOp op, const ConvShape& shape);

// How much device memory a call wants.
template <class F>
int64_t masked_conv_workspace(ConvOp op, const ConvShape& shape, int terms);

// The forward pass y (T, N, O, Ho, Wo), bias (T, O), or the input gradient (T, N, I, H, W).
template <class F>
cudaError_t masked_conv(ConvOp op, const ConvShape& shape, const ConvSum<F>& sum, PerTask<F> bias,
                        F* destination, void* workspace, cudaStream_t stream);

// grad (T, N, O, Ho, Wo), x (T, N, I, H, W).
template <class F>
struct WeightGradTerm {
  PerTask<F> grad, x;
};

// A sum of one or two weight gradients of the same shape.
template <class F>
struct WeightGradSum {
  WeightGradTerm<F> terms[2];
  int count;
};

// Whether the launch of this weight gradient is within the reach of the grid.
bool weight_grad_fits_grid(const ConvShape& shape);
template <class F>
int64_t masked_conv_weight_grad_workspace(const ConvShape& shape, int terms);

// grad_weight (T, O, I, 3, 3). Without a mask the gradient of every kernel; with one, the gradient
// of the active kernels times their mask, zeros elsewhere.
template <class F>
cudaError_t masked_conv_weight_grad(const ConvShape& shape, const WeightGradSum<F>& sum,
                                    PerTask<F> mask, F* grad_weight, void* workspace,
                                    cudaStream_t stream);

}  // namespace metasparse::cuda
