// topk_mask on the CPU: rows go to threads, and long rows are worked on by all of them in chunks.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "../checks/mask.h"
#include "kernels/topk_mask.h"
#include "runtime/isa.h"
#include "runtime/memory.h"
#include "runtime/parallel.h"
#include "runtime/scratch.h"

namespace metasparse::cpu {
namespace {

using at::Tensor;

constexpr int64_t kChunk = 1 << 16;    // entries of a row that one thread takes at a time
constexpr int64_t kLongRow = 1 << 18;  // from here on a row is shared by the threads

// Calls f(chunk, begin, end) for every chunk of a row, in parallel unless already inside a parallel
// region.
template <class Function>
void for_chunks(int64_t n, const Function& f) {
  parallel_range(0, (n + kChunk - 1) / kChunk, 1, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) f(c, c * kChunk, std::min(n, (c + 1) * kChunk));
  });
}

const TopkMaskTable& table() { return METASPARSE_COPY_FOR(active_isa(), topk_mask); }

const TopkMaskKernels<float>& kernels_for(float) { return table().f32; }
const TopkMaskKernels<double>& kernels_for(double) { return table().f64; }

// One row of n scores.
template <class F>
class Row {
 public:
  Row(const TopkMaskKernels<F>& kernels, const F* x, int64_t n, Key<F>* scratch)
      : kernels_(kernels), x_(x), n_(n), scratch_(scratch), pieces_((n + kChunk - 1) / kChunk) {}

  // Writes ones for the k largest; false if the row holds NaN.
  bool write_topk(int64_t k, F* mask) {
    constexpr F kInfinity = std::numeric_limits<F>::infinity();
    auto bracket = k > 0 ? kernels_.guess(x_, n_, k, scratch_) : Bracket<F>{kInfinity, kInfinity};
    auto split = split_about(bracket);
    // The guess may miss; the half line on the side where the k-th largest must be cannot.
    const auto from_low = split.above + split.at_high + split.inside + split.at_low;
    if (k > 0 && k <= split.above) {
      split = split_about(bracket = {bracket.high, kInfinity});
    } else if (k > from_low) {
      split = split_about(bracket = {-kInfinity, bracket.low});
    }
    if (split.nan) return false;
    write(kth_largest(k, bracket, split), k, mask);
    return true;
  }

 private:
  // Counts over the row; the keys inside the bracket come to the front of the scratch.
  Split split_about(Bracket<F> bracket) {
    for_chunks(n_, [&](int64_t chunk, int64_t begin, int64_t end) {
      pieces_[chunk] = kernels_.split(x_ + begin, end - begin, bracket, scratch_ + begin);
    });
    Split total;
    for (size_t chunk = 0; chunk < pieces_.size(); ++chunk) {
      const auto& piece = pieces_[chunk];
      std::memmove(scratch_ + total.inside, scratch_ + chunk * kChunk,
                   piece.inside * sizeof(Key<F>));
      total.above += piece.above;
      total.at_high += piece.at_high;
      total.inside += piece.inside;
      total.at_low += piece.at_low;
      total.nan |= piece.nan;
    }
    return total;
  }

  Ranked<F> kth_largest(int64_t k, Bracket<F> bracket, const Split& split) const {
    const auto from_high = split.above + split.at_high;
    if (k <= from_high) return {bracket.high, split.above, split.at_high};
    if (k <= from_high + split.inside) {
      auto ranked = kernels_.select(scratch_, split.inside, k - from_high);
      ranked.greater += from_high;
      return ranked;
    }
    return {bracket.low, from_high + split.inside, split.at_low};
  }

  void write(Ranked<F> kth, int64_t k, F* mask) const {
    const auto ties = k - kth.greater;
    auto cut = n_;
    if (ties < kth.equal) cut = ties > 0 ? kernels_.find_cut(x_, n_, kth.value, ties) : 0;
    for_chunks(n_, [&](int64_t, int64_t begin, int64_t end) {
      const auto middle = std::clamp(cut, begin, end);
      kernels_.write(x_ + begin, middle - begin, kth.value, /*ties_in=*/true, mask + begin);
      kernels_.write(x_ + middle, end - middle, kth.value, /*ties_in=*/false, mask + middle);
    });
  }

  const TopkMaskKernels<F>& kernels_;
  const F* x_;
  int64_t n_;
  Key<F>* scratch_;
  std::vector<Split> pieces_;
};

template <class F>
void write_rows(const Tensor& scores, const Tensor& k, Tensor& mask) {
  const auto rows = scores.size(0), n = scores.size(1);
  const auto& kernels = kernels_for(F());
  const auto* counts = k.const_data_ptr<int64_t>();
  const auto grain =
      n >= kLongRow ? rows : std::max<int64_t>(1, kLongRow / 8 / std::max<int64_t>(1, n));
  parallel_range(0, rows, grain, [&](int64_t first, int64_t last) {
    static thread_local ScratchBuffer buffer;
    auto* const scratch = buffer.get<Key<F>>(n);
    for (int64_t row = first; row < last; ++row) {
      const auto* x = scores.const_data_ptr<F>() + row * scores.stride(0);
      auto* out = mask.mutable_data_ptr<F>() + row * n;
      TORCH_CHECK_VALUE(Row<F>(kernels, x, n, scratch).write_topk(counts[row], out),
                        "topk_mask: expected scores that can be ranked, got NaN in row ", row);
    }
  });
}

Tensor topk_mask(const Tensor& scores, const Tensor& k) {
  check_topk_mask(scores, k);
  const auto n = scores.size(1);
  const auto counts = k.contiguous();
  for (int64_t row = 0; row < counts.size(0); ++row) {
    const auto count = counts.const_data_ptr<int64_t>()[row];
    TORCH_CHECK_VALUE(count >= 0 && count <= n, "topk_mask: expected k from 0 to n = ", n, ", got ",
                      count, " for row ", row);
  }
  auto mask = at::empty(scores.sizes(), scores.options());
  if (mask.numel() == 0) return mask;
  advise_huge_pages(mask.mutable_data_ptr(), mask.nbytes());
  const auto rows = scores.stride(1) == 1 ? scores : scores.contiguous();
  if (scores.scalar_type() == at::kFloat) {
    write_rows<float>(rows, counts, mask);
  } else {
    write_rows<double>(rows, counts, mask);
  }
  return mask;
}

}  // namespace
}  // namespace metasparse::cpu

TORCH_LIBRARY_IMPL(metasparse, CPU, m) { m.impl("topk_mask", metasparse::cpu::topk_mask); }
