// Depthwise convolutions on the CPU: each plane of an image, and of a gradient, goes through a
// frame in the first-level cache (kernels/depthwise_conv.h). The input gradient is a convolution,
// too, with the kernel rotated by 180 degrees; with strides, one for each class of rows and
// columns.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>
#include <type_traits>
#include <vector>

#include "../checks/depthwise_conv.h"
#include "../task_operand.h"
#include "depthwise_plan.h"
#include "empty_large.h"
#include "kernels/depthwise_conv.h"
#include "runtime/isa.h"
#include "runtime/parallel.h"
#include "runtime/scratch.h"

namespace metasparse::cpu {
namespace {

using at::IntArrayRef;
using at::Tensor;

template <class T>
const DepthwiseKernels<T>& kernels() {
  const DepthwiseTable& table = METASPARSE_COPY_FOR(active_isa(), depthwise_conv);
  if constexpr (std::is_same_v<T, float>) {
    return table.f32;
  } else {
    return table.f64;
  }
}

// Planes that are worth a thread, of so many outputs and taps each.
int64_t grain_of(int64_t outputs, int64_t taps) {
  constexpr int64_t kWork = 1 << 17;
  return 1 + kWork / (1 + outputs * taps);
}

// A frame of zeros, this thread's.
template <class T>
T* zeros_of(const Frame& frame) {
  static thread_local ScratchBuffer buffer;
  T* const data = buffer.get<T>(frame.size());
  std::fill(data, data + frame.size(), T(0));
  return data;
}

// From planes (T, N, C, h, w), each with its kernel (T, C, 1, kh, kw), to planes of out: calls
// products(frame, kernel, plane of out) for each.
template <class T, class Products>
void each_plane(const Frame& frame, const Tensor& planes, const Tensor& weight, Tensor& out,
                const Products& products) {
  const int64_t samples = planes.size(1), channels = planes.size(2);
  const int64_t from = frame.height * frame.width, to = out.size(3) * out.size(4);
  const int64_t taps = weight.size(3) * weight.size(4);
  const TaskOperand kernels_of_tasks(weight);
  const auto* source = planes.const_data_ptr<T>();
  const auto* weights = kernels_of_tasks.data<T>();
  auto* outputs = out.mutable_data_ptr<T>();
  parallel_range(
      0, planes.size(0) * samples * channels, grain_of(to, taps), [&](int64_t begin, int64_t end) {
        T* const data = zeros_of<T>(frame);
        for (int64_t p = begin; p < end; ++p) {
          const int64_t task = p / (samples * channels), channel = p % channels;
          kernels<T>().fill(frame, source + p * from, data);
          products(data, weights + task * kernels_of_tasks.task_stride() + channel * taps,
                   outputs + p * to);
        }
      });
}

template <class T>
void correlate(const DepthwisePlan& plan, const Tensor& planes, const Tensor& weight, Tensor& out) {
  each_plane<T>(plan.frame, planes, weight, out, [&](const T* frame, const T* kernel, T* outputs) {
    kernels<T>().correlate(plan.taps, frame, kernel, outputs);
  });
}

// The input gradient of a strided convolution.
template <class T>
void correlate_classes(const StridedGradientPlan& plan, const Tensor& grad, const Tensor& weight,
                       Tensor& out) {
  const auto order = at::tensor(plan.order, at::kLong);
  const Tensor by_class =
      weight.flatten(3).index_select(-1, order).view(weight.sizes()).contiguous();
  each_plane<T>(plan.frame, grad, by_class, out, [&](const T* frame, const T* kernel, T* outputs) {
    kernels<T>().correlate_classes(plan.classes, frame, kernel, outputs);
  });
}

// Channels of one image after the other, as they lie in memory, a few with their sums in the cache.
template <class T>
void accumulate(const DepthwisePlan& plan, const Tensor& grad, const Tensor& x, Tensor& out) {
  const int64_t samples = x.size(1), channels = x.size(2), count = plan.taps.count;
  const int64_t block =
      std::clamp<int64_t>(x.size(0) * channels / (4 * thread_count()), 1, /*sums in cache*/ 16);
  const int64_t blocks = (channels + block - 1) / block;
  const auto& kernel = kernels<T>();
  const int64_t plane = plan.frame.height * plan.frame.width;
  const int64_t outputs = plan.taps.rows * plan.taps.columns, size = count * kernel.lanes;
  const auto* images = x.const_data_ptr<T>();
  const auto* gradients = grad.const_data_ptr<T>();
  auto* to = out.mutable_data_ptr<T>();
  const int64_t grain = grain_of(samples * block * outputs, count);
  parallel_range(0, x.size(0) * blocks, grain, [&](int64_t begin, int64_t end) {
    T* const frame = zeros_of<T>(plan.frame);
    std::vector<T> sums(block * size);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t task = unit / blocks, first = unit % blocks * block;
      const int64_t together = std::min(block, channels - first);
      std::fill(sums.begin(), sums.end(), T(0));
      for (int64_t n = 0; n < samples; ++n) {
        for (int64_t c = 0; c < together; ++c) {
          const int64_t p = (task * samples + n) * channels + first + c;
          kernel.fill(plan.frame, images + p * plane, frame);
          kernel.accumulate(plan.taps, frame, gradients + p * outputs, sums.data() + c * size);
        }
      }
      for (int64_t k = 0; k < together * count; ++k) {
        const auto lane = sums.begin() + k * kernel.lanes;
        to[(task * channels + first) * count + k] =
            std::accumulate(lane, lane + kernel.lanes, T(0));
      }
    }
  });
}

Tensor depthwise_conv(const Tensor& x, const Tensor& weight, IntArrayRef stride,
                      IntArrayRef padding) {
  check_depthwise_conv(x, weight, stride, padding);
  const int64_t rows = conv_out_size(x.size(3), weight.size(3), stride[0], padding[0]);
  const int64_t columns = conv_out_size(x.size(4), weight.size(4), stride[1], padding[1]);
  Tensor y = empty_large({x.size(0), x.size(1), x.size(2), rows, columns}, x.options());
  if (y.numel() == 0) return y;
  const Tensor images = x.contiguous();
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "depthwise_conv", [&] {
    const DepthwisePlan plan(of_images(x.size(3), weight.size(3), stride[0], padding[0], rows),
                             of_images(x.size(4), weight.size(4), stride[1], padding[1], columns),
                             kernels<scalar_t>().lanes);
    correlate<scalar_t>(plan, images, weight, y);
  });
  return y;
}

Tensor depthwise_conv_input_grad(const Tensor& grad, const Tensor& weight, IntArrayRef input_size,
                                 IntArrayRef stride, IntArrayRef padding) {
  check_depthwise_conv_input_grad(grad, weight, input_size, stride, padding);
  Tensor x_grad = empty_large(
      {grad.size(0), grad.size(1), grad.size(2), input_size[0], input_size[1]}, grad.options());
  if (x_grad.numel() == 0) return x_grad;
  const Tensor gradients = grad.contiguous();
  AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "depthwise_conv_input_grad", [&] {
    const int64_t lanes = kernels<scalar_t>().lanes;
    if (stride[0] == 1 && stride[1] == 1) {
      const DepthwisePlan plan(
          of_gradients(grad.size(3), weight.size(3), padding[0], input_size[0]),
          of_gradients(grad.size(4), weight.size(4), padding[1], input_size[1]), lanes);
      correlate<scalar_t>(plan, gradients, weight.flip({-2, -1}), x_grad);
      return;
    }
    const StridedGradientPlan plan(
        {grad.size(3), weight.size(3), stride[0], padding[0], input_size[0]},
        {grad.size(4), weight.size(4), stride[1], padding[1], input_size[1]}, lanes);
    correlate_classes<scalar_t>(plan, gradients, weight, x_grad);
  });
  return x_grad;
}

Tensor depthwise_conv_weight_grad(const Tensor& grad, const Tensor& x, IntArrayRef kernel_size,
                                  IntArrayRef stride, IntArrayRef padding) {
  check_depthwise_conv_weight_grad(grad, x, kernel_size, stride, padding);
  Tensor weight_grad =
      at::empty({x.size(0), x.size(2), 1, kernel_size[0], kernel_size[1]}, x.options());
  if (weight_grad.numel() == 0) return weight_grad;
  const Tensor gradients = grad.contiguous(), images = x.contiguous();
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "depthwise_conv_weight_grad", [&] {
    const DepthwisePlan plan(
        of_images(x.size(3), kernel_size[0], stride[0], padding[0], grad.size(3)),
        of_images(x.size(4), kernel_size[1], stride[1], padding[1], grad.size(4)),
        kernels<scalar_t>().lanes);
    accumulate<scalar_t>(plan, gradients, images, weight_grad);
  });
  return weight_grad;
}

}  // namespace
}  // namespace metasparse::cpu

TORCH_LIBRARY_IMPL(metasparse, CPU, m) {
  m.impl("depthwise_conv", metasparse::cpu::depthwise_conv);
  m.impl("depthwise_conv_input_grad", metasparse::cpu::depthwise_conv_input_grad);
  m.impl("depthwise_conv_weight_grad", metasparse::cpu::depthwise_conv_weight_grad);
}
