#include "masked_weight.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "../checks/masked_weight.h"
#include "../gradient_buffer.h"
#include "../task_operand.h"
#include "empty_large.h"

namespace metasparse::cpu {
namespace {

// Kernels of `taps` numbers, one after the other.
template <class T>
void divide_kernels(int64_t kernels, int64_t taps, const T* grad, const T* weight, const T* mask,
                    T* weight_grad, T* mask_grad) {
  for (int64_t k = 0; k < kernels; ++k, grad += taps, weight += taps, weight_grad += taps) {
    T sum = 0;
    for (int64_t tap = 0; tap < taps; ++tap) {
      weight_grad[tap] = grad[tap] * mask[k];
      sum += grad[tap] * weight[tap];
    }
    mask_grad[k] = sum;
  }
}

}  // namespace

std::pair<at::Tensor, at::Tensor> masked_weight_backward(const at::Tensor& grad,
                                                         const at::Tensor& weight,
                                                         const at::Tensor& mask) {
  const TaskOperand grads(grad), weights(weight), masks(mask);
  const int64_t tasks = grad.size(0), rows = grad.size(1), row = grad.size(2);
  const int64_t taps = grad.size(3) * grad.size(4);
  auto weight_grad = gradient_place(weight);
  if (!weight_grad.defined()) weight_grad = empty_large(grad.sizes(), grad.options());
  auto mask_grad = at::empty({tasks, rows, row}, grad.options());
  constexpr int64_t kGrain = 1 << 14;  // numbers worth a thread
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, row * taps));
  AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "masked_weight_backward", [&] {
    auto* const to_weight = weight_grad.mutable_data_ptr<scalar_t>();
    auto* const to_mask = mask_grad.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, tasks * rows, grain, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t task = unit / rows, kernel = (unit % rows) * row;
        divide_kernels(
            row, taps, grads.data<scalar_t>() + task * grads.task_stride() + kernel * taps,
            weights.data<scalar_t>() + task * weights.task_stride() + kernel * taps,
            masks.data<scalar_t>() + task * masks.task_stride() + kernel,
            to_weight + task * weight_grad.stride(0) + kernel * taps, to_mask + unit * row);
      }
    });
  });
  return {weight_grad, mask_grad};
}

namespace {

std::tuple<at::Tensor, at::Tensor> backward(const at::Tensor& grad, const at::Tensor& weight,
                                            const at::Tensor& mask) {
  check_masked_weight_backward(grad, weight, mask);
  return masked_weight_backward(grad, weight, mask);
}

at::Tensor pair(const at::Tensor& weight1, const at::Tensor& mask1, const at::Tensor& weight2,
                const at::Tensor& mask2) {
  check_masked_weight_pair(weight1, mask1, weight2, mask2);
  const TaskOperand w1(weight1), m1(mask1), w2(weight2), m2(mask2);
  const int64_t tasks = weight1.size(0), kernels = weight1.size(1) * weight1.size(2);
  const int64_t taps = weight1.size(3) * weight1.size(4);
  const auto out = empty_large(weight1.sizes(), weight1.options());
  constexpr int64_t kGrain = 1 << 14;  // numbers worth a thread
  AT_DISPATCH_FLOATING_TYPES(weight1.scalar_type(), "masked_weight_pair", [&] {
    auto* const to = out.mutable_data_ptr<scalar_t>();
    const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, taps));
    at::parallel_for(0, tasks * kernels, grain, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        const int64_t task = k / kernels, kernel = k % kernels;
        const auto* const a = w1.data<scalar_t>() + task * w1.task_stride() + kernel * taps;
        const auto* const b = w2.data<scalar_t>() + task * w2.task_stride() + kernel * taps;
        const auto am = m1.data<scalar_t>()[task * m1.task_stride() + kernel];
        const auto bm = m2.data<scalar_t>()[task * m2.task_stride() + kernel];
        for (int64_t tap = 0; tap < taps; ++tap) to[k * taps + tap] = a[tap] * am + b[tap] * bm;
      }
    });
  });
  return out;
}

}  // namespace
}  // namespace metasparse::cpu

TORCH_LIBRARY_IMPL(metasparse, CPU, m) {
  m.impl("masked_weight_pair", metasparse::cpu::pair);
  m.impl("masked_weight_backward", metasparse::cpu::backward);
}
