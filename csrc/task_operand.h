#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

namespace metasparse {

// An operand as the kernels take it: dense below its task axis, its tasks a fixed distance apart.
// The tensor itself where it lies so in memory, else a copy. None stands for an absent operand.
class TaskOperand {
 public:
  explicit TaskOperand(const at::Tensor& t) {
    shared_ = t.size(0) == 1 || t.stride(0) == 0;
    tensor_ = is_dense_below_tasks(t) ? t
              : shared_               ? t[0].contiguous().unsqueeze(0)
                                      : t.contiguous();
  }

  explicit TaskOperand(const std::optional<at::Tensor>& t) {
    if (t.has_value()) *this = TaskOperand(*t);
  }

  // Null when absent.
  template <class T>
  const T* data() const {
    return tensor_.defined() ? tensor_.const_data_ptr<T>() : nullptr;
  }

  // In elements; 0 when the tasks share the operand.
  int64_t task_stride() const { return tensor_.defined() && !shared_ ? tensor_.stride(0) : 0; }

 private:
  // From the strides alone: a view of one task would be an op, and there are 20 of them a step.
  static bool is_dense_below_tasks(const at::Tensor& t) {
    int64_t expected = 1;
    for (int64_t d = t.dim() - 1; d > 0; --d) {
      if (t.size(d) == 0) return true;
      if (t.size(d) != 1 && t.stride(d) != expected) return false;
      expected *= t.size(d);
    }
    return true;
  }

  at::Tensor tensor_;
  bool shared_ = false;
};

}  // namespace metasparse
