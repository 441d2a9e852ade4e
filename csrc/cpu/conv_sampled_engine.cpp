// The sampled half of the engine: weight gradients.
//
// Blocks of tiles add into one sum per kernel. The blocks of all tasks, in order, are cut into
// parts with private partial sums, and each part again, into shares of the output channels.
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "conv_blocks.h"
#include "conv_engine.h"
#include "conv_list_cache.h"
#include "conv_select.h"
#include "conv_workspace.h"

namespace metasparse::cpu {

namespace {

// The masks of a call: the calling thread's, reused from call to call.
std::vector<ActiveKernels>& masks_of_call(int64_t count) {
  thread_local std::vector<ActiveKernels> mine;
  if (static_cast<int64_t>(mine.size()) < count) mine.resize(static_cast<size_t>(count));
  return mine;
}

ScratchBuffer& partial_buffer() {
  thread_local ScratchBuffer mine;
  return mine;
}

// From this fraction of active kernels on, all are computed. A dense product costs less per kernel,
// and has no lists to build, which a task of few tiles (in registers) does not pay back. Measured
// on AVX2, 64 channels: equal at .1, .3, .5 and .57 with 1, 3, 13 and 50 registers; 128: at .6.
double dense_fraction(int64_t registers) {
  const auto r = static_cast<double>(registers);
  return 0.6 * r / (r + 2.5);
}

template <class T>
class Sampled {
 public:
  Sampled(const ConvScheme<T>& scheme, const SampledOperands<T>& operands)
      : pass_(*scheme.passes[0]),
        code_(*scheme.code),
        operands_(operands),
        kernels_(product_kernels_of<T>(scheme.isa)),
        dense_kernels_(dense_kernels_of<T>(scheme.isa)),
        mask_count_(operands.mask.task_stride == 0 ? 1 : operands.tasks),
        masks_(masks_of_call(mask_count_)),
        dense_(read_masks() > dense_fraction(divide_up(pass_.tiles(), kernels_.lanes))),
        split_(split_work(pass_, operands.tasks)),
        vectors_(block_vectors(pass_, kernels_.lanes, operands.tasks, split_.parts, 6)),
        chunks_(cache_chunks(pass_, kernels_.lanes, vectors_)),
        blocks_(pass_.images, pass_.tile_rows, pass_.tile_columns, kernels_.lanes, vectors_,
                operands.tasks, split_.parts),
        units_(operands.tasks * blocks_.count()),
        parts_{units_, std::min(units_, split_.parts)} {}

  void run() {
    const int64_t kernels = operands_.out_channels * operands_.in_channels;
    if (!dense_ || units_ == 0) {
      std::memset(operands_.grad_weight, 0,
                  sizeof(T) * operands_.tasks * kernels * operands_.kernel_size);
    }
    if (units_ == 0) return;
    int64_t most = kernels * pass_.layout.taps();
    if (!dense_) {
      find_lists();
      most = 0;
      for (const auto& lists : lists_) most = std::max(most, lists->entries);
    }
    stride_ = divide_up(most, kernels_.lanes) * kernels_.lanes + kernels_.lanes;
    partial_ = partial_buffer().get<T>((parts_.count + operands_.tasks) * code_.weights * stride_);

    parallel_units(parts_.count * split_.shares, [&](int64_t unit) {
      const int64_t share = unit % split_.shares, channels = operands_.out_channels;
      run_part(unit / split_.shares, share * channels / split_.shares,
               (share + 1) * channels / split_.shares);
    });
    // In the order that lets a thread finish what it began.
    const int64_t slices = thread_count(), tasks = operands_.tasks;
    parallel_units(tasks * slices, [&](int64_t unit) {
      if (split_.shares > 1) {
        finish(unit % tasks, unit / tasks, slices);
      } else {
        finish(unit / slices, unit % slices, slices);
      }
    });
  }

 private:
  // Reads the masks; returns which fraction of the kernels is active.
  double read_masks() {
    parallel_units(mask_count_, [&](int64_t task) {
      masks_[task].assign(operands_.mask.of(task), operands_.out_channels, operands_.in_channels);
    });
    int64_t active = 0;
    for (int64_t task = 0; task < mask_count_; ++task) active += masks_[task].count;
    const int64_t all = mask_count_ * operands_.out_channels * operands_.in_channels;
    return all == 0 ? 1 : static_cast<double>(active) / static_cast<double>(all);
  }

  void find_lists() {
    lists_.resize(static_cast<size_t>(mask_count_));
    ListPlan plan;
    plan.layout = pass_.layout;
    plan.cache_chunks = chunks_;
    parallel_units(mask_count_,
                   [&](int64_t task) { lists_[task] = lists_of<RowLists>(masks_[task], plan); });
  }

  const ActiveKernels& mask(int64_t task) const { return masks_[mask_count_ == 1 ? 0 : task]; }

  const RowLists& lists(int64_t task) const { return *lists_[mask_count_ == 1 ? 0 : task]; }

  T* partial(int64_t part, int64_t task) const {
    return partial_ + (part + task) * code_.weights * stride_;
  }

  // Of the output channels first .. last - 1.
  void run_part(int64_t part, int64_t first, int64_t last) {
    Workspace& space = workspace();
    int64_t current = -1;
    uint64_t started = 0;  // weights whose partial sum holds something
    for (int64_t unit = parts_.begin(part); unit < parts_.begin(part + 1); ++unit) {
      const int64_t task = unit / blocks_.count();
      if (task != current) started = 0;
      current = task;
      const TileBlock block = blocks_.block(unit % blocks_.count(), space.runs);
      const int64_t width = int64_t{block.vectors} * kernels_.lanes;
      const int64_t v_stride = plane_stride<T>(pass_.source_rows(), width);
      const int64_t d_stride = plane_stride<T>(last - first, width);
      T* v = space.v.template get<T>(pass_.points * v_stride + kernels_.lanes);
      T* d = space.m.template get<T>(pass_.columns * d_stride + kernels_.lanes);
      for (const SampledTerm<T>& term : operands_.terms) {
        pass_.gather(block, term.source.of(task), v, v_stride, space.transform);
        pass_.gather_adjoint(block, term.grad.of(task), first, last - first, d, d_stride,
                             space.transform);
        for (int point = 0; point < pass_.points; ++point) {
          const int weight = pass_.weight_of(point);
          multiply(task, block.vectors, first, last - first, d + pass_.column_of(point) * d_stride,
                   v + point * v_stride, partial(part, task) + weight * stride_,
                   started >> weight & 1);
          started |= uint64_t{1} << weight;
        }
      }
    }
  }

  void multiply(int64_t task, int vectors, int64_t first, int64_t rows, const T* d, const T* v,
                T* out, bool accumulate) const {
    if (dense_) {
      const int64_t columns = pass_.source_rows();
      dense_kernels_.dense[vectors]({d, v, out + first * columns, rows, columns, accumulate});
      return;
    }
    const RowLists& list = lists(task);
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      const int32_t* row_begin = list.row_begin.data() + chunk * pass_.output_channels + first;
      kernels_.sampled[vectors]({row_begin, list.source_rows.data(), d, v, out, rows, accumulate});
    }
  }

  // Sums the partial sums of a slice of a task's entries and brings them back to kernels.
  void finish(int64_t task, int64_t slice, int64_t slices) {
    const int64_t entries = dense_ ? operands_.out_channels * pass_.source_rows()  // in order
                                   : lists(task).entries;
    const int64_t groups = divide_up(entries, kernels_.lanes);
    const int64_t begin = slice * groups / slices * kernels_.lanes;
    const int64_t end = std::min(entries, (slice + 1) * groups / slices * kernels_.lanes);
    const int64_t first = parts_.of(task * blocks_.count());
    const int64_t last = parts_.of((task + 1) * blocks_.count() - 1);
    T* total = partial(first, task);
    for (int64_t part = first + 1; part <= last; ++part) {
      const T* mine = partial(part, task);
      for (int w = 0; w < code_.weights; ++w) {
        for (int64_t e = w * stride_ + begin; e < w * stride_ + end; ++e) total[e] += mine[e];
      }
    }
    // Masks other than zeros and ones multiply what they let through; after a dense product also
    // the zeros have something to remove.
    const bool plain = mask(task).binary && (!dense_ || mask(task).all());
    const int64_t size = operands_.out_channels * operands_.in_channels * operands_.kernel_size;
    code_.decode_adjoint({dense_ ? nullptr : lists(task).places.data(), begin, end}, total, stride_,
                         plain ? nullptr : operands_.mask.of(task),
                         operands_.grad_weight + task * size);
  }

  const ConvPass<T>& pass_;
  const WeightCode<T>& code_;
  const SampledOperands<T>& operands_;
  const ProductKernels<T>& kernels_;
  const DenseKernels<T>& dense_kernels_;
  const int64_t mask_count_;
  std::vector<ActiveKernels>& masks_;
  const bool dense_;
  std::vector<std::shared_ptr<const RowLists>> lists_;
  WorkSplit split_;
  int vectors_;
  int64_t chunks_;
  TileBlocks blocks_;
  int64_t units_;
  Parts parts_;
  int64_t stride_ = 0;
  T* partial_ = nullptr;
};

}  // namespace

template <class T>
void run_sampled(const ConvScheme<T>& scheme, const SampledOperands<T>& operands) {
  Sampled<T>(scheme, operands).run();
}

template void run_sampled(const ConvScheme<float>&, const SampledOperands<float>&);
template void run_sampled(const ConvScheme<double>&, const SampledOperands<double>&);

}  // namespace metasparse::cpu
