// The masked convolution family on the CPU: checks, layout and the choice of a backend, then either
// the kernels of this folder or a dense convolution.
#include "masked_conv.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <utility>
#include <vector>

#include "../dense/masked_conv.h"
#include "../dense/masked_conv_sums.h"
#include "../masked_conv_checks.h"
#include "../task_operand.h"
#include "isa.h"

namespace metasparse::cpu {
namespace {

using at::IntArrayRef;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// ---- the backend that the process asked for ----------------------------------------------------

Backend backend_from_environment() {
  const char* name = std::getenv("METASPARSE_CONV_BACKEND");
  return name == nullptr || *name == '\0' ? Backend::automatic : backend_named(name);
}

std::atomic<Backend>& requested_backend() {
  static std::atomic<Backend> requested{backend_from_environment()};
  return requested;
}

void set_conv_backend(const std::string& name) { requested_backend() = backend_named(name); }

std::string conv_backend() { return backend_name(requested_backend()); }

std::string cpu_isa() { return isa_name(active_isa()); }

// ---- operands ----------------------------------------------------------------------------------

template <class T>
PerTask<const T> per_task(const TaskOperand& operand) {
  return {operand.data<T>(), operand.task_stride()};
}

double density(const OptionalTensor& mask) {
  if (!mask.has_value() || mask->numel() == 0) return 1.0;
  const Tensor distinct = mask->stride(0) == 0 ? (*mask)[0] : *mask;
  return distinct.count_nonzero().item<double>() / static_cast<double>(distinct.numel());
}

ConvShape shape_of(IntArrayRef x, IntArrayRef y, IntArrayRef kernel, IntArrayRef stride,
                   IntArrayRef padding) {
  return {x[0], x[1],      x[2],      y[2],      x[3],      x[4],       y[3],
          y[4], kernel[0], kernel[1], stride[0], stride[1], padding[0], padding[1]};
}

using Masks = std::initializer_list<std::reference_wrapper<const OptionalTensor>>;

// The backend for a call, of one term or several; library for what the kernels do not serve.
Backend backend_for(ConvOp op, const ConvShape& shape, at::ScalarType dtype, Masks masks) {
  const bool served = dtype == at::kFloat || dtype == at::kDouble;
  const bool empty = shape.tasks * shape.samples * shape.in_channels * shape.out_channels == 0;
  if (!served || empty) return Backend::library;
  return choose_backend(requested_backend(), op, shape, [masks] {
    double sum = 0;
    for (const OptionalTensor& mask : masks) sum += density(mask);
    return sum / static_cast<double>(masks.size());
  });
}

// ---- the operations ----------------------------------------------------------------------------
// Each takes one term or two; the backend is chosen for both together.

// Images and their kernels, as the ops have them.
struct Factors {
  const Tensor& source;
  const Tensor& weight;
  const OptionalTensor& mask;
};

// Operands of terms, kept for as long as the kernels read them.
class ProductOperandsOf {
 public:
  explicit ProductOperandsOf(std::initializer_list<Factors> factors) {
    for (const Factors& f : factors) {
      held_.push_back({TaskOperand(f.source), TaskOperand(f.weight), TaskOperand(f.mask)});
    }
  }

  template <class T>
  std::vector<ProductTerm<T>> terms() const {
    std::vector<ProductTerm<T>> terms;
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

Tensor forward_sum(const ConvShape& s, std::initializer_list<Factors> factors,
                   const OptionalTensor& bias, Backend backend) {
  const auto& like = factors.begin()->source;
  const Tensor y =
      at::empty({s.tasks, s.samples, s.out_channels, s.out_height, s.out_width}, like.options());
  const ProductOperandsOf operands(factors);
  const TaskOperand biases(bias);
  AT_DISPATCH_FLOATING_TYPES(like.scalar_type(), "masked_conv", [&] {
    masked_conv_forward<scalar_t>(s, operands.terms<scalar_t>(), per_task<scalar_t>(biases),
                                  y.mutable_data_ptr<scalar_t>(), backend);
  });
  return y;
}

Tensor input_grad_sum(const ConvShape& s, std::initializer_list<Factors> factors, Backend backend) {
  const auto& like = factors.begin()->source;
  const Tensor grad_x =
      at::empty({s.tasks, s.samples, s.in_channels, s.height, s.width}, like.options());
  const ProductOperandsOf operands(factors);
  AT_DISPATCH_FLOATING_TYPES(like.scalar_type(), "masked_conv_input_grad", [&] {
    masked_conv_input_grad<scalar_t>(s, operands.terms<scalar_t>(),
                                     grad_x.mutable_data_ptr<scalar_t>(), backend);
  });
  return grad_x;
}

struct Samples {
  const Tensor& grad;
  const Tensor& x;
};

Tensor weight_grad_sum(const ConvShape& s, std::initializer_list<Samples> samples,
                       const OptionalTensor& mask, Backend backend) {
  const auto& like = samples.begin()->x;
  const Tensor grad_weight =
      at::empty({s.tasks, s.out_channels, s.in_channels, s.kernel_h, s.kernel_w}, like.options());
  std::vector<std::pair<TaskOperand, TaskOperand>> operands;
  for (const Samples& of : samples) operands.emplace_back(of.grad, of.x);
  const TaskOperand masks(mask);
  AT_DISPATCH_FLOATING_TYPES(like.scalar_type(), "masked_conv_weight_grad", [&] {
    std::vector<SampledTerm<scalar_t>> terms;
    for (const auto& of : operands) {
      terms.push_back({per_task<scalar_t>(of.first), per_task<scalar_t>(of.second)});
    }
    masked_conv_weight_grad<scalar_t>(s, terms, per_task<scalar_t>(masks),
                                      grad_weight.mutable_data_ptr<scalar_t>(), backend);
  });
  return grad_weight;
}

Tensor forward_op(const Tensor& x, const Tensor& weight, const OptionalTensor& mask,
                  const OptionalTensor& bias, IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv(x, weight, mask, bias, stride, padding);
  const auto shape = forward_shape(x, weight, stride, padding);
  const auto backend = backend_for(ConvOp::forward, shape, x.scalar_type(), {mask});
  if (backend == Backend::library) {
    return dense::masked_conv(x, weight, mask, bias, stride, padding);
  }
  return forward_sum(shape, {{x, weight, mask}}, bias, backend);
}

Tensor pair_op(const Tensor& x1, const Tensor& weight1, const OptionalTensor& mask1,
               const Tensor& x2, const Tensor& weight2, const OptionalTensor& mask2,
               const OptionalTensor& bias, IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv_pair(x1, weight1, mask1, x2, weight2, mask2, bias, stride, padding);
  const auto shape = forward_shape(x1, weight1, stride, padding);
  const auto backend = backend_for(ConvOp::forward, shape, x1.scalar_type(), {mask1, mask2});
  if (backend == Backend::library) {
    return dense::masked_conv_pair(x1, weight1, mask1, x2, weight2, mask2, bias, stride, padding);
  }
  return forward_sum(shape, {{x1, weight1, mask1}, {x2, weight2, mask2}}, bias, backend);
}

Tensor input_grad_op(const Tensor& grad, const Tensor& weight, const OptionalTensor& mask,
                     IntArrayRef input_size, IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv_input_grad(grad, weight, mask, input_size, stride, padding);
  const auto shape = input_grad_shape(grad, weight, input_size, stride, padding);
  const auto backend = backend_for(ConvOp::input_grad, shape, grad.scalar_type(), {mask});
  if (backend == Backend::library) {
    return dense::masked_conv_input_grad(grad, weight, mask, input_size, stride, padding);
  }
  return input_grad_sum(shape, {{grad, weight, mask}}, backend);
}

Tensor input_grad_pair_op(const Tensor& grad1, const Tensor& weight1, const OptionalTensor& mask1,
                          const Tensor& grad2, const Tensor& weight2, const OptionalTensor& mask2,
                          IntArrayRef input_size, IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv_input_grad_pair(grad1, weight1, mask1, grad2, weight2, mask2, input_size,
                                    stride, padding);
  const auto shape = input_grad_shape(grad1, weight1, input_size, stride, padding);
  const auto backend = backend_for(ConvOp::input_grad, shape, grad1.scalar_type(), {mask1, mask2});
  if (backend == Backend::library) {
    return dense::masked_conv_input_grad_pair(grad1, weight1, mask1, grad2, weight2, mask2,
                                              input_size, stride, padding);
  }
  return input_grad_sum(shape, {{grad1, weight1, mask1}, {grad2, weight2, mask2}}, backend);
}

Tensor weight_grad_op(const Tensor& grad, const Tensor& x, const OptionalTensor& mask,
                      IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv_weight_grad(grad, x, mask, kernel_size, stride, padding);
  const auto shape = shape_of(x.sizes(), grad.sizes(), kernel_size, stride, padding);
  const auto backend = backend_for(ConvOp::weight_grad, shape, x.scalar_type(), {mask});
  if (backend == Backend::library) {
    return dense::masked_conv_weight_grad(grad, x, mask, kernel_size, stride, padding);
  }
  return weight_grad_sum(shape, {{grad, x}}, mask, backend);
}

Tensor weight_grad_pair_op(const Tensor& grad1, const Tensor& x1, const Tensor& grad2,
                           const Tensor& x2, const OptionalTensor& mask, IntArrayRef kernel_size,
                           IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv_weight_grad_pair(grad1, x1, grad2, x2, mask, kernel_size, stride, padding);
  const auto shape = shape_of(x1.sizes(), grad1.sizes(), kernel_size, stride, padding);
  const auto backend = backend_for(ConvOp::weight_grad, shape, x1.scalar_type(), {mask});
  if (backend == Backend::library) {
    return dense::masked_conv_weight_grad_pair(grad1, x1, grad2, x2, mask, kernel_size, stride,
                                               padding);
  }
  return weight_grad_sum(shape, {{grad1, x1}, {grad2, x2}}, mask, backend);
}

// The mask is wanted dense: what a pruned kernel would have gained by being active.
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
  m.impl("masked_conv_pair", metasparse::cpu::pair_op);
  m.impl("masked_conv_input_grad_pair", metasparse::cpu::input_grad_pair_op);
  m.impl("masked_conv_weight_grad_pair", metasparse::cpu::weight_grad_pair_op);
}

TORCH_LIBRARY_IMPL(metasparse, CatchAll, m) {
  m.impl("set_conv_backend", metasparse::cpu::set_conv_backend);
  m.impl("conv_backend", metasparse::cpu::conv_backend);
  m.impl("cpu_isa", metasparse::cpu::cpu_isa);
}
