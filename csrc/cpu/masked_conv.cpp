// The masked convolution family on the CPU: checks, layout and the choice of a backend, then either
// the kernels of this folder or a dense convolution.
#include "masked_conv.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>

#include "../dense/masked_conv.h"
#include "../masked_conv_checks.h"
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

// A tensor whose tasks lie in memory as PerTask wants: itself where possible, else a copy.
class Operand {
 public:
  explicit Operand(const Tensor& t) {
    shared_ = t.size(0) == 1 || t.stride(0) == 0;
    const Tensor first = t.size(0) == 0 ? t : t[0];
    tensor_ = first.is_contiguous() ? t
              : shared_             ? first.contiguous().unsqueeze(0)
                                    : t.contiguous();
  }

  explicit Operand(const OptionalTensor& t) {
    if (t.has_value()) *this = Operand(*t);
  }

  template <class T>
  PerTask<const T> get() const {
    if (!tensor_.defined()) return {};
    return {tensor_.const_data_ptr<T>(), shared_ ? 0 : tensor_.stride(0)};
  }

 private:
  Tensor tensor_;
  bool shared_ = false;
};

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

// The backend for a call; library for what the kernels do not serve.
Backend backend_for(ConvOp op, const ConvShape& shape, at::ScalarType dtype, double density) {
  const bool served = dtype == at::kFloat || dtype == at::kDouble;
  const bool empty = shape.tasks * shape.samples * shape.in_channels * shape.out_channels == 0;
  if (!served || empty) return Backend::library;
  return choose_backend(requested_backend(), op, shape, density);
}

// ---- the operations ----------------------------------------------------------------------------

Tensor forward_op(const Tensor& x, const Tensor& weight, const OptionalTensor& mask,
                  const OptionalTensor& bias, IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv(x, weight, mask, bias, stride, padding);
  const int64_t y_sizes[] = {x.size(0), x.size(1), weight.size(1),
                             conv_out_size(x.size(3), weight.size(3), stride[0], padding[0]),
                             conv_out_size(x.size(4), weight.size(4), stride[1], padding[1])};
  const auto shape = shape_of(x.sizes(), y_sizes, weight.sizes().slice(3), stride, padding);
  const auto backend = backend_for(ConvOp::forward, shape, x.scalar_type(), density(mask));
  if (backend == Backend::library) {
    return dense::masked_conv(x, weight, mask, bias, stride, padding);
  }
  const Tensor y = at::empty(y_sizes, x.options());
  const Operand xs(x), weights(weight), masks(mask), biases(bias);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "masked_conv", [&] {
    masked_conv_forward<scalar_t>(shape, xs.get<scalar_t>(), weights.get<scalar_t>(),
                                  masks.get<scalar_t>(), biases.get<scalar_t>(),
                                  y.mutable_data_ptr<scalar_t>(), backend);
  });
  return y;
}

Tensor input_grad_op(const Tensor& grad, const Tensor& weight, const OptionalTensor& mask,
                     IntArrayRef input_size, IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv_input_grad(grad, weight, mask, input_size, stride, padding);
  const int64_t x_sizes[] = {grad.size(0), grad.size(1), weight.size(2), input_size[0],
                             input_size[1]};
  const auto shape = shape_of(x_sizes, grad.sizes(), weight.sizes().slice(3), stride, padding);
  const auto backend = backend_for(ConvOp::input_grad, shape, grad.scalar_type(), density(mask));
  if (backend == Backend::library) {
    return dense::masked_conv_input_grad(grad, weight, mask, input_size, stride, padding);
  }
  const Tensor grad_x = at::empty(x_sizes, grad.options());
  const Operand grads(grad), weights(weight), masks(mask);
  AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "masked_conv_input_grad", [&] {
    masked_conv_input_grad<scalar_t>(shape, grads.get<scalar_t>(), weights.get<scalar_t>(),
                                     masks.get<scalar_t>(), grad_x.mutable_data_ptr<scalar_t>(),
                                     backend);
  });
  return grad_x;
}

Tensor weight_grad_op(const Tensor& grad, const Tensor& x, const OptionalTensor& mask,
                      IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv_weight_grad(grad, x, mask, kernel_size, stride, padding);
  const auto shape = shape_of(x.sizes(), grad.sizes(), kernel_size, stride, padding);
  const auto backend = backend_for(ConvOp::weight_grad, shape, x.scalar_type(), density(mask));
  if (backend == Backend::library) {
    return dense::masked_conv_weight_grad(grad, x, mask, kernel_size, stride, padding);
  }
  const Tensor grad_weight =
      at::empty({x.size(0), grad.size(2), x.size(2), kernel_size[0], kernel_size[1]}, x.options());
  const Operand grads(grad), xs(x), masks(mask);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "masked_conv_weight_grad", [&] {
    masked_conv_weight_grad<scalar_t>(shape, grads.get<scalar_t>(), xs.get<scalar_t>(),
                                      masks.get<scalar_t>(),
                                      grad_weight.mutable_data_ptr<scalar_t>(), backend);
  });
  return grad_weight;
}

// The mask is wanted dense: what a pruned kernel would have gained by being active.
Tensor mask_grad_op(const Tensor& grad, const Tensor& x, const Tensor& weight, IntArrayRef stride,
                    IntArrayRef padding) {
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
}

TORCH_LIBRARY_IMPL(metasparse, CatchAll, m) {
  m.impl("set_conv_backend", metasparse::cpu::set_conv_backend);
  m.impl("conv_backend", metasparse::cpu::conv_backend);
  m.impl("cpu_isa", metasparse::cpu::cpu_isa);
}
