#include "masked_conv.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "../checks/masked_conv.h"

namespace metasparse::dense {
namespace {

constexpr std::array<bool, 3> kInputGrad = {true, false, false};
constexpr std::array<bool, 3> kWeightGrad = {false, true, false};

// value where `bits` are all ones, +0 where they are zero. A mask has no pattern that a branch
// predictor could learn.
template <class T, class Bits>
T kept(T value, Bits bits) {
  static_assert(sizeof(T) == sizeof(Bits));
  Bits pattern;
  std::memcpy(&pattern, &value, sizeof(T));
  pattern &= bits;
  std::memcpy(&value, &pattern, sizeof(T));
  return value;
}

// The product in one pass; PyTorch's broadcasting over a dimension of nine takes longer than the
// smallest convolutions.
Tensor masked_on_cpu(const Tensor& dense, const Tensor& mask) {
  const Tensor w = dense.contiguous(), m = mask.contiguous();
  const int64_t taps = w.size(-2) * w.size(-1);
  Tensor out = w;
  AT_DISPATCH_FLOATING_TYPES(w.scalar_type(), "masked", [&] {
    using Bits = std::conditional_t<sizeof(scalar_t) == 4, uint32_t, uint64_t>;
    const auto* from = w.const_data_ptr<scalar_t>();
    const auto* factors = m.const_data_ptr<scalar_t>();
    const auto is_one = [](scalar_t factor) { return factor == scalar_t(1); };
    if (std::all_of(factors, factors + m.numel(), is_one)) return;
    out = at::empty_like(w);
    auto* to = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, m.numel(), /*grain_size=*/16384, [&](int64_t begin, int64_t end) {
      for (int64_t kernel = begin; kernel < end; ++kernel) {
        const scalar_t factor = factors[kernel];
        const Bits bits = factor == scalar_t(0) ? Bits{0} : ~Bits{0};
        for (int64_t k = kernel * taps; k < (kernel + 1) * taps; ++k) {
          to[k] = kept<scalar_t, Bits>(from[k] * factor, bits);
        }
      }
    });
  });
  return out;
}

Tensor masked(const Tensor& dense, const OptionalTensor& mask) {
  if (!mask.has_value()) return dense;
  const bool floating = dense.scalar_type() == at::kFloat || dense.scalar_type() == at::kDouble;
  if (dense.is_cpu() && floating && mask->sizes() == dense.sizes().slice(0, dense.dim() - 2)) {
    return masked_on_cpu(dense, *mask);
  }
  const auto m = mask->unsqueeze(-1).unsqueeze(-1);
  // filled, not a product alone: a pruned kernel may hold anything, NaN included
  return (dense * m).masked_fill_(m == 0, 0);
}

bool shared_by_tasks(const Tensor& t) { return t.size(0) == 1 || t.stride(0) == 0; }

bool shared_by_tasks(const OptionalTensor& t) { return !t.has_value() || shared_by_tasks(*t); }

OptionalTensor first_task(const OptionalTensor& t) {
  return t.has_value() ? OptionalTensor((*t)[0]) : std::nullopt;
}

// The strides of one channel fit two memory formats. Where they look like channels last,
// oneDNN 3.12 gives wrong numbers for some strided convolutions (4x4 on 5x5 at stride 1, 2).
Tensor planar(const Tensor& t) {
  if (t.size(1) != 1 || t.stride(1) == t.size(2) * t.size(3)) return t;
  return t.contiguous().view({t.numel()}).view(t.sizes());
}

Tensor convolve(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                IntArrayRef stride, IntArrayRef padding) {
  return at::convolution(planar(x), planar(weight), bias, stride, padding, /*dilation=*/{1, 1},
                         /*transposed=*/false, /*output_padding=*/{0, 0}, /*groups=*/1);
}

std::tuple<Tensor, Tensor, Tensor> convolve_backward(const Tensor& grad, const Tensor& x,
                                                     const Tensor& weight, IntArrayRef stride,
                                                     IntArrayRef padding,
                                                     std::array<bool, 3> wanted) {
  return at::convolution_backward(grad, x, weight, std::nullopt, stride, padding, {1, 1}, false,
                                  {0, 0}, 1, wanted);
}

template <class PerTask>
Tensor stack_over_tasks(int64_t tasks, PerTask&& per_task) {
  std::vector<Tensor> results;
  results.reserve(tasks);
  for (int64_t t = 0; t < tasks; ++t) results.push_back(per_task(t));
  return at::stack(results);
}

}  // namespace

Tensor masked_conv(const Tensor& x, const Tensor& weight, const OptionalTensor& mask,
                   const OptionalTensor& bias, IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv(x, weight, mask, bias, stride, padding);
  const auto tasks = x.size(0);
  if (shared_by_tasks(weight) && shared_by_tasks(mask) && shared_by_tasks(bias)) {
    // One network for all tasks: their samples form one batch.
    const auto y = convolve(x.flatten(0, 1), masked(weight[0], first_task(mask)), first_task(bias),
                            stride, padding);
    return y.unflatten(0, {tasks, x.size(1)}).contiguous();
  }
  const auto effective = masked(weight, mask);
  return stack_over_tasks(tasks, [&](int64_t t) {
    const auto b = bias.has_value() ? OptionalTensor((*bias)[t]) : std::nullopt;
    return convolve(x[t], effective[t], b, stride, padding);
  });
}

Tensor masked_conv_input_grad(const Tensor& grad, const Tensor& weight, const OptionalTensor& mask,
                              IntArrayRef input_size, IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv_input_grad(grad, weight, mask, input_size, stride, padding);
  const auto tasks = grad.size(0), samples = grad.size(1), channels = weight.size(2);
  if (shared_by_tasks(weight) && shared_by_tasks(mask)) {
    const auto like =
        at::empty({tasks * samples, channels, input_size[0], input_size[1]}, grad.options());
    const auto gx =
        std::get<0>(convolve_backward(grad.flatten(0, 1), like, masked(weight[0], first_task(mask)),
                                      stride, padding, kInputGrad));
    return gx.unflatten(0, {tasks, samples}).contiguous();
  }
  const auto effective = masked(weight, mask);
  const auto like = at::empty({samples, channels, input_size[0], input_size[1]}, grad.options());
  return stack_over_tasks(tasks, [&](int64_t t) {
    return std::get<0>(convolve_backward(grad[t], like, effective[t], stride, padding, kInputGrad));
  });
}

Tensor masked_conv_weight_grad(const Tensor& grad, const Tensor& x, const OptionalTensor& mask,
                               IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv_weight_grad(grad, x, mask, kernel_size, stride, padding);
  const auto like =
      at::empty({grad.size(2), x.size(2), kernel_size[0], kernel_size[1]}, grad.options());
  const auto dense = stack_over_tasks(grad.size(0), [&](int64_t t) {
    return std::get<1>(convolve_backward(grad[t], x[t], like, stride, padding, kWeightGrad));
  });
  return masked(dense, mask);
}

Tensor masked_conv_mask_grad(const Tensor& grad, const Tensor& x, const Tensor& weight,
                             IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv_mask_grad(grad, x, weight, stride, padding);
  const auto dense = masked_conv_weight_grad(grad, x, std::nullopt,
                                             {weight.size(3), weight.size(4)}, stride, padding);
  return (dense * weight).sum({-2, -1});
}

}  // namespace metasparse::dense

TORCH_LIBRARY_FRAGMENT(metasparse_dense, m) {
  m.def("masked_conv", metasparse::dense::masked_conv);
  m.def("masked_conv_input_grad", metasparse::dense::masked_conv_input_grad);
  m.def("masked_conv_weight_grad", metasparse::dense::masked_conv_weight_grad);
  m.def("masked_conv_mask_grad", metasparse::dense::masked_conv_mask_grad);
}
