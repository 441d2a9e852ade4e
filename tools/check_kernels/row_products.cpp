// Scalar products between rows, and sums of rows, against loops in double.
#include "../../csrc/cpu/kernels/row_products.h"

#include "check.h"

namespace metasparse::check {

using namespace cpu;

namespace {

const RowProducts<float>& kernels(float) {
  return METASPARSE_COPY_FOR(active_isa(), row_products).f32;
}
const RowProducts<double>& kernels(double) {
  return METASPARSE_COPY_FOR(active_isa(), row_products).f64;
}

// (rows, stride), with the mark that a kernel must not touch past each row's end.
constexpr double kMark = 12345;

template <class T>
std::vector<double> naive(const Array<T>& a, const Array<T>& b, int64_t size, int64_t stride) {
  const int64_t rows = a.size() / size, columns = b.size() / size;
  std::vector<double> out(static_cast<size_t>(rows * stride), kMark);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < size; ++k) sum += double(a[i * size + k]) * b[j * size + k];
      out[i * stride + j] = sum;
    }
  }
  return out;
}

bool equal_marks(const Array<double>& got, const std::vector<double>& expected) {
  for (int64_t e = 0; e < got.size(); ++e) {
    if (expected[e] == kMark && got[e] != kMark) return false;
  }
  return true;
}

template <class T>
bool run_case(int64_t rows, int64_t columns, int64_t size, int64_t gap, bool at_end,
              unsigned seed) {
  const auto& kernel = kernels(T());
  const std::string name =
      text("row_products, %d x %d of %d, %s", int(rows), int(columns), int(size), kTypeName<T>);
  Random random(seed);
  const Array<T> a(rows * size, at_end), b(columns * size, at_end);
  for (const Array<T>* operand : {&a, &b}) operand->fill([&] { return random.normal(); });
  const double bound = sizeof(T) == 8 ? 1e-13 : 1e-5, scale = std::sqrt(double(size));

  const Array<double> products(rows * (columns + gap), at_end);
  products.fill([] { return kMark; });
  for (int64_t begin = 0; begin < rows; begin += kRowBlock) {
    kernel.all(a.data(), begin, std::min(rows, begin + kRowBlock), b.data(), columns, size,
               products.data(), columns + gap);
  }
  const auto expected = naive(a, b, size, columns + gap);
  bool good = equal_marks(products, expected);
  for (int64_t e = 0; e < products.size(); ++e) products[e] -= expected[e];
  good &= close("all", name, products, std::vector<double>(expected.size()), bound, scale);

  const Array<double> gram(rows * (rows + gap), at_end);
  gram.fill([] { return kMark; });
  for (int64_t begin = 0; begin < rows; begin += kRowBlock) {
    kernel.gram(a.data(), begin, std::min(rows, begin + kRowBlock), size, gram.data(), rows + gap);
  }
  const auto squares = naive(a, a, size, rows + gap);
  good &= equal_marks(gram, squares);
  for (int64_t e = 0; e < gram.size(); ++e) gram[e] -= squares[e];
  good &= close("gram", name, gram, std::vector<double>(squares.size()), bound, 2.0 * size);
  return good;
}

// A sum in two parts of its columns, as threads share it.
template <class T>
bool run_combine(int64_t rows, int64_t b_rows, int64_t size, int64_t gap, bool at_end,
                 unsigned seed) {
  const std::string name =
      text("combine, %d of %d x %d, %s", int(rows), int(b_rows), int(size), kTypeName<T>);
  Random random(seed);
  const int64_t stride = b_rows + gap;
  const Array<double> coefficients(rows * stride, at_end), product(1, at_end);
  const Array<T> b(b_rows * size, at_end), base(rows * size, at_end), from(rows * size, at_end),
      to(rows * size, at_end), out(rows * size, at_end);
  coefficients.fill([&] { return random.normal(); });
  for (const Array<T>* operand : {&b, &base, &from, &to}) {
    operand->fill([&] { return random.normal(); });
  }
  const RowSum<T> sum = {coefficients.data(), stride,    rows, b.data(), b_rows, size, -0.5,
                         base.data(),         out.data()};
  const int64_t middle = random.whole(0, size);
  const auto combine = kernels(T()).combine;
  product[0] = combine(sum, 0, middle, from.data(), to.data()) +
               combine(sum, middle, size, from.data(), to.data());
  std::vector<double> expected, expected_product(1);
  for (int64_t e = 0; e < out.size(); ++e) {
    double value = 0;
    for (int64_t n = 0; n < b_rows; ++n) {
      value += coefficients[e / size * stride + n] * b[n * size + e % size];
    }
    expected.push_back(base[e] - 0.5 * value);
    expected_product[0] += expected.back() * (double(from[e]) - to[e]);
  }
  const double bound = sizeof(T) == 8 ? 1e-13 : 1e-6, scale = std::sqrt(double(b_rows)) + 4;
  bool good = close("combine", name, out, expected, bound, scale);
  good &= close("combine's product", name, product, expected_product, 1e-12,
                scale * std::sqrt(double(rows * size)) + 4);
  good &= combine(sum, 0, size, nullptr, nullptr) == 0;
  good &= close("combine alone", name, out, expected, bound, scale);
  return good;
}

}  // namespace

static Count run(int draws, unsigned seed) {
  Random random(seed);
  Count count;
  for (int draw = 0; draw < draws; ++draw) {
    const int64_t rows = random.whole(1, 30), columns = random.whole(1, 30);
    const int64_t size = random.one_in(4) ? random.whole(1, 700) : random.whole(1, 40);
    const int64_t gap = random.whole(0, 7);
    for (const bool at_end : {false, true}) {
      count.add(run_case<float>(rows, columns, size, gap, at_end, seed));
      count.add(run_case<double>(rows, columns, size, gap, at_end, seed));
      count.add(run_combine<float>(rows, columns, size, gap, at_end, seed));
      count.add(run_combine<double>(rows, columns, size, gap, at_end, seed));
    }
  }
  return count;
}

static const Op op("row_products", run);

}  // namespace metasparse::check
