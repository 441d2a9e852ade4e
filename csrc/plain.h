#pragma once
// Tensors that may be read, written and made without the dispatcher.
#include <ATen/core/Tensor.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

namespace metasparse {

// Whether a tensor is strided memory and no mode or transform of torch is at work on it (vmap,
// torch.func, fake tensors, tracing, functionalization): nobody would see an op that is left out.
// Forward-mode tangents are not looked at.
inline bool is_plain(const at::Tensor& t) {
  constexpr c10::DispatchKeySet special({
      c10::DispatchKey::Python,
      c10::DispatchKey::PythonTLSSnapshot,
      c10::DispatchKey::PythonDispatcher,
      c10::DispatchKey::Functionalize,
      c10::DispatchKey::FuncTorchBatched,
      c10::DispatchKey::FuncTorchGradWrapper,
      c10::DispatchKey::FuncTorchDynamicLayerFrontMode,
      c10::DispatchKey::FuncTorchDynamicLayerBackMode,
      c10::DispatchKey::FuncTorchVmapMode,
      c10::DispatchKey::Batched,
      c10::DispatchKey::VmapMode,
      c10::DispatchKey::Tracer,
      c10::DispatchKey::Conjugate,
      c10::DispatchKey::Negative,
      c10::DispatchKey::ZeroTensor,
  });
  const auto tls = c10::impl::tls_local_dispatch_key_set();
  const auto keys = (t.key_set() | tls.included_) - tls.excluded_;
  return !keys.has_any(special) && t.layout() == at::kStrided && t.has_storage() &&
         !t.is_quantized() && !t.is_inference();
}

// Whether an op on a tensor would be recorded by autograd.
inline bool is_recorded(const at::Tensor& t) {
  return at::GradMode::is_enabled() && t.requires_grad();
}

}  // namespace metasparse
