// Gates that open by a score, on the CPU. The logistic is ATen's, which is vectorized.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "../checks/score_gate.h"
#include "../dense/score_gate.h"

namespace metasparse::cpu {
namespace {

using at::Tensor;

constexpr int64_t kGrain = 1 << 15;  // numbers worth a thread

// Whether the logistic of a score exceeds one half as the dtype has it: a tiny score rounds to it.
template <class T>
bool is_open(T score) {
  constexpr T kSafe = 1e-3;
  return score > kSafe || (score > 0 && 1 / (1 + std::exp(-score)) > T(0.5));
}

template <class T>
T sign(T score) {
  return static_cast<T>(T(0) < score) - static_cast<T>(score < T(0));
}

bool is_wide(const Tensor& t) {
  return t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble;
}

Tensor score_gate(const Tensor& scores) {
  check_score_gate(scores);
  if (!is_wide(scores)) return scores.sigmoid().gt(0.5).to(scores.scalar_type());
  const Tensor from = scores.contiguous();
  Tensor mask = at::empty(scores.sizes(), scores.options());
  AT_DISPATCH_FLOATING_TYPES(scores.scalar_type(), "score_gate", [&] {
    const auto* const s = from.const_data_ptr<scalar_t>();
    auto* const to = mask.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, from.numel(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) to[i] = is_open(s[i]) ? 1 : 0;
    });
  });
  return mask;
}

Tensor score_gate_grad(const Tensor& grad, const std::optional<Tensor>& factor,
                       const Tensor& scores, int64_t order) {
  check_score_gate_grad(grad, factor, scores, order);
  if (!is_wide(scores)) return dense::score_gate_grad(grad, factor, scores, order);
  const Tensor g = grad.contiguous(), f = factor.has_value() ? factor->contiguous() : Tensor();
  const Tensor logistic = scores.contiguous().sigmoid();
  const auto q = dense::logistic_polynomial(order);
  AT_DISPATCH_FLOATING_TYPES(scores.scalar_type(), "score_gate_grad", [&] {
    const auto* const from = g.const_data_ptr<scalar_t>();
    const auto* const times = f.defined() ? f.const_data_ptr<scalar_t>() : nullptr;
    auto* const y = logistic.mutable_data_ptr<scalar_t>();  // and the result
    at::parallel_for(0, logistic.numel(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        scalar_t value = 0;
        for (size_t k = q.size(); k-- > 0;) value = value * y[i] + static_cast<scalar_t>(q[k]);
        const scalar_t product = times != nullptr ? from[i] * times[i] : from[i];
        y[i] = product * ((1 - y[i]) * y[i]) * value;
      }
    });
  });
  return logistic;
}

void add_budget_gradient(Tensor& gradient, const Tensor& scores, const Tensor& offset,
                         const Tensor& share, double l1) {
  check_add_budget_gradient(gradient, scores, offset, share, l1);
  const Tensor wide = is_wide(scores) ? scores : scores.to(at::kFloat);
  const Tensor target = is_wide(scores) && gradient.stride(1) == 1
                            ? gradient
                            : gradient.to(wide.options()).contiguous();
  const Tensor from = wide.contiguous(), logistic = from.sigmoid();
  const int64_t tasks = scores.size(0), kernels = scores.size(1);
  AT_DISPATCH_FLOATING_TYPES(wide.scalar_type(), "add_budget_gradient", [&] {
    const auto level = offset.item<scalar_t>(), each = share.item<scalar_t>();
    const auto shrink = static_cast<scalar_t>(l1);
    const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, kernels));
    at::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const auto* const s = from.const_data_ptr<scalar_t>() + task * kernels;
        const auto* const y = logistic.const_data_ptr<scalar_t>() + task * kernels;
        auto* const to = target.mutable_data_ptr<scalar_t>() + task * target.stride(0);
        int64_t open = 0;
        for (int64_t k = 0; k < kernels; ++k) open += y[k] > scalar_t(0.5) ? 1 : 0;
        const scalar_t slope = level + each * static_cast<scalar_t>(open);
        for (int64_t k = 0; k < kernels; ++k) {
          to[k] += slope * ((1 - y[k]) * y[k]) + shrink * sign(s[k]);
        }
      }
    });
  });
  if (!target.is_same(gradient)) gradient.copy_(target);
}

}  // namespace
}  // namespace metasparse::cpu

TORCH_LIBRARY_IMPL(metasparse, CPU, m) {
  m.impl("score_gate", metasparse::cpu::score_gate);
  m.impl("score_gate_grad", metasparse::cpu::score_gate_grad);
  m.impl("add_budget_gradient", metasparse::cpu::add_budget_gradient);
}
