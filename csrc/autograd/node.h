#pragma once
// What the autograd kernels share. They are written the way PyTorch's own code generator writes
// them: a Node per op that saves variables and whose backward goes back through the dispatcher, so
// that it is itself differentiable (any order), visible to torch.func and to torch.compile. An
// autograd::Function would be none of these.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/library.h>

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "../find_op.h"

namespace metasparse {

// torch 2.13 holds Nodes in c10::intrusive_ptr, earlier versions in std::shared_ptr
// (pytorch/pytorch#181139). The pointer type of an Edge tells which.
template <class EdgePointer>
struct NodePointer;

template <class Base>
struct NodePointer<std::shared_ptr<Base>> {
  template <class N>
  static std::shared_ptr<N> make() {
    // found by argument-dependent lookup on Base, hence only where that version declares it
    return std::shared_ptr<N>(new N(), [](Base* node) { deleteNode(node); });
  }
};

template <class Base>
struct NodePointer<c10::intrusive_ptr<Base>> {
  template <class N>
  static c10::intrusive_ptr<N> make() {
    return c10::make_intrusive<N>();
  }
};

template <class N>
auto make_node() {
  return NodePointer<decltype(torch::autograd::Edge::function)>::template make<N>();
}

template <class N>
using PointerTo = decltype(make_node<N>());

// A Node with edges to the variables, or none where no gradient is asked for.
template <class N, class... Variables>
PointerTo<N> node_of(const Variables&... variables) {
  if (!torch::autograd::compute_requires_grad(variables...)) return {};
  auto node = make_node<N>();
  node->set_next_edges(torch::autograd::collect_next_edges(variables...));
  return node;
}

// A Node whose gradients are a formula in variables that it saves.
struct SavingNode : torch::autograd::Node {
  std::vector<torch::autograd::SavedVariable> saved;

  void save(at::TensorList variables) {
    saved.reserve(saved.size() + variables.size());
    for (const auto& variable : variables) saved.emplace_back(variable, /*is_output=*/false);
  }
  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) final {
    const std::lock_guard<std::mutex> lock(mutex_);  // several backward passes may meet here
    return gradients(grads);
  }
  void release_variables() final {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& variable : saved) variable.reset_data();
  }

 protected:
  virtual torch::autograd::variable_list gradients(const torch::autograd::variable_list& grads) = 0;

  at::Tensor value(size_t k) const { return saved[k].unpack(); }
};

// What an op redispatches to, computed below autograd.
template <class Redispatch>
auto run_below_autograd(Redispatch&& redispatch) {
  at::AutoDispatchBelowADInplaceOrView below;
  return std::forward<Redispatch>(redispatch)();
}

inline c10::DispatchKeySet below_autograd(c10::DispatchKeySet keys) {
  return keys & c10::after_autograd_keyset;
}

// The forward-mode tangent of a variable, undefined where there is none.
inline at::Tensor tangent_of(const at::Tensor& t) {
  return t.defined() ? t._fw_grad(/*level=*/0) : at::Tensor();
}

inline bool any_tangent(std::initializer_list<at::Tensor> tensors) {
  return std::any_of(tensors.begin(), tensors.end(),
                     [](const at::Tensor& t) { return tangent_of(t).defined(); });
}

inline at::Tensor primal_of(const at::Tensor& t) {
  return t.defined() ? t._fw_primal(/*level=*/0) : at::Tensor();
}

inline void set_tangent(const at::Tensor& out, const at::Tensor& dot) {
  if (dot.defined()) out._set_fw_grad(dot, /*level=*/0, /*is_inplace_op=*/false);
}

inline at::Tensor or_undefined(const std::optional<at::Tensor>& t) {
  return t.has_value() ? *t : at::Tensor();
}

inline std::optional<at::Tensor> or_none(const at::Tensor& t) {
  return t.defined() ? std::optional<at::Tensor>(t) : std::nullopt;
}

// a + b where either may be absent.
inline at::Tensor add_defined(const at::Tensor& a, const at::Tensor& b) {
  if (!a.defined()) return b;
  return b.defined() ? a + b : a;
}

}  // namespace metasparse
