// Tensors of T tasks as slices of one flat buffer (T, P), and back;
// metasparse_ext/implicit/layout.py gives them names.
//
// A network of 20 parameter tensors is cut from its buffer at every step. Where tensors are plain
// that is one op, whose gradient is one op: the slices are made without the dispatcher, and their
// gradients are copied side by side. Everywhere else (torch.func, fake tensors, forward mode) both
// are composed of torch's own ops, which is what they mean.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "../cpu/empty_large.h"
#include "../gradient_buffer.h"
#include "../plain.h"
#include "node.h"

namespace metasparse {
namespace {

using at::IntArrayRef;
using at::Tensor;
using torch::autograd::Node;
using torch::autograd::variable_list;

// The shapes of the slices, without the axes B of the buffer (B, P) that lead it.
class FlatLayout {
 public:
  // The shapes one after the other, and the rank of each.
  FlatLayout(IntArrayRef sizes, IntArrayRef ranks) {
    const int64_t* next = sizes.begin();
    for (const int64_t rank : ranks) {
      TORCH_CHECK_VALUE(rank >= 0 && rank <= sizes.end() - next,
                        "unflatten_tasks: expected ranks that add up to the number of sizes, ",
                        sizes.size(), ", got ", ranks);
      shapes_.emplace_back(next, next + rank);
      counts_.push_back(c10::multiply_integers(shapes_.back()));
      next += rank;
    }
    TORCH_CHECK_VALUE(next == sizes.end(),
                      "unflatten_tasks: expected ranks that add up to the number of sizes, ",
                      sizes.size(), ", got ", ranks);
  }

  size_t slices() const { return shapes_.size(); }
  int64_t count(size_t slice) const { return counts_[slice]; }
  IntArrayRef counts() const { return counts_; }
  int64_t total() const { return std::accumulate(counts_.begin(), counts_.end(), int64_t{0}); }

  // (*batch, *shape of the slice)
  std::vector<int64_t> shape(size_t slice, IntArrayRef batch) const {
    auto shape = batch.vec();
    shape.insert(shape.end(), shapes_[slice].begin(), shapes_[slice].end());
    return shape;
  }

  // The shapes in the form that the constructor takes.
  std::pair<std::vector<int64_t>, std::vector<int64_t>> packed() const {
    std::vector<int64_t> sizes, ranks;
    for (const auto& shape : shapes_) {
      sizes.insert(sizes.end(), shape.begin(), shape.end());
      ranks.push_back(static_cast<int64_t>(shape.size()));
    }
    return {sizes, ranks};
  }

 private:
  std::vector<std::vector<int64_t>> shapes_;
  std::vector<int64_t> counts_;
};

// `zero` (), if defined, is what gradients of slices that have none are made of.
variable_list unflatten(const Tensor& flat, const FlatLayout& layout, const Tensor& zero = {});
// `begun`, if defined, holds the slices that are `there` already.
Tensor flatten(const variable_list& parts, const FlatLayout& layout, IntArrayRef batch,
               const at::TensorOptions& options, const Tensor& begun = {},
               const std::vector<char>& there = {}, Tensor zero = {});

// ---- composed of torch's ops: any tensor, any mode ----------------------------------------------

variable_list composed_unflatten(const Tensor& flat, const FlatLayout& layout) {
  auto parts = flat.split_with_sizes(layout.counts(), -1);
  const auto batch = flat.sizes().slice(0, flat.dim() - 1);
  for (size_t i = 0; i < parts.size(); ++i) parts[i] = parts[i].reshape(layout.shape(i, batch));
  return parts;
}

// A slice that is not there is zero.
Tensor composed_flatten(const variable_list& parts, const FlatLayout& layout, IntArrayRef batch,
                        const at::TensorOptions& options, Tensor zero) {
  variable_list rows;
  for (size_t i = 0; i < parts.size(); ++i) {
    auto row = batch.vec();
    row.push_back(layout.count(i));
    if (!parts[i].defined() && !zero.defined()) zero = at::zeros({}, options);
    rows.push_back(parts[i].defined() ? parts[i].reshape(row) : zero.expand(row));
  }
  return at::cat(rows, -1);
}

// ---- without the dispatcher ---------------------------------------------------------------------

bool has_tangent(const Tensor& t) { return t._fw_grad(/*level=*/0).defined(); }

// A tensor of the buffer's memory. It counts writes together with the buffer, as a view does.
Tensor slice_of(const Tensor& flat, IntArrayRef sizes, int64_t offset) {
  auto slice = at::detail::make_tensor<c10::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(flat.storage()), flat.key_set(), flat.dtype());
  auto strides = flat.strides().slice(0, flat.dim() - 1).vec();
  const auto batch = strides.size();
  strides.resize(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > batch;) {
    strides[d] = stride;
    stride *= sizes[d];
  }
  auto* impl = slice.unsafeGetTensorImpl();
  impl->set_storage_offset(flat.storage_offset() + offset);
  impl->set_sizes_and_strides(sizes, strides);
  impl->set_version_counter(flat.unsafeGetTensorImpl()->version_counter());
  return slice;
}

struct UnflattenTasksBackward : Node {
  FlatLayout layout{{}, {}};
  std::vector<int64_t> batch;
  at::TensorOptions options;
  std::unique_ptr<GradientBuffer> gradients;  // of a buffer (T, P) alone
  Tensor zero;

  variable_list apply(variable_list&& grads) override {
    std::vector<char> born;
    const Tensor begun = gradients ? gradients->take(grads, born) : Tensor();
    const auto defined = [](const Tensor& t) { return t.defined(); };
    if (std::none_of(grads.begin(), grads.end(), defined)) return {Tensor()};
    return {flatten(grads, layout, batch, options, begun, born, zero)};
  }
  std::string name() const override { return "UnflattenTasksBackward"; }
};

struct FlattenTasksBackward : Node {
  FlatLayout layout{{}, {}};

  variable_list apply(variable_list&& grads) override {
    if (!grads[0].defined()) return variable_list(layout.slices());
    return unflatten(grads[0], layout);
  }
  std::string name() const override { return "FlattenTasksBackward"; }
};

variable_list unflatten(const Tensor& flat, const FlatLayout& layout, const Tensor& zero) {
  const bool sliceable = is_plain(flat) && flat.stride(-1) == 1 && !has_tangent(flat);
  if (!sliceable) return composed_unflatten(flat, layout);
  const auto batch = flat.sizes().slice(0, flat.dim() - 1);
  variable_list parts;
  int64_t offset = 0;
  for (size_t i = 0; i < layout.slices(); ++i) {
    parts.push_back(slice_of(flat, layout.shape(i, batch), offset));
    offset += layout.count(i);
  }
  if (const auto node = node_of<UnflattenTasksBackward>(flat)) {
    node->layout = layout;
    node->batch = batch.vec();
    node->options = flat.options();
    node->zero = zero;
    if (flat.dim() == 2) node->gradients = std::make_unique<GradientBuffer>(flat, layout.counts());
    torch::autograd::set_history(parts, node);
  }
  return parts;
}

// Whether the numbers of a slice lie side by side, those of each (first) batch row.
bool rows_are_dense(const Tensor& part, size_t batch) {
  int64_t expected = 1;
  for (int64_t d = part.dim(); d-- > static_cast<int64_t>(batch);) {
    if (part.size(d) != 1 && part.stride(d) != expected) return false;
    expected *= part.size(d);
  }
  return true;
}

bool can_be_copied(const Tensor& part, IntArrayRef batch, const at::TensorOptions& options) {
  return is_plain(part) && part.is_cpu() && !has_tangent(part) && batch.size() <= 1 &&
         part.scalar_type() == c10::typeMetaToScalarType(options.dtype());
}

// Copies, each slice of each task by itself.
Tensor copied_side_by_side(variable_list parts, const FlatLayout& layout, IntArrayRef batch,
                           const at::TensorOptions& options, const Tensor& begun,
                           const std::vector<char>& there) {
  at::AutoDispatchBelowADInplaceOrView below;
  for (Tensor& part : parts) {
    if (part.defined() && !rows_are_dense(part, batch.size())) part = part.contiguous();
  }
  auto sizes = batch.vec();
  sizes.push_back(layout.total());
  const Tensor flat = begun.defined() ? begun : cpu::empty_large(sizes, options);
  const int64_t bytes = flat.element_size(), row = layout.total() * bytes;
  const int64_t tasks = batch.empty() ? 1 : batch[0];
  auto* const to = static_cast<char*>(flat.mutable_data_ptr());
  std::vector<int64_t> offsets;
  int64_t offset = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    offsets.push_back(offset);
    offset += layout.count(i) * bytes;
  }
  const auto slices = static_cast<int64_t>(parts.size());
  constexpr int64_t kGrain = 1 << 20;  // bytes worth a thread
  const int64_t grain =
      std::max<int64_t>(1, kGrain * tasks * slices / std::max<int64_t>(1, row * tasks));
  at::parallel_for(0, tasks * slices, grain, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t task = unit / slices, i = unit % slices;
      char* const place = to + task * row + offsets[i];
      const auto size = static_cast<size_t>(layout.count(i) * bytes);
      if (size == 0 || (begun.defined() && there[i] != 0)) continue;
      if (!parts[i].defined()) {
        std::memset(place, 0, size);
        continue;
      }
      const int64_t stride = batch.empty() ? 0 : parts[i].stride(0);
      const auto* from = static_cast<const char*>(parts[i].const_data_ptr());
      std::memcpy(place, from + task * stride * bytes, size);
    }
  });
  return flat;
}

Tensor flatten(const variable_list& parts, const FlatLayout& layout, IntArrayRef batch,
               const at::TensorOptions& options, const Tensor& begun,
               const std::vector<char>& there, Tensor zero) {
  const bool copied = std::all_of(parts.begin(), parts.end(), [&](const Tensor& part) {
    return !part.defined() || can_be_copied(part, batch, options);
  });
  if (!copied) return composed_flatten(parts, layout, batch, options, std::move(zero));
  Tensor flat = copied_side_by_side(parts, layout, batch, options, begun, there);
  const bool recorded = std::any_of(parts.begin(), parts.end(), [](const Tensor& part) {
    return part.defined() && is_recorded(part);
  });
  if (recorded) {
    auto node = make_node<FlattenTasksBackward>();
    node->set_next_edges(torch::autograd::collect_next_edges(parts));
    node->layout = layout;
    torch::autograd::set_history(flat, node);
  }
  return flat;
}

// ---- the ops ------------------------------------------------------------------------------------

variable_list unflatten_tasks(const Tensor& flat, IntArrayRef sizes, IntArrayRef ranks,
                              const std::optional<Tensor>& zero) {
  const FlatLayout layout(sizes, ranks);
  TORCH_CHECK_VALUE(flat.dim() > 0 && flat.size(-1) == layout.total(),
                    "unflatten_tasks: expected flat of shape (*, ", layout.total(), "), got ",
                    flat.sizes());
  const bool fits = zero.has_value() && zero->dim() == 0 && !zero->requires_grad() &&
                    zero->scalar_type() == flat.scalar_type() && zero->device() == flat.device();
  return unflatten(flat, layout, fits ? *zero : Tensor());
}

Tensor flatten_tasks(at::TensorList tensors, IntArrayRef sizes, IntArrayRef ranks) {
  const FlatLayout layout(sizes, ranks);
  TORCH_CHECK_VALUE(tensors.size() == layout.slices() && !tensors.empty(),
                    "flatten_tasks: expected ", layout.slices(), " tensors, at least one, got ",
                    tensors.size());
  const int64_t axes = tensors[0].dim() - ranks[0];
  TORCH_CHECK_VALUE(axes >= 0, "flatten_tasks: expected tensors of shape (*B, *shape), got ",
                    tensors[0].sizes());
  const auto batch = tensors[0].sizes().slice(0, axes).vec();
  for (size_t i = 0; i < tensors.size(); ++i) {
    TORCH_CHECK_VALUE(tensors[i].sizes() == IntArrayRef(layout.shape(i, batch)),
                      "flatten_tasks: expected tensors[", i, "] of shape ", layout.shape(i, batch),
                      ", got ", tensors[i].sizes());
  }
  return flatten(tensors.vec(), layout, batch, tensors[0].options());
}

}  // namespace
}  // namespace metasparse

TORCH_LIBRARY_IMPL(metasparse, CompositeImplicitAutograd, m) {
  m.impl("unflatten_tasks", metasparse::unflatten_tasks);
  m.impl("flatten_tasks", metasparse::flatten_tasks);
}
