#pragma once
// The norm_act_pool family at a point, as csrc/autograd/norm_act_pool.cpp writes it.
#include <ATen/ATen.h>

#include <tuple>

#include "../dense/norm_act_pool.h"
#include "node.h"

namespace metasparse::norm_autograd {

using at::Tensor;
using dense::NormDirection;

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

// What Nodes keep of a point and of a direction.
class SavedPoint {
 public:
  void save(const Point& p);
  Point unpack() const;
  void reset();

 private:
  torch::autograd::SavedVariable x, weight, mean, rstd, gate;
  double eps;
  bool pool, norm_first;
};

class SavedDirection {
 public:
  void save(const NormDirection& v);
  NormDirection unpack() const;
  void reset();

 private:
  torch::autograd::SavedVariable x, weight, bias;
};

}  // namespace metasparse::norm_autograd
