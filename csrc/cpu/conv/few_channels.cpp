// Convolutions of few input channels, any kernel size, stride and padding: first layers.
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "../runtime/memory.h"
#include "../runtime/parallel.h"
#include "blocking.h"
#include "plan.h"

namespace metasparse::cpu {

namespace {

// Neighbouring output pixels of an image, or all of several images.
struct Strip {
  int64_t task, image, images, first, pixels;
};

// The strips of all tasks, in order, and V[input channel, tap][image, pixel] of each.
template <class T>
class Strips {
 public:
  explicit Strips(const ConvShape& shape)
      : kernels_(conv_kernels_of<T>(active_isa()).im2col),
        lanes_(conv_kernels_of<T>(active_isa()).lanes),
        shape_(shape),
        plane_(shape.out_height * shape.out_width) {
    const int64_t most = heuristics::kPixelStripBytes / static_cast<int64_t>(sizeof(T));
    cuts_ = divide_up(plane_, most);
    length_ = divide_up(divide_up(plane_, cuts_), lanes_) * lanes_;
    cuts_ = divide_up(plane_, length_);
    const int64_t images = std::max<int64_t>(1, most / length_);
    groups_ = cuts_ > 1 ? shape.samples : divide_up(shape.samples, images);
    images_ = divide_up(shape.samples, groups_);
    for (int64_t r = 0; r < shape.kernel_h; ++r) {
      for (int64_t c = 0; c < shape.kernel_w; ++c) {
        row_shift_.push_back(static_cast<int32_t>(r - shape.pad_h));
        column_shift_.push_back(static_cast<int32_t>(c - shape.pad_w));
      }
    }
    for (int64_t cut = 0; cut < cuts_; ++cut) find_windows(cut);
  }

  int64_t plane() const { return plane_; }
  int64_t image_size() const { return shape_.out_channels * plane_; }
  int64_t per_task() const { return groups_ * cuts_; }
  int64_t rows() const { return shape_.in_channels * shape_.kernel_h * shape_.kernel_w; }
  int64_t image_width() const { return length_; }
  int64_t width() const { return images_ * length_; }

  Strip operator[](int64_t index) const {
    const int64_t group = index / cuts_ % groups_, first = index % cuts_ * length_;
    const int64_t image = group * shape_.samples / groups_;
    return {index / per_task(), image, (group + 1) * shape_.samples / groups_ - image, first,
            std::min(length_, plane_ - first)};
  }

  // All rows of a strip; a register more is written.
  void im2col(const Strip& strip, const T* images, T* v) const {
    const Windows& windows = windows_[static_cast<size_t>(strip.first / length_)];
    const Images<const T> x = images_from(images + strip.image * input_size());
    kernels_.im2col(grid(), x, windows.list.data(), windows.per_tap,
                    {strip.images, input_size(), length_}, width(), v);
  }

 private:
  // Where the pixels of one strip read, in any image.
  struct Windows {
    std::vector<LaneWindow> list;
    int64_t per_tap;
  };

  TapGrid grid() const {
    return {row_shift_.data(), column_shift_.data(), static_cast<int32_t>(row_shift_.size()),
            static_cast<int32_t>(shape_.stride_h), static_cast<int32_t>(shape_.stride_w)};
  }

  int64_t input_size() const { return shape_.in_channels * shape_.height * shape_.width; }

  Images<const T> images_from(const T* data) const {
    return {data, shape_.in_channels, shape_.height, shape_.width};
  }

  void find_windows(int64_t cut) {
    const int64_t first = cut * length_, last = std::min(first + length_, plane_);
    std::vector<TileRun> runs;
    for (int64_t pixel = first; pixel < last;) {
      const int64_t row = pixel / shape_.out_width, column = pixel % shape_.out_width;
      const int64_t count = std::min(shape_.out_width - column, last - pixel);
      runs.push_back({0, static_cast<int32_t>(pixel - first), static_cast<int32_t>(count),
                      static_cast<int32_t>(row), static_cast<int32_t>(column)});
      pixel += count;
    }
    const auto blank = static_cast<int32_t>(length_ - (last - first));
    if (blank > 0) runs.push_back({-1, static_cast<int32_t>(last - first), blank, 0, 0});
    const TileBlock block = {runs.data(), static_cast<int32_t>(runs.size()),
                             static_cast<int32_t>(length_ / lanes_)};
    Windows windows;
    windows.list.resize(row_shift_.size() * static_cast<size_t>(block.run_count + block.vectors));
    windows.per_tap = kernels_.windows(block, grid(), images_from(nullptr), windows.list.data());
    windows_.push_back(std::move(windows));
  }

  const Im2colKernels<T>& kernels_;
  const int64_t lanes_;
  const ConvShape shape_;
  const int64_t plane_;
  int64_t cuts_, length_;    // strips of an image, and their pixels, whole registers
  int64_t groups_, images_;  // of images that share a strip, and how many at most
  std::vector<int32_t> row_shift_, column_shift_;
  std::vector<Windows> windows_;  // by cut
};

// Of weights, or of their sums: the calling thread's.
ScratchBuffer& weights_buffer() {
  thread_local ScratchBuffer mine;
  return mine;
}

// w[channel][term, input channel, tap] of one task, pruned kernels as zeros.
template <class T>
void effective_weights(const SpmmOperands<T>& operands, int64_t task, T* out) {
  const int64_t taps = operands.kernel_size;
  for (int64_t o = 0; o < operands.out_channels; ++o) {
    for (const SpmmTerm<T>& term : operands.terms) {
      const T* weight = term.weight.of(task) + o * operands.in_channels * taps;
      const T* mask = term.mask.of(task);
      for (int64_t i = 0; i < operands.in_channels; ++i, weight += taps, out += taps) {
        const T factor = mask == nullptr ? T(1) : mask[o * operands.in_channels + i];
        for (int64_t k = 0; k < taps; ++k) out[k] = factor == T(0) ? T(0) : weight[k] * factor;
      }
    }
  }
}

template <class T>
class FewChannelsWeightGrad {
 public:
  FewChannelsWeightGrad(const ConvShape& shape, const SddmmOperands<T>& operands)
      : shape_(shape),
        operands_(operands),
        strips_(shape),
        kernels_(conv_kernels_of<T>(active_isa())),
        sums_count_(kernels_.few_channels.sums.count(shape.out_channels, strips_.rows())),
        parts_{shape.tasks * strips_.per_task(),
               std::min(shape.tasks * strips_.per_task(), thread_count())} {}

  // The strips of all tasks are cut into parts with sums of their own.
  void run() {
    const int64_t size = (parts_.count + shape_.tasks) * sums_count_;
    sums_ = weights_buffer().template get<T>(size);
    std::memset(sums_, 0, sizeof(T) * static_cast<size_t>(size));
    parallel_units(parts_.count, [&](int64_t part) { run_part(part); });
    for (int64_t task = 0; task < shape_.tasks; ++task) finish(task);
  }

 private:
  T* sums(int64_t part, int64_t task) const { return sums_ + (part + task) * sums_count_; }

  void run_part(int64_t part) {
    Workspace& space = workspace();
    const int64_t rows = strips_.rows(), plane = strips_.plane(), size = strips_.image_size();
    T* v = space.v.template get<T>(rows * strips_.width() + kernels_.lanes);
    for (int64_t unit = parts_.begin(part); unit < parts_.begin(part + 1); ++unit) {
      const Strip strip = strips_[unit];
      for (const SddmmTerm<T>& term : operands_.terms) {
        strips_.im2col(strip, term.source.of(strip.task), v);
        const T* grad = term.grad.of(strip.task) + strip.image * size + strip.first;
        kernels_.few_channels.weight_grad({grad, plane, shape_.out_channels, strip.pixels,
                                           strip.images, size, strips_.image_width(), v,
                                           strips_.width(), rows, sums(part, strip.task)});
      }
    }
  }

  void finish(int64_t task) {
    const int64_t rows = strips_.rows(), first = task * strips_.per_task();
    const int64_t last = parts_.of(first + strips_.per_task() - 1);
    T* total = sums(parts_.of(first), task);
    for (int64_t part = parts_.of(first) + 1; part <= last; ++part) {
      for (int64_t i = 0; i < sums_count_; ++i) total[i] += sums(part, task)[i];
    }
    const T* mask = operands_.mask.of(task);
    T* out = operands_.grad_weight.of(task);
    for (int64_t o = 0; o < shape_.out_channels; ++o) {
      for (int64_t k = 0; k < rows; ++k, ++out) {
        const int64_t input = k / operands_.kernel_size;
        const T factor = mask == nullptr ? T(1) : mask[o * shape_.in_channels + input];
        *out =
            factor == T(0) ? T(0) : total[kernels_.few_channels.sums.position(o, k, rows)] * factor;
      }
    }
  }

  const ConvShape& shape_;
  const SddmmOperands<T>& operands_;
  const Strips<T> strips_;
  const ConvKernels<T>& kernels_;
  const int64_t sums_count_;
  const Parts parts_;
  T* sums_ = nullptr;
};

}  // namespace

template <class T>
void few_channels_forward(const ConvShape& s, const SpmmOperands<T>& operands) {
  const Strips<T> strips(s);
  const ConvKernels<T>& kernels = conv_kernels_of<T>(active_isa());
  const auto terms = static_cast<int64_t>(operands.terms.size());
  const int64_t rows = terms * strips.rows(), task_weights = s.out_channels * rows;
  T* weights = weights_buffer().template get<T>(s.tasks * task_weights);
  for (int64_t task = 0; task < s.tasks; ++task) {
    effective_weights(operands, task, weights + task * task_weights);
  }
  const auto bytes = static_cast<size_t>(s.tasks * s.samples * strips.image_size()) * sizeof(T);
  parallel_units(s.tasks * strips.per_task(), [&](int64_t unit) {
    const Strip strip = strips[unit];
    Workspace& space = workspace();
    T* v = space.v.template get<T>(rows * strips.width() + kernels.lanes);
    for (int64_t t = 0; t < terms; ++t) {
      strips.im2col(strip, operands.terms[t].source.of(strip.task),
                    v + t * strips.rows() * strips.width());
    }
    for (int64_t n = 0; n < strip.images; ++n) {
      T* y = operands.output.of(strip.task) + (strip.image + n) * strips.image_size();
      kernels.few_channels.forward({weights + strip.task * task_weights, rows,
                                    v + n * strips.image_width(), strips.width(),
                                    operands.bias.of(strip.task), y + strip.first, strips.plane(),
                                    s.out_channels, strip.pixels, bytes >= kStreamedBytes});
    }
  });
}

template <class T>
void few_channels_weight_grad(const ConvShape& shape, const SddmmOperands<T>& operands) {
  FewChannelsWeightGrad<T>(shape, operands).run();
}

template void few_channels_forward(const ConvShape&, const SpmmOperands<float>&);
template void few_channels_forward(const ConvShape&, const SpmmOperands<double>&);
template void few_channels_weight_grad(const ConvShape&, const SddmmOperands<float>&);
template void few_channels_weight_grad(const ConvShape&, const SddmmOperands<double>&);

}  // namespace metasparse::cpu
