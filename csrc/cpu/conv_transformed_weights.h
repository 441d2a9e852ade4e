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

  void encode(const T* kernels, const int32_t* places, int64_t begin, int64_t end, T* u,
              int64_t stride) const override {
    kernels_.encode(kernels, places, begin, end, flipped_, u, stride);
  }

  void decode_adjoint(const T* du, int64_t stride, const int32_t* places, int64_t begin,
                      int64_t end, T* grad_kernels) const override {
    kernels_.decode_adjoint(du, stride, places, begin, end, grad_kernels);
  }

 private:
  const Kernels& kernels_;
  bool flipped_;
};

}  // namespace metasparse::cpu
