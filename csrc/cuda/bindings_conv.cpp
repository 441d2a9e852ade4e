// The masked convolutions.
#include <ATen/Dispatch.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sum.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <array>

#include "../checks/masked_conv.h"
#include "../task_operand.h"
#include "bindings.h"
#include "masked_conv.h"

namespace metasparse::cuda {
namespace {

using at::IntArrayRef;
using at::Tensor;
using Sizes = std::array<int64_t, 5>;

template <class F>
PerTask<F> per_task(const TaskOperand& operand) {
  return {operand.data<F>(), operand.task_stride()};
}

ConvShape conv_shape(IntArrayRef x, IntArrayRef y, IntArrayRef stride, IntArrayRef padding) {
  return {x[0], x[1], x[2], y[2], x[3], x[4], y[3], y[4], stride[0], padding[0]};
}

// Why no convolution of this kind is taken, or "".
std::string shape_refusal(at::ScalarType type, IntArrayRef kernel, IntArrayRef stride,
                          IntArrayRef padding, IntArrayRef x, IntArrayRef y) {
  const auto both = [](IntArrayRef pair, int64_t a, int64_t b) {
    return pair == IntArrayRef({a, a}) || pair == IntArrayRef({b, b});
  };
  if (type != at::kFloat && type != at::kDouble) {
    return c10::str("expected float32 or float64, got ", type);
  }
  if (kernel != IntArrayRef({3, 3})) return c10::str("expected 3x3 kernels, got ", kernel);
  if (!both(stride, 1, 2)) return c10::str("expected stride [1, 1] or [2, 2], got ", stride);
  if (!both(padding, 0, 1)) return c10::str("expected padding [0, 0] or [1, 1], got ", padding);
  if (!conv_shape(x, y, stride, padding).within_reach()) {
    return "expected sizes within the reach of 32-bit offsets";
  }
  return "";
}

std::string convolution_refusal(ConvOp op, at::ScalarType type, IntArrayRef kernel,
                                IntArrayRef stride, IntArrayRef padding, IntArrayRef x,
                                IntArrayRef y) {
  const auto refusal = shape_refusal(type, kernel, stride, padding, x, y);
  if (!refusal.empty()) return refusal;
  const auto shape = conv_shape(x, y, stride, padding);
  return shared_memory_refusal(type == at::kFloat ? masked_conv_shared_bytes<float>(op, shape)
                                                  : masked_conv_shared_bytes<double>(op, shape));
}

// ---- forward pass and input gradient -----------------------------------------------------------

// One convolution of a sum, its operands laid out for the kernels.
struct Operands {
  Operands(const Tensor& source_, const Tensor& weight_, const OptionalTensor& mask_)
      : source(source_), weight(weight_), mask(mask_) {}

  template <class F>
  ConvTerm<F> term() const {
    return {per_task<F>(source), per_task<F>(weight), per_task<F>(mask)};
  }

  TaskOperand source, weight, mask;
};

Tensor convolve(const char* name, ConvOp op, const ConvShape& shape, const Sizes& result_sizes,
                at::ArrayRef<Operands> terms, const OptionalTensor& bias,
                const at::TensorOptions& options) {
  const Tensor result = at::empty(result_sizes, options);
  const TaskOperand biases(bias);
  const int count = static_cast<int>(terms.size());
  AT_DISPATCH_FLOATING_TYPES(result.scalar_type(), "masked_conv", [&] {
    ConvSum<scalar_t> sum = {{}, count};
    for (int i = 0; i < count; ++i) sum.terms[i] = terms[i].term<scalar_t>();
    const Tensor space = workspace(masked_conv_workspace<scalar_t>(op, shape, count), result);
    check_launch(
        name, masked_conv<scalar_t>(op, shape, sum, per_task<scalar_t>(biases),
                                    result.mutable_data_ptr<scalar_t>(), space.mutable_data_ptr(),
                                    c10::cuda::getCurrentCUDAStream()));
  });
  return result;
}

Sizes output_sizes(const Tensor& x, const Tensor& weight, IntArrayRef stride, IntArrayRef padding) {
  return {x.size(0), x.size(1), weight.size(1),
          conv_out_size(x.size(3), weight.size(3), stride[0], padding[0]),
          conv_out_size(x.size(4), weight.size(4), stride[1], padding[1])};
}

std::string forward_refusal(const Tensor& x, const Tensor& weight, const OptionalTensor& mask,
                            const OptionalTensor& bias, IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv(x, weight, mask, bias, stride, padding);
  const c10::cuda::CUDAGuard guard(x.device());
  const Sizes y = output_sizes(x, weight, stride, padding);
  return convolution_refusal(ConvOp::forward, x.scalar_type(), weight.sizes().slice(3), stride,
                             padding, x.sizes(), y);
}

std::string forward_pair_refusal(const Tensor& x1, const Tensor& weight1,
                                 const OptionalTensor& mask1, const Tensor& x2,
                                 const Tensor& weight2, const OptionalTensor& mask2,
                                 const OptionalTensor& bias, IntArrayRef stride,
                                 IntArrayRef padding) {
  check_masked_conv_pair(x1, weight1, mask1, x2, weight2, mask2, bias, stride, padding);
  return forward_refusal(x1, weight1, mask1, bias, stride, padding);
}

Tensor forward(const Tensor& x, const Tensor& weight, const OptionalTensor& mask,
               const OptionalTensor& bias, IntArrayRef stride, IntArrayRef padding) {
  constexpr const char* name = "masked_conv";
  raise_refusal(name, forward_refusal(x, weight, mask, bias, stride, padding));
  const c10::cuda::CUDAGuard guard(x.device());
  const Sizes y = output_sizes(x, weight, stride, padding);
  return convolve(name, ConvOp::forward, conv_shape(x.sizes(), y, stride, padding), y,
                  {{x, weight, mask}}, bias, x.options());
}

Tensor forward_pair(const Tensor& x1, const Tensor& weight1, const OptionalTensor& mask1,
                    const Tensor& x2, const Tensor& weight2, const OptionalTensor& mask2,
                    const OptionalTensor& bias, IntArrayRef stride, IntArrayRef padding) {
  constexpr const char* name = "masked_conv_pair";
  raise_refusal(
      name, forward_pair_refusal(x1, weight1, mask1, x2, weight2, mask2, bias, stride, padding));
  const c10::cuda::CUDAGuard guard(x1.device());
  const Sizes y = output_sizes(x1, weight1, stride, padding);
  return convolve(name, ConvOp::forward, conv_shape(x1.sizes(), y, stride, padding), y,
                  {{x1, weight1, mask1}, {x2, weight2, mask2}}, bias, x1.options());
}

Sizes input_sizes(const Tensor& grad, const Tensor& weight, IntArrayRef input_size) {
  return {grad.size(0), grad.size(1), weight.size(2), input_size[0], input_size[1]};
}

std::string input_grad_refusal(const Tensor& grad, const Tensor& weight, const OptionalTensor& mask,
                               IntArrayRef input_size, IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv_input_grad(grad, weight, mask, input_size, stride, padding);
  const c10::cuda::CUDAGuard guard(grad.device());
  const Sizes x = input_sizes(grad, weight, input_size);
  return convolution_refusal(ConvOp::input_grad, grad.scalar_type(), weight.sizes().slice(3),
                             stride, padding, x, grad.sizes());
}

std::string input_grad_pair_refusal(const Tensor& grad1, const Tensor& weight1,
                                    const OptionalTensor& mask1, const Tensor& grad2,
                                    const Tensor& weight2, const OptionalTensor& mask2,
                                    IntArrayRef input_size, IntArrayRef stride,
                                    IntArrayRef padding) {
  check_masked_conv_input_grad_pair(grad1, weight1, mask1, grad2, weight2, mask2, input_size,
                                    stride, padding);
  return input_grad_refusal(grad1, weight1, mask1, input_size, stride, padding);
}

Tensor input_grad(const Tensor& grad, const Tensor& weight, const OptionalTensor& mask,
                  IntArrayRef input_size, IntArrayRef stride, IntArrayRef padding) {
  constexpr const char* name = "masked_conv_input_grad";
  raise_refusal(name, input_grad_refusal(grad, weight, mask, input_size, stride, padding));
  const c10::cuda::CUDAGuard guard(grad.device());
  const Sizes x = input_sizes(grad, weight, input_size);
  return convolve(name, ConvOp::input_grad, conv_shape(x, grad.sizes(), stride, padding), x,
                  {{grad, weight, mask}}, std::nullopt, grad.options());
}

Tensor input_grad_pair(const Tensor& grad1, const Tensor& weight1, const OptionalTensor& mask1,
                       const Tensor& grad2, const Tensor& weight2, const OptionalTensor& mask2,
                       IntArrayRef input_size, IntArrayRef stride, IntArrayRef padding) {
  constexpr const char* name = "masked_conv_input_grad_pair";
  raise_refusal(name, input_grad_pair_refusal(grad1, weight1, mask1, grad2, weight2, mask2,
                                              input_size, stride, padding));
  const c10::cuda::CUDAGuard guard(grad1.device());
  const Sizes x = input_sizes(grad1, weight1, input_size);
  return convolve(name, ConvOp::input_grad, conv_shape(x, grad1.sizes(), stride, padding), x,
                  {{grad1, weight1, mask1}, {grad2, weight2, mask2}}, std::nullopt,
                  grad1.options());
}

// ---- gradients in weight and mask --------------------------------------------------------------

std::string weight_grads_refusal(const Tensor& grad, const Tensor& x, IntArrayRef kernel_size,
                                 IntArrayRef stride, IntArrayRef padding) {
  const auto refusal =
      shape_refusal(x.scalar_type(), kernel_size, stride, padding, x.sizes(), grad.sizes());
  if (!refusal.empty()) return refusal;
  return weight_grad_fits_grid(conv_shape(x.sizes(), grad.sizes(), stride, padding))
             ? ""
             : "expected fewer tasks";
}

std::string weight_grad_refusal(const Tensor& grad, const Tensor& x, const OptionalTensor& mask,
                                IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv_weight_grad(grad, x, mask, kernel_size, stride, padding);
  return weight_grads_refusal(grad, x, kernel_size, stride, padding);
}

std::string weight_grad_pair_refusal(const Tensor& grad1, const Tensor& x1, const Tensor& grad2,
                                     const Tensor& x2, const OptionalTensor& mask,
                                     IntArrayRef kernel_size, IntArrayRef stride,
                                     IntArrayRef padding) {
  check_masked_conv_weight_grad_pair(grad1, x1, grad2, x2, mask, kernel_size, stride, padding);
  return weight_grads_refusal(grad1, x1, kernel_size, stride, padding);
}

struct GradOperands {
  GradOperands(const Tensor& grad_, const Tensor& x_) : grad(grad_), x(x_) {}
  TaskOperand grad, x;
};

Tensor sum_of_weight_grads(const char* name, const ConvShape& shape,
                           at::ArrayRef<GradOperands> terms, const OptionalTensor& mask,
                           const at::TensorOptions& options) {
  const Tensor result =
      at::empty({shape.tasks, shape.out_channels, shape.in_channels, 3, 3}, options);
  const TaskOperand masks(mask);
  const int count = static_cast<int>(terms.size());
  AT_DISPATCH_FLOATING_TYPES(result.scalar_type(), "masked_conv_weight_grad", [&] {
    WeightGradSum<scalar_t> sum = {{}, count};
    for (int i = 0; i < count; ++i) {
      sum.terms[i] = {per_task<scalar_t>(terms[i].grad), per_task<scalar_t>(terms[i].x)};
    }
    const Tensor space =
        workspace(masked_conv_weight_grad_workspace<scalar_t>(shape, count), result);
    check_launch(name, masked_conv_weight_grad<scalar_t>(shape, sum, per_task<scalar_t>(masks),
                                                         result.mutable_data_ptr<scalar_t>(),
                                                         space.mutable_data_ptr(),
                                                         c10::cuda::getCurrentCUDAStream()));
  });
  return result;
}

Tensor weight_grad(const Tensor& grad, const Tensor& x, const OptionalTensor& mask,
                   IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding) {
  constexpr const char* name = "masked_conv_weight_grad";
  raise_refusal(name, weight_grad_refusal(grad, x, mask, kernel_size, stride, padding));
  const c10::cuda::CUDAGuard guard(x.device());
  return sum_of_weight_grads(name, conv_shape(x.sizes(), grad.sizes(), stride, padding),
                             {{grad, x}}, mask, x.options());
}

Tensor weight_grad_pair(const Tensor& grad1, const Tensor& x1, const Tensor& grad2,
                        const Tensor& x2, const OptionalTensor& mask, IntArrayRef kernel_size,
                        IntArrayRef stride, IntArrayRef padding) {
  constexpr const char* name = "masked_conv_weight_grad_pair";
  raise_refusal(name,
                weight_grad_pair_refusal(grad1, x1, grad2, x2, mask, kernel_size, stride, padding));
  const c10::cuda::CUDAGuard guard(x1.device());
  return sum_of_weight_grads(name, conv_shape(x1.sizes(), grad1.sizes(), stride, padding),
                             {{grad1, x1}, {grad2, x2}}, mask, x1.options());
}

std::string mask_grad_refusal(const Tensor& grad, const Tensor& x, const Tensor& weight,
                              IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv_mask_grad(grad, x, weight, stride, padding);
  return weight_grad_refusal(grad, x, std::nullopt, weight.sizes().slice(3), stride, padding);
}

// The mask is wanted dense: what a pruned kernel would have gained by being active.
Tensor mask_grad(const Tensor& grad, const Tensor& x, const Tensor& weight, IntArrayRef stride,
                 IntArrayRef padding) {
  const auto dense = weight_grad(grad, x, std::nullopt, weight.sizes().slice(3), stride, padding);
  return at::sum(at::mul(dense, weight), {-2, -1});
}

// ---- registration ------------------------------------------------------------------------------

void define_convolutions(torch::Library& m) {
  m.def(
      "masked_conv(Tensor x, Tensor weight, Tensor? mask, Tensor? bias, int[2] stride, int[2] "
      "padding) -> Tensor");
  m.def(
      "masked_conv_refusal(Tensor x, Tensor weight, Tensor? mask, Tensor? bias, int[2] stride,"
      " int[2] padding) -> str",
      forward_refusal);
  m.def(
      "masked_conv_pair(Tensor x1, Tensor weight1, Tensor? mask1, Tensor x2, Tensor weight2,"
      " Tensor? mask2, Tensor? bias, int[2] stride, int[2] padding) -> Tensor");
  m.def(
      "masked_conv_pair_refusal(Tensor x1, Tensor weight1, Tensor? mask1, Tensor x2,"
      " Tensor weight2, Tensor? mask2, Tensor? bias, int[2] stride, int[2] padding) -> str",
      forward_pair_refusal);
  m.def(
      "masked_conv_input_grad(Tensor grad, Tensor weight, Tensor? mask, SymInt[2] input_size,"
      " int[2] stride, int[2] padding) -> Tensor");
  m.def(
      "masked_conv_input_grad_refusal(Tensor grad, Tensor weight, Tensor? mask,"
      " int[2] input_size, int[2] stride, int[2] padding) -> str",
      input_grad_refusal);
  m.def(
      "masked_conv_input_grad_pair(Tensor grad1, Tensor weight1, Tensor? mask1, Tensor grad2,"
      " Tensor weight2, Tensor? mask2, SymInt[2] input_size, int[2] stride, int[2] padding)"
      " -> Tensor");
  m.def(
      "masked_conv_input_grad_pair_refusal(Tensor grad1, Tensor weight1, Tensor? mask1,"
      " Tensor grad2, Tensor weight2, Tensor? mask2, int[2] input_size, int[2] stride,"
      " int[2] padding) -> str",
      input_grad_pair_refusal);
  m.def(
      "masked_conv_weight_grad(Tensor grad, Tensor x, Tensor? mask, SymInt[2] kernel_size,"
      " int[2] stride, int[2] padding) -> Tensor");
  m.def(
      "masked_conv_weight_grad_refusal(Tensor grad, Tensor x, Tensor? mask, int[2] kernel_size,"
      " int[2] stride, int[2] padding) -> str",
      weight_grad_refusal);
  m.def(
      "masked_conv_weight_grad_pair(Tensor grad1, Tensor x1, Tensor grad2, Tensor x2, Tensor? mask,"
      " SymInt[2] kernel_size, int[2] stride, int[2] padding) -> Tensor");
  m.def(
      "masked_conv_weight_grad_pair_refusal(Tensor grad1, Tensor x1, Tensor grad2, Tensor x2,"
      " Tensor? mask, int[2] kernel_size, int[2] stride, int[2] padding) -> str",
      weight_grad_pair_refusal);
  m.def(
      "masked_conv_mask_grad(Tensor grad, Tensor x, Tensor weight, int[2] stride, int[2] padding)"
      " -> Tensor");
  m.def(
      "masked_conv_mask_grad_refusal(Tensor grad, Tensor x, Tensor weight, int[2] stride,"
      " int[2] padding) -> str",
      mask_grad_refusal);
}

}  // namespace

void register_convolutions(torch::Library& m) {
  m.impl("masked_conv", forward);
  m.impl("masked_conv_pair", forward_pair);
  m.impl("masked_conv_input_grad", input_grad);
  m.impl("masked_conv_input_grad_pair", input_grad_pair);
  m.impl("masked_conv_weight_grad", weight_grad);
  m.impl("masked_conv_weight_grad_pair", weight_grad_pair);
  m.impl("masked_conv_mask_grad", mask_grad);
}

}  // namespace metasparse::cuda

TORCH_LIBRARY_FRAGMENT(metasparse_cuda, m) { metasparse::cuda::define_convolutions(m); }

TORCH_LIBRARY_IMPL(metasparse_cuda, CUDA, m) { metasparse::cuda::register_convolutions(m); }
