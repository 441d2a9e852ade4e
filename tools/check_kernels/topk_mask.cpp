// The kernels of topk_mask, each against a plain count or sort.
#include "../../csrc/cpu/kernels/topk_mask.h"

#include <cstring>

#include "check.h"

namespace metasparse::check {

using namespace cpu;

namespace {

const TopkMaskKernels<float>& kernels(float) {
  return METASPARSE_COPY_FOR(active_isa(), topk_mask).f32;
}
const TopkMaskKernels<double>& kernels(double) {
  return METASPARSE_COPY_FOR(active_isa(), topk_mask).f64;
}

// The order of numbers as that of unsigned integers, as topk_mask.h describes it.
template <class T>
Key<T> key_of(T value) {
  value = value == T(0) ? std::abs(value) : value;
  Key<T> bits;
  std::memcpy(&bits, &value, sizeof value);
  const Key<T> sign = Key<T>(1) << (8 * sizeof(T) - 1);
  return std::signbit(value) ? ~bits : bits | sign;
}

enum class Values { normal, tied, special };

template <class T>
T draw(Random& random, Values kind) {
  if (kind == Values::normal) return static_cast<T>(random.normal());
  if (kind == Values::special && random.one_in(6)) {
    constexpr T kSpecial[] = {std::numeric_limits<T>::infinity(),
                              -std::numeric_limits<T>::infinity(),
                              std::numeric_limits<T>::denorm_min(), -std::numeric_limits<T>::max()};
    return kSpecial[random.whole(0, 3)];
  }
  const T value = static_cast<T>(random.whole(0, 3));  // with zeros of both signs
  return random.one_in(2) ? value : -value;
}

template <class T>
bool check_split(const Array<T>& x, Bracket<T> bracket, bool at_end, const std::string& name) {
  const int64_t n = x.size();
  const Array<Key<T>> inside(n, at_end);
  Split expected;
  std::vector<Key<T>> keys;
  for (int64_t i = 0; i < n; ++i) {
    expected.above += x[i] > bracket.high;
    expected.at_high += x[i] == bracket.high;
    expected.at_low += bracket.low < bracket.high && x[i] == bracket.low;
    expected.nan |= x[i] != x[i];
    if (x[i] > bracket.low && x[i] < bracket.high) keys.push_back(key_of(x[i]));
  }
  const Split got = kernels(T()).split(x.data(), n, bracket, inside.data());
  bool good = got.nan == expected.nan && got.inside == static_cast<int64_t>(keys.size()) &&
              got.above == expected.above && got.at_high == expected.at_high &&
              got.at_low == expected.at_low;
  if (good) {
    std::vector<Key<T>> found(inside.data(), inside.data() + got.inside);
    std::sort(found.begin(), found.end());
    std::sort(keys.begin(), keys.end());
    good = found == keys;
  }
  return holds(good, "split", name);
}

template <class T>
bool check_select(const Array<T>& x, int64_t k, bool at_end, const std::string& name) {
  const int64_t n = x.size();
  const Array<Key<T>> keys(n, at_end);
  for (int64_t i = 0; i < n; ++i) keys[i] = key_of(x[i]);
  const Ranked<T> got = kernels(T()).select(keys.data(), n, k);
  std::vector<T> sorted(x.data(), x.data() + n);
  std::sort(sorted.begin(), sorted.end(), std::greater<T>());
  const T value = sorted[k - 1];
  const auto greater = std::count_if(sorted.begin(), sorted.end(), [&](T v) { return v > value; });
  const auto equal = std::count(sorted.begin(), sorted.end(), value);
  return holds(got.value == value && got.greater == greater && got.equal == equal, "select", name);
}

template <class T>
bool check_write(const Array<T>& x, T value, bool ties_in, bool at_end, const std::string& name) {
  const Array<T> mask(x.size(), at_end);
  mask.poison();
  kernels(T()).write(x.data(), x.size(), value, ties_in, mask.data());
  bool good = true;
  for (int64_t i = 0; i < x.size(); ++i) {
    good &= mask[i] == T(x[i] > value || (ties_in && x[i] == value));
  }
  return holds(good, "write", name);
}

template <class T>
bool check_find_cut(const Array<T>& x, T value, Random& random, const std::string& name) {
  const int64_t equal = std::count(x.data(), x.data() + x.size(), value);
  const int64_t ties = random.whole(1, equal);
  int64_t cut = 0;
  for (int64_t seen = 0; seen < ties; ++cut) seen += x[cut] == value;
  return holds(kernels(T()).find_cut(x.data(), x.size(), value, ties) == cut, "find_cut", name);
}

// A guess is right to four standard deviations of the sample's ranks; eight are never left.
template <class T>
bool check_guess(const Array<T>& x, int64_t k, bool at_end, const std::string& name) {
  const int64_t n = x.size(), margin = static_cast<int64_t>(16 * std::sqrt(double(n)));
  const Array<Key<T>> scratch(n, at_end);
  const Bracket<T> got = kernels(T()).guess(x.data(), n, k, scratch.data());
  std::vector<T> sorted(x.data(), x.data() + n);
  std::sort(sorted.begin(), sorted.end(), std::greater<T>());
  const T above = sorted[std::max<int64_t>(1, k - margin) - 1];
  const T below = sorted[std::min(n, k + margin) - 1];
  return holds(got.low <= above && got.high >= below, "guess", name);
}

template <class T>
bool run_case(int64_t n, Values kind, bool at_end, unsigned seed) {
  Random random(seed);
  const Array<T> x(n, at_end);
  x.fill([&] { return draw<T>(random, kind); });
  const int64_t k = random.whole(1, n);
  const std::string name =
      text("topk_mask, n=%d k=%d values %d, %s", int(n), int(k), int(kind), kTypeName<T>);
  const auto any = [&] { return x[random.whole(0, n - 1)]; };
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  T low = any(), high = any();
  if (low > high) std::swap(low, high);
  bool good = check_select(x, k, at_end, name) && check_guess(x, k, at_end, name);
  for (const Bracket<T> bracket : {Bracket<T>{low, high}, Bracket<T>{-kInfinity, kInfinity},
                                   Bracket<T>{high, high}, Bracket<T>{-kInfinity, low},
                                   Bracket<T>{high, kInfinity}, Bracket<T>{kInfinity, kInfinity}}) {
    good &= check_split(x, bracket, at_end, name);
  }
  for (const bool ties_in : {false, true}) good &= check_write(x, any(), ties_in, at_end, name);
  good &= check_find_cut(x, any(), random, name);
  x[random.whole(0, n - 1)] = std::numeric_limits<T>::quiet_NaN();
  return good & check_split(x, {low, high}, at_end, name);
}

}  // namespace

static Count run(int draws, unsigned seed) {
  std::vector<int64_t> sizes;
  for (int64_t n = 1; n <= 70; ++n) sizes.push_back(n);
  Random random(seed);
  for (int draw = 0; draw < draws; ++draw) {
    sizes.push_back(random.one_in(4) ? random.whole(8000, 60000) : random.whole(1, 2500));
  }
  Count count;
  for (const int64_t n : sizes) {
    for (const Values kind : {Values::normal, Values::tied, Values::special}) {
      for (const bool at_end : {false, true}) {
        const unsigned own = seed + static_cast<unsigned>(count.cases);
        count.add(run_case<float>(n, kind, at_end, own));
        count.add(run_case<double>(n, kind, at_end, own));
      }
    }
  }
  return count;
}

static const Op op("topk_mask", run);

}  // namespace metasparse::check
