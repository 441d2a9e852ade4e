// The weights of the schemes that transform kernels: Winograd's and the polyphase one.
#pragma once

#include "conv_scheme.h"

namespace metasparse::cpu {

// `Kernels` is the table of one tile size. `flipped` reads the kernels rotated by half a turn, as
// the input gradient wants them.
template <class T, class Kernels>
class TransformedWeights final : public WeightCode<T> {
 public:
  TransformedWeights(const Kernels& kernels, int tile, bool flipped)
      : kernels_(kernels), flipped_(flipped) {
    this->weights = (tile + 2) * (tile + 2);
  }

  void encode(const WeightEntries& entries, const T* kernels, const T* mask, T* u,
              int64_t stride) const override {
    kernels_.encode(entries, kernels, mask, flipped_, u, stride);
  }

  void decode_adjoint(const WeightEntries& entries, const T* du, int64_t stride, const T* mask,
                      T* grad_kernels) const override {
    kernels_.decode_adjoint(entries, du, stride, mask, grad_kernels);
  }

 private:
  const Kernels& kernels_;
  bool flipped_;
};

}  // namespace metasparse::cpu
