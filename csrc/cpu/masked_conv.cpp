// The masked convolution family on the CPU: checks, layout and the choice of an algorithm, then
// either one of csrc/cpu/conv or a dense convolution.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <tuple>
#include <utility>
#include <vector>

#include "../checks/masked_conv.h"
#include "../dense/masked_conv.h"
#include "../dense/masked_conv_sums.h"
#include "../gradient_buffer.h"
#include "../task_operand.h"
#include "conv/algorithm.h"
#include "conv/conv.h"
#include "empty_large.h"
#include "runtime/isa.h"

namespace metasparse::cpu {
namespace {

using at::IntArrayRef;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// ---- the algorithm that the process asked for --------------------------------------------------

const ConvRequest& request_from_environment() {
  const char* name = std::getenv("METASPARSE_CONV_BACKEND");
  return request_named(name == nullptr || *name == '\0' ? "automatic" : name,
                       "METASPARSE_CONV_BACKEND: expected the name");
}

std::atomic<const ConvRequest*>& requested() {
  static std::atomic<const ConvRequest*> request{&request_from_environment()};
  return request;
}

void set_conv_backend(const std::string& name) {
  requested() = &request_named(name, "set_backend: expected name");
}

std::string conv_backend() { return request_name(*requested()); }

std::string cpu_isa() { return isa_name(active_isa()); }

ConvOp op_named(const std::string& name) {
  if (name == "masked_conv") return ConvOp::forward;
  if (name == "masked_conv_input_grad") return ConvOp::input_grad;
  TORCH_CHECK_VALUE(name == "masked_conv_weight_grad",
                    "explain_conv: op must be masked_conv, masked_conv_input_grad or "
                    "masked_conv_weight_grad, got ",
                    name);
  return ConvOp::weight_grad;
}

// The algorithms that were considered for a call, names and verdicts in turn; the last one serves
// it. `sizes` are the numbers of ConvShape, in its order.
std::vector<std::string> explain_conv(const std::string& op, IntArrayRef sizes, double density) {
  TORCH_CHECK_VALUE(sizes.size() == 14, "explain_conv: sizes must have 14 numbers, got ",
                    sizes.size());
  const ConvShape shape = {sizes[0],  sizes[1],  sizes[2],  sizes[3], sizes[4],
                           sizes[5],  sizes[6],  sizes[7],  sizes[8], sizes[9],
                           sizes[10], sizes[11], sizes[12], sizes[13]};
  std::vector<std::string> lines;
  for (const Candidate& c :
       explain_choice(*requested(), op_named(op), shape, [density] { return density; })) {
    lines.push_back(algorithm_name(c.algorithm));
    lines.push_back(c.verdict);
  }
  return lines;
}

// ---- operands ----------------------------------------------------------------------------------

template <class T>
PerTask<const T> per_task(const TaskOperand& operand) {
  return {operand.data<T>(), operand.task_stride()};
}

// at::count_nonzero takes four nanoseconds an entry: for a mask of 512 x 512 a millisecond, a
// twentieth of its convolution of few images.
template <class T>
int64_t count_active(const T* mask, int64_t entries) {
  int64_t active = 0;
#pragma omp simd reduction(+ : active)
  for (int64_t k = 0; k < entries; ++k) active += mask[k] != 0;
  return active;
}

double density(const OptionalTensor& mask) {
  if (!mask.has_value() || mask->numel() == 0) return 1.0;
  const Tensor distinct = (mask->stride(0) == 0 ? (*mask)[0] : *mask).contiguous();
  const int64_t active = AT_DISPATCH_FLOATING_TYPES(distinct.scalar_type(), "masked_conv", [&] {
    return count_active(distinct.const_data_ptr<scalar_t>(), distinct.numel());
  });
  return static_cast<double>(active) / static_cast<double>(distinct.numel());
}

ConvShape shape_of(IntArrayRef x, IntArrayRef y, IntArrayRef kernel, IntArrayRef stride,
                   IntArrayRef padding) {
  return {x[0], x[1],      x[2],      y[2],      x[3],      x[4],       y[3],
          y[4], kernel[0], kernel[1], stride[0], stride[1], padding[0], padding[1]};
}

using Masks = std::initializer_list<std::reference_wrapper<const OptionalTensor>>;

// The algorithm for a call, of one term or several; library for what the kernels do not serve.
ConvAlgorithm algorithm_for(ConvOp op, const ConvShape& shape, at::ScalarType dtype, Masks masks) {
  const bool served = dtype == at::kFloat || dtype == at::kDouble;
  const bool empty = shape.tasks * shape.samples * shape.in_channels * shape.out_channels == 0;
  if (!served || empty) return {ConvKind::library};
  return choose_algorithm(*requested(), op, shape, [masks] {
    double sum = 0;
    for (const OptionalTensor& mask : masks) sum += density(mask);
    return sum / static_cast<double>(masks.size());
  });
}

// ---- the operations ----------------------------------------------------------------------------
// Each takes one term or two; the algorithm is chosen for both together.

// Images and their kernels, as the ops have them.
struct SpmmInputs {
  const Tensor& source;
  const Tensor& weight;
  const OptionalTensor& mask;
};

// Operands of terms, kept for as long as the kernels read them.
class HeldSpmmOperands {
 public:
  explicit HeldSpmmOperands(std::initializer_list<SpmmInputs> factors) {
    for (const SpmmInputs& f : factors) {
      held_.push_back({TaskOperand(f.source), TaskOperand(f.weight), TaskOperand(f.mask)});
    }
  }

  template <class T>
  std::vector<SpmmTerm<T>> terms() const {
    std::vector<SpmmTerm<T>> terms;
    for (const Held& h : held_) {
      terms.push_back({per_task<T>(h.source), per_task<T>(h.weight), per_task<T>(h.mask)});
    }
    return terms;
  }

 private:
  struct Held {
    TaskOperand source, weight, mask;
  };
  std::vector<Held> held_;
};

ConvShape forward_shape(const Tensor& x, const Tensor& weight, IntArrayRef stride,
                        IntArrayRef padding) {
  const int64_t y_sizes[] = {x.size(0), x.size(1), weight.size(1),
                             conv_out_size(x.size(3), weight.size(3), stride[0], padding[0]),
                             conv_out_size(x.size(4), weight.size(4), stride[1], padding[1])};
  return shape_of(x.sizes(), y_sizes, weight.sizes().slice(3), stride, padding);
}

ConvShape input_grad_shape(const Tensor& grad, const Tensor& weight, IntArrayRef input_size,
                           IntArrayRef stride, IntArrayRef padding) {
  const int64_t x_sizes[] = {grad.size(0), grad.size(1), weight.size(2), input_size[0],
                             input_size[1]};
  return shape_of(x_sizes, grad.sizes(), weight.sizes().slice(3), stride, padding);
}

Tensor forward_sum(const ConvShape& s, std::initializer_list<SpmmInputs> factors,
                   const OptionalTensor& bias, ConvAlgorithm algorithm) {
  const auto& like = factors.begin()->source;
  const Tensor y =
      empty_large({s.tasks, s.samples, s.out_channels, s.out_height, s.out_width}, like.options());
  const HeldSpmmOperands operands(factors);
  const TaskOperand biases(bias);
  AT_DISPATCH_FLOATING_TYPES(like.scalar_type(), "masked_conv", [&] {
    masked_conv_forward<scalar_t>(s, operands.terms<scalar_t>(), per_task<scalar_t>(biases),
                                  y.mutable_data_ptr<scalar_t>(), algorithm);
  });
  return y;
}

Tensor input_grad_sum(const ConvShape& s, std::initializer_list<SpmmInputs> factors,
                      ConvAlgorithm algorithm) {
  const auto& like = factors.begin()->source;
  const Tensor grad_x =
      empty_large({s.tasks, s.samples, s.in_channels, s.height, s.width}, like.options());
  const HeldSpmmOperands operands(factors);
  AT_DISPATCH_FLOATING_TYPES(like.scalar_type(), "masked_conv_input_grad", [&] {
    masked_conv_input_grad<scalar_t>(s, operands.terms<scalar_t>(),
                                     grad_x.mutable_data_ptr<scalar_t>(), algorithm);
  });
  return grad_x;
}

struct SddmmInputs {
  const Tensor& grad;
  const Tensor& x;
};

// `place`, if defined, is where the result goes.
Tensor weight_grad_sum(const ConvShape& s, std::initializer_list<SddmmInputs> samples,
                       const OptionalTensor& mask, ConvAlgorithm algorithm,
                       const Tensor& place = {}) {
  const auto& like = samples.begin()->x;
  const std::array sizes = {s.tasks, s.out_channels, s.in_channels, s.kernel_h, s.kernel_w};
  const Tensor grad_weight = place.defined() ? place : empty_large(sizes, like.options());
  std::vector<std::pair<TaskOperand, TaskOperand>> operands;
  for (const SddmmInputs& of : samples) operands.emplace_back(of.grad, of.x);
  const TaskOperand masks(mask);
  AT_DISPATCH_FLOATING_TYPES(like.scalar_type(), "masked_conv_weight_grad", [&] {
    std::vector<SddmmTerm<scalar_t>> terms;
    for (const auto& of : operands) {
      terms.push_back({per_task<scalar_t>(of.first), per_task<scalar_t>(of.second)});
    }
    masked_conv_weight_grad<scalar_t>(
        s, terms, per_task<scalar_t>(masks),
        {grad_weight.mutable_data_ptr<scalar_t>(), grad_weight.stride(0)}, algorithm);
  });
  return grad_weight;
}

Tensor forward_op(const Tensor& x, const Tensor& weight, const OptionalTensor& mask,
                  const OptionalTensor& bias, IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv(x, weight, mask, bias, stride, padding);
  const auto shape = forward_shape(x, weight, stride, padding);
  const auto algorithm = algorithm_for(ConvOp::forward, shape, x.scalar_type(), {mask});
  if (algorithm.kind == ConvKind::library) {
    return dense::masked_conv(x, weight, mask, bias, stride, padding);
  }
  return forward_sum(shape, {{x, weight, mask}}, bias, algorithm);
}

Tensor pair_op(const Tensor& x1, const Tensor& weight1, const OptionalTensor& mask1,
               const Tensor& x2, const Tensor& weight2, const OptionalTensor& mask2,
               const OptionalTensor& bias, IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv_pair(x1, weight1, mask1, x2, weight2, mask2, bias, stride, padding);
  const auto shape = forward_shape(x1, weight1, stride, padding);
  const auto algorithm = algorithm_for(ConvOp::forward, shape, x1.scalar_type(), {mask1, mask2});
  if (algorithm.kind == ConvKind::library) {
    return dense::masked_conv_pair(x1, weight1, mask1, x2, weight2, mask2, bias, stride, padding);
  }
  return forward_sum(shape, {{x1, weight1, mask1}, {x2, weight2, mask2}}, bias, algorithm);
}

Tensor input_grad_op(const Tensor& grad, const Tensor& weight, const OptionalTensor& mask,
                     IntArrayRef input_size, IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv_input_grad(grad, weight, mask, input_size, stride, padding);
  const auto shape = input_grad_shape(grad, weight, input_size, stride, padding);
  const auto algorithm = algorithm_for(ConvOp::input_grad, shape, grad.scalar_type(), {mask});
  if (algorithm.kind == ConvKind::library) {
    return dense::masked_conv_input_grad(grad, weight, mask, input_size, stride, padding);
  }
  return input_grad_sum(shape, {{grad, weight, mask}}, algorithm);
}

Tensor input_grad_pair_op(const Tensor& grad1, const Tensor& weight1, const OptionalTensor& mask1,
                          const Tensor& grad2, const Tensor& weight2, const OptionalTensor& mask2,
                          IntArrayRef input_size, IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv_input_grad_pair(grad1, weight1, mask1, grad2, weight2, mask2, input_size,
                                    stride, padding);
  const auto shape = input_grad_shape(grad1, weight1, input_size, stride, padding);
  const auto algorithm =
      algorithm_for(ConvOp::input_grad, shape, grad1.scalar_type(), {mask1, mask2});
  if (algorithm.kind == ConvKind::library) {
    return dense::masked_conv_input_grad_pair(grad1, weight1, mask1, grad2, weight2, mask2,
                                              input_size, stride, padding);
  }
  return input_grad_sum(shape, {{grad1, weight1, mask1}, {grad2, weight2, mask2}}, algorithm);
}

Tensor weight_grad_op(const Tensor& grad, const Tensor& x, const OptionalTensor& mask,
                      IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv_weight_grad(grad, x, mask, kernel_size, stride, padding);
  const auto shape = shape_of(x.sizes(), grad.sizes(), kernel_size, stride, padding);
  const auto algorithm = algorithm_for(ConvOp::weight_grad, shape, x.scalar_type(), {mask});
  if (algorithm.kind == ConvKind::library) {
    return dense::masked_conv_weight_grad(grad, x, mask, kernel_size, stride, padding);
  }
  return weight_grad_sum(shape, {{grad, x}}, mask, algorithm);
}

Tensor weight_grad_pair_op(const Tensor& grad1, const Tensor& x1, const Tensor& grad2,
                           const Tensor& x2, const OptionalTensor& mask, IntArrayRef kernel_size,
                           IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv_weight_grad_pair(grad1, x1, grad2, x2, mask, kernel_size, stride, padding);
  const auto shape = shape_of(x1.sizes(), grad1.sizes(), kernel_size, stride, padding);
  const auto algorithm = algorithm_for(ConvOp::weight_grad, shape, x1.scalar_type(), {mask});
  if (algorithm.kind == ConvKind::library) {
    return dense::masked_conv_weight_grad_pair(grad1, x1, grad2, x2, mask, kernel_size, stride,
                                               padding);
  }
  return weight_grad_sum(shape, {{grad1, x1}, {grad2, x2}}, mask, algorithm);
}

// What a backward pass wants. The weight's gradient is computed where it will lie, unless it is
// dense and still to be divided between weight and mask.
std::tuple<Tensor, Tensor, Tensor> backward_op(const Tensor& grad, const Tensor& x,
                                               const Tensor& weight, const OptionalTensor& mask,
                                               bool input_wanted, bool dense, bool bias_wanted,
                                               IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv_backward(grad, x, weight, mask, stride, padding);
  const auto kernel_size = weight.sizes().slice(3);
  const OptionalTensor own_mask = dense ? std::nullopt : mask;
  const auto shape = shape_of(x.sizes(), grad.sizes(), kernel_size, stride, padding);
  const auto algorithm = algorithm_for(ConvOp::weight_grad, shape, x.scalar_type(), {own_mask});
  const Tensor weight_grad =
      algorithm.kind == ConvKind::library
          ? dense::masked_conv_weight_grad(grad, x, own_mask, kernel_size, stride, padding)
          : weight_grad_sum(shape, {{grad, x}}, own_mask, algorithm,
                            dense ? Tensor() : gradient_place(weight));
  const auto unwanted = [&] { return at::empty({x.size(0), 0}, x.options()); };
  return {input_wanted ? input_grad_op(grad, weight, mask, x.sizes().slice(3), stride, padding)
                       : unwanted(),
          weight_grad, bias_wanted ? grad.sum({1, 3, 4}) : unwanted()};
}

// The mask's gradient is needed for pruned kernels too: the weight gradient is computed unmasked.
Tensor mask_grad_op(const Tensor& grad, const Tensor& x, const Tensor& weight, IntArrayRef stride,
                    IntArrayRef padding) {
  check_masked_conv_mask_grad(grad, x, weight, stride, padding);
  const auto dense =
      weight_grad_op(grad, x, std::nullopt, weight.sizes().slice(3), stride, padding);
  return (dense * weight).sum({-2, -1});
}

}  // namespace
}  // namespace metasparse::cpu

TORCH_LIBRARY_IMPL(metasparse, CPU, m) {
  m.impl("masked_conv", metasparse::cpu::forward_op);
  m.impl("masked_conv_input_grad", metasparse::cpu::input_grad_op);
  m.impl("masked_conv_weight_grad", metasparse::cpu::weight_grad_op);
  m.impl("masked_conv_mask_grad", metasparse::cpu::mask_grad_op);
  m.impl("masked_conv_backward", metasparse::cpu::backward_op);
  m.impl("masked_conv_pair", metasparse::cpu::pair_op);
  m.impl("masked_conv_input_grad_pair", metasparse::cpu::input_grad_pair_op);
  m.impl("masked_conv_weight_grad_pair", metasparse::cpu::weight_grad_pair_op);
}

TORCH_LIBRARY_IMPL(metasparse, CatchAll, m) {
  m.impl("set_conv_backend", metasparse::cpu::set_conv_backend);
  m.impl("conv_backend", metasparse::cpu::conv_backend);
  m.impl("cpu_isa", metasparse::cpu::cpu_isa);
  m.impl("explain_conv", metasparse::cpu::explain_conv);
}
