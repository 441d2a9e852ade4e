#include "conv_winograd.h"

#include "conv_select.h"
#include "conv_transformed_weights.h"

namespace metasparse::cpu {

namespace {

// Padding of one convolution at stride 1.
struct Padding {
  int64_t rows, columns;
};

template <class T>
class WinogradPass final : public ConvPass<T> {
 public:
  WinogradPass(const WinogradKernels<T>& kernels, int64_t samples, Images<const T> source,
               Images<T> output, Padding padding, int tile)
      : kernels_(kernels), source_(source), output_(output), padding_(padding) {
    this->images = samples;
    this->tile_rows = divide_up(output.height, tile);
    this->tile_columns = divide_up(output.width, tile);
    this->source_channels = source.channels;
    this->output_channels = output.channels;
    this->points = this->columns = (tile + 2) * (tile + 2);
    if (tile == 4) this->longest_sum = 32;
    if (tile == 5) this->longest_sum = 22;
  }

  int weight_of(int point) const override { return point; }
  int column_of(int point) const override { return point; }

  void gather(const TileBlock& block, const T* data, T* v, int64_t point_stride,
              ScratchBuffer& scratch) const override {
    Images<const T> images = source_;
    images.data = data;
    kernels_.input(block, images, static_cast<int32_t>(-padding_.rows),
                   static_cast<int32_t>(-padding_.columns), v, point_stride, room(block, scratch));
  }

  void drain(const TileBlock& block, const T* m, int64_t column_stride, int64_t first,
             int64_t count, const T* bias, T* data, ScratchBuffer& scratch) const override {
    Images<T> images = output_;
    images.data = data + first * images.plane();
    kernels_.output(block, m, column_stride, bias == nullptr ? nullptr : bias + first, count,
                    images, room(block, scratch));
  }

  void gather_adjoint(const TileBlock& block, const T* grad, int64_t first, int64_t count, T* d,
                      int64_t column_stride, ScratchBuffer& scratch) const override {
    const Images<const T> images = {grad, output_.channels, output_.height, output_.width};
    kernels_.adjoint(block, images.some_channels(first, count), d, column_stride,
                     room(block, scratch));
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

template <class T>
ConvScheme<T> scheme_of(int64_t samples, Images<const T> source, Images<T> output, Padding padding,
                        int tile, bool flipped) {
  ConvScheme<T> scheme;
  scheme.isa = isa_for_tiles<T>(samples, output.height, output.width, tile);
  const auto& kernels = winograd_kernels_of<T>(scheme.isa, tile);
  scheme.passes.push_back(
      std::make_unique<WinogradPass<T>>(kernels, samples, source, output, padding, tile));
  scheme.code = std::make_unique<TransformedWeights<T, WinogradKernels<T>>>(kernels, tile, flipped);
  return scheme;
}

}  // namespace

template <class T>
ConvScheme<T> winograd_forward(const ConvShape& s, int tile) {
  return scheme_of<T>(s.samples, {nullptr, s.in_channels, s.height, s.width},
                      {nullptr, s.out_channels, s.out_height, s.out_width}, {s.pad_h, s.pad_w},
                      tile, false);
}

template <class T>
ConvScheme<T> winograd_input_grad(const ConvShape& s, int tile) {
  return scheme_of<T>(s.samples, {nullptr, s.out_channels, s.out_height, s.out_width},
                      {nullptr, s.in_channels, s.height, s.width}, {2 - s.pad_h, 2 - s.pad_w}, tile,
                      true);
}

template <class T>
ConvScheme<T> winograd_weight_grad(const ConvShape& shape, int tile) {
  return winograd_forward<T>(shape, tile);
}

template ConvScheme<float> winograd_forward(const ConvShape&, int);
template ConvScheme<double> winograd_forward(const ConvShape&, int);
template ConvScheme<float> winograd_input_grad(const ConvShape&, int);
template ConvScheme<double> winograd_input_grad(const ConvShape&, int);
template ConvScheme<float> winograd_weight_grad(const ConvShape&, int);
template ConvScheme<double> winograd_weight_grad(const ConvShape&, int);

}  // namespace metasparse::cpu
