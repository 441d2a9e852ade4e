// The sampled half of the engine: weight gradients.
//
// Blocks of tiles add into one sum per kernel, so threads own private partial sums. The blocks of
// all tasks, in order, are cut into one contiguous part per thread; parts and the tasks they touch
// form a staircase, on which part + task never repeats, so that sum numbers a partial sum.
#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <numeric>
#include <type_traits>
#include <vector>

#include "conv_blocks.h"
#include "conv_engine.h"
#include "conv_select.h"
#include "conv_workspace.h"

namespace metasparse::cpu {

namespace {

struct TaskLists {
  ActiveKernels mask;
  RowLists rows;
};

// The calling thread's, reused from call to call.
std::vector<std::unique_ptr<TaskLists>>& task_lists(int64_t count) {
  thread_local std::vector<std::unique_ptr<TaskLists>> mine;
  while (static_cast<int64_t>(mine.size()) < count) mine.push_back(std::make_unique<TaskLists>());
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
double active_fraction(const SampledOperands<T>& operands) {
  if (operands.mask.data == nullptr) return 1;
  const int64_t tasks = operands.mask.task_stride == 0 ? 1 : operands.tasks;
  const int64_t kernels = operands.out_channels * operands.in_channels;
  int64_t active = 0;
  for (int64_t task = 0; task < tasks; ++task) {
    const T* mask = operands.mask.of(task);
    for (int64_t k = 0; k < kernels; ++k) active += mask[k] != T(0);
  }
  return static_cast<double>(active) / static_cast<double>(tasks * kernels);
}

template <class T>
class Sampled {
 public:
  Sampled(const ConvScheme<T>& scheme, const SampledOperands<T>& operands)
      : pass_(*scheme.passes[0]),
        code_(*scheme.code),
        operands_(operands),
        kernels_(product_kernels_of<T>(scheme.isa)),
        dense_(active_fraction(operands) >
               dense_fraction(divide_up(pass_.tiles(), kernels_.lanes))),
        list_count_(dense_ || operands.mask.task_stride == 0 ? 1 : operands.tasks),
        lists_(task_lists(list_count_)),
        vectors_(block_vectors(pass_, kernels_.lanes, operands.tasks, 6)),
        chunks_(cache_chunks(pass_, kernels_.lanes, vectors_)),
        blocks_(pass_.images, pass_.tile_rows, pass_.tile_columns, kernels_.lanes, vectors_),
        units_(operands.tasks * blocks_.count()),
        parts_(std::min(units_, thread_count())) {}

  void run() {
    parallel_units(list_count_, [&](int64_t list) { build_lists(list); });
    const int64_t size = operands_.out_channels * operands_.in_channels * operands_.kernel_size;
    if (!dense_ || units_ == 0) {
      std::memset(operands_.grad_weight, 0, sizeof(T) * operands_.tasks * size);
    }
    if (units_ == 0) return;

    int64_t entries = 0;
    for (int64_t list = 0; list < list_count_; ++list) {
      entries = std::max(entries, lists_[list]->rows.entries);
    }
    stride_ = divide_up(entries, kernels_.lanes) * kernels_.lanes + kernels_.lanes;
    partial_ = partial_buffer().get<T>((parts_ + operands_.tasks) * code_.weights * stride_);

    parallel_units(parts_, [&](int64_t part) { run_part(part); });
    const int64_t slices = thread_count();
    parallel_units(operands_.tasks * slices,
                   [&](int64_t unit) { finish(unit / slices, unit % slices, slices); });
    parallel_units(operands_.tasks, [&](int64_t task) { scale(task); });
  }

 private:
  TaskLists& lists(int64_t task) const { return *lists_[list_count_ == 1 ? 0 : task]; }

  T* partial(int64_t part, int64_t task) const {
    return partial_ + (part + task) * code_.weights * stride_;
  }

  int64_t part_begin(int64_t part) const { return part * units_ / parts_; }

  void build_lists(int64_t list) {
    TaskLists& lists = *lists_[list];
    if (dense_) {  // entry (o, row of V) is at place o * rows + row: no lists are needed
      lists.rows.entries = operands_.out_channels * pass_.source_rows();
      lists.rows.places.resize(static_cast<size_t>(lists.rows.entries) + 16);
      std::iota(lists.rows.places.begin(), lists.rows.places.end(), 0);
      return;
    }
    lists.mask.assign(operands_.mask.of(list), operands_.out_channels, operands_.in_channels,
                      false);
    lists.rows.build(lists.mask, pass_.layout, chunks_);
  }

  void run_part(int64_t part) {
    Workspace& space = workspace();
    int64_t current = -1;
    uint64_t started = 0;  // weights whose partial sum holds something
    for (int64_t unit = part_begin(part); unit < part_begin(part + 1); ++unit) {
      const int64_t task = unit / blocks_.count();
      if (task != current) started = 0;
      current = task;
      const TileBlock block = blocks_.block(unit % blocks_.count(), space.runs);
      const int64_t width = int64_t{block.vectors} * kernels_.lanes;
      const int64_t v_stride = plane_stride<T>(pass_.source_rows(), width);
      const int64_t d_stride = plane_stride<T>(pass_.output_channels, width);
      T* v = space.v.template get<T>(pass_.points * v_stride + kernels_.lanes);
      T* d = space.m.template get<T>(pass_.columns * d_stride + kernels_.lanes);
      for (const SampledTerm<T>& term : operands_.terms) {
        pass_.gather(block, term.source.of(task), v, v_stride, space.transform);
        pass_.gather_adjoint(block, term.grad.of(task), d, d_stride, space.transform);
        for (int point = 0; point < pass_.points; ++point) {
          const int weight = pass_.weight_of(point);
          multiply(task, block.vectors, d + pass_.column_of(point) * d_stride, v + point * v_stride,
                   partial(part, task) + weight * stride_, started >> weight & 1);
          started |= uint64_t{1} << weight;
        }
      }
    }
  }

  void multiply(int64_t task, int vectors, const T* d, const T* v, T* out, bool accumulate) const {
    const int64_t rows = pass_.output_channels;
    if (dense_) {
      kernels_.dense[vectors]({d, v, out, rows, pass_.source_rows(), accumulate});
      return;
    }
    const RowLists& list = lists(task).rows;
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      kernels_.sampled[vectors]({list.row_begin.data() + chunk * rows, list.source_rows.data(), d,
                                 v, out, rows, accumulate});
    }
  }

  // Sums the partial sums of a slice of a task's entries and brings them back to kernels.
  void finish(int64_t task, int64_t slice, int64_t slices) {
    const RowLists& list = lists(task).rows;
    const int64_t groups = divide_up(list.entries, kernels_.lanes);
    const int64_t begin = slice * groups / slices * kernels_.lanes;
    const int64_t end = std::min(list.entries, (slice + 1) * groups / slices * kernels_.lanes);
    T* total = nullptr;
    for (int64_t part = 0; part < parts_; ++part) {
      const bool touches = part_begin(part) < (task + 1) * blocks_.count() &&
                           part_begin(part + 1) > task * blocks_.count();
      if (!touches) continue;
      T* mine = partial(part, task);
      if (total == nullptr) {
        total = mine;
        continue;
      }
      for (int w = 0; w < code_.weights; ++w) {
        for (int64_t e = w * stride_ + begin; e < w * stride_ + end; ++e) total[e] += mine[e];
      }
    }
    const int64_t size = operands_.out_channels * operands_.in_channels * operands_.kernel_size;
    code_.decode_adjoint(total, stride_, list.places.data(), begin, end,
                         operands_.grad_weight + task * size);
  }

  // Masks other than zeros and ones multiply what they let through; after a dense product also the
  // zeros have something to remove.
  void scale(int64_t task) {
    if (operands_.mask.data == nullptr || (!dense_ && lists(task).mask.binary)) return;
    const T* mask = operands_.mask.of(task);
    const int64_t count = operands_.out_channels * operands_.in_channels;
    T* grad = operands_.grad_weight + task * count * operands_.kernel_size;
    if (operands_.kernel_size == 9) return scale_kernels<9>(mask, count, grad);
    if (operands_.kernel_size == 1) return scale_kernels<1>(mask, count, grad);
    scale_kernels<0>(mask, count, grad);
  }

  // Without a branch on the mask, which has no pattern to predict. `Size` 0: known at run time
  // only.
  template <int Size>
  void scale_kernels(const T* mask, int64_t count, T* grad) const {
    using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
    const int64_t size = Size > 0 ? Size : operands_.kernel_size;
    for (int64_t k = 0; k < count; ++k, grad += size) {
      const T value = mask[k];
      const Bits keep = value == T(0) ? Bits{0} : ~Bits{0};  // zeros remove infinities, too
      for (int64_t tap = 0; tap < size; ++tap) {
        grad[tap] = std::bit_cast<T>(std::bit_cast<Bits>(grad[tap] * value) & keep);
      }
    }
  }

  const ConvPass<T>& pass_;
  const WeightCode<T>& code_;
  const SampledOperands<T>& operands_;
  const ProductKernels<T>& kernels_;
  bool dense_;
  int64_t list_count_;
  std::vector<std::unique_ptr<TaskLists>>& lists_;
  int vectors_;
  int64_t chunks_;
  TileBlocks blocks_;
  int64_t units_, parts_;
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
