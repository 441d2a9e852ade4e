// The exact softmax head on the CPU: the products that see the features' D numbers
// (kernels/row_products.cpp), then one small float64 problem per task (kernels/softmax_head.cpp).
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <type_traits>

#include "../checks/common.h"
#include "../checks/softmax_head.h"
#include "kernels/row_products.h"
#include "kernels/softmax_head.h"
#include "runtime/isa.h"
#include "runtime/parallel.h"

namespace metasparse::cpu {
namespace {

using at::Tensor;

const HeadKernels& kernels() { return METASPARSE_COPY_FOR(active_isa(), softmax_head); }

const RowProductsTable& row_products() { return METASPARSE_COPY_FOR(active_isa(), row_products); }

template <class F>
const RowProducts<F>& row_products_for() {
  if constexpr (std::is_same_v<F, float>)
    return row_products().f32;
  else
    return row_products().f64;
}

int64_t padded(int64_t samples) { return (samples + kHeadLanes - 1) / kHeadLanes * kHeadLanes; }

// (T, rows, stride) in float64, zero beyond the N samples of each row.
Tensor padded_rows(const Tensor& features, int64_t rows) {
  const auto tasks = features.size(0), samples = features.size(1), stride = padded(samples);
  auto out = at::empty({tasks, rows, stride}, features.options().dtype(at::kDouble));
  if (stride > samples) out.narrow(2, samples, stride - samples).zero_();
  return out;
}

// X X' for each task, (T, N, stride) in float64.
Tensor gram_of(const Tensor& features) {
  const auto tasks = features.size(0), samples = features.size(1), size = features.size(2);
  auto out = padded_rows(features, samples);
  const auto stride = out.size(2), blocks = (samples + kRowBlock - 1) / kRowBlock;
  AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), "softmax_head", [&] {
    const auto* x = features.const_data_ptr<scalar_t>();
    auto* y = out.mutable_data_ptr<double>();
    parallel_range(0, tasks * blocks, blocks, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) {
        const auto task = index / blocks, row = index % blocks * kRowBlock;
        row_products_for<scalar_t>().gram(x + task * samples * size, row,
                                          std::min(samples, row + kRowBlock), size,
                                          y + task * samples * stride, stride);
      }
    });
  });
  return out;
}

// W X' for each task, (T, C, stride) in float64.
Tensor scores_of(const Tensor& weight, const Tensor& features) {
  const auto tasks = features.size(0), samples = features.size(1), size = features.size(2);
  const auto classes = weight.size(1);
  auto out = padded_rows(features, classes);
  const auto stride = out.size(2);
  const auto rows = weight.contiguous();
  AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), "softmax_head", [&] {
    const auto* x = features.const_data_ptr<scalar_t>();
    const auto* w = rows.const_data_ptr<scalar_t>();
    auto* y = out.mutable_data_ptr<double>();
    parallel_range(0, tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        row_products_for<scalar_t>().all(w + t * classes * size, 0, classes, x + t * samples * size,
                                         samples, size, y + t * classes * stride, stride);
      }
    });
  });
  return out;
}

// What combined() makes: the sums (T, C, D) and, for each task, the scalar product asked for.
struct Combined {
  Tensor sums, products;
};

// base + scale * coefficients X for each task, in float64 and rounded once: where samples repeat,
// large coefficients cancel. The product is that of the unrounded sums with from - to.
Combined combined(const Tensor& base, double scale, const Tensor& coefficients,
                  const Tensor& features, const Tensor& from = {}, const Tensor& to = {}) {
  constexpr int64_t kColumns = 512;  // of a part that one thread computes
  const auto tasks = features.size(0), samples = features.size(1), size = features.size(2);
  const auto classes = base.size(1), parts = (size + kColumns - 1) / kColumns;
  const auto start = base.contiguous();
  const auto minuend = from.defined() ? from.contiguous() : Tensor();
  const auto subtrahend = to.defined() ? to.contiguous() : Tensor();
  auto sums = at::empty_like(start);
  auto products = at::empty({tasks, parts}, coefficients.options());
  auto* const product = products.mutable_data_ptr<double>();
  AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), "softmax_head", [&] {
    const auto of_task = [&](const Tensor& t, int64_t task) {
      return t.defined() ? t.const_data_ptr<scalar_t>() + task * classes * size : nullptr;
    };
    parallel_range(0, tasks * parts, parts, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) {
        const auto task = index / parts, column = index % parts * kColumns;
        const auto stride = coefficients.size(2);
        const RowSum<scalar_t> sum = {
            coefficients.const_data_ptr<double>() + task * classes * stride,
            stride,
            classes,
            features.const_data_ptr<scalar_t>() + task * samples * size,
            samples,
            size,
            scale,
            of_task(start, task),
            sums.mutable_data_ptr<scalar_t>() + task * classes * size};
        product[index] =
            row_products_for<scalar_t>().combine(sum, column, std::min(size, column + kColumns),
                                                 of_task(minuend, task), of_task(subtrahend, task));
      }
    });
  });
  return {sums, products.sum(1)};
}

// The dual problems of T tasks, as the kernels read them.
struct Problems {
  Problems(const Tensor& features, const Tensor& labels, int64_t classes, const Tensor& lam)
      : gram(gram_of(features)),
        labels(labels.contiguous()),
        lam(lam.to(at::kDouble).contiguous()),
        classes(classes) {}

  HeadTask task(int64_t t) const {
    const auto samples = gram.size(1), stride = gram.size(2);
    return {samples,
            stride,
            classes,
            lam.const_data_ptr<double>()[t],
            gram.const_data_ptr<double>() + t * samples * stride,
            labels.const_data_ptr<int64_t>() + t * samples};
  }

  // Calls f(t, task, scratch) for every task, in parallel.
  template <class Function>
  void for_each(const Function& f) const {
    const auto vector = classes * gram.size(2);
    parallel_range(0, gram.size(0), 1, [&](int64_t begin, int64_t end) {
      const std::unique_ptr<double[]> scratch(new double[kernels().scratch_vectors * vector]);
      for (int64_t t = begin; t < end; ++t) f(t, task(t), scratch.get());
    });
  }

  Tensor gram, labels, lam;
  int64_t classes;
};

void check_labels(const char* op, const Tensor& labels, int64_t classes) {
  if (labels.numel() == 0) return;
  const auto [low, high] = at::aminmax(labels);
  const auto least = low.item<int64_t>(), most = high.item<int64_t>();
  TORCH_CHECK_VALUE(least >= 0 && most < classes, op, ": expected labels in [0, ", classes,
                    "), got ", least < 0 ? least : most);
}

void check_lambda(const char* op, const Tensor& lam) {
  TORCH_CHECK_VALUE(at::gt(lam, 0).all().item<bool>(), op, ": expected lam > 0, got ",
                    lam.min().item<double>());
}

std::tuple<Tensor, Tensor, Tensor, Tensor> softmax_head(const Tensor& features,
                                                        const Tensor& labels, const Tensor& center,
                                                        const Tensor& lam, double tolerance,
                                                        int64_t max_iterations) {
  constexpr const char* op = "softmax_head";
  check_softmax_head(op, features, labels, center, lam);
  check_labels(op, labels, center.size(1));
  check_lambda(op, lam);
  const auto tasks = features.size(0);
  const auto x = features.contiguous();
  const Problems problems(x, labels, center.size(1), lam);
  const auto scores = scores_of(center, x);
  const auto dual = at::empty_like(scores);
  auto iterations = at::empty({tasks}, labels.options());
  auto residual = at::empty({tasks}, scores.options());
  auto status = at::empty({tasks}, labels.options());

  const auto size = scores.size(1) * scores.size(2);
  auto* z = scores.mutable_data_ptr<double>();
  auto* a = dual.mutable_data_ptr<double>();
  auto* steps = iterations.mutable_data_ptr<int64_t>();
  auto* norms = residual.mutable_data_ptr<double>();
  auto* states = status.mutable_data_ptr<int64_t>();
  problems.for_each([&](int64_t t, const HeadTask& task, double* scratch) {
    const auto report =
        kernels().solve(task, tolerance, max_iterations, z + t * size, a + t * size, scratch);
    steps[t] = report.iterations;
    norms[t] = report.residual;
    states[t] = report.status;
  });
  return {combined(center, 1, dual, x).sums, iterations, residual, status};
}

std::tuple<Tensor, Tensor, Tensor> softmax_head_grad(const Tensor& grad, const Tensor& weight,
                                                     const Tensor& features, const Tensor& labels,
                                                     const Tensor& center, const Tensor& lam) {
  constexpr const char* op = "softmax_head_grad";
  check_softmax_head_grad(grad, weight, features, labels, center, lam);
  check_labels(op, labels, center.size(1));
  const auto samples = features.size(1);
  const auto dtype = features.scalar_type();
  const auto x = features.contiguous();
  const Problems problems(x, labels, center.size(1), lam);
  const auto scores = scores_of(weight, x);
  const auto direction = scores_of(grad, x);
  const auto solution = at::empty_like(direction);

  // In float32 the products above are the limit, and a tighter solve would be wasted.
  const double tolerance = dtype == at::kFloat ? 1e-9 : 1e-14;
  const auto size = direction.size(1) * direction.size(2);
  auto* z = scores.mutable_data_ptr<double>();
  auto* u = direction.mutable_data_ptr<double>();
  auto* e = solution.mutable_data_ptr<double>();
  problems.for_each([&](int64_t t, const HeadTask& task, double* scratch) {
    kernels().implicit(task, tolerance, z + t * size, u + t * size, e + t * size, scratch);
  });

  const auto narrowed = [&](const Tensor& t) { return t.narrow(2, 0, samples).to(dtype); };
  const auto [center_grad, along] = combined(grad, -1, solution, x, center, weight);
  auto features_grad = at::bmm(narrowed(scores).mT(), center_grad);
  features_grad.baddbmm_(narrowed(direction).mT(), weight);
  return {features_grad, center_grad, (along / problems.lam).to(lam.scalar_type())};
}

}  // namespace
}  // namespace metasparse::cpu

TORCH_LIBRARY_IMPL(metasparse, CPU, m) {
  m.impl("softmax_head", metasparse::cpu::softmax_head);
  m.impl("softmax_head_grad", metasparse::cpu::softmax_head_grad);
}
