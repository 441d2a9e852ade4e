#include "../gradient_buffer.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>
#include <mutex>

#include "../cpu/empty_large.h"

namespace metasparse {
namespace {

// All buffers of the process, the latest last. Few: one for each point that is being
// differentiated.
struct Registry {
  std::mutex mutex;
  std::vector<GradientBuffer*> buffers;
};

Registry& registry() {
  static auto* registry = new Registry;  // threads may still compute while the process ends
  return *registry;
}

}  // namespace

GradientBuffer::GradientBuffer(const at::Tensor& flat, at::IntArrayRef counts)
    : storage_(flat.storage().unsafeGetStorageImpl()),
      offset_(flat.storage_offset()),
      tasks_(flat.size(0)),
      stride_(flat.stride(0)),
      total_(flat.size(1)),
      counts_(counts.vec()),
      options_(flat.options()) {
  int64_t offset = 0;
  for (const int64_t count : counts_) {
    offsets_.push_back(offset);
    offset += count;
  }
  const std::lock_guard<std::mutex> lock(registry().mutex);
  registry().buffers.push_back(this);
}

GradientBuffer::~GradientBuffer() {
  const std::lock_guard<std::mutex> lock(registry().mutex);
  std::erase(registry().buffers, this);
}

at::Tensor GradientBuffer::give(const at::Tensor& slice) {
  const int pass = torch::autograd::get_current_graph_task_id();
  if (pass == -1) return {};  // no backward pass
  const int64_t offset = slice.storage_offset() - offset_;
  const auto place = std::find(offsets_.begin(), offsets_.end(), offset) - offsets_.begin();
  const auto index = static_cast<size_t>(place);
  if (index == offsets_.size() || slice.numel() != tasks_ * counts_[index]) return {};
  if (pass != pass_) {  // the last one did not come to its end, or was taken over
    pass_ = pass;
    flat_gradient_ = at::Tensor();
    given_.assign(counts_.size(), at::Tensor());
  }
  if (given_[index].defined()) return {};
  if (!flat_gradient_.defined()) flat_gradient_ = cpu::empty_large({tasks_, total_}, options_);
  auto strides = slice.strides().vec();
  strides[0] = total_;
  given_[index] = flat_gradient_.as_strided(slice.sizes(), strides, offset);
  // like a view's, so that a graph which saved the slice notices writes to the buffer
  given_[index].unsafeGetTensorImpl()->set_version_counter(
      flat_gradient_.unsafeGetTensorImpl()->version_counter());
  return given_[index];
}

at::Tensor GradientBuffer::take(const std::vector<at::Tensor>& gradients, std::vector<char>& born) {
  const std::lock_guard<std::mutex> lock(registry().mutex);
  born.assign(gradients.size(), 0);
  if (pass_ != torch::autograd::get_current_graph_task_id() || !flat_gradient_.defined()) {
    return {};
  }
  bool all = true;
  for (size_t i = 0; i < gradients.size(); ++i) {
    if (!given_[i].defined()) continue;
    const at::Tensor& gradient = gradients[i];
    born[i] = gradient.defined() && gradient.data_ptr() == given_[i].data_ptr() &&
              gradient.sizes() == given_[i].sizes() && gradient.strides() == given_[i].strides();
    all = all && born[i];
  }
  at::Tensor result = all ? flat_gradient_ : at::Tensor();  // else a place may be read elsewhere
  flat_gradient_ = at::Tensor();
  given_.clear();
  pass_ = -1;
  if (!all) born.assign(gradients.size(), 0);
  return result;
}

at::Tensor gradient_place(const at::Tensor& slice) {
  if (slice.dim() == 0 || slice.numel() == 0) return {};
  int64_t expected = 1;
  for (int64_t d = slice.dim() - 1; d > 0; --d) {
    if (slice.size(d) != 1 && slice.stride(d) != expected) return {};
    expected *= slice.size(d);
  }
  const auto* const storage = slice.storage().unsafeGetStorageImpl();
  const std::lock_guard<std::mutex> lock(registry().mutex);
  auto& buffers = registry().buffers;
  for (auto buffer = buffers.rbegin(); buffer != buffers.rend(); ++buffer) {
    const GradientBuffer& b = **buffer;
    const bool same_tasks =
        slice.size(0) == b.tasks_ && (slice.stride(0) == b.stride_ || slice.size(0) == 1);
    if (b.storage_ != storage || !same_tasks) continue;
    if (const auto place = (*buffer)->give(slice); place.defined()) return place;
  }
  return {};
}

}  // namespace metasparse
