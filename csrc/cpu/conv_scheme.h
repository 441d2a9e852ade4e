// What a scheme tells the engine: how images become rows of V, how rows of M become images.
//
// A scheme computes a convolution of one task by bringing its input into `points` planes
// V[point][row], multiplying each with a sparse matrix of kernels, adding the products into
// `columns` planes M[column][channel], and turning these into outputs:
//
//   M[column] = sum over the points p of that column of  U[weight_of(p)] V[p]
//
// Direct convolution has one point and one column; its rows are (input channel, tap). Winograd has
// one weight, one point and one column per position of the transformed tile. In the polyphase
// scheme of stride 2 points share weights and columns. The weight gradient runs the same scheme
// backwards: the adjoint of the output transform gives D[column][channel] from the output's
// gradient, then
//
//   dU[w] = sum over the points p with weight w of  <D[column_of(p)], V[p]>
//
// and the adjoint of the weight transform turns dU into the gradient of the kernels.
#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>

#include "conv_lists.h"
#include "conv_types.h"
#include "scratch.h"

namespace metasparse::cpu {

inline int64_t divide_up(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// One kind of output tiles: which sparse products they need, and their transforms. Images are those
// of one task, in the order (image, channel, row, column).
template <class T>
class ConvPass {
 public:
  virtual ~ConvPass() = default;

  int64_t images = 0, tile_rows = 0, tile_columns = 0;  // tiles of one task
  int64_t source_channels = 0, output_channels = 0;     // of V (before taps) and of M
  int points = 1, columns = 1;
  ListLayout layout;  // taps, and which weights the entries stand for
  // Active kernels of an output channel that are summed before their sum joins the others': as many
  // as keep the rounding of the scheme within its bound.
  int64_t longest_sum = std::numeric_limits<int64_t>::max();

  int64_t tiles() const { return images * tile_rows * tile_columns; }
  int64_t source_rows() const { return source_channels * layout.taps(); }

  virtual int weight_of(int /*point*/) const { return 0; }
  virtual int column_of(int /*point*/) const { return 0; }

  // v[point * point_stride + row * width + lane], all rows, from the source images.
  virtual void gather(const TileBlock& block, const T* source, T* v, int64_t point_stride,
                      ScratchBuffer& scratch) const = 0;

  // The output channels first .. first + count - 1 of a block, from
  // m[column * column_stride + (channel - first) * width + lane]; bias null or one value per
  // channel.
  virtual void drain(const TileBlock& block, const T* m, int64_t column_stride, int64_t first,
                     int64_t count, const T* bias, T* output, ScratchBuffer& scratch) const = 0;

  // The adjoint of drain: d[column * column_stride + (channel - first) * width + lane] from these
  // channels of the gradient of the output. Only passes that serve a weight gradient have it.
  virtual void gather_adjoint(const TileBlock& /*block*/, const T* /*grad*/, int64_t /*first*/,
                              int64_t /*count*/, T* /*d*/, int64_t /*column_stride*/,
                              ScratchBuffer& /*scratch*/) const {
    throw std::logic_error("this pass serves no weight gradient");
  }
};

// How the stored weights of a scheme come from kernels, and the gradients of kernels from theirs.
template <class T>
class WeightCode {
 public:
  virtual ~WeightCode() = default;

  int weights = 1;  // stored per entry

  // u[w * stride + e] for some entries, from the kernels of one task, each times its mask's value
  // (null: as they are), of which a zero makes zeros. Whole registers may be written: `stride` and
  // the number of entries leave room for that.
  virtual void encode(const WeightEntries& entries, const T* kernels, const T* mask, T* u,
                      int64_t stride) const = 0;

  // The adjoint: the gradient of the kernels of some entries, from du; a mask's zero makes zeros.
  virtual void decode_adjoint(const WeightEntries& entries, const T* du, int64_t stride,
                              const T* mask, T* grad_kernels) const = 0;
};

// Weights of the direct scheme: each entry is one weight, at its place.
template <class T>
class PlainWeights final : public WeightCode<T> {
 public:
  explicit PlainWeights(int64_t kernel_size) : kernel_size_(static_cast<int32_t>(kernel_size)) {}

  void encode(const WeightEntries& entries, const T* kernels, const T* mask, T* u,
              int64_t) const override {
    for (int64_t e = entries.begin; e < entries.end; ++e) {
      const int32_t place = entries.places[e];
      const T factor = mask == nullptr ? T(1) : mask[place / kernel_size_];
      u[e] = factor == T(0) ? T(0) : kernels[place] * factor;
    }
  }

  void decode_adjoint(const WeightEntries& entries, const T* du, int64_t, const T* mask,
                      T* grad_kernels) const override {
    for (int64_t e = entries.begin; e < entries.end; ++e) {
      const int64_t place = entries.places == nullptr ? e : entries.places[e];
      const T factor = mask == nullptr ? T(1) : mask[place / kernel_size_];
      grad_kernels[place] = factor == T(0) ? T(0) : du[e] * factor;
    }
  }

 private:
  int32_t kernel_size_;
};

}  // namespace metasparse::cpu
