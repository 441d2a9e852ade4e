// Direct convolution, any kernel size, stride and padding: im2col, then one SpMM.
#include <algorithm>
#include <utility>
#include <vector>

#include "plan.h"

namespace metasparse::cpu {

namespace {

template <class T>
class DirectPass final : public TilePass<T> {
 public:
  // The images that are read and written, and where the taps and the pixels of a tile grid lie in
  // them.
  Images<const T> source{};
  Images<T> output{};
  std::vector<int32_t> row_shift, column_shift;
  int32_t row_step = 1, column_step = 1;
  PixelGrid pixels{1, 0, 1, 0};

  void input_transform(const TileBlock& block, const T* data, T* v, int64_t,
                       ScratchBuffer& scratch) const override {
    const TapGrid grid = {row_shift.data(), column_shift.data(),
                          static_cast<int32_t>(row_shift.size()), row_step, column_step};
    Images<const T> images = source;
    images.data = data;
    im2col(block, grid, images, v, scratch);
  }

  void output_transform(const TileBlock& block, const T* m, int64_t, int64_t first, int64_t count,
                        const T* bias, T* data, ScratchBuffer& scratch) const override {
    Images<T> images = output;
    images.data = data + first * images.plane();
    conv_kernels_of<T>(active_isa())
        .im2col.output(block, pixels, m, bias == nullptr ? nullptr : bias + first, count, images,
                       scratch.get<LaneRange>(block.run_count));
  }

  void output_transform_adjoint(const TileBlock& block, const T* grad, int64_t first, int64_t count,
                                T* d, int64_t, ScratchBuffer& scratch) const override {
    const int32_t zero = 0;
    const Images<const T> images = {grad, output.channels, output.height, output.width};
    im2col(block, {&zero, &zero, 1, 1, 1}, images.some_channels(first, count), d, scratch);
  }

 private:
  static void im2col(const TileBlock& block, const TapGrid& grid, const Images<const T>& images,
                     T* v, ScratchBuffer& scratch) {
    // A run of n lanes has at most n / lanes + 1 windows.
    const ConvKernels<T>& kernels = conv_kernels_of<T>(active_isa());
    LaneWindow* windows =
        scratch.get<LaneWindow>(int64_t{grid.taps} * (block.run_count + block.vectors));
    const int64_t per_tap = kernels.im2col.windows(block, grid, images, windows);
    const int64_t width = block.vectors * kernels.lanes;
    kernels.im2col.im2col(grid, images, windows, per_tap, {1, 0, 0}, width, v);
  }
};

// Each entry is one weight, at its index.
template <class T>
class DirectWeights final : public WeightTransform<T> {
 public:
  DirectWeights(int64_t kernel_size, TapLayout layout)
      : kernel_size_(static_cast<int32_t>(kernel_size)), layout_(std::move(layout)) {}

  bool writes_whole_kernels() const override { return layout_.taps() == kernel_size_; }

  void forward(const WeightEntries& entries, const T* kernels, const T* mask, T* u,
               int64_t) const override {
    const int32_t* const index = entries.weight_index;
    if (mask == nullptr) {
      for (int64_t e = entries.begin; e < entries.end; ++e) u[e] = kernels[index[e]];
      return;
    }
    // Division by a number that the compiler knows is a multiplication.
    if (kernel_size_ == 9)
      return masked(entries, kernels, mask, u, [](int32_t w) { return w / 9; });
    masked(entries, kernels, mask, u, [this](int32_t w) { return w / kernel_size_; });
  }

  void backward(const WeightEntries& entries, const T* du, int64_t, const T* mask,
                T* grad_kernels) const override {
    if (entries.weight_index == nullptr) return backward_in_order(entries, du, mask, grad_kernels);
    for (int64_t e = entries.begin; e < entries.end; ++e) {
      const int32_t weight = entries.weight_index[e];
      const T factor = mask == nullptr ? T(1) : mask[weight / kernel_size_];
      grad_kernels[weight] = factor == T(0) ? T(0) : du[e] * factor;
    }
  }

 private:
  template <class KernelOf>
  static void masked(const WeightEntries& entries, const T* kernels, const T* mask, T* u,
                     const KernelOf& kernel_of) {
    for (int64_t e = entries.begin; e < entries.end; ++e) {
      const int32_t weight = entries.weight_index[e];
      const T factor = mask[kernel_of(weight)], product = kernels[weight] * factor;
      u[e] = factor == T(0) ? T(0) : product;
    }
  }

  // Entries of every kernel and tap, in order.
  void backward_in_order(const WeightEntries& entries, const T* du, const T* mask,
                         T* grad_kernels) const {
    const int64_t taps = layout_.taps();
    if (taps == 0) return;
    for (int64_t kernel = entries.begin / taps; kernel * taps < entries.end; ++kernel) {
      const T factor = mask == nullptr ? T(1) : mask[kernel];
      T* const grads = grad_kernels + kernel * kernel_size_;
      const int64_t first = std::max(entries.begin - kernel * taps, int64_t{0});
      const int64_t last = std::min(entries.end - kernel * taps, taps);
      for (int64_t tap = first; tap < last; ++tap) {
        const T product = du[kernel * taps + tap] * factor;
        grads[layout_.tap_index[tap]] = factor == T(0) ? T(0) : product;
      }
    }
  }

  int32_t kernel_size_;
  TapLayout layout_;
};

// The taps of an axis that meet the image at one output position at least. Where the map is smaller
// than the kernel the others read padding alone: of 3 x 3 taps on one pixel one is left.
std::vector<int64_t> meeting_taps(int64_t kernel, int64_t size, int64_t out_size, int64_t stride,
                                  int64_t pad) {
  std::vector<int64_t> taps;
  for (int64_t tap = 0; tap < kernel; ++tap) {
    const int64_t first = pad > tap ? divide_up(pad - tap, stride) : 0;
    if (first < out_size && first * stride + tap - pad < size) taps.push_back(tap);
  }
  return taps;
}

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
  pass->layout.tap_index.clear();
  const auto columns = meeting_taps(s.kernel_w, s.width, s.out_width, s.stride_w, s.pad_w);
  for (const int64_t r : meeting_taps(s.kernel_h, s.height, s.out_height, s.stride_h, s.pad_h)) {
    for (const int64_t c : columns) {
      pass->row_shift.push_back(static_cast<int32_t>(r - s.pad_h));
      pass->column_shift.push_back(static_cast<int32_t>(c - s.pad_w));
      pass->layout.tap_index.push_back(static_cast<int32_t>(r * s.kernel_w + c));
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

  AxisPhase(int64_t phase, int64_t size, int64_t out_size, int64_t kernel, int64_t stride,
            int64_t pad) {
    first = ((phase - pad) % stride + stride) % stride;
    count = first < size ? (size - first + stride - 1) / stride : 0;
    for (int64_t tap = phase; tap < kernel; tap += stride) {
      const int64_t shift = (first + pad - tap) / stride;     // exact
      if (shift >= out_size || shift + count <= 0) continue;  // reads nothing, see meeting_taps
      taps.push_back(tap);
      shifts.push_back(shift);
    }
  }
};

// gx[h] = sum over taps r of w[r] g[(h + pad - r) / stride], where that division is exact. Input
// rows and columns of one phase (h + pad modulo stride) use the same taps, so each phase is a pass:
// a convolution of g with stride 1 and fewer taps, none of whose products is with a structural
// zero.
template <class T>
void add_phases(const ConvShape& s, ConvPlan<T>& plan) {
  for (int64_t phase_h = 0; phase_h < s.stride_h; ++phase_h) {
    const AxisPhase rows(phase_h, s.height, s.out_height, s.kernel_h, s.stride_h, s.pad_h);
    for (int64_t phase_w = 0; phase_w < s.stride_w; ++phase_w) {
      const AxisPhase columns(phase_w, s.width, s.out_width, s.kernel_w, s.stride_w, s.pad_w);
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
      pass->layout.tap_index.clear();
      for (size_t r = 0; r < rows.taps.size(); ++r) {
        for (size_t c = 0; c < columns.taps.size(); ++c) {
          pass->row_shift.push_back(static_cast<int32_t>(rows.shifts[r]));
          pass->column_shift.push_back(static_cast<int32_t>(columns.shifts[c]));
          pass->layout.tap_index.push_back(
              static_cast<int32_t>(rows.taps[r] * s.kernel_w + columns.taps[c]));
        }
      }
      plan.passes.push_back(std::move(pass));
    }
  }
}

}  // namespace

template <class T>
ConvPlan<T> plan_direct(ConvOp op, const ConvShape& shape) {
  ConvPlan<T> plan;
  if (op == ConvOp::input_grad) {
    add_phases(shape, plan);
  } else {
    plan.passes.push_back(forward_pass<T>(shape));
  }
  plan.weights =
      std::make_unique<DirectWeights<T>>(shape.kernel_h * shape.kernel_w, plan.passes[0]->layout);
  return plan;
}

template ConvPlan<float> plan_direct(ConvOp, const ConvShape&);
template ConvPlan<double> plan_direct(ConvOp, const ConvShape&);

}  // namespace metasparse::cpu
