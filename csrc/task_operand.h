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
    const at::Tensor first = t.size(0) == 0 ? t : t[0];
    tensor_ = first.is_contiguous() ? t
              : shared_             ? first.contiguous().unsqueeze(0)
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
  at::Tensor tensor_;
  bool shared_ = false;
};

}  // namespace metasparse
