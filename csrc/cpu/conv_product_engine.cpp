// The product half of the engine: forward passes and input gradients.
#include "conv_engine.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "conv_blocks.h"
#include "conv_select.h"
#include "conv_workspace.h"

namespace metasparse::cpu {

namespace {

// Lists and encoded weights of one task, term and pass.
template <class T>
struct PreparedTask {
  ActiveKernels mask;
  PairLists pairs;
  const PairLists* shared_pairs = nullptr;  // its own, or those of the first with the same mask
  ScratchBuffer effective_buffer, encoded_buffer;
  const T* kernels = nullptr;
  const T* encoded = nullptr;
  int64_t encoded_stride = 0;
};

// The calling thread's, reused from call to call.
template <class T>
std::vector<std::unique_ptr<PreparedTask<T>>>& prepared_tasks(int64_t count) {
  thread_local std::vector<std::unique_ptr<PreparedTask<T>>> mine;
  while (static_cast<int64_t>(mine.size()) < count) {
    mine.push_back(std::make_unique<PreparedTask<T>>());
  }
  return mine;
}

// w * m where m is not 0; kernels under a zero are not read.
template <class T>
const T* effective_kernels(const T* weight, const T* mask, int64_t kernels, int64_t kernel_size,
                           ScratchBuffer& buffer) {
  T* out = buffer.get<T>(kernels * kernel_size);
  for (int64_t k = 0; k < kernels; ++k) {
    if (mask[k] == T(0)) continue;
    for (int64_t tap = 0; tap < kernel_size; ++tap) {
      out[k * kernel_size + tap] = weight[k * kernel_size + tap] * mask[k];
    }
  }
  return out;
}

template <class T>
class Product {
 public:
  Product(const ConvScheme<T>& scheme, const ProductOperands<T>& operands)
      : scheme_(scheme),
        operands_(operands),
        kernels_(product_kernels_of<T>(scheme.isa)),
        prepared_(prepared_tasks<T>(static_cast<int64_t>(scheme.passes.size()) * operands.tasks *
                                    static_cast<int64_t>(operands.terms.size()))),
        terms_(static_cast<int>(operands.terms.size())) {
    for (const auto& pass : scheme.passes) {
      const int vectors =
          block_vectors(*pass, kernels_.lanes, operands.tasks, product_vectors<T>(kernels_.lanes));
      cache_chunks_.push_back(cache_chunks(*pass, kernels_.lanes, vectors));
      blocks_.emplace_back(pass->images, pass->tile_rows, pass->tile_columns, kernels_.lanes,
                           vectors);
      lists_of_.push_back(find_lists(static_cast<int64_t>(lists_of_.size())));
    }
  }

  void run() {
    const int64_t lists = static_cast<int64_t>(list_passes_.size()) * operands_.tasks * terms_;
    parallel_units(lists, [&](int64_t unit) { build_lists(unit); });
    parallel_units(lists, [&](int64_t unit) { make_room(unit); });
    const int64_t parts = thread_count();
    parallel_units(lists * parts,
                   [&](int64_t unit) { encode(*prepared_[unit / parts], unit % parts, parts); });

    // The passes of a block write into the same cache lines, which are still near when a thread
    // runs all of them. Too few blocks for the threads: several share the passes out, and the
    // channels.
    const auto passes = static_cast<int64_t>(blocks_.size());
    int64_t most = 0;
    for (const TileBlocks& b : blocks_) most = std::max(most, b.count());
    const int64_t blocks = operands_.tasks * most;
    const int64_t pass_step = blocks < thread_count() ? passes : 1;
    const int64_t pairs = divide_up(scheme_.passes[0]->output_channels, 2);
    const int64_t wanted = blocks == 0 ? 1 : thread_count() / (blocks * pass_step);
    const int64_t shares = std::clamp<int64_t>(wanted, 1, pairs);
    parallel_units(blocks * pass_step * shares, [&](int64_t unit) {
      const int64_t share = unit % shares, block = unit / shares / pass_step;
      for (int64_t pass = unit / shares % pass_step; pass < passes; pass += pass_step) {
        if (block % most >= blocks_[pass].count()) continue;
        run_block(pass, block / most, block % most, share * pairs / shares,
                  (share + 1) * pairs / shares);
      }
    });
  }

 private:
  // The number of a pass's lists; passes that read the same weights in the same chunks share them.
  int64_t find_lists(int64_t pass) {
    for (size_t lists = 0; lists < list_passes_.size(); ++lists) {
      const int64_t other = list_passes_[lists];
      const ConvPass<T>&a = *scheme_.passes[other], &b = *scheme_.passes[pass];
      if (a.layout.tap_place == b.layout.tap_place && a.longest_sum == b.longest_sum &&
          cache_chunks_[other] == cache_chunks_[pass]) {
        return static_cast<int64_t>(lists);
      }
    }
    list_passes_.push_back(pass);
    return static_cast<int64_t>(list_passes_.size()) - 1;
  }

  PreparedTask<T>& prepared(int64_t lists, int64_t task, int term) const {
    return *prepared_[(lists * operands_.tasks + task) * terms_ + term];
  }

  bool same_mask(int a, int b) const {
    const PerTask<const T>&x = operands_.terms[a].mask, &y = operands_.terms[b].mask;
    return x.data == y.data && x.task_stride == y.task_stride;
  }

  // The task and the term whose lists serve these: the first with the same mask.
  PreparedTask<T>& owner(int64_t lists, int64_t task, int term) const {
    const bool shared = operands_.terms[term].mask.task_stride == 0;
    return prepared(lists, shared ? 0 : task, term > 0 && same_mask(term, 0) ? 0 : term);
  }

  void build_lists(int64_t unit) {
    const int term = static_cast<int>(unit % terms_);
    const int64_t task = unit / terms_ % operands_.tasks, lists = unit / terms_ / operands_.tasks;
    PreparedTask<T>& mine = prepared(lists, task, term);
    if (&owner(lists, task, term) != &mine) return;
    mine.mask.assign(operands_.terms[term].mask.of(task), operands_.out_channels,
                     operands_.in_channels, operands_.transposed);
    const int64_t pass = list_passes_[lists];
    mine.pairs.build(mine.mask, scheme_.passes[pass]->layout, chunks(pass, mine.mask));
  }

  // As many as the cache asks for, more where sums would be too long otherwise.
  int64_t chunks(int64_t pass, const ActiveKernels& mask) const {
    const int64_t longest = scheme_.passes[pass]->longest_sum;
    return std::max(cache_chunks_[pass], divide_up(mask.longest_row(), longest));
  }

  // Once all lists are there.
  void make_room(int64_t unit) {
    const int term = static_cast<int>(unit % terms_);
    const int64_t task = unit / terms_ % operands_.tasks, lists = unit / terms_ / operands_.tasks;
    PreparedTask<T>& mine = prepared(lists, task, term);
    const PreparedTask<T>& from = owner(lists, task, term);
    mine.shared_pairs = &from.pairs;
    mine.kernels = operands_.terms[term].weight.of(task);
    if (!from.mask.binary) {
      mine.kernels = effective_kernels(mine.kernels, operands_.terms[term].mask.of(task),
                                       operands_.out_channels * operands_.in_channels,
                                       operands_.kernel_size, mine.effective_buffer);
    }
    mine.encoded_stride =
        divide_up(from.pairs.entries, kernels_.lanes) * kernels_.lanes + kernels_.lanes;
    mine.encoded = mine.encoded_buffer.template get<T>(scheme_.code->weights * mine.encoded_stride);
  }

  void encode(PreparedTask<T>& mine, int64_t part, int64_t parts) {
    const int64_t entries = mine.shared_pairs->entries;
    const int64_t groups = divide_up(entries, kernels_.lanes);
    const int64_t begin = part * groups / parts * kernels_.lanes;
    const int64_t end = std::min(entries, (part + 1) * groups / parts * kernels_.lanes);
    scheme_.code->encode(mine.kernels, mine.shared_pairs->places.data(), begin, end,
                         const_cast<T*>(mine.encoded), mine.encoded_stride);
  }

  // The terms of a block one after the other, through one V: into the same M. Only where M cannot
  // hold all channels at once does each term keep its own V for the later ones.
  void run_block(int64_t pass_index, int64_t task, int64_t b, int64_t pair_begin,
                 int64_t pair_end) {
    const ConvPass<T>& pass = *scheme_.passes[pass_index];
    Workspace& space = workspace();
    const TileBlock block = blocks_[pass_index].block(b, space.runs);
    const int64_t width = int64_t{block.vectors} * kernels_.lanes;
    const int64_t v_stride = plane_stride<T>(pass.source_rows(), width);
    const int64_t v_size = pass.points * v_stride;
    const bool one_v = pair_end - pair_begin <= kChannelChunk / 2;
    T* v = space.v.template get<T>(v_size * (one_v ? 1 : terms_) + kernels_.lanes);

    const int64_t m_stride = plane_stride<T>(kChannelChunk, width);
    T* m = space.m.template get<T>(pass.columns * m_stride + kernels_.lanes);
    for (int64_t pair = pair_begin; pair < pair_end; pair += kChannelChunk / 2) {
      const int64_t pairs = std::min(kChannelChunk / 2, pair_end - pair);
      for (int term = 0; term < terms_; ++term) {
        T* own = one_v ? v : v + term * v_size;
        if (pair == pair_begin) {
          pass.gather(block, operands_.terms[term].source.of(task), own, v_stride, space.transform);
        }
        multiply(pass_index, prepared(lists_of_[pass_index], task, term), block.vectors, pair,
                 pairs, own, v_stride, m, m_stride, /*accumulate=*/term > 0);
      }
      const int64_t channels = std::min(2 * pairs, pass.output_channels - 2 * pair);
      pass.drain(block, m, m_stride, 2 * pair, channels, operands_.bias.of(task),
                 operands_.output.of(task), space.transform);
    }
  }

  void multiply(int64_t pass_index, const PreparedTask<T>& mine, int vectors, int64_t pair,
                int64_t pairs, const T* v, int64_t v_stride, T* m, int64_t m_stride,
                bool accumulate) const {
    const ConvPass<T>& pass = *scheme_.passes[pass_index];
    const int64_t all_pairs = divide_up(pass.output_channels, 2);
    uint64_t started = accumulate ? ~uint64_t{0} : 0;  // columns that hold something
    for (int point = 0; point < pass.points; ++point) {
      const int column = pass.column_of(point);
      ProductStep<T> step;
      step.source_rows = mine.shared_pairs->source_rows.data();
      step.weights = mine.encoded + pass.weight_of(point) * mine.encoded_stride;
      step.v = v + point * v_stride;
      step.m = m + column * m_stride;
      step.pairs = pairs;
      for (int64_t chunk = 0; chunk < mine.shared_pairs->chunks; ++chunk) {
        step.runs = mine.shared_pairs->runs.data() + chunk * all_pairs + pair;
        step.accumulate = started >> column & 1;
        kernels_.product[vectors](step);
        started |= uint64_t{1} << column;
      }
    }
  }

  const ConvScheme<T>& scheme_;
  const ProductOperands<T>& operands_;
  const ProductKernels<T>& kernels_;
  std::vector<std::unique_ptr<PreparedTask<T>>>& prepared_;
  const int terms_;
  std::vector<int64_t> cache_chunks_;  // per pass
  std::vector<int64_t> lists_of_;      // per pass
  std::vector<int64_t> list_passes_;   // per lists: the pass that they are built for
  std::vector<TileBlocks> blocks_;
};

}  // namespace

template <class T>
void run_product(const ConvScheme<T>& scheme, const ProductOperands<T>& operands) {
  Product<T>(scheme, operands).run();
}

template void run_product(const ConvScheme<float>&, const ProductOperands<float>&);
template void run_product(const ConvScheme<double>&, const ProductOperands<double>&);

}  // namespace metasparse::cpu
