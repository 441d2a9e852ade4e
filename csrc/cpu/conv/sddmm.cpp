// Weight gradients: products of D and V, sampled where kernels are active.
//
// Blocks of tiles add into one sum per kernel. The blocks of all tasks, in order, are cut into
// parts with private partial sums, and each part again, into shares of the output channels.
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "blocking.h"
#include "plan.h"

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

template <class T>
class Sddmm {
 public:
  Sddmm(const ConvPlan<T>& plan, const SddmmOperands<T>& operands)
      : pass_(*plan.passes[0]),
        weights_(*plan.weights),
        operands_(operands),
        kernels_(conv_kernels_of<T>(plan.isa)),
        lanes_(kernels_.lanes),
        mask_count_(operands.mask.task_stride == 0 ? 1 : operands.tasks),
        masks_(masks_of_call(mask_count_)),
        dense_(read_masks() >
               heuristics::dense_sddmm_fraction(divide_up(pass_.tiles(), lanes_), lanes_,
                                                operands.out_channels * operands.in_channels)),
        split_(split_work(pass_, operands.tasks)),
        vectors_(
            block_vectors(pass_, lanes_, operands.tasks, split_.parts, heuristics::kSddmmVectors)),
        chunks_(cache_chunks(pass_, lanes_, vectors_)),
        blocks_(pass_.images, pass_.tile_rows, pass_.tile_columns, lanes_, vectors_, operands.tasks,
                split_.parts),
        units_(operands.tasks * blocks_.count()),
        parts_{units_, std::min(units_, split_.parts)} {}

  void run() {
    const int64_t kernels = operands_.out_channels * operands_.in_channels;
    if (!dense_ || units_ == 0 || !weights_.writes_whole_kernels()) {
      for (int64_t task = 0; task < operands_.tasks; ++task) {
        std::memset(operands_.grad_weight.of(task), 0, sizeof(T) * kernels * operands_.kernel_size);
      }
    }
    if (units_ == 0) return;
    int64_t most = kernels * pass_.layout.taps();
    if (!dense_) {
      find_matrices();
      most = 0;
      for (const auto& matrix : matrices_) most = std::max(most, matrix->entries);
    }
    stride_ = divide_up(most, lanes_) * lanes_ + lanes_;
    partial_ =
        partial_buffer().get<T>((parts_.count + operands_.tasks) * weights_.weights * stride_);

    parallel_units(parts_.count * split_.shares, [&](int64_t unit) {
      const int64_t share = unit % split_.shares, channels = operands_.out_channels;
      run_part(unit / split_.shares, share * channels / split_.shares,
               (share + 1) * channels / split_.shares);
    });
    // In an order in which a thread mostly reduces partial sums that it wrote itself.
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

  void find_matrices() {
    matrices_.resize(static_cast<size_t>(mask_count_));
    CsrLayout layout;
    layout.taps = pass_.layout;
    layout.cache_chunks = chunks_;
    parallel_units(mask_count_,
                   [&](int64_t task) { matrices_[task] = cached<Csr>(masks_[task], layout); });
  }

  const ActiveKernels& mask(int64_t task) const { return masks_[mask_count_ == 1 ? 0 : task]; }

  const Csr& matrix(int64_t task) const { return *matrices_[mask_count_ == 1 ? 0 : task]; }

  T* partial(int64_t part, int64_t task) const {
    return partial_ + (part + task) * weights_.weights * stride_;
  }

  // Of the output channels first .. last - 1.
  void run_part(int64_t part, int64_t first, int64_t last) {
    Workspace& space = workspace();
    int64_t current = -1;
    uint64_t started = 0;  // bit w: weight w has a partial sum
    for (int64_t unit = parts_.begin(part); unit < parts_.begin(part + 1); ++unit) {
      const int64_t task = unit / blocks_.count();
      if (task != current) started = 0;
      current = task;
      const TileBlock block = blocks_.block(unit % blocks_.count(), space.runs);
      const int64_t width = int64_t{block.vectors} * lanes_;
      const int64_t v_stride = plane_stride<T>(pass_.v_rows(), width);
      const int64_t d_stride = plane_stride<T>(last - first, width);
      T* v = space.v.template get<T>(pass_.points * v_stride + lanes_);
      T* d = space.m.template get<T>(pass_.accumulators * d_stride + lanes_);
      for (const SddmmTerm<T>& term : operands_.terms) {
        pass_.input_transform(block, term.source.of(task), v, v_stride, space.transform);
        pass_.output_transform_adjoint(block, term.grad.of(task), first, last - first, d, d_stride,
                                       space.transform);
        for (int point = 0; point < pass_.points; ++point) {
          const int weight = pass_.weight_of(point);
          multiply(task, block.vectors, first, last - first,
                   d + pass_.accumulator_of(point) * d_stride, v + point * v_stride,
                   partial(part, task) + weight * stride_, started >> weight & 1);
          started |= uint64_t{1} << weight;
        }
      }
    }
  }

  void multiply(int64_t task, int vectors, int64_t first, int64_t rows, const T* d, const T* v,
                T* out, bool accumulate) const {
    if (dense_) {
      const int64_t sources = pass_.v_rows();
      kernels_.dense.sddmm[vectors]({d, v, out + first * sources, rows, sources, accumulate});
      return;
    }
    const Csr& active = matrix(task);
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      const int32_t* row_begin = active.row_begin.data() + chunk * pass_.output_channels + first;
      kernels_.sparse.sddmm[vectors](
          {row_begin, active.source.data(), d, v, out, rows, accumulate});
    }
  }

  // Sums the partial sums of a slice of a task's entries and brings them back to kernels.
  void finish(int64_t task, int64_t slice, int64_t slices) {
    const int64_t entries = dense_ ? operands_.out_channels * pass_.v_rows()  // in order
                                   : matrix(task).entries;
    const int64_t groups = divide_up(entries, lanes_);
    const int64_t begin = slice * groups / slices * lanes_;
    const int64_t end = std::min(entries, (slice + 1) * groups / slices * lanes_);
    const int64_t first = parts_.of(task * blocks_.count());
    const int64_t last = parts_.of((task + 1) * blocks_.count() - 1);
    T* total = partial(first, task);
    for (int64_t part = first + 1; part <= last; ++part) {
      const T* mine = partial(part, task);
      for (int w = 0; w < weights_.weights; ++w) {
        for (int64_t e = w * stride_ + begin; e < w * stride_ + end; ++e) total[e] += mine[e];
      }
    }
    // Masks that are not binary scale the result; after the dense SDDMM pruned kernels are zeroed.
    const bool plain = mask(task).binary && (!dense_ || mask(task).all());
    weights_.backward({dense_ ? nullptr : matrix(task).weight_index.data(), begin, end}, total,
                      stride_, plain ? nullptr : operands_.mask.of(task),
                      operands_.grad_weight.of(task));
  }

  const TilePass<T>& pass_;
  const WeightTransform<T>& weights_;
  const SddmmOperands<T>& operands_;
  const ConvKernels<T>& kernels_;
  const int lanes_;
  const int64_t mask_count_;
  std::vector<ActiveKernels>& masks_;
  const bool dense_;
  std::vector<std::shared_ptr<const Csr>> matrices_;
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
void run_sddmm(const ConvPlan<T>& plan, const SddmmOperands<T>& operands) {
  Sddmm<T>(plan, operands).run();
}

template void run_sddmm(const ConvPlan<float>&, const SddmmOperands<float>&);
template void run_sddmm(const ConvPlan<double>&, const SddmmOperands<double>&);

}  // namespace metasparse::cpu
