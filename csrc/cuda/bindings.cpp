// The CUDA C++ kernels as ops of the dispatcher's namespace metasparse_cuda: the names and schemas
// of namespace metasparse, and for each op that does not take every call a predicate of the same
// arguments, which reads no data. Which backend serves an op of namespace metasparse on a GPU is
// decided elsewhere; asking for the impossible here is an error.
#include "bindings.h"

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sum.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <optional>

#include "../cg_checks.h"
#include "../masked_conv_checks.h"
#include "../softmax_head_checks.h"
#include "../task_operand.h"
#include "../topk_mask_checks.h"
#include "cg.h"
#include "masked_conv.h"
#include "softmax_head.h"
#include "topk_mask.h"

namespace metasparse::cuda {
namespace {

using at::IntArrayRef;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

void check_launch(const char* op, cudaError_t error) {
  TORCH_CHECK(error == cudaSuccess, op,
              ": the CUDA kernels could not be launched: ", cudaGetErrorString(error));
}

void refuse_unless(bool takes, const char* op) {
  TORCH_CHECK_VALUE(takes, op,
                    ": the CUDA C++ kernels do not take this call; metasparse_cuda::", op,
                    "_supported tells which they take");
}

Tensor workspace(int64_t bytes, const Tensor& like) {
  return at::empty({bytes}, like.options().dtype(at::kByte));
}

// ---- the masked convolution --------------------------------------------------------------------

template <class F>
PerTask<F> per_task(const TaskOperand& operand) {
  return {operand.data<F>(), operand.task_stride()};
}

ConvShape conv_shape(IntArrayRef x, IntArrayRef y, IntArrayRef stride, IntArrayRef padding) {
  return {x[0], x[1], x[2], y[2], x[3], x[4], y[3], y[4], stride[0], padding[0]};
}

bool takes_window(at::ScalarType type, IntArrayRef kernel, IntArrayRef stride,
                  IntArrayRef padding) {
  return (type == at::kFloat || type == at::kDouble) && kernel == IntArrayRef({3, 3}) &&
         stride[0] == stride[1] && padding[0] == padding[1];
}

bool takes_shape(ConvOp op, at::ScalarType type, const ConvShape& shape) {
  return type == at::kFloat ? takes<float>(op, shape) : takes<double>(op, shape);
}

std::array<int64_t, 5> result_sizes(const Tensor& x, const Tensor& weight, IntArrayRef stride,
                                    IntArrayRef padding) {
  return {x.size(0), x.size(1), weight.size(1),
          conv_out_size(x.size(3), weight.size(3), stride[0], padding[0]),
          conv_out_size(x.size(4), weight.size(4), stride[1], padding[1])};
}

bool masked_conv_supported(const Tensor& x, const Tensor& weight, const OptionalTensor& mask,
                           const OptionalTensor& bias, IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv(x, weight, mask, bias, stride, padding);
  if (!takes_window(x.scalar_type(), weight.sizes().slice(3), stride, padding)) return false;
  const auto y = result_sizes(x, weight, stride, padding);
  return takes_shape(ConvOp::forward, x.scalar_type(), conv_shape(x.sizes(), y, stride, padding));
}

Tensor masked_conv_op(const Tensor& x, const Tensor& weight, const OptionalTensor& mask,
                      const OptionalTensor& bias, IntArrayRef stride, IntArrayRef padding) {
  constexpr const char* op = "masked_conv";
  refuse_unless(masked_conv_supported(x, weight, mask, bias, stride, padding), op);
  const c10::cuda::CUDAGuard guard(x.device());
  const Tensor y = at::empty(result_sizes(x, weight, stride, padding), x.options());
  const auto shape = conv_shape(x.sizes(), y.sizes(), stride, padding);
  const TaskOperand xs(x), weights(weight), masks(mask), biases(bias);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), op, [&] {
    const Tensor space = workspace(masked_conv_workspace<scalar_t>(ConvOp::forward, shape), x);
    check_launch(op,
                 masked_conv<scalar_t>(shape, per_task<scalar_t>(xs), per_task<scalar_t>(weights),
                                       per_task<scalar_t>(masks), per_task<scalar_t>(biases),
                                       y.mutable_data_ptr<scalar_t>(), space.mutable_data_ptr(),
                                       c10::cuda::getCurrentCUDAStream()));
  });
  return y;
}

std::array<int64_t, 5> input_sizes(const Tensor& grad, const Tensor& weight,
                                   IntArrayRef input_size) {
  return {grad.size(0), grad.size(1), weight.size(2), input_size[0], input_size[1]};
}

bool masked_conv_input_grad_supported(const Tensor& grad, const Tensor& weight,
                                      const OptionalTensor& mask, IntArrayRef input_size,
                                      IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv_input_grad(grad, weight, mask, input_size, stride, padding);
  if (!takes_window(grad.scalar_type(), weight.sizes().slice(3), stride, padding)) return false;
  const auto x = input_sizes(grad, weight, input_size);
  return takes_shape(ConvOp::input_grad, grad.scalar_type(),
                     conv_shape(x, grad.sizes(), stride, padding));
}

Tensor masked_conv_input_grad_op(const Tensor& grad, const Tensor& weight,
                                 const OptionalTensor& mask, IntArrayRef input_size,
                                 IntArrayRef stride, IntArrayRef padding) {
  constexpr const char* op = "masked_conv_input_grad";
  refuse_unless(masked_conv_input_grad_supported(grad, weight, mask, input_size, stride, padding),
                op);
  const c10::cuda::CUDAGuard guard(grad.device());
  const Tensor grad_x = at::empty(input_sizes(grad, weight, input_size), grad.options());
  const auto shape = conv_shape(grad_x.sizes(), grad.sizes(), stride, padding);
  const TaskOperand grads(grad), weights(weight), masks(mask);
  AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), op, [&] {
    const Tensor space =
        workspace(masked_conv_workspace<scalar_t>(ConvOp::input_grad, shape), grad);
    check_launch(op, masked_conv_input_grad<scalar_t>(
                         shape, per_task<scalar_t>(grads), per_task<scalar_t>(weights),
                         per_task<scalar_t>(masks), grad_x.mutable_data_ptr<scalar_t>(),
                         space.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream()));
  });
  return grad_x;
}

bool masked_conv_weight_grad_supported(const Tensor& grad, const Tensor& x,
                                       const OptionalTensor& mask, IntArrayRef kernel_size,
                                       IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv_weight_grad(grad, x, mask, kernel_size, stride, padding);
  return takes_window(x.scalar_type(), kernel_size, stride, padding) &&
         takes_shape(ConvOp::weight_grad, x.scalar_type(),
                     conv_shape(x.sizes(), grad.sizes(), stride, padding));
}

Tensor masked_conv_weight_grad_op(const Tensor& grad, const Tensor& x, const OptionalTensor& mask,
                                  IntArrayRef kernel_size, IntArrayRef stride,
                                  IntArrayRef padding) {
  constexpr const char* op = "masked_conv_weight_grad";
  refuse_unless(masked_conv_weight_grad_supported(grad, x, mask, kernel_size, stride, padding), op);
  const c10::cuda::CUDAGuard guard(x.device());
  const Tensor grad_weight = at::empty({x.size(0), grad.size(2), x.size(2), 3, 3}, x.options());
  const auto shape = conv_shape(x.sizes(), grad.sizes(), stride, padding);
  const TaskOperand grads(grad), xs(x), masks(mask);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), op, [&] {
    const Tensor space = workspace(masked_conv_weight_grad_workspace<scalar_t>(shape), x);
    check_launch(op, masked_conv_weight_grad<scalar_t>(
                         shape, per_task<scalar_t>(grads), per_task<scalar_t>(xs),
                         per_task<scalar_t>(masks), grad_weight.mutable_data_ptr<scalar_t>(),
                         space.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream()));
  });
  return grad_weight;
}

bool masked_conv_mask_grad_supported(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                     IntArrayRef stride, IntArrayRef padding) {
  return masked_conv_weight_grad_supported(grad, x, std::nullopt, weight.sizes().slice(3), stride,
                                           padding);
}

// The mask is wanted dense: what a pruned kernel would have gained by being active.
Tensor masked_conv_mask_grad_op(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                IntArrayRef stride, IntArrayRef padding) {
  const auto dense =
      masked_conv_weight_grad_op(grad, x, std::nullopt, weight.sizes().slice(3), stride, padding);
  return at::sum(at::mul(dense, weight), {-2, -1});
}

// ---- masks -------------------------------------------------------------------------------------

bool topk_mask_supported(const Tensor& scores, const Tensor& k) {
  check_topk_mask(scores, k);
  return scores.size(1) < (int64_t{1} << 30) && scores.size(0) < (int64_t{1} << 27);
}

Tensor topk_mask_op(const Tensor& scores, const Tensor& k) {
  constexpr const char* op = "topk_mask";
  refuse_unless(topk_mask_supported(scores, k), op);
  const c10::cuda::CUDAGuard guard(scores.device());
  const Tensor mask = at::empty(scores.sizes(), scores.options());
  const Tensor rows = scores.stride(1) == 1 ? scores : scores.contiguous();
  const Tensor counts = k.contiguous();
  AT_DISPATCH_FLOATING_TYPES(scores.scalar_type(), op, [&] {
    check_launch(op, topk_mask<scalar_t>(rows.const_data_ptr<scalar_t>(), rows.stride(0),
                                         counts.const_data_ptr<int64_t>(), rows.size(0),
                                         rows.size(1), mask.mutable_data_ptr<scalar_t>(),
                                         c10::cuda::getCurrentCUDAStream()));
  });
  return mask;
}

// ---- the softmax head --------------------------------------------------------------------------

HeadShape head_shape(const Tensor& features, const Tensor& center) {
  return {features.size(0), features.size(1), center.size(1), features.size(2)};
}

bool softmax_head_supported(const Tensor& features, const Tensor& labels, const Tensor& center,
                            const Tensor& lam, double, int64_t) {
  check_softmax_head("softmax_head", features, labels, center, lam);
  return softmax_head_takes(head_shape(features, center));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> softmax_head_op(const Tensor& features,
                                                           const Tensor& labels,
                                                           const Tensor& center, const Tensor& lam,
                                                           double tolerance,
                                                           int64_t max_iterations) {
  constexpr const char* op = "softmax_head";
  refuse_unless(softmax_head_supported(features, labels, center, lam, tolerance, max_iterations),
                op);
  const c10::cuda::CUDAGuard guard(features.device());
  const auto tasks = features.size(0);
  Tensor weight = at::empty(center.sizes(), center.options());
  Tensor iterations = at::empty({tasks}, labels.options());
  Tensor residual = at::empty({tasks}, features.options().dtype(at::kDouble));
  Tensor status = at::empty({tasks}, labels.options());
  const Tensor x = features.contiguous(), y = labels.contiguous(), w = center.contiguous(),
               l = lam.contiguous();
  AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), op, [&] {
    const HeadSolve<scalar_t> call = {head_shape(features, center),
                                      x.const_data_ptr<scalar_t>(),
                                      y.const_data_ptr<int64_t>(),
                                      w.const_data_ptr<scalar_t>(),
                                      l.const_data_ptr<scalar_t>(),
                                      tolerance,
                                      max_iterations,
                                      weight.mutable_data_ptr<scalar_t>(),
                                      iterations.mutable_data_ptr<int64_t>(),
                                      residual.mutable_data_ptr<double>(),
                                      status.mutable_data_ptr<int64_t>()};
    check_launch(op, softmax_head(call, c10::cuda::getCurrentCUDAStream()));
  });
  return {weight, iterations, residual, status};
}

bool softmax_head_grad_supported(const Tensor& grad, const Tensor& weight, const Tensor& features,
                                 const Tensor& labels, const Tensor& center, const Tensor& lam) {
  constexpr const char* op = "softmax_head_grad";
  check_softmax_head(op, features, labels, center, lam);
  check_softmax_head_like_center(op, "grad", grad, center);
  check_softmax_head_like_center(op, "weight", weight, center);
  return softmax_head_takes(head_shape(features, center));
}

std::tuple<Tensor, Tensor, Tensor> softmax_head_grad_op(const Tensor& grad, const Tensor& weight,
                                                        const Tensor& features,
                                                        const Tensor& labels, const Tensor& center,
                                                        const Tensor& lam) {
  constexpr const char* op = "softmax_head_grad";
  refuse_unless(softmax_head_grad_supported(grad, weight, features, labels, center, lam), op);
  const c10::cuda::CUDAGuard guard(features.device());
  Tensor features_grad = at::empty(features.sizes(), features.options());
  Tensor center_grad = at::empty(center.sizes(), center.options());
  Tensor lam_grad = at::empty(lam.sizes(), lam.options());
  const Tensor q = grad.contiguous(), w = weight.contiguous(), x = features.contiguous(),
               y = labels.contiguous(), c = center.contiguous(), l = lam.contiguous();
  // In float32 the products with the features are the limit, and a tighter solve would be wasted.
  const double tolerance = features.scalar_type() == at::kFloat ? 1e-9 : 1e-14;
  AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), op, [&] {
    const HeadGrad<scalar_t> call = {head_shape(features, center),
                                     q.const_data_ptr<scalar_t>(),
                                     w.const_data_ptr<scalar_t>(),
                                     x.const_data_ptr<scalar_t>(),
                                     y.const_data_ptr<int64_t>(),
                                     c.const_data_ptr<scalar_t>(),
                                     l.const_data_ptr<scalar_t>(),
                                     tolerance,
                                     features_grad.mutable_data_ptr<scalar_t>(),
                                     center_grad.mutable_data_ptr<scalar_t>(),
                                     lam_grad.mutable_data_ptr<scalar_t>()};
    check_launch(op, softmax_head_grad(call, c10::cuda::getCurrentCUDAStream()));
  });
  return {features_grad, center_grad, lam_grad};
}

// ---- conjugate gradients -----------------------------------------------------------------------

bool cg_step_supported(const Tensor& x, const Tensor& r, const Tensor& p, const Tensor& q,
                       const OptionalTensor& preconditioner, const Tensor& rz, const Tensor& rr,
                       const Tensor& limit, const Tensor& status, const Tensor& iterations) {
  check_cg_step(x, r, p, q, preconditioner, rz, rr, limit, status, iterations);
  return x.size(0) <= 65535;
}

void cg_step_op(const Tensor& x, const Tensor& r, const Tensor& p, const Tensor& q,
                const OptionalTensor& preconditioner, const Tensor& rz, const Tensor& rr,
                const Tensor& limit, const Tensor& status, const Tensor& iterations) {
  constexpr const char* op = "cg_step";
  refuse_unless(cg_step_supported(x, r, p, q, preconditioner, rz, rr, limit, status, iterations),
                op);
  const c10::cuda::CUDAGuard guard(x.device());
  const Tensor product = q.contiguous();
  const Tensor diagonal = preconditioner.has_value() ? preconditioner->contiguous() : Tensor();
  const Tensor space = workspace(cg_step_workspace(x.size(0)), x);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), op, [&] {
    const CgSystem<scalar_t> system = {
        x.mutable_data_ptr<scalar_t>(),
        r.mutable_data_ptr<scalar_t>(),
        p.mutable_data_ptr<scalar_t>(),
        product.const_data_ptr<scalar_t>(),
        diagonal.defined() ? diagonal.const_data_ptr<scalar_t>() : nullptr,
        rz.mutable_data_ptr<double>(),
        rr.mutable_data_ptr<double>(),
        limit.const_data_ptr<double>(),
        status.mutable_data_ptr<int64_t>(),
        iterations.mutable_data_ptr<int64_t>(),
        x.size(0),
        x.size(1)};
    check_launch(op, cg_step(system, space.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream()));
  });
}

}  // namespace

void register_kernels(torch::Library& m) {
  m.impl("masked_conv", masked_conv_op);
  m.impl("masked_conv_input_grad", masked_conv_input_grad_op);
  m.impl("masked_conv_weight_grad", masked_conv_weight_grad_op);
  m.impl("masked_conv_mask_grad", masked_conv_mask_grad_op);
  m.impl("topk_mask", topk_mask_op);
  m.impl("softmax_head", softmax_head_op);
  m.impl("softmax_head_grad", softmax_head_grad_op);
  m.impl("cg_step", cg_step_op);
}

}  // namespace metasparse::cuda

TORCH_LIBRARY(metasparse_cuda, m) {
  using namespace metasparse::cuda;
  m.def(
      "masked_conv(Tensor x, Tensor weight, Tensor? mask, Tensor? bias, int[2] stride, int[2] "
      "padding) -> Tensor");
  m.def(
      "masked_conv_supported(Tensor x, Tensor weight, Tensor? mask, Tensor? bias, int[2] stride,"
      " int[2] padding) -> bool",
      masked_conv_supported);
  m.def(
      "masked_conv_input_grad(Tensor grad, Tensor weight, Tensor? mask, SymInt[2] input_size,"
      " int[2] stride, int[2] padding) -> Tensor");
  m.def(
      "masked_conv_input_grad_supported(Tensor grad, Tensor weight, Tensor? mask,"
      " int[2] input_size, int[2] stride, int[2] padding) -> bool",
      masked_conv_input_grad_supported);
  m.def(
      "masked_conv_weight_grad(Tensor grad, Tensor x, Tensor? mask, SymInt[2] kernel_size,"
      " int[2] stride, int[2] padding) -> Tensor");
  m.def(
      "masked_conv_weight_grad_supported(Tensor grad, Tensor x, Tensor? mask, int[2] kernel_size,"
      " int[2] stride, int[2] padding) -> bool",
      masked_conv_weight_grad_supported);
  m.def(
      "masked_conv_mask_grad(Tensor grad, Tensor x, Tensor weight, int[2] stride, int[2] padding)"
      " -> Tensor");
  m.def(
      "masked_conv_mask_grad_supported(Tensor grad, Tensor x, Tensor weight, int[2] stride,"
      " int[2] padding) -> bool",
      masked_conv_mask_grad_supported);
  m.def("topk_mask(Tensor scores, Tensor k) -> Tensor");
  m.def("topk_mask_supported(Tensor scores, Tensor k) -> bool", topk_mask_supported);
  m.def(
      "softmax_head(Tensor features, Tensor labels, Tensor center, Tensor lam, float tolerance,"
      " int max_iterations) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "softmax_head_supported(Tensor features, Tensor labels, Tensor center, Tensor lam,"
      " float tolerance, int max_iterations) -> bool",
      softmax_head_supported);
  m.def(
      "softmax_head_grad(Tensor grad, Tensor weight, Tensor features, Tensor labels, Tensor center,"
      " Tensor lam) -> (Tensor, Tensor, Tensor)");
  m.def(
      "softmax_head_grad_supported(Tensor grad, Tensor weight, Tensor features, Tensor labels,"
      " Tensor center, Tensor lam) -> bool",
      softmax_head_grad_supported);
  m.def(
      "cg_step(Tensor(a!) x, Tensor(b!) r, Tensor(c!) p, Tensor q, Tensor? preconditioner,"
      " Tensor(d!) rz, Tensor(e!) rr, Tensor limit, Tensor(f!) status, Tensor(g!) iterations) -> "
      "()");
  m.def(
      "cg_step_supported(Tensor x, Tensor r, Tensor p, Tensor q, Tensor? preconditioner, Tensor rz,"
      " Tensor rr, Tensor limit, Tensor status, Tensor iterations) -> bool",
      cg_step_supported);
}

TORCH_LIBRARY_IMPL(metasparse_cuda, CUDA, m) { metasparse::cuda::register_kernels(m); }
