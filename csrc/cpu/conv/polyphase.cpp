// Polyphase convolution: 3x3 kernels at stride 2 and padding 1, tiles of M x M outputs (M = 2, 3).
#include "plan.h"

namespace metasparse::cpu {

namespace {

// Tiles lie on the output map in all passes; `source` is what V comes from, `output` what M
// becomes.
template <class T>
class PolyphasePass : public TilePass<T> {
 public:
  PolyphasePass(const PolyphaseKernels<T>& kernels, const ConvShape& s, int tile,
                Images<const T> source, Images<T> output)
      : kernels_(kernels), tile_(tile), source_(source), output_(output) {
    this->images = s.samples;
    this->tile_rows = divide_up(s.out_height, tile);
    this->tile_columns = divide_up(s.out_width, tile);
    this->source_channels = source.channels;
    this->output_channels = output.channels;
  }

 protected:
  int axis_points() const { return 2 * tile_ + 1; }

  // Points 0 .. M of an axis have weights of their own, those of the even phase (M + 1 .. 2 M)
  // share the last.
  int axis_weight(int point) const { return point <= tile_ ? point : tile_ + 1; }

  int weight_at(int row_point, int column_point) const {
    return axis_weight(row_point) * (tile_ + 2) + axis_weight(column_point);
  }

  Images<const T> source_at(const T* data) const {
    Images<const T> images = source_;
    images.data = data;
    return images;
  }

  Images<T> output_at(T* data, int64_t first_channel) const {
    Images<T> images = output_;
    images.data = data + first_channel * images.plane();
    return images;
  }

  void* room(const TileBlock& block, ScratchBuffer& scratch) const {
    return scratch.get<char>(kernels_.scratch_bytes(block));
  }

  const PolyphaseKernels<T>& kernels_;
  const int tile_;
  const Images<const T> source_;
  const Images<T> output_;
};

template <class T>
class PolyphaseForward final : public PolyphasePass<T> {
 public:
  PolyphaseForward(const PolyphaseKernels<T>& kernels, const ConvShape& s, int tile)
      : PolyphasePass<T>(kernels, s, tile, {nullptr, s.in_channels, s.height, s.width},
                         {nullptr, s.out_channels, s.out_height, s.out_width}) {
    this->points = this->axis_points() * this->axis_points();
    this->accumulators = (2 * tile - 1) * (2 * tile - 1);
  }

  int weight_of(int point) const override {
    return this->weight_at(point / this->axis_points(), point % this->axis_points());
  }

  int accumulator_of(int point) const override {
    return axis_accumulator(point / this->axis_points()) * (2 * this->tile_ - 1) +
           axis_accumulator(point % this->axis_points());
  }

  void input_transform(const TileBlock& block, const T* data, T* v, int64_t point_stride,
                       ScratchBuffer& scratch) const override {
    this->kernels_.input_transform(block, this->source_at(data), v, point_stride,
                                   this->room(block, scratch));
  }

  void output_transform(const TileBlock& block, const T* m, int64_t accumulator_stride,
                        int64_t first, int64_t count, const T* bias, T* data,
                        ScratchBuffer& scratch) const override {
    this->kernels_.output_transform(block, m, accumulator_stride,
                                    bias == nullptr ? nullptr : bias + first, count,
                                    this->output_at(data, first), this->room(block, scratch));
  }

  void output_transform_adjoint(const TileBlock& block, const T* grad, int64_t first, int64_t count,
                                T* d, int64_t accumulator_stride,
                                ScratchBuffer& scratch) const override {
    const Images<T>& shape = this->output_;
    const Images<const T> images = {grad, shape.channels, shape.height, shape.width};
    this->kernels_.output_transform_adjoint(block, images.some_channels(first, count), d,
                                            accumulator_stride, this->room(block, scratch));
  }

 private:
  // The accumulator of an axis point: the first and the last even point share those of point 0 and
  // of the point at infinity, the others have their own after them.
  int axis_accumulator(int point) const {
    const int m = this->tile_;
    if (point <= m) return point;
    const int even = point - m - 1;
    return even == 0 ? 0 : even == m - 1 ? m : m + even;
  }
};

template <class T>
class PolyphaseInputGrad final : public PolyphasePass<T> {
 public:
  PolyphaseInputGrad(const PolyphaseKernels<T>& kernels, const ConvShape& s, int tile, bool even)
      : PolyphasePass<T>(kernels, s, tile, {nullptr, s.out_channels, s.out_height, s.out_width},
                         {nullptr, s.in_channels, s.height, s.width}),
        even_(even) {
    this->points = this->accumulators = (even ? tile : tile + 1) * this->axis_points();
  }

  int weight_of(int point) const override {
    const int row = point / this->axis_points();
    return this->weight_at(even_ ? this->tile_ + 1 + row : row, point % this->axis_points());
  }

  int accumulator_of(int point) const override { return point; }

  void input_transform(const TileBlock& block, const T* data, T* v, int64_t point_stride,
                       ScratchBuffer& scratch) const override {
    this->kernels_.grad_input_transform[even_](block, this->source_at(data), v, point_stride,
                                               this->room(block, scratch));
  }

  void output_transform(const TileBlock& block, const T* m, int64_t accumulator_stride,
                        int64_t first, int64_t count, const T*, T* data,
                        ScratchBuffer& scratch) const override {
    this->kernels_.grad_output_transform[even_](block, m, accumulator_stride, count,
                                                this->output_at(data, first),
                                                this->room(block, scratch));
  }

 private:
  bool even_;
};

}  // namespace

// The input gradient has two passes: the odd and the even input rows.
template <class T>
ConvPlan<T> plan_polyphase(ConvOp op, const ConvShape& s, int tile) {
  static_assert((2 * 3 + 1) * (2 * 3 + 1) <= kMaxPoints);
  ConvPlan<T> plan;
  plan.isa = isa_for_tiles<T>(s.samples, s.out_height, s.out_width, tile);
  const auto& kernels = conv_kernels_of<T>(plan.isa).polyphase(tile);
  const bool flipped = op == ConvOp::input_grad;
  if (flipped) {
    for (const bool even : {false, true}) {
      plan.passes.push_back(std::make_unique<PolyphaseInputGrad<T>>(kernels, s, tile, even));
    }
  } else {
    plan.passes.push_back(std::make_unique<PolyphaseForward<T>>(kernels, s, tile));
  }
  plan.weights = std::make_unique<TileWeights<T, PolyphaseKernels<T>>>(kernels, tile, flipped);
  return plan;
}

template ConvPlan<float> plan_polyphase(ConvOp, const ConvShape&, int);
template ConvPlan<double> plan_polyphase(ConvOp, const ConvShape&, int);

}  // namespace metasparse::cpu
