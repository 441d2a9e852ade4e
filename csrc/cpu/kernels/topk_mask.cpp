#include "topk_mask.h"

#include <cstring>
#include <limits>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace metasparse::cpu::METASPARSE_ISA {
namespace {

constexpr int64_t kBlock = 512;        // entries counted at a time: they stay in the first cache
constexpr int kDigitBits = 11;         // of one histogram: 16 KB of counters
constexpr int64_t kMinSampled = 8192;  // shorter rows are selected from whole
constexpr int64_t kMaxSample = 16384;

template <class F>
constexpr F kInfinity = std::numeric_limits<F>::infinity();

template <class F>
Key<F> key_of(F x) {
  constexpr int kTop = 8 * sizeof(F) - 1;
  constexpr Key<F> kSign = Key<F>(1) << kTop;
  x += F(0);  // -0.0 becomes +0.0
  Key<F> bits;
  std::memcpy(&bits, &x, sizeof x);
  return bits & kSign ? ~bits : bits | kSign;
}

template <class F>
F value_of(Key<F> key) {
  constexpr Key<F> kSign = Key<F>(1) << (8 * sizeof(F) - 1);
  const Key<F> bits = key & kSign ? key ^ kSign : ~key;
  F x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Key by key, without a branch.
template <class F>
Key<F>* collect_scalar(const F* x, int64_t n, Bracket<F> bracket, Key<F>* inside) {
  for (int64_t i = 0; i < n; ++i) {
    *inside = key_of(x[i]);
    inside += (x[i] > bracket.low) & (x[i] < bracket.high);
  }
  return inside;
}

// The keys of few entries: a word of bits says which of a group are inside.
template <class F>
Key<F>* collect(const F* x, int64_t n, Bracket<F> bracket, Key<F>* inside) {
  constexpr int kGroup = 32;
  Key<F> bit_of[kGroup];
  for (int j = 0; j < kGroup; ++j) bit_of[j] = Key<F>(1) << j;
  int64_t i = 0;
  for (; i + kGroup <= n; i += kGroup) {
    Key<F> bits = 0;
    for (int j = 0; j < kGroup; ++j) {
      const Key<F> in = (x[i + j] > bracket.low) & (x[i + j] < bracket.high);
      bits |= bit_of[j] & -in;
    }
    for (; bits != 0; bits &= bits - 1) *inside++ = key_of(x[i + __builtin_ctzll(bits)]);
  }
  return collect_scalar(x + i, n - i, bracket, inside);
}

// In blocks that stay in the first cache: count them, then look again at those with entries inside.
template <class F>
Split split_blocks(const F* x, int64_t n, Bracket<F> bracket, Key<F>* inside) {
  // counters as wide as the entries, so that the comparisons' masks are what is added
  using Counter = Key<F>;
  Split total;
  Key<F>* const first = inside;
  for (int64_t start = 0; start < n; start += kBlock) {
    const F* block = x + start;
    const int64_t size = n - start < kBlock ? n - start : kBlock;
    Counter above = 0, from_high = 0, above_low = 0, from_low = 0, number = 0;
    for (int64_t i = 0; i < size; ++i) {
      above += block[i] > bracket.high;
      from_high += block[i] >= bracket.high;
      above_low += block[i] > bracket.low;
      from_low += block[i] >= bracket.low;
      number += block[i] == block[i];
    }
    total.above += above;
    total.at_high += from_high - above;
    if (bracket.low < bracket.high) total.at_low += from_low - above_low;
    total.nan |= static_cast<int64_t>(number) != size;
    if (above_low > from_high) inside = collect(block, size, bracket, inside);
  }
  total.inside = inside - first;
  return total;
}

#ifdef __AVX512F__
// One register of entries. Comparisons with NaN are false, but for is_nan.
template <class F>
struct Lanes;

template <>
struct Lanes<float> {
  static constexpr int kCount = 16;
  __m512 v;

  static Lanes load(const float* x) { return {_mm512_loadu_ps(x)}; }
  static Lanes broadcast(float x) { return {_mm512_set1_ps(x)}; }
  static __m512i count_in(__m512i counters, unsigned set) {
    return _mm512_mask_add_epi32(counters, set, counters, _mm512_set1_epi32(1));
  }
  static int64_t total(__m512i counters) { return _mm512_reduce_add_epi32(counters); }
  unsigned above(Lanes other) const { return _mm512_cmp_ps_mask(v, other.v, _CMP_GT_OQ); }
  unsigned from(Lanes other) const { return _mm512_cmp_ps_mask(v, other.v, _CMP_GE_OQ); }
  unsigned is_nan() const { return _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q); }
  // Writes a whole register, of which the keys of the set come first.
  void store_keys(unsigned set, uint32_t* keys) const {
    const __m512i bits = _mm512_castps_si512(_mm512_add_ps(v, _mm512_setzero_ps()));
    const __m512i flip = _mm512_or_si512(_mm512_srai_epi32(bits, 31), _mm512_set1_epi32(INT32_MIN));
    _mm512_storeu_si512(keys, _mm512_maskz_compress_epi32(set, _mm512_xor_si512(bits, flip)));
  }
};

template <>
struct Lanes<double> {
  static constexpr int kCount = 8;
  __m512d v;

  static Lanes load(const double* x) { return {_mm512_loadu_pd(x)}; }
  static Lanes broadcast(double x) { return {_mm512_set1_pd(x)}; }
  static __m512i count_in(__m512i counters, unsigned set) {
    return _mm512_mask_add_epi64(counters, set, counters, _mm512_set1_epi64(1));
  }
  static int64_t total(__m512i counters) { return _mm512_reduce_add_epi64(counters); }
  unsigned above(Lanes other) const { return _mm512_cmp_pd_mask(v, other.v, _CMP_GT_OQ); }
  unsigned from(Lanes other) const { return _mm512_cmp_pd_mask(v, other.v, _CMP_GE_OQ); }
  unsigned is_nan() const { return _mm512_cmp_pd_mask(v, v, _CMP_UNORD_Q); }
  void store_keys(unsigned set, uint64_t* keys) const {
    const __m512i bits = _mm512_castpd_si512(_mm512_add_pd(v, _mm512_setzero_pd()));
    const __m512i flip = _mm512_or_si512(_mm512_srai_epi64(bits, 63), _mm512_set1_epi64(INT64_MIN));
    _mm512_storeu_si512(keys, _mm512_maskz_compress_epi64(set, _mm512_xor_si512(bits, flip)));
  }
};

// In one go, without a branch: registers can be compressed to the lanes that are inside.
template <class F>
Split split(const F* x, int64_t n, Bracket<F> bracket, Key<F>* inside) {
  using Register = Lanes<F>;
  const auto low = Register::broadcast(bracket.low), high = Register::broadcast(bracket.high);
  __m512i above = _mm512_setzero_si512(), from_high = above, above_low = above, from_low = above;
  unsigned nan = 0;
  Key<F>* const first = inside;
  int64_t i = 0;
  for (; i + Register::kCount <= n; i += Register::kCount) {
    const auto entries = Register::load(x + i);
    const unsigned in_from_high = entries.from(high), in_above_low = entries.above(low);
    above = Register::count_in(above, entries.above(high));
    from_high = Register::count_in(from_high, in_from_high);
    above_low = Register::count_in(above_low, in_above_low);
    from_low = Register::count_in(from_low, entries.from(low));
    nan |= entries.is_nan();
    // The register ends within the room for n keys: never more were kept than entries read.
    const unsigned set = in_above_low & ~in_from_high;
    entries.store_keys(set, inside);
    inside += __builtin_popcount(set);
  }
  Split total = split_blocks(x + i, n - i, bracket, inside);
  total.inside += inside - first;
  total.above += Register::total(above);
  total.at_high += Register::total(from_high) - Register::total(above);
  if (bracket.low < bracket.high) {
    total.at_low += Register::total(from_low) - Register::total(above_low);
  }
  total.nan |= nan != 0;
  return total;
}
#else
template <class F>
Split split(const F* x, int64_t n, Bracket<F> bracket, Key<F>* inside) {
  return split_blocks(x, n, bracket, inside);
}
#endif

// Most significant digit first: each histogram starts at the highest bit in which keys differ, and
// the keys of the digit that holds the k-th largest are what the next one looks at.
template <class F>
Ranked<F> select(Key<F>* keys, int64_t n, int64_t k) {
  int64_t greater = 0;
  while (true) {
    Key<F> least = keys[0], greatest = keys[0];
    for (int64_t i = 1; i < n; ++i) {
      least = keys[i] < least ? keys[i] : least;
      greatest = keys[i] > greatest ? keys[i] : greatest;
    }
    if (least == greatest) return {value_of<F>(least), greater, n};
    const int width = 64 - __builtin_clzll(static_cast<uint64_t>(least ^ greatest));
    const int shift = width > kDigitBits ? width - kDigitBits : 0;
    constexpr Key<F> kMask = (Key<F>(1) << kDigitBits) - 1;
    int64_t histogram[1 << kDigitBits] = {};
    for (int64_t i = 0; i < n; ++i) ++histogram[(keys[i] >> shift) & kMask];
    Key<F> digit = (greatest >> shift) & kMask;
    int64_t before = 0;
    while (before + histogram[digit] < k) before += histogram[digit--];
    int64_t kept = 0;
    for (int64_t i = 0; i < n; ++i) {
      const Key<F> key = keys[i];
      keys[kept] = key;
      kept += ((key >> shift) & kMask) == digit;
    }
    n = kept;
    k -= before;
    greater += before;
  }
}

// One entry at a scattered place of each of `count` equal pieces, so that no period of the data is
// met in step.
template <class F>
void take_sample(const F* x, int64_t n, int64_t count, Key<F>* sample) {
  const int64_t piece = n / count;
  uint64_t state = 0x9e3779b97f4a7c15;
  for (int64_t i = 0; i < count; ++i) {
    state = state * 6364136223846793005 + 1442695040888963407;
    const uint64_t place = ((state >> 32) * static_cast<uint64_t>(piece)) >> 32;
    sample[i] = key_of(x[i * piece + static_cast<int64_t>(place)]);
  }
}

int64_t square_root(int64_t n) {
  int64_t root = 0;
  while ((root + 1) * (root + 1) <= n) ++root;
  return root;
}

template <class F>
Bracket<F> guess(const F* x, int64_t n, int64_t k, Key<F>* scratch) {
  if (n < kMinSampled) return {-kInfinity<F>, kInfinity<F>};
  const int64_t count = n / 64 < kMaxSample ? n / 64 : kMaxSample;
  take_sample(x, n, count, scratch);
  std::memcpy(scratch + count, scratch, count * sizeof *scratch);
  // The rank of the k-th largest among the sample has a standard deviation of at most sqrt(count)
  // / 2.
  const auto rank = static_cast<int64_t>(static_cast<double>(k) / n * count);
  const int64_t margin = 2 * square_root(count);
  Bracket<F> bracket = {-kInfinity<F>, kInfinity<F>};
  if (rank + margin <= count) bracket.low = select<F>(scratch, count, rank + margin).value;
  if (rank > margin) bracket.high = select<F>(scratch + count, count, rank - margin).value;
  return bracket;
}

template <class F>
int64_t find_cut(const F* x, int64_t n, F value, int64_t ties) {
  using Counter = Key<F>;
  int64_t start = 0;
  for (; start + kBlock <= n; start += kBlock) {
    Counter equal = 0;
    for (int64_t i = 0; i < kBlock; ++i) equal += x[start + i] == value;
    if (static_cast<int64_t>(equal) >= ties) break;
    ties -= equal;
  }
  for (; ties > 0; ++start) ties -= x[start] == value;
  return start;
}

template <class F>
void write(const F* x, int64_t n, F value, bool ties_in, F* mask) {
  if (ties_in) {
    for (int64_t i = 0; i < n; ++i) mask[i] = x[i] >= value ? F(1) : F(0);
  } else {
    for (int64_t i = 0; i < n; ++i) mask[i] = x[i] > value ? F(1) : F(0);
  }
}

}  // namespace

const TopkMaskTable topk_mask = {
    {guess<float>, split<float>, select<float>, find_cut<float>, write<float>},
    {guess<double>, split<double>, select<double>, find_cut<double>, write<double>},
};

}  // namespace metasparse::cpu::METASPARSE_ISA
