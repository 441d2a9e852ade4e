#include "masked_weight.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>

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

}  // namespace metasparse::cpu
