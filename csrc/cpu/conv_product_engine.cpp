// The product half of the engine: forward passes and input gradients.
#include "conv_engine.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "conv_blocks.h"
#include "conv_list_cache.h"
#include "conv_select.h"
#include "conv_workspace.h"

namespace metasparse::cpu {

namespace {

// Lists and encoded weights of one task, term and pass. Either kind of lists.
template <class T>
struct PreparedTask {
  std::shared_ptr<const PairLists> pairs;
  std::shared_ptr<const ColumnLists> columns;
  const T* kernels = nullptr;
  const T* mask = nullptr;  // what multiplies the kernels; null where that changes nothing
  ScratchBuffer buffer;
  T* encoded = nullptr;
  int64_t encoded_stride = 0;

  int64_t entries() const { return pairs ? pairs->entries : columns->entries; }
  const int32_t* places() const { return (pairs ? pairs->places : columns->places).data(); }
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

// From this fraction of active kernels on, all are computed, channels in the lanes, where the tiles
// of a task fill one register at most; never where they need more. Measured on AVX2, 64 channels.
double outer_fraction(int64_t tiles, int64_t lanes) {
  if (tiles > lanes) return 2;
  return 0.2 + 0.4 * static_cast<double>(tiles) / static_cast<double>(lanes);
}

template <class T>
class Product {
 public:
  Product(const ConvScheme<T>& scheme, const ProductOperands<T>& operands)
      : scheme_(scheme),
        operands_(operands),
        kernels_(product_kernels_of<T>(scheme.isa)),
        dense_kernels_(dense_kernels_of<T>(scheme.isa)),
        prepared_(prepared_tasks<T>(static_cast<int64_t>(scheme.passes.size()) * operands.tasks *
                                    static_cast<int64_t>(operands.terms.size()))),
        terms_(static_cast<int>(operands.terms.size())),
        split_(split_work(*scheme.passes[0], operands.tasks)) {
    for (const auto& pass : scheme.passes) {
      const int vectors = block_vectors(*pass, kernels_.lanes, operands.tasks, split_.parts,
                                        product_vectors<T>(kernels_.lanes));
      cache_chunks_.push_back(cache_chunks(*pass, kernels_.lanes, vectors));
      blocks_.emplace_back(pass->images, pass->tile_rows, pass->tile_columns, kernels_.lanes,
                           vectors, operands.tasks, split_.parts);
      lists_of_.push_back(find_lists(static_cast<int64_t>(lists_of_.size())));
      const double pays =
          pass->layout.taps() == 1 ? outer_fraction(pass->tiles(), kernels_.lanes) : 2;
      outer_pays_from_ = std::max(outer_pays_from_, pays);
    }
  }

  void run() {
    parallel_units(operands_.tasks * terms_, [&](int64_t unit) {
      read_mask(unit / terms_, static_cast<int>(unit % terms_));
    });
    const int64_t units = static_cast<int64_t>(list_passes_.size()) * operands_.tasks * terms_;
    for (int64_t unit = 0; unit < units; ++unit) make_room(*prepared_[unit]);
    const int64_t parts = thread_count();
    parallel_units(units * parts,
                   [&](int64_t unit) { encode(*prepared_[unit / parts], unit % parts, parts); });

    // The passes of a block write into the same cache lines, which are still near when a thread
    // runs all of them. Too few blocks for the threads: several share the passes out, and the
    // channels. A thread's units are of one share, so that it reads few weights.
    const auto passes = static_cast<int64_t>(blocks_.size());
    int64_t most = 0;
    for (const TileBlocks& b : blocks_) most = std::max(most, b.count());
    const int64_t blocks = operands_.tasks * most;
    const int64_t pass_step = blocks < thread_count() ? passes : 1;
    const int64_t pairs = divide_up(scheme_.passes[0]->output_channels, 2);
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

  // The lists of one task and term, of all passes; tasks that share their mask take the first's.
  void read_mask(int64_t task, int term) {
    const PerTask<const T>& mask = operands_.terms[term].mask;
    if (mask.task_stride == 0 && task > 0) return;
    thread_local ActiveKernels kernels;
    kernels.assign(mask.of(task), operands_.out_channels, operands_.in_channels);
    for (size_t lists = 0; lists < list_passes_.size(); ++lists) {
      PreparedTask<T>& mine = prepared(static_cast<int64_t>(lists), task, term);
      list_kernels(kernels, list_passes_[lists], mine);
      mine.mask = kernels.binary && (mine.pairs || kernels.all()) ? nullptr : mask.of(task);
      for (int64_t t = task; t < (mask.task_stride == 0 ? operands_.tasks : task + 1); ++t) {
        PreparedTask<T>& other = prepared(static_cast<int64_t>(lists), t, term);
        other.pairs = mine.pairs;
        other.columns = mine.columns;
        other.mask = mine.mask;
        other.kernels = operands_.terms[term].weight.of(t);
      }
    }
  }

  void list_kernels(const ActiveKernels& kernels, int64_t pass, PreparedTask<T>& out) const {
    const ListPlan plan = {scheme_.passes[pass]->layout, operands_.transposed, cache_chunks_[pass],
                           scheme_.passes[pass]->longest_sum};
    const auto all = static_cast<double>(operands_.out_channels * operands_.in_channels);
    out.pairs.reset();
    out.columns.reset();
    if (outer_pays_from_ * all > static_cast<double>(kernels.count)) {
      out.pairs = lists_of<PairLists>(kernels, plan);
      return;
    }
    thread_local ActiveKernels every;  // one list for all masks
    every.template assign<T>(nullptr, operands_.out_channels, operands_.in_channels);
    out.columns = lists_of<ColumnLists>(every, plan);
  }

  void make_room(PreparedTask<T>& mine) {
    mine.encoded_stride =
        divide_up(mine.entries(), kernels_.lanes) * kernels_.lanes + kernels_.lanes;
    mine.encoded = mine.buffer.template get<T>(scheme_.code->weights * mine.encoded_stride);
  }

  void encode(const PreparedTask<T>& mine, int64_t part, int64_t parts) {
    const int64_t entries = mine.entries();
    const int64_t groups = divide_up(entries, kernels_.lanes);
    const int64_t begin = part * groups / parts * kernels_.lanes;
    const int64_t end = std::min(entries, (part + 1) * groups / parts * kernels_.lanes);
    scheme_.code->encode({mine.places(), begin, end}, mine.kernels, mine.mask, mine.encoded,
                         mine.encoded_stride);
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
    uint64_t started = accumulate ? ~uint64_t{0} : 0;  // columns that hold something
    const int64_t chunks = mine.pairs ? mine.pairs->chunks : mine.columns->chunks;
    for (int point = 0; point < pass.points; ++point) {
      const int column = pass.column_of(point);
      const T* weights = mine.encoded + pass.weight_of(point) * mine.encoded_stride;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const Rows rows = {v + point * v_stride, m + column * m_stride, pair, pairs,
                           (started >> column & 1) != 0};
        if (mine.pairs) {
          multiply_pairs(pass, *mine.pairs, chunk, vectors, weights, rows);
        } else {
          multiply_columns(pass, *mine.columns, chunk, weights, rows);
        }
        started |= uint64_t{1} << column;
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

  void multiply_pairs(const ConvPass<T>& pass, const PairLists& lists, int64_t chunk, int vectors,
                      const T* weights, const Rows& rows) const {
    const PairRun* runs =
        lists.runs.data() + chunk * divide_up(pass.output_channels, 2) + rows.pair;
    kernels_.product[vectors](
        {runs, lists.source_rows.data(), weights, rows.v, rows.m, rows.pairs, rows.accumulate});
  }

  void multiply_columns(const ConvPass<T>& pass, const ColumnLists& lists, int64_t chunk,
                        const T* weights, const Rows& rows) const {
    const int64_t channels = pass.output_channels;
    const int64_t begin = chunk * pass.source_rows() / lists.chunks;
    const int64_t end = (chunk + 1) * pass.source_rows() / lists.chunks;
    const int64_t first = 2 * rows.pair, count = std::min(2 * rows.pairs, channels - first);
    dense_kernels_.outer[pass.tiles()]({weights + begin * channels + first, channels,
                                        rows.v + begin * kernels_.lanes, rows.m, count, end - begin,
                                        rows.accumulate});
  }

  const ConvScheme<T>& scheme_;
  const ProductOperands<T>& operands_;
  const ProductKernels<T>& kernels_;
  const DenseKernels<T>& dense_kernels_;
  std::vector<std::unique_ptr<PreparedTask<T>>>& prepared_;
  const int terms_;
  const WorkSplit split_;
  std::vector<int64_t> cache_chunks_;  // per pass
  std::vector<int64_t> lists_of_;      // per pass
  std::vector<int64_t> list_passes_;   // per lists: the pass that they are built for
  std::vector<TileBlocks> blocks_;
  double outer_pays_from_ = 0;  // this fraction of active kernels
};

}  // namespace

template <class T>
void run_product(const ConvScheme<T>& scheme, const ProductOperands<T>& operands) {
  Product<T>(scheme, operands).run();
}

template void run_product(const ConvScheme<float>&, const ProductOperands<float>&);
template void run_product(const ConvScheme<double>&, const ProductOperands<double>&);

}  // namespace metasparse::cpu
