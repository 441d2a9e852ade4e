#pragma once
#include <ATen/core/dispatch/Dispatcher.h>

namespace metasparse {

// The handle of an op that is called through the dispatcher; looked up once per call site.
template <class Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace metasparse
