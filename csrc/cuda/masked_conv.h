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
};

enum class ConvOp { forward, input_grad, weight_grad };

// Whether the kernels take a call of this shape: stride 1 or 2, padding 0 or 1, and sizes within
// the reach of 32-bit offsets and of the shared memory. What they do not take is other backends'
// work.
template <class F>
bool takes(ConvOp op, const ConvShape& shape);

// How much device memory a call of masked_conv or masked_conv_input_grad wants.
template <class F>
int64_t masked_conv_workspace(ConvOp op, const ConvShape& shape);
template <class F>
int64_t masked_conv_weight_grad_workspace(const ConvShape& shape);

// x (T, N, I, H, W), weight (T, O, I, 3, 3), mask (T, O, I), bias (T, O) -> y (T, N, O, Ho, Wo).
template <class F>
cudaError_t masked_conv(const ConvShape& shape, PerTask<F> x, PerTask<F> weight, PerTask<F> mask,
                        PerTask<F> bias, F* y, void* workspace, cudaStream_t stream);

// grad (T, N, O, Ho, Wo), weight, mask -> grad_x (T, N, I, H, W).
template <class F>
cudaError_t masked_conv_input_grad(const ConvShape& shape, PerTask<F> grad, PerTask<F> weight,
                                   PerTask<F> mask, F* grad_x, void* workspace,
                                   cudaStream_t stream);

// grad (T, N, O, Ho, Wo), x, mask -> grad_weight (T, O, I, 3, 3). Without a mask the gradient of
// every kernel; with one, the gradient of the active kernels times their mask, zeros elsewhere.
template <class F>
cudaError_t masked_conv_weight_grad(const ConvShape& shape, PerTask<F> grad, PerTask<F> x,
                                    PerTask<F> mask, F* grad_weight, void* workspace,
                                    cudaStream_t stream);

}  // namespace metasparse::cuda
