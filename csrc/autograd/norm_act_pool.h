// The derivatives of the norm_act_pool family: norm_act_pool.cpp says how they are made.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <string>
#include <tuple>

#include "../dense/norm_act_pool.h"
#include "../find_op.h"
#include "node.h"

namespace metasparse::norm_autograd {

using at::Tensor;
using dense::NormDirection;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;

// ---- the ops, called through the dispatcher -----------------------------------------------------

using ForwardSignature = std::tuple<Tensor, Tensor, Tensor, Tensor>(const Tensor&,
                                                                    const OptionalTensor&,
                                                                    const OptionalTensor&, double,
                                                                    bool, bool, bool);
using BackwardSignature = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&,
                                                             const OptionalTensor&, const Tensor&,
                                                             const Tensor&, const Tensor&, double,
                                                             bool, bool);
using TangentSignature = Tensor(const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                const Tensor&, const OptionalTensor&, const Tensor&, const Tensor&,
                                const Tensor&, double, bool, bool);
using DoubleBackwardSignature = std::tuple<Tensor, Tensor, Tensor>(
    const Tensor&, const OptionalTensor&, const OptionalTensor&, const Tensor&, const Tensor&,
    const OptionalTensor&, const Tensor&, const Tensor&, const Tensor&, double, bool, bool);

inline const auto& forward_op() {
  static const auto op = find_op<ForwardSignature>("metasparse::norm_act_pool");
  return op;
}
inline const auto& backward_op() {
  static const auto op = find_op<BackwardSignature>("metasparse::norm_act_pool_backward");
  return op;
}
inline const auto& tangent_op() {
  static const auto op = find_op<TangentSignature>("metasparse::norm_act_pool_tangent");
  return op;
}
inline const auto& double_backward_op() {
  static const auto op =
      find_op<DoubleBackwardSignature>("metasparse::norm_act_pool_double_backward");
  return op;
}

// ---- the family at a point ----------------------------------------------------------------------

// A point with what the forward pass saved of it.
struct Point {
  Tensor x, weight, mean, rstd, gate;
  double eps;
  bool pool, norm_first;

  Point primal() const;

  // f'[v].
  Tensor tangent(const NormDirection& v) const;

  // B(grad).
  NormDirection backward(const Tensor& grad) const;

  // f'[v] and H(v; grad), together or H alone.
  std::tuple<Tensor, NormDirection> double_backward(const NormDirection& v,
                                                    const Tensor& grad) const;
  NormDirection hessian(const NormDirection& v, const Tensor& grad) const;

  // f''[v, c], and the gradient of <f''[v, c], grad>.
  Tensor second(const NormDirection& v, const NormDirection& c) const;
  NormDirection third(const Tensor& grad, const NormDirection& v, const NormDirection& c) const;

 private:
  Tensor x_direction(const Tensor& v) const;
  dense::NormPoint definition() const;
  NormDirection whole(const NormDirection& v) const;
};

NormDirection operator+(const NormDirection& a, const NormDirection& b);
bool any_defined(const NormDirection& v);
NormDirection tangents_of(const NormDirection& v);
NormDirection primals_of(const NormDirection& v);

// ---- reverse mode: a Node for the block and for each of its derivatives -------------------------

// Saves a point, and what of direction and gradient follows it.
struct NormActPoolNode : SavingNode {
  void save_point(const Point& p);

 protected:
  Point point() const;
  NormDirection direction() const;  // which was saved after the point
  Tensor last() const { return value(saved.size() - 1); }

 private:
  double eps_;
  bool pool_, norm_first_;
};

// Of (x, weight, bias) -> y.
struct NormActPoolBackward : NormActPoolNode {
  variable_list gradients(const variable_list& grads) override;
  std::string name() const override { return "NormActPoolBackward"; }
};

// Of (x_dot, weight_dot, bias_dot, x, weight) -> f'[v]. Saves point and direction.
struct NormActPoolTangentBackward : NormActPoolNode {
  variable_list gradients(const variable_list& grads) override;
  std::string name() const override { return "NormActPoolTangentBackward"; }
};

// Of (grad, x, weight) -> B(grad). Saves point and grad.
struct NormActPoolBackwardBackward : NormActPoolNode {
  variable_list gradients(const variable_list& grads) override;
  std::string name() const override { return "NormActPoolBackwardBackward"; }
};

// Of (x_dot, weight_dot, bias_dot, grad, x, weight) -> (f'[v], H(v; grad)). Saves point, direction
// and grad.
struct NormActPoolDoubleBackwardBackward : NormActPoolNode {
  variable_list gradients(const variable_list& grads) override;
  std::string name() const override { return "NormActPoolDoubleBackwardBackward"; }
};

// ---- forward mode -------------------------------------------------------------------------------

// The tangents of each op's outputs, from those of its arguments; undefined where none has one.

// Of y.
Tensor tangent_of_block(const Point& point, const Tensor& bias);

// Of B(grad).
NormDirection tangent_of_backward(const Point& point, const Tensor& grad);

// Of f'[v].
Tensor tangent_of_tangent(const Point& point, const NormDirection& v);

// Of f'[v] and H(v; grad).
std::tuple<Tensor, NormDirection> tangent_of_double_backward(const Point& point,
                                                             const NormDirection& v,
                                                             const Tensor& grad);

}  // namespace metasparse::norm_autograd
