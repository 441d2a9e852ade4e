// Masks, heads and conjugate gradients.
#include "bindings.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../checks/cg.h"
#include "../checks/mask.h"
#include "../checks/softmax_head.h"
#include "cg.h"
#include "softmax_head.h"
#include "topk_mask.h"

namespace metasparse::cuda {
namespace {

using at::Tensor;

// ---- masks -------------------------------------------------------------------------------------

std::string topk_mask_refusal(const Tensor& scores, const Tensor& k) {
  check_topk_mask(scores, k);
  const bool within = scores.size(1) < (int64_t{1} << 30) && scores.size(0) < (int64_t{1} << 27);
  return within ? "" : "expected fewer than 2^27 rows of fewer than 2^30 scores";
}

Tensor topk_mask_op(const Tensor& scores, const Tensor& k) {
  constexpr const char* op = "topk_mask";
  raise_refusal(op, topk_mask_refusal(scores, k));
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

std::string head_refusal(const HeadShape& shape, c10::Device device) {
  const c10::cuda::CUDAGuard guard(device);
  return shared_memory_refusal(softmax_head_shared_bytes(shape));
}

std::string softmax_head_refusal(const Tensor& features, const Tensor& labels, const Tensor& center,
                                 const Tensor& lam, double, int64_t) {
  check_softmax_head("softmax_head", features, labels, center, lam);
  return head_refusal(head_shape(features, center), features.device());
}

std::tuple<Tensor, Tensor, Tensor, Tensor> softmax_head_op(const Tensor& features,
                                                           const Tensor& labels,
                                                           const Tensor& center, const Tensor& lam,
                                                           double tolerance,
                                                           int64_t max_iterations) {
  constexpr const char* op = "softmax_head";
  raise_refusal(op, softmax_head_refusal(features, labels, center, lam, tolerance, max_iterations));
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

std::string softmax_head_grad_refusal(const Tensor& grad, const Tensor& weight,
                                      const Tensor& features, const Tensor& labels,
                                      const Tensor& center, const Tensor& lam) {
  check_softmax_head_grad(grad, weight, features, labels, center, lam);
  return head_refusal(head_shape(features, center), features.device());
}

std::tuple<Tensor, Tensor, Tensor> softmax_head_grad_op(const Tensor& grad, const Tensor& weight,
                                                        const Tensor& features,
                                                        const Tensor& labels, const Tensor& center,
                                                        const Tensor& lam) {
  constexpr const char* op = "softmax_head_grad";
  raise_refusal(op, softmax_head_grad_refusal(grad, weight, features, labels, center, lam));
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

std::string cg_step_refusal(const Tensor& x, const Tensor& r, const Tensor& p, const Tensor& q,
                            const OptionalTensor& preconditioner, const Tensor& rz,
                            const Tensor& rr, const Tensor& limit, const Tensor& status,
                            const Tensor& iterations) {
  check_cg_step(x, r, p, q, preconditioner, rz, rr, limit, status, iterations);
  return x.size(0) <= 65535 ? "" : "expected at most 65535 tasks";
}

void cg_step_op(const Tensor& x, const Tensor& r, const Tensor& p, const Tensor& q,
                const OptionalTensor& preconditioner, const Tensor& rz, const Tensor& rr,
                const Tensor& limit, const Tensor& status, const Tensor& iterations) {
  constexpr const char* op = "cg_step";
  raise_refusal(op, cg_step_refusal(x, r, p, q, preconditioner, rz, rr, limit, status, iterations));
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
  m.impl("topk_mask", topk_mask_op);
  m.impl("softmax_head", softmax_head_op);
  m.impl("softmax_head_grad", softmax_head_grad_op);
  m.impl("cg_step", cg_step_op);
}

}  // namespace metasparse::cuda

TORCH_LIBRARY(metasparse_cuda, m) {
  using namespace metasparse::cuda;
  m.def("topk_mask(Tensor scores, Tensor k) -> Tensor");
  m.def("topk_mask_refusal(Tensor scores, Tensor k) -> str", topk_mask_refusal);
  m.def(
      "softmax_head(Tensor features, Tensor labels, Tensor center, Tensor lam, float tolerance,"
      " int max_iterations) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "softmax_head_refusal(Tensor features, Tensor labels, Tensor center, Tensor lam,"
      " float tolerance, int max_iterations) -> str",
      softmax_head_refusal);
  m.def(
      "softmax_head_grad(Tensor grad, Tensor weight, Tensor features, Tensor labels, Tensor center,"
      " Tensor lam) -> (Tensor, Tensor, Tensor)");
  m.def(
      "softmax_head_grad_refusal(Tensor grad, Tensor weight, Tensor features, Tensor labels,"
      " Tensor center, Tensor lam) -> str",
      softmax_head_grad_refusal);
  m.def(
      "cg_step(Tensor(a!) x, Tensor(b!) r, Tensor(c!) p, Tensor q, Tensor? preconditioner,"
      " Tensor(d!) rz, Tensor(e!) rr, Tensor limit, Tensor(f!) status, Tensor(g!) iterations) -> "
      "()");
  m.def(
      "cg_step_refusal(Tensor x, Tensor r, Tensor p, Tensor q, Tensor? preconditioner, Tensor rz,"
      " Tensor rr, Tensor limit, Tensor status, Tensor iterations) -> str",
      cg_step_refusal);
}

TORCH_LIBRARY_IMPL(metasparse_cuda, CUDA, m) { metasparse::cuda::register_kernels(m); }
