// Forward passes and input gradients: a sparse matrix of kernels times V, per point and block.

#include <algorithm>
#include <memory>
#include <vector>

#include "blocking.h"
#include "plan.h"

namespace metasparse::cpu {

namespace {

// The matrix of one task, term and pass, and its transformed weights. One kind of matrix or the
// other.
template <class T>
struct TaskMatrix {
  std::shared_ptr<const PairedCsr> active;
  std::shared_ptr<const DenseIndex> dense;
  const T* kernels = nullptr;
  const T* mask = nullptr;  // what multiplies the kernels; null where that changes nothing
  ScratchBuffer buffer;
  T* weights = nullptr;
  int64_t stride = 0;

  int64_t entries() const { return active ? active->entries : dense->entries; }
  const int32_t* weight_index() const {
    return (active ? active->weight_index : dense->weight_index).data();
  }
};

// The calling thread's, reused from call to call.
template <class T>
std::vector<std::unique_ptr<TaskMatrix<T>>>& task_matrices(int64_t count) {
  thread_local std::vector<std::unique_ptr<TaskMatrix<T>>> mine;
  while (static_cast<int64_t>(mine.size()) < count) {
    mine.push_back(std::make_unique<TaskMatrix<T>>());
  }
  return mine;
}

template <class T>
class Spmm {
 public:
  Spmm(const ConvPlan<T>& plan, const SpmmOperands<T>& operands)
      : plan_(plan),
        operands_(operands),
        kernels_(conv_kernels_of<T>(plan.isa)),
        lanes_(kernels_.lanes),
        matrices_(task_matrices<T>(static_cast<int64_t>(plan.passes.size()) * operands.tasks *
                                   static_cast<int64_t>(operands.terms.size()))),
        terms_(static_cast<int>(operands.terms.size())),
        split_(split_work(*plan.passes[0], operands.tasks)) {
    for (const auto& pass : plan.passes) {
      const int vectors = block_vectors(*pass, lanes_, operands.tasks, split_.parts,
                                        heuristics::spmm_vectors(lanes_ * int{sizeof(T)}));
      cache_chunks_.push_back(cache_chunks(*pass, lanes_, vectors));
      blocks_.emplace_back(pass->images, pass->tile_rows, pass->tile_columns, lanes_, vectors,
                           operands.tasks, split_.parts);
      matrix_of_pass_.push_back(find_matrix(static_cast<int64_t>(matrix_of_pass_.size())));
      const bool small = operands.out_channels * operands.in_channels * operands.kernel_size *
                             int64_t{sizeof(T)} <=
                         heuristics::kDenseSpmmBytes;
      const double pays =
          pass->layout.taps() == 1 && small
              ? heuristics::dense_spmm_fraction(pass->tiles(), lanes_, plan.weights->weights)
              : heuristics::kNever;
      dense_from_ = std::max(dense_from_, pays);
    }
  }

  void run() {
    parallel_units(operands_.tasks * terms_, [&](int64_t unit) {
      read_mask(unit / terms_, static_cast<int>(unit % terms_));
    });
    const int64_t units = static_cast<int64_t>(pass_of_matrix_.size()) * operands_.tasks * terms_;
    for (int64_t unit = 0; unit < units; ++unit) allocate_weights(*matrices_[unit]);
    const int64_t parts = thread_count();
    parallel_units(units * parts,
                   [&](int64_t unit) { transform(*matrices_[unit / parts], unit % parts, parts); });

    // One thread runs all passes of a block, which write the same cache lines. Where there are
    // fewer blocks than threads, passes and ranges of output channels are spread over threads; the
    // share is the outer index, so that a thread reads few weights.
    const auto passes = static_cast<int64_t>(blocks_.size());
    int64_t most = 0;
    for (const TileBlocks& b : blocks_) most = std::max(most, b.count());
    const int64_t blocks = operands_.tasks * most;
    const int64_t pass_step = blocks < thread_count() ? passes : 1;
    const int64_t pairs = divide_up(plan_.passes[0]->output_channels, 2);
    const int64_t idle = blocks == 0 ? 1 : thread_count() / (blocks * pass_step);
    const int64_t shares = std::clamp<int64_t>(std::max(idle, split_.shares), 1, pairs);
    parallel_units(shares * blocks * pass_step, [&](int64_t unit) {
      const int64_t share = unit / pass_step / blocks, block = unit / pass_step % blocks;
      for (int64_t pass = unit % pass_step; pass < passes; pass += pass_step) {
        if (block % most >= blocks_[pass].count()) continue;
        run_block(pass, block / most, block % most, share * pairs / shares,
                  (share + 1) * pairs / shares);
      }
    });
  }

 private:
  // The number of a pass's matrix; passes that read the same weights in the same chunks share it.
  int64_t find_matrix(int64_t pass) {
    for (size_t matrix = 0; matrix < pass_of_matrix_.size(); ++matrix) {
      const int64_t other = pass_of_matrix_[matrix];
      const TilePass<T>&a = *plan_.passes[other], &b = *plan_.passes[pass];
      if (a.layout.tap_index == b.layout.tap_index && a.max_accumulation == b.max_accumulation &&
          cache_chunks_[other] == cache_chunks_[pass]) {
        return static_cast<int64_t>(matrix);
      }
    }
    pass_of_matrix_.push_back(pass);
    return static_cast<int64_t>(pass_of_matrix_.size()) - 1;
  }

  TaskMatrix<T>& matrix(int64_t number, int64_t task, int term) const {
    return *matrices_[(number * operands_.tasks + task) * terms_ + term];
  }

  // The matrices of one task and term, of all passes; tasks that share a mask take the first's.
  void read_mask(int64_t task, int term) {
    const PerTask<const T>& mask = operands_.terms[term].mask;
    if (mask.task_stride == 0 && task > 0) return;
    thread_local ActiveKernels kernels;
    kernels.assign(mask.of(task), operands_.out_channels, operands_.in_channels);
    for (size_t number = 0; number < pass_of_matrix_.size(); ++number) {
      TaskMatrix<T>& mine = matrix(static_cast<int64_t>(number), task, term);
      choose_matrix(kernels, pass_of_matrix_[number], mine);
      mine.mask = kernels.binary && (mine.active || kernels.all()) ? nullptr : mask.of(task);
      for (int64_t t = task; t < (mask.task_stride == 0 ? operands_.tasks : task + 1); ++t) {
        TaskMatrix<T>& other = matrix(static_cast<int64_t>(number), t, term);
        other.active = mine.active;
        other.dense = mine.dense;
        other.mask = mine.mask;
        other.kernels = operands_.terms[term].weight.of(t);
      }
    }
  }

  void choose_matrix(const ActiveKernels& kernels, int64_t pass, TaskMatrix<T>& out) const {
    const CsrLayout layout = {plan_.passes[pass]->layout, operands_.transposed, cache_chunks_[pass],
                              plan_.passes[pass]->max_accumulation};
    const auto all = static_cast<double>(operands_.out_channels * operands_.in_channels);
    out.active.reset();
    out.dense.reset();
    if (dense_from_ * all > static_cast<double>(kernels.count)) {
      out.active = cached<PairedCsr>(kernels, layout);
      return;
    }
    thread_local ActiveKernels every;  // one index for all masks
    every.template assign<T>(nullptr, operands_.out_channels, operands_.in_channels);
    out.dense = cached<DenseIndex>(every, layout);
  }

  void allocate_weights(TaskMatrix<T>& mine) {
    mine.stride = divide_up(mine.entries(), lanes_) * lanes_ + lanes_;
    mine.weights = mine.buffer.template get<T>(plan_.weights->weights * mine.stride);
  }

  void transform(const TaskMatrix<T>& mine, int64_t part, int64_t parts) {
    const int64_t entries = mine.entries();
    const int64_t groups = divide_up(entries, lanes_);
    const int64_t begin = part * groups / parts * lanes_;
    const int64_t end = std::min(entries, (part + 1) * groups / parts * lanes_);
    plan_.weights->forward({mine.weight_index(), begin, end}, mine.kernels, mine.mask, mine.weights,
                           mine.stride);
  }

  // All terms add into the same M. V is computed anew for each term, unless M needs several chunks
  // of channels: then every term keeps its V.
  void run_block(int64_t pass_index, int64_t task, int64_t b, int64_t pair_begin,
                 int64_t pair_end) {
    const TilePass<T>& pass = *plan_.passes[pass_index];
    Workspace& space = workspace();
    const TileBlock block = blocks_[pass_index].block(b, space.runs);
    const int64_t width = int64_t{block.vectors} * lanes_;
    const int64_t v_stride = plane_stride<T>(pass.v_rows(), width);
    const int64_t v_size = pass.points * v_stride;
    const bool one_v = pair_end - pair_begin <= heuristics::kChannelChunk / 2;
    T* v = space.v.template get<T>(v_size * (one_v ? 1 : terms_) + lanes_);

    const int64_t m_stride = plane_stride<T>(heuristics::kChannelChunk, width);
    T* m = space.m.template get<T>(pass.accumulators * m_stride + lanes_);
    for (int64_t pair = pair_begin; pair < pair_end; pair += heuristics::kChannelChunk / 2) {
      const int64_t pairs = std::min(heuristics::kChannelChunk / 2, pair_end - pair);
      for (int term = 0; term < terms_; ++term) {
        T* own = one_v ? v : v + term * v_size;
        if (pair == pair_begin) {
          pass.input_transform(block, operands_.terms[term].source.of(task), own, v_stride,
                               space.transform);
        }
        multiply(pass_index, matrix(matrix_of_pass_[pass_index], task, term), block.vectors, pair,
                 pairs, own, v_stride, m, m_stride, /*accumulate=*/term > 0);
      }
      const int64_t channels = std::min(2 * pairs, pass.output_channels - 2 * pair);
      pass.output_transform(block, m, m_stride, 2 * pair, channels, operands_.bias.of(task),
                            operands_.output.of(task), space.transform);
    }
  }

  void multiply(int64_t pass_index, const TaskMatrix<T>& mine, int vectors, int64_t pair,
                int64_t pairs, const T* v, int64_t v_stride, T* m, int64_t m_stride,
                bool accumulate) const {
    const TilePass<T>& pass = *plan_.passes[pass_index];
    uint64_t started = accumulate ? ~uint64_t{0} : 0;  // accumulators that hold something
    const int64_t chunks = mine.active ? mine.active->chunks : mine.dense->chunks;
    for (int point = 0; point < pass.points; ++point) {
      const int accumulator = pass.accumulator_of(point);
      const T* weights = mine.weights + pass.weight_of(point) * mine.stride;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const Rows rows = {v + point * v_stride, m + accumulator * m_stride, pair, pairs,
                           (started >> accumulator & 1) != 0};
        if (mine.active) {
          multiply_active(pass, *mine.active, chunk, vectors, weights, rows);
        } else {
          multiply_dense(pass, *mine.dense, chunk, weights, rows);
        }
        started |= uint64_t{1} << accumulator;
      }
    }
  }

  // Of one point: V, and the rows of M that belong to some pairs of output channels.
  struct Rows {
    const T* v;
    T* m;
    int64_t pair, pairs;
    bool accumulate;
  };

  void multiply_active(const TilePass<T>& pass, const PairedCsr& matrix, int64_t chunk, int vectors,
                       const T* weights, const Rows& rows) const {
    const RowPair* first =
        matrix.rows.data() + chunk * divide_up(pass.output_channels, 2) + rows.pair;
    kernels_.sparse.spmm[vectors](
        {first, matrix.source.data(), weights, rows.v, rows.m, rows.pairs, rows.accumulate});
  }

  void multiply_dense(const TilePass<T>& pass, const DenseIndex& matrix, int64_t chunk,
                      const T* weights, const Rows& rows) const {
    const int64_t channels = pass.output_channels;
    const int64_t begin = chunk * pass.v_rows() / matrix.chunks;
    const int64_t end = (chunk + 1) * pass.v_rows() / matrix.chunks;
    const int64_t first = 2 * rows.pair, count = std::min(2 * rows.pairs, channels - first);
    kernels_.dense.spmm[pass.tiles()]({weights + begin * channels + first, channels,
                                       rows.v + begin * lanes_, rows.m, count, end - begin,
                                       rows.accumulate});
  }

  const ConvPlan<T>& plan_;
  const SpmmOperands<T>& operands_;
  const ConvKernels<T>& kernels_;
  const int lanes_;
  std::vector<std::unique_ptr<TaskMatrix<T>>>& matrices_;
  const int terms_;
  const WorkSplit split_;
  std::vector<int64_t> cache_chunks_;    // per pass
  std::vector<int64_t> matrix_of_pass_;  // per pass
  std::vector<int64_t> pass_of_matrix_;  // per matrix: the pass that it is built for
  std::vector<TileBlocks> blocks_;
  double dense_from_ = 0;  // all kernels are computed from this density on
};

}  // namespace

template <class T>
void run_spmm(const ConvPlan<T>& plan, const SpmmOperands<T>& operands) {
  Spmm<T>(plan, operands).run();
}

template void run_spmm(const ConvPlan<float>&, const SpmmOperands<float>&);
template void run_spmm(const ConvPlan<double>&, const SpmmOperands<double>&);

}  // namespace metasparse::cpu
