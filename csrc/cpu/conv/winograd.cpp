// Winograd's convolution: 3x3 kernels at stride 1, any padding, tiles of M x M outputs (M = 2 ..
// 5).
#include "plan.h"

namespace metasparse::cpu {

namespace {

// Padding of one convolution at stride 1.
struct Padding {
  int64_t rows, columns;
};

template <class T>
class WinogradPass final : public TilePass<T> {
 public:
  WinogradPass(const WinogradKernels<T>& kernels, int64_t samples, Images<const T> source,
               Images<T> output, Padding padding, int tile)
      : kernels_(kernels), source_(source), output_(output), padding_(padding) {
    this->images = samples;
    this->tile_rows = divide_up(output.height, tile);
    this->tile_columns = divide_up(output.width, tile);
    this->source_channels = source.channels;
    this->output_channels = output.channels;
    this->points = this->accumulators = (tile + 2) * (tile + 2);
    this->max_accumulation = heuristics::max_accumulation(tile);
  }

  int weight_of(int point) const override { return point; }
  int accumulator_of(int point) const override { return point; }

  void input_transform(const TileBlock& block, const T* data, T* v, int64_t point_stride,
                       ScratchBuffer& scratch) const override {
    Images<const T> images = source_;
    images.data = data;
    kernels_.input_transform(block, images, static_cast<int32_t>(-padding_.rows),
                             static_cast<int32_t>(-padding_.columns), v, point_stride,
                             room(block, scratch));
  }

  void output_transform(const TileBlock& block, const T* m, int64_t accumulator_stride,
                        int64_t first, int64_t count, const T* bias, T* data,
                        ScratchBuffer& scratch) const override {
    Images<T> images = output_;
    images.data = data + first * images.plane();
    kernels_.output_transform(block, m, accumulator_stride,
                              bias == nullptr ? nullptr : bias + first, count, images,
                              room(block, scratch));
  }

  void output_transform_adjoint(const TileBlock& block, const T* grad, int64_t first, int64_t count,
                                T* d, int64_t accumulator_stride,
                                ScratchBuffer& scratch) const override {
    const Images<const T> images = {grad, output_.channels, output_.height, output_.width};
    kernels_.output_transform_adjoint(block, images.some_channels(first, count), d,
                                      accumulator_stride, room(block, scratch));
  }

 private:
  void* room(const TileBlock& block, ScratchBuffer& scratch) const {
    return scratch.get<char>(kernels_.scratch_bytes(block));
  }

  const WinogradKernels<T>& kernels_;
  Images<const T> source_;
  Images<T> output_;
  Padding padding_;
};

}  // namespace

// The input gradient is again a 3x3 convolution at stride 1: of the output's gradient, padded by
// 2 - pad, with the kernels rotated by half a turn and their channels exchanged.
template <class T>
ConvPlan<T> plan_winograd(ConvOp op, const ConvShape& s, int tile) {
  static_assert((5 + 2) * (5 + 2) <= kMaxPoints);
  const bool flipped = op == ConvOp::input_grad;
  Images<const T> source = {nullptr, s.in_channels, s.height, s.width};
  Images<T> output = {nullptr, s.out_channels, s.out_height, s.out_width};
  Padding padding = {s.pad_h, s.pad_w};
  if (flipped) {
    source = {nullptr, s.out_channels, s.out_height, s.out_width};
    output = {nullptr, s.in_channels, s.height, s.width};
    padding = {2 - s.pad_h, 2 - s.pad_w};
  }
  ConvPlan<T> plan;
  plan.isa = isa_for_tiles<T>(s.samples, output.height, output.width, tile);
  const auto& kernels = conv_kernels_of<T>(plan.isa).winograd(tile);
  plan.passes.push_back(
      std::make_unique<WinogradPass<T>>(kernels, s.samples, source, output, padding, tile));
  plan.weights = std::make_unique<TileWeights<T, WinogradKernels<T>>>(kernels, tile, flipped);
  return plan;
}

template ConvPlan<float> plan_winograd(ConvOp, const ConvShape&, int);
template ConvPlan<double> plan_winograd(ConvOp, const ConvShape&, int);

}  // namespace metasparse::cpu
