// What the checks share: counting, drawing and comparing.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "guarded.h"

namespace metasparse::check {

struct Count {
  int cases = 0, failures = 0;

  void add(bool good) {
    ++cases;
    failures += !good;
  }
};

// An op that check_kernels runs by its name, if the file that has it is linked: its listed cases
// and `draws` drawn ones.
struct Op {
  using Run = Count (*)(int draws, unsigned seed);

  Op(const char* name, Run run);
};

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}

  int64_t whole(int64_t least, int64_t most) {
    return std::uniform_int_distribution<int64_t>(least, most)(engine_);
  }
  bool one_in(int64_t count) { return whole(1, count) == 1; }
  double normal() { return normal_(engine_); }
  double uniform() { return uniform_(engine_); }

 private:
  std::mt19937 engine_;
  std::normal_distribution<double> normal_;
  std::uniform_real_distribution<double> uniform_;
};

template <class T>
constexpr double kBound = sizeof(T) == 8 ? 1e-12 : 3e-5;

template <class T>
constexpr const char* kTypeName = sizeof(T) == 8 ? "double" : "float";

template <class... Values>
std::string text(const char* format, Values... values) {
  char line[300];
  std::snprintf(line, sizeof line, format, values...);
  return line;
}

// Whether got[e] is expected[e] to `bound` times the largest expected value, or `scale` where that
// is more: the size of the terms of a sum that may cancel.
template <class Got>
bool close(const char* what, const std::string& name, const Got& got,
           const std::vector<double>& expected, double bound, double scale = 1e-30) {
  double largest = scale, error = 0;
  for (size_t e = 0; e < expected.size(); ++e) {
    largest = std::max(largest, std::abs(expected[e]));
    const double difference =
        std::abs(static_cast<double>(got[static_cast<int64_t>(e)]) - expected[e]);
    error = difference <= error ? error : difference;  // a NaN stays
  }
  if (error <= largest * bound) return true;
  std::printf("%s %s: error %g of %g\n", name.c_str(), what, error, largest);
  return false;
}

inline bool holds(bool condition, const char* what, const std::string& name) {
  if (!condition) std::printf("%s %s: wrong\n", name.c_str(), what);
  return condition;
}

}  // namespace metasparse::check
