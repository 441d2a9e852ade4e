// The cross-entropy of tasks on the CPU: one pass over the logits of a sample for each of the three
// ops. Numbers of 16 bits are summed in float.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "../checks/task_cross_entropy.h"

namespace metasparse::cpu {
namespace {

using at::Tensor;

struct Shape {
  explicit Shape(const Tensor& logits)
      : tasks(logits.size(0)), samples(logits.size(1)), classes(logits.size(2)) {}
  int64_t tasks, samples, classes;

  template <class PerTask>
  void each_task(PerTask&& per_task) const {
    constexpr int64_t kGrain = 1 << 12;  // logits worth a thread
    const int64_t grain = std::max<int64_t>(1, kGrain / (samples * classes));
    at::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) per_task(task);
    });
  }
};

// Of one sample: the largest logit, and the logarithm of the sum of exp(logit - largest).
template <class Sum, class T>
struct Softmax {
  Softmax(const T* logits, int64_t classes) : logits(logits) {
    top = logits[0];
    for (int64_t c = 1; c < classes; ++c) top = std::max<Sum>(top, logits[c]);
    Sum sum = 0;
    for (int64_t c = 0; c < classes; ++c) sum += std::exp(static_cast<Sum>(logits[c]) - top);
    log_sum = std::log(sum);
  }
  Sum log_probability(int64_t c) const { return static_cast<Sum>(logits[c]) - top - log_sum; }
  Sum probability(int64_t c) const { return std::exp(log_probability(c)); }

  const T* logits;
  Sum top, log_sum;
};

bool is_class(int64_t label, int64_t classes) { return label >= 0 && label < classes; }

Tensor task_cross_entropy(const Tensor& logits, const Tensor& labels) {
  check_task_cross_entropy(logits, labels);
  const Shape shape(logits);
  const Tensor z = logits.contiguous(), y = labels.contiguous();
  Tensor losses = at::empty({shape.tasks}, logits.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, z.scalar_type(), "task_cross_entropy", [&] {
        using sum_t = at::opmath_type<scalar_t>;
        const auto* const from = z.const_data_ptr<scalar_t>();
        const auto* const label = y.const_data_ptr<int64_t>();
        auto* const to = losses.mutable_data_ptr<scalar_t>();
        shape.each_task([&](int64_t task) {
          sum_t sum = 0;
          for (int64_t n = task * shape.samples; n < (task + 1) * shape.samples; ++n) {
            const Softmax<sum_t, scalar_t> softmax(from + n * shape.classes, shape.classes);
            sum += is_class(label[n], shape.classes) ? softmax.log_probability(label[n])
                                                     : std::numeric_limits<sum_t>::quiet_NaN();
          }
          to[task] = -sum / static_cast<sum_t>(shape.samples);
        });
      });
  return losses;
}

Tensor task_cross_entropy_backward(const Tensor& grad, const Tensor& logits, const Tensor& labels) {
  check_task_cross_entropy_backward(grad, logits, labels);
  const Shape shape(logits);
  const Tensor g = grad.contiguous(), z = logits.contiguous(), y = labels.contiguous();
  Tensor out = at::empty(logits.sizes(), logits.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, z.scalar_type(), "task_cross_entropy_backward", [&] {
        using sum_t = at::opmath_type<scalar_t>;
        const auto* const from = z.const_data_ptr<scalar_t>();
        const auto* const label = y.const_data_ptr<int64_t>();
        auto* const to = out.mutable_data_ptr<scalar_t>();
        shape.each_task([&](int64_t task) {
          const auto each = static_cast<sum_t>(g.const_data_ptr<scalar_t>()[task]) /
                            static_cast<sum_t>(shape.samples);
          for (int64_t n = task * shape.samples; n < (task + 1) * shape.samples; ++n) {
            const Softmax<sum_t, scalar_t> softmax(from + n * shape.classes, shape.classes);
            const bool known = is_class(label[n], shape.classes);
            for (int64_t c = 0; c < shape.classes; ++c) {
              const sum_t slope = softmax.probability(c) - static_cast<sum_t>(c == label[n]);
              to[n * shape.classes + c] =
                  known ? each * slope : std::numeric_limits<sum_t>::quiet_NaN();
            }
          }
        });
      });
  return out;
}

std::tuple<Tensor, Tensor> task_cross_entropy_double_backward(const Tensor& direction,
                                                              const Tensor& grad,
                                                              const Tensor& logits,
                                                              const Tensor& labels) {
  check_task_cross_entropy_double_backward(direction, grad, logits, labels);
  const Shape shape(logits);
  const Tensor v = direction.contiguous(), g = grad.contiguous(), z = logits.contiguous(),
               y = labels.contiguous();
  Tensor grad_dot = at::empty({shape.tasks}, logits.options());
  Tensor logits_grad = at::empty(logits.sizes(), logits.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, z.scalar_type(), "task_cross_entropy_double_backward", [&] {
        using sum_t = at::opmath_type<scalar_t>;
        const auto* const from = z.const_data_ptr<scalar_t>();
        const auto* const along = v.const_data_ptr<scalar_t>();
        const auto* const label = y.const_data_ptr<int64_t>();
        auto* const to = logits_grad.mutable_data_ptr<scalar_t>();
        shape.each_task([&](int64_t task) {
          const auto samples = static_cast<sum_t>(shape.samples);
          const sum_t each = static_cast<sum_t>(g.const_data_ptr<scalar_t>()[task]) / samples;
          sum_t sum = 0;
          for (int64_t n = task * shape.samples; n < (task + 1) * shape.samples; ++n) {
            const int64_t first = n * shape.classes;
            const Softmax<sum_t, scalar_t> softmax(from + first, shape.classes);
            sum_t average = 0;
            for (int64_t c = 0; c < shape.classes; ++c) {
              average += softmax.probability(c) * static_cast<sum_t>(along[first + c]);
            }
            for (int64_t c = 0; c < shape.classes; ++c) {
              const sum_t centred = static_cast<sum_t>(along[first + c]) - average;
              to[first + c] = each * softmax.probability(c) * centred;
            }
            sum += is_class(label[n], shape.classes)
                       ? average - static_cast<sum_t>(along[first + label[n]])
                       : std::numeric_limits<sum_t>::quiet_NaN();
          }
          grad_dot.mutable_data_ptr<scalar_t>()[task] = sum / samples;
        });
      });
  return {grad_dot, logits_grad};
}

}  // namespace
}  // namespace metasparse::cpu

TORCH_LIBRARY_IMPL(metasparse, CPU, m) {
  m.impl("task_cross_entropy", metasparse::cpu::task_cross_entropy);
  m.impl("task_cross_entropy_backward", metasparse::cpu::task_cross_entropy_backward);
  m.impl("task_cross_entropy_double_backward", metasparse::cpu::task_cross_entropy_double_backward);
}
