// Every schema of the package. CPU kernels register themselves (csrc/cpu), autograd per op family
// (csrc/autograd); fake tensors, vmap, autocast and the CUDA key are registered from Python
// (metasparse_ext/ops). A backend of CUDA is an op of the same name and arguments in a namespace of
// its own: metasparse_dense (csrc/dense), metasparse_cuda (csrc/cuda); metasparse_check only checks
// (csrc/checks/ops.cpp). Tensor letters: T task, N sample, I in, O out, H, W.
#include <Python.h>
#include <torch/library.h>

#include "build_info.h"

TORCH_LIBRARY(metasparse, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};

  // What the library was compiled with: "key=value" lines.
  m.def("build_info() -> str", metasparse::build_info);

  // The instruction set of the CPU kernels in use, and the backend of CPU convolutions: automatic,
  // or one that is forced for tests and benchmarks (as METASPARSE_CONV_BACKEND does from outside).
  m.def("cpu_isa() -> str");
  m.def("explain_conv(str op, int[] sizes, float density) -> str[]");
  m.def("conv_backend() -> str");
  m.def("set_conv_backend(str backend) -> ()");

  // y (T,N,O,Ho,Wo) = conv(x, weight * mask) + bias
  m.def(
      "masked_conv(Tensor x, Tensor weight, Tensor? mask, Tensor? bias, int[2] stride, int[2] "
      "padding)"
      " -> Tensor",
      tags);
  // The derivatives of <grad, conv(x, weight * mask)> in x, weight and mask.
  m.def(
      "masked_conv_input_grad(Tensor grad, Tensor weight, Tensor? mask, SymInt[2] input_size,"
      " int[2] stride, int[2] padding) -> Tensor",
      tags);
  m.def(
      "masked_conv_weight_grad(Tensor grad, Tensor x, Tensor? mask, SymInt[2] kernel_size,"
      " int[2] stride, int[2] padding) -> Tensor",
      tags);
  m.def(
      "masked_conv_mask_grad(Tensor grad, Tensor x, Tensor weight, int[2] stride, int[2] padding)"
      " -> Tensor",
      tags);

  // Sums of two members of the family, as the product rule yields them: conv(x1, weight1 * mask1) +
  // conv(x2, weight2 * mask2) + bias, and the like for the gradients in input and weight. Operands
  // of the same name have the same shape.
  m.def(
      "masked_conv_pair(Tensor x1, Tensor weight1, Tensor? mask1, Tensor x2, Tensor weight2,"
      " Tensor? mask2, Tensor? bias, int[2] stride, int[2] padding) -> Tensor",
      tags);
  m.def(
      "masked_conv_input_grad_pair(Tensor grad1, Tensor weight1, Tensor? mask1, Tensor grad2,"
      " Tensor weight2, Tensor? mask2, SymInt[2] input_size, int[2] stride, int[2] padding)"
      " -> Tensor",
      tags);
  m.def(
      "masked_conv_weight_grad_pair(Tensor grad1, Tensor x1, Tensor grad2, Tensor x2, Tensor? mask,"
      " SymInt[2] kernel_size, int[2] stride, int[2] padding) -> Tensor",
      tags);
  // What a backward pass wants of one convolution: the gradients in input, weight and bias. That of
  // the weight is dense or that of the active kernels; the others are of shape (T,0) where not
  // wanted.
  m.def(
      "masked_conv_backward(Tensor grad, Tensor x, Tensor weight, Tensor? mask, bool input_wanted,"
      " bool dense, bool bias_wanted, int[2] stride, int[2] padding)"
      " -> (Tensor x_grad, Tensor weight_grad, Tensor bias_grad)",
      tags);

  // weight1 * mask1 + weight2 * mask2, for weights (T,O,I,kh,kw) and masks (T,O,I): a direction of
  // the product of both.
  m.def("masked_weight_pair(Tensor weight1, Tensor mask1, Tensor weight2, Tensor mask2) -> Tensor",
        tags);
  // The gradients of <grad, weight * mask> in weight and mask.
  m.def(
      "masked_weight_backward(Tensor grad, Tensor weight, Tensor mask)"
      " -> (Tensor weight_grad, Tensor mask_grad)",
      tags);

  // y (T,N,C,Ho,Wo) = conv(x, weight) in which each channel sees itself alone, weight
  // (T,C,1,kh,kw); and the derivatives of <grad, y> in x and weight.
  m.def("depthwise_conv(Tensor x, Tensor weight, int[2] stride, int[2] padding) -> Tensor", tags);
  m.def(
      "depthwise_conv_input_grad(Tensor grad, Tensor weight, SymInt[2] input_size, int[2] stride,"
      " int[2] padding) -> Tensor",
      tags);
  m.def(
      "depthwise_conv_weight_grad(Tensor grad, Tensor x, SymInt[2] kernel_size, int[2] stride,"
      " int[2] padding) -> Tensor",
      tags);

  // Batch norm per task and channel, ReLU, 2x2 max-pool: y, what its derivatives need (mean and
  // 1/std of (T,C)), and the gate of y's shape, or (T,0) when nothing is gated
  // (csrc/norm_act_pool_gate.h).
  m.def(
      "norm_act_pool(Tensor x, Tensor? weight, Tensor? bias, float eps, bool relu, bool pool,"
      " bool norm_first) -> (Tensor y, Tensor mean, Tensor rstd, Tensor gate)",
      tags);
  // The gradients of <grad, y> in x, weight and bias.
  m.def(
      "norm_act_pool_backward(Tensor grad, Tensor x, Tensor? weight, Tensor mean, Tensor rstd,"
      " Tensor gate, float eps, bool pool, bool norm_first)"
      " -> (Tensor x_grad, Tensor weight_grad, Tensor bias_grad)",
      tags);
  // The derivative y_dot of y in the direction (x_dot, weight_dot, bias_dot).
  m.def(
      "norm_act_pool_tangent(Tensor x_dot, Tensor? weight_dot, Tensor? bias_dot, Tensor x,"
      " Tensor? weight, Tensor mean, Tensor rstd, Tensor gate, float eps, bool pool,"
      " bool norm_first) -> Tensor",
      tags);
  // y_dot, and the gradients of <grad, y_dot> in x and weight.
  m.def(
      "norm_act_pool_double_backward(Tensor x_dot, Tensor? weight_dot, Tensor? bias_dot,"
      " Tensor grad, Tensor x, Tensor? weight, Tensor mean, Tensor rstd, Tensor gate, float eps,"
      " bool pool, bool norm_first) -> (Tensor y_dot, Tensor x_grad, Tensor weight_grad)",
      tags);

  // Tensors (*B, *shape) as slices of one buffer (*B, P), and back; `sizes` are the shapes one
  // after the other, `ranks` how many of them each tensor has. Composed of torch's ops in every
  // mode but the plain one.
  // `zero` () is what the gradient of a slice without one is made of; else a zero is made anew.
  m.def(
      "unflatten_tasks(Tensor(a) flat, int[] sizes, int[] ranks, Tensor? zero=None) -> "
      "Tensor(a)[]",
      tags);
  m.def("flatten_tasks(Tensor[] tensors, int[] sizes, int[] ranks) -> Tensor", tags);

  // 1 where scores > threshold, else 0
  m.def("binary_mask(Tensor scores, float threshold) -> Tensor", tags);
  // 1 where the logistic of scores (T,...) exceeds one half, else 0; its derivatives are those of
  // the logistic: grad * factor * logistic^(order)(scores).
  m.def("score_gate(Tensor scores) -> Tensor", tags);
  m.def("score_gate_grad(Tensor grad, Tensor? factor, Tensor scores, int order) -> Tensor", tags);
  // Adds to gradient (T,K) that of a budget on the gates of scores (T,K) and of their L1 norm:
  // logistic'(scores) * (offset + share * open gates of the task) + l1 * sign(scores). Takes no
  // part in autograd.
  m.def(
      "add_budget_gradient(Tensor(a!) gradient, Tensor scores, Tensor offset, Tensor share,"
      " float l1) -> ()",
      tags);
  // Ones at the k[s] largest of each row of scores (S,n)
  m.def("topk_mask(Tensor scores, Tensor k) -> Tensor", tags);

  // x weight' + bias, for x (T,N,F), weight (T,O,F), bias (T,O); the sum of two such products; and
  // the gradients of <grad, the first> in x, weight and bias.
  m.def("task_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor", tags);
  m.def(
      "task_linear_pair(Tensor x1, Tensor weight1, Tensor x2, Tensor weight2, Tensor? bias)"
      " -> Tensor",
      tags);
  m.def(
      "task_linear_backward(Tensor grad, Tensor x, Tensor weight)"
      " -> (Tensor x_grad, Tensor weight_grad, Tensor bias_grad)",
      tags);

  // The mean cross-entropy (T) of the samples of each task: logits (T,N,C), labels (T,N).
  m.def("task_cross_entropy(Tensor logits, Tensor labels) -> Tensor", tags);
  // Its gradient in logits, with grad (T).
  m.def("task_cross_entropy_backward(Tensor grad, Tensor logits, Tensor labels) -> Tensor", tags);
  // The gradients of <direction, that> in grad and logits.
  m.def(
      "task_cross_entropy_double_backward(Tensor direction, Tensor grad, Tensor logits,"
      " Tensor labels) -> (Tensor grad_dot, Tensor logits_grad)",
      tags);

  // The exact softmax head of T tasks: features (T,N,D), labels (T,N), center (T,C,D), lam (T,) ->
  // weight (T,C,D), and a report of each task: iterations, residual, status (T,). Not
  // differentiable itself: metasparse_ext/implicit/head_derivatives.py gives a solution its
  // derivatives.
  m.def(
      "softmax_head(Tensor features, Tensor labels, Tensor center, Tensor lam, float tolerance,"
      " int max_iterations) -> (Tensor, Tensor, Tensor, Tensor)",
      tags);
  // The implicit gradient, grad (T,C,D) -> (features (T,N,D), center (T,C,D), lam (T,)).
  m.def(
      "softmax_head_grad(Tensor grad, Tensor weight, Tensor features, Tensor labels, Tensor center,"
      " Tensor lam) -> (Tensor, Tensor, Tensor)",
      tags);

  // One step of conjugate gradients for T systems, in place: iterate x, residual r, direction p
  // and q = A p are (T,P), the rest (T,). Takes no part in autograd.
  m.def(
      "cg_step(Tensor(a!) x, Tensor(b!) r, Tensor(c!) p, Tensor q, Tensor? preconditioner,"
      " Tensor(d!) rz, Tensor(e!) rr, Tensor limit, Tensor(f!) status, Tensor(g!) iterations) -> "
      "()",
      tags);
}

// Importing metasparse_ext._C runs the static registrations above; the module itself is empty,
// which keeps the library free of Python's unstable ABI.
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  return PyModule_Create(&module);
}
