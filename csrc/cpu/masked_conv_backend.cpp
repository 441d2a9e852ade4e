#include "masked_conv_backend.h"

#include <stdexcept>

namespace metasparse::cpu {

namespace {

struct NamedBackend {
  Backend backend;
  const char* name;
};

constexpr NamedBackend kNames[] = {
    {Backend::automatic, "automatic"},   {Backend::precise, "precise"},
    {Backend::library, "library"},       {Backend::direct, "direct"},
    {Backend::winograd2, "winograd2"},   {Backend::winograd3, "winograd3"},
    {Backend::winograd4, "winograd4"},   {Backend::winograd5, "winograd5"},
    {Backend::polyphase2, "polyphase2"}, {Backend::polyphase3, "polyphase3"},
};

}  // namespace

bool backend_supports(Backend backend, const ConvShape&) {
  return backend == Backend::library || backend == Backend::direct;
}

Backend choose_backend(Backend requested, ConvOp, const ConvShape& shape, double density) {
  if (requested != Backend::automatic && requested != Backend::precise) {
    if (!backend_supports(requested, shape)) {
      throw std::invalid_argument(std::string("convolution backend ") + backend_name(requested) +
                                  " does not support this shape");
    }
    return requested;
  }
  return density > 0.75 ? Backend::library : Backend::direct;
}

const char* backend_name(Backend backend) {
  for (const NamedBackend& entry : kNames) {
    if (entry.backend == backend) return entry.name;
  }
  return "unknown";
}

Backend backend_named(const std::string& name) {
  std::string known;
  for (const NamedBackend& entry : kNames) {
    if (name == entry.name) return entry.backend;
    known += known.empty() ? entry.name : std::string(", ") + entry.name;
  }
  throw std::invalid_argument("convolution backend must be one of " + known + ", but is " + name);
}

}  // namespace metasparse::cpu
