// What an algorithm is made of: how images become rows of V, and rows of M images.
//
// A convolution of one task brings its input into `points` planes V[point][row], multiplies each
// with a sparse matrix of kernels, adds the products into `accumulators` planes
// M[accumulator][channel], and turns these into outputs:
//
//   M[a] = sum over the points p of that accumulator of  U[weight_of(p)] V[p]          (SpMM)
//
// Direct convolution has one point and one accumulator; its rows are (input channel, tap), as
// im2col has them. Winograd has one weight, one point and one accumulator per position of the
// transformed tile. In the polyphase algorithm of stride 2 points share weights and accumulators.
// The weight gradient uses the adjoint of each stage: that of the output transform gives
// D[accumulator][channel] from the output's gradient, then
//
//   dU[w] = sum over the points p with weight w of  <D[accumulator_of(p)], V[p]>      (SDDMM)
//
// and the adjoint of the weight transform turns dU into the gradient of the kernels.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <vector>

#include "../kernels/conv/tables.h"
#include "../runtime/isa.h"
#include "../runtime/scratch.h"
#include "active_kernels.h"
#include "algorithm.h"
#include "conv.h"
#include "heuristics.h"

namespace metasparse::cpu {

template <class T>
const ConvKernels<T>& conv_kernels_of(Isa isa) {
  return METASPARSE_COPY_FOR(isa, conv_kernels<T>)();
}

// Points, accumulators and weights are tracked as bits of a uint64_t.
inline constexpr int kMaxPoints = 64;

// One pass over the output: its tiling, which points use which weights and accumulators, and its
// transforms. Images are those of one task, in the order (image, channel, row, column).
template <class T>
class TilePass {
 public:
  virtual ~TilePass() = default;

  int64_t images = 0, tile_rows = 0, tile_columns = 0;  // tiles of one task
  int64_t source_channels = 0, output_channels = 0;     // of V (before taps) and of M
  int points = 1, accumulators = 1;
  TapLayout layout;  // taps, and which weights the entries of the matrix stand for
  // Active kernels that are summed before they are added to the total (heuristics.h).
  int64_t max_accumulation = heuristics::kAny;

  int64_t tiles() const { return images * tile_rows * tile_columns; }
  int64_t v_rows() const { return source_channels * layout.taps(); }

  virtual int weight_of(int /*point*/) const { return 0; }
  virtual int accumulator_of(int /*point*/) const { return 0; }

  // v[point * point_stride + row * width + lane], all rows, from the source images.
  virtual void input_transform(const TileBlock& block, const T* source, T* v, int64_t point_stride,
                               ScratchBuffer& scratch) const = 0;

  // The output channels first .. first + count - 1 of a block, from
  // m[accumulator * accumulator_stride + (channel - first) * width + lane]; bias null or one value
  // per channel.
  virtual void output_transform(const TileBlock& block, const T* m, int64_t accumulator_stride,
                                int64_t first, int64_t count, const T* bias, T* output,
                                ScratchBuffer& scratch) const = 0;

  // Its adjoint: d[accumulator * accumulator_stride + (channel - first) * width + lane] from these
  // channels of the gradient of the output. Only passes that serve a weight gradient have it.
  virtual void output_transform_adjoint(const TileBlock& /*block*/, const T* /*grad*/,
                                        int64_t /*first*/, int64_t /*count*/, T* /*d*/,
                                        int64_t /*accumulator_stride*/,
                                        ScratchBuffer& /*scratch*/) const {
    throw std::logic_error("this pass serves no weight gradient");
  }
};

// Kernels to the weights U that a matrix stores per entry, and dU back.
template <class T>
class WeightTransform {
 public:
  virtual ~WeightTransform() = default;

  int weights = 1;  // values of U per entry

  // Whether `backward` writes every weight of the kernels of its entries.
  virtual bool writes_whole_kernels() const { return true; }

  // u[w * stride + e] for some entries, from the kernels of one task, each times its mask's value
  // (null: as they are); a mask of 0 writes zeros, even for a NaN. Whole registers may be written:
  // `stride` and the number of entries leave room for that.
  virtual void forward(const WeightEntries& entries, const T* kernels, const T* mask, T* u,
                       int64_t stride) const = 0;

  // The adjoint: the gradient of the kernels of some entries, from du; a mask of 0 writes zeros.
  virtual void backward(const WeightEntries& entries, const T* du, int64_t stride, const T* mask,
                        T* grad_kernels) const = 0;
};

// The weights of the algorithms that transform kernels. `Kernels` is the table of one tile size;
// `flipped` reads the kernels rotated by half a turn, as the input gradient wants them.
template <class T, class Kernels>
class TileWeights final : public WeightTransform<T> {
 public:
  TileWeights(const Kernels& kernels, int tile, bool flipped)
      : kernels_(kernels), flipped_(flipped) {
    this->weights = (tile + 2) * (tile + 2);
  }

  void forward(const WeightEntries& entries, const T* kernels, const T* mask, T* u,
               int64_t stride) const override {
    kernels_.weight_transform(entries, kernels, mask, flipped_, u, stride);
  }

  void backward(const WeightEntries& entries, const T* du, int64_t stride, const T* mask,
                T* grad_kernels) const override {
    kernels_.weight_transform_backward(entries, du, stride, mask, grad_kernels);
  }

 private:
  const Kernels& kernels_;
  bool flipped_;
};

// The passes together write every output; they share the transform of the weights, and all run with
// the same instruction set. The plan of a weight gradient is the forward pass's, run backwards.
template <class T>
struct ConvPlan {
  Isa isa = active_isa();
  std::vector<std::unique_ptr<TilePass<T>>> passes;
  std::unique_ptr<WeightTransform<T>> weights;
};

// The plan of an algorithm that works on tiles and serves this op and shape.
template <class T>
ConvPlan<T> make_plan(ConvOp op, const ConvShape& shape, ConvAlgorithm algorithm);

// Each in its own file.
template <class T>
ConvPlan<T> plan_direct(ConvOp op, const ConvShape& shape);
template <class T>
ConvPlan<T> plan_winograd(ConvOp op, const ConvShape& shape, int tile);
template <class T>
ConvPlan<T> plan_polyphase(ConvOp op, const ConvShape& shape, int tile);

// The instruction set for a task of this many tiles; one named by METASPARSE_CPU_ISA wins.
template <class T>
Isa isa_for_tiles(int64_t images, int64_t height, int64_t width, int tile) {
  const int64_t tiles = images * divide_up(height, tile) * divide_up(width, tile);
  const Isa isa = active_isa();
  const bool few = tiles <= heuristics::kFewRegisters * conv_kernels_of<T>(isa).lanes;
  return isa == Isa::avx512 && few && !isa_is_named() ? Isa::avx2 : isa;
}

// Where the operands of a task lie, and the shape (O, I, kernel_size) of its weights. All terms go
// through the same passes into the same sums.
template <class T>
struct SpmmOperands {
  int64_t tasks, out_channels, in_channels, kernel_size;
  std::vector<SpmmTerm<T>> terms;
  PerTask<const T> bias;
  PerTask<T> output;
  bool transposed;  // the input gradient: rows are input channels
};

template <class T>
struct SddmmOperands {
  int64_t tasks, out_channels, in_channels, kernel_size;
  std::vector<SddmmTerm<T>> terms;
  PerTask<const T> mask;
  PerTask<T> grad_weight;
};

// Forward pass and input gradient.
template <class T>
void run_spmm(const ConvPlan<T>& plan, const SpmmOperands<T>& operands);

// Weight gradient; the plan has one pass.
template <class T>
void run_sddmm(const ConvPlan<T>& plan, const SddmmOperands<T>& operands);

// The algorithm for few input channels, which has no tiles. All kernels are computed, pruned ones
// as zeros, in strips of neighbouring pixels of one image: the outputs, or their gradients, are
// most of the memory of such a call, and are written, or read, in place, in one pass.
template <class T>
void few_channels_forward(const ConvShape& shape, const SpmmOperands<T>& operands);
template <class T>
void few_channels_weight_grad(const ConvShape& shape, const SddmmOperands<T>& operands);

}  // namespace metasparse::cpu
