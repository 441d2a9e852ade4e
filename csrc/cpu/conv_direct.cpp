#include "conv_direct.h"

#include "conv_select.h"

namespace metasparse::cpu {

namespace {

template <class T>
class DirectPass final : public ConvPass<T> {
 public:
  // The images that are read and written, and where the taps and the pixels of a tile grid lie in
  // them.
  Images<const T> source{};
  Images<T> output{};
  std::vector<int32_t> row_shift, column_shift;
  int32_t row_step = 1, column_step = 1;
  PixelGrid pixels{1, 0, 1, 0};

  void gather(const TileBlock& block, const T* data, T* v, int64_t,
              ScratchBuffer& scratch) const override {
    const TapGrid grid = {row_shift.data(), column_shift.data(),
                          static_cast<int32_t>(row_shift.size()), row_step, column_step};
    Images<const T> images = source;
    images.data = data;
    gather_taps(block, grid, images, v, scratch);
  }

  void drain(const TileBlock& block, const T* m, int64_t, int64_t first, int64_t count,
             const T* bias, T* data, ScratchBuffer& scratch) const override {
    Images<T> images = output;
    images.data = data + first * images.plane();
    direct_kernels_of<T>(active_isa())
        .drain(block, pixels, m, bias == nullptr ? nullptr : bias + first, count, images,
               scratch.get<LaneRange>(block.run_count));
  }

  void gather_adjoint(const TileBlock& block, const T* grad, int64_t first, int64_t count, T* d,
                      int64_t, ScratchBuffer& scratch) const override {
    const int32_t zero = 0;
    const Images<const T> images = {grad, output.channels, output.height, output.width};
    gather_taps(block, {&zero, &zero, 1, 1, 1}, images.some_channels(first, count), d, scratch);
  }

 private:
  static void gather_taps(const TileBlock& block, const TapGrid& grid,
                          const Images<const T>& images, T* v, ScratchBuffer& scratch) {
    // A run of n lanes has at most n / lanes + 1 windows.
    const DirectKernels<T>& kernels = direct_kernels_of<T>(active_isa());
    LaneWindow* windows =
        scratch.get<LaneWindow>(int64_t{grid.taps} * (block.run_count + block.vectors));
    const int64_t per_tap = kernels.windows(block, grid, images, windows);
    const int64_t width = block.vectors * product_kernels_of<T>(active_isa()).lanes;
    kernels.gather(grid, images, windows, per_tap, {1, 0, 0}, width, v);
  }
};

template <class T>
std::unique_ptr<DirectPass<T>> forward_pass(const ConvShape& s) {
  auto pass = std::make_unique<DirectPass<T>>();
  pass->images = s.samples;
  pass->tile_rows = s.out_height;
  pass->tile_columns = s.out_width;
  pass->source_channels = s.in_channels;
  pass->output_channels = s.out_channels;
  pass->source = {nullptr, s.in_channels, s.height, s.width};
  pass->output = {nullptr, s.out_channels, s.out_height, s.out_width};
  pass->row_step = static_cast<int32_t>(s.stride_h);
  pass->column_step = static_cast<int32_t>(s.stride_w);
  pass->layout.kernel_size = s.kernel_h * s.kernel_w;
  pass->layout.tap_place.clear();
  for (int64_t r = 0; r < s.kernel_h; ++r) {
    for (int64_t c = 0; c < s.kernel_w; ++c) {
      pass->row_shift.push_back(static_cast<int32_t>(r - s.pad_h));
      pass->column_shift.push_back(static_cast<int32_t>(c - s.pad_w));
      pass->layout.tap_place.push_back(static_cast<int32_t>(r * s.kernel_w + c));
    }
  }
  return pass;
}

// The input positions of one axis whose index plus padding is `phase` modulo the stride: first,
// first + stride, ... Position first + stride * q takes tap r = phase, phase + stride, ... from g[q
// + shift].
struct AxisPhase {
  int64_t first, count;
  std::vector<int64_t> taps, shifts;

  AxisPhase(int64_t phase, int64_t size, int64_t kernel, int64_t stride, int64_t pad) {
    first = ((phase - pad) % stride + stride) % stride;
    count = first < size ? (size - first + stride - 1) / stride : 0;
    for (int64_t tap = phase; tap < kernel; tap += stride) {
      taps.push_back(tap);
      shifts.push_back((first + pad - tap) / stride);  // exact
    }
  }
};

}  // namespace

template <class T>
ConvScheme<T> direct_forward(const ConvShape& shape) {
  ConvScheme<T> scheme;
  scheme.passes.push_back(forward_pass<T>(shape));
  scheme.code = std::make_unique<PlainWeights<T>>(shape.kernel_h * shape.kernel_w);
  return scheme;
}

template <class T>
ConvScheme<T> direct_input_grad(const ConvShape& s) {
  ConvScheme<T> scheme;
  scheme.code = std::make_unique<PlainWeights<T>>(s.kernel_h * s.kernel_w);
  for (int64_t phase_h = 0; phase_h < s.stride_h; ++phase_h) {
    const AxisPhase rows(phase_h, s.height, s.kernel_h, s.stride_h, s.pad_h);
    for (int64_t phase_w = 0; phase_w < s.stride_w; ++phase_w) {
      const AxisPhase columns(phase_w, s.width, s.kernel_w, s.stride_w, s.pad_w);
      auto pass = std::make_unique<DirectPass<T>>();
      pass->images = s.samples;
      pass->tile_rows = rows.count;
      pass->tile_columns = columns.count;
      pass->source_channels = s.out_channels;
      pass->output_channels = s.in_channels;
      pass->source = {nullptr, s.out_channels, s.out_height, s.out_width};
      pass->output = {nullptr, s.in_channels, s.height, s.width};
      pass->pixels = {static_cast<int32_t>(s.stride_h), static_cast<int32_t>(rows.first),
                      static_cast<int32_t>(s.stride_w), static_cast<int32_t>(columns.first)};
      pass->layout.kernel_size = s.kernel_h * s.kernel_w;
      pass->layout.tap_place.clear();
      for (size_t r = 0; r < rows.taps.size(); ++r) {
        for (size_t c = 0; c < columns.taps.size(); ++c) {
          pass->row_shift.push_back(static_cast<int32_t>(rows.shifts[r]));
          pass->column_shift.push_back(static_cast<int32_t>(columns.shifts[c]));
          pass->layout.tap_place.push_back(
              static_cast<int32_t>(rows.taps[r] * s.kernel_w + columns.taps[c]));
        }
      }
      scheme.passes.push_back(std::move(pass));
    }
  }
  return scheme;
}

template <class T>
ConvScheme<T> direct_weight_grad(const ConvShape& shape) {
  return direct_forward<T>(shape);
}

template ConvScheme<float> direct_forward(const ConvShape&);
template ConvScheme<double> direct_forward(const ConvShape&);
template ConvScheme<float> direct_input_grad(const ConvShape&);
template ConvScheme<double> direct_input_grad(const ConvShape&);
template ConvScheme<float> direct_weight_grad(const ConvShape&);
template ConvScheme<double> direct_weight_grad(const ConvShape&);

}  // namespace metasparse::cpu
