// One conjugate-gradient step for T tasks on the CPU: three passes over the (T, P) buffers instead
// of some twenty operations. Work is cut into chunks of a task, so one task uses all threads too.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "../checks/cg.h"
#include "kernels/cg.h"
#include "runtime/isa.h"
#include "runtime/parallel.h"

namespace metasparse::cpu {
namespace {

using at::Tensor;

constexpr int64_t kChunk = 1 << 14;

// The values of implicit/cg.py's CGStatus.
enum Status : int64_t { kConverged = 0, kRunning = 1, kNotPositive = 2, kNotFinite = 3 };

const CgTable& table() { return METASPARSE_COPY_FOR(active_isa(), cg); }

template <class F>
const CgKernels<F>& kernels() {
  if constexpr (std::is_same_v<F, float>) {
    return table().f32;
  } else {
    return table().f64;
  }
}

// Calls f(task, chunk of all, begin, count) for the chunks of the tasks that take part.
template <class Function>
void for_chunks(int64_t tasks, int64_t size, const std::vector<char>& takes_part,
                const Function& f) {
  const auto chunks = (size + kChunk - 1) / kChunk;
  parallel_range(0, tasks * chunks, 2, [&](int64_t first, int64_t last) {
    for (int64_t index = first; index < last; ++index) {
      const auto task = index / chunks, begin = index % chunks * kChunk;
      if (takes_part[task]) f(task, index, begin, std::min(kChunk, size - begin));
    }
  });
}

template <class F>
void step(const Tensor& x, const Tensor& r, const Tensor& p, const Tensor& q, const Tensor& m,
          const Tensor& rz, const Tensor& rr, const Tensor& limit, const Tensor& status,
          const Tensor& iterations) {
  const auto tasks = x.size(0), size = x.size(1), chunks = (size + kChunk - 1) / kChunk;
  auto* xs = x.mutable_data_ptr<F>();
  auto* rs = r.mutable_data_ptr<F>();
  auto* ps = p.mutable_data_ptr<F>();
  const auto* qs = q.const_data_ptr<F>();
  const auto* ms = m.defined() ? m.const_data_ptr<F>() : nullptr;
  auto* rzs = rz.mutable_data_ptr<double>();
  auto* rrs = rr.mutable_data_ptr<double>();
  const auto* limits = limit.const_data_ptr<double>();
  auto* states = status.mutable_data_ptr<int64_t>();
  auto* counts = iterations.mutable_data_ptr<int64_t>();
  const auto& kernel = kernels<F>();
  const auto diagonal = [&](int64_t offset) { return ms == nullptr ? nullptr : ms + offset; };

  std::vector<char> moves(tasks);
  for (int64_t t = 0; t < tasks; ++t) moves[t] = states[t] == kRunning;

  std::vector<CurvatureDots> curvatures(tasks * chunks);
  for_chunks(tasks, size, moves, [&](int64_t t, int64_t index, int64_t begin, int64_t count) {
    const auto offset = t * size + begin;
    curvatures[index] = kernel.curvature(ps + offset, qs + offset, count);
  });

  std::vector<F> alphas(tasks), betas(tasks);
  for (int64_t t = 0; t < tasks; ++t) {
    if (!moves[t]) continue;
    CurvatureDots sum = {0, 0, 0};
    for (int64_t c = t * chunks; c < (t + 1) * chunks; ++c) {
      sum.pq += curvatures[c].pq;
      sum.pp += curvatures[c].pp;
      sum.qq += curvatures[c].qq;
    }
    // Below the rounding of p'Ap a direction cannot be told from one in the null space.
    const double floor = std::numeric_limits<F>::epsilon() * std::sqrt(sum.pp * sum.qq);
    if (!std::isfinite(sum.pq)) {
      states[t] = kNotFinite;
    } else if (!(sum.pq > floor)) {
      states[t] = kNotPositive;
    }
    moves[t] = states[t] == kRunning;
    alphas[t] = static_cast<F>(rzs[t] / sum.pq);
  }

  std::vector<ResidualDots> residuals(tasks * chunks);
  for_chunks(tasks, size, moves, [&](int64_t t, int64_t index, int64_t begin, int64_t count) {
    const auto offset = t * size + begin;
    residuals[index] = kernel.advance(alphas[t], ps + offset, qs + offset, diagonal(offset), count,
                                      xs + offset, rs + offset);
  });

  for (int64_t t = 0; t < tasks; ++t) {
    if (!moves[t]) continue;
    ResidualDots sum = {0, 0};
    for (int64_t c = t * chunks; c < (t + 1) * chunks; ++c) {
      sum.rz += residuals[c].rz;
      sum.rr += residuals[c].rr;
    }
    betas[t] = static_cast<F>(sum.rz / rzs[t]);
    rzs[t] = sum.rz;
    rrs[t] = sum.rr;
    ++counts[t];
    if (!std::isfinite(sum.rr)) {
      states[t] = kNotFinite;
    } else if (sum.rr <= limits[t]) {
      states[t] = kConverged;
    }
  }

  for_chunks(tasks, size, moves, [&](int64_t t, int64_t, int64_t begin, int64_t count) {
    const auto offset = t * size + begin;
    kernel.turn(betas[t], rs + offset, diagonal(offset), count, ps + offset);
  });
}

void cg_step(const Tensor& x, const Tensor& r, const Tensor& p, const Tensor& q,
             const std::optional<Tensor>& preconditioner, const Tensor& rz, const Tensor& rr,
             const Tensor& limit, const Tensor& status, const Tensor& iterations) {
  check_cg_step(x, r, p, q, preconditioner, rz, rr, limit, status, iterations);
  const Tensor m = preconditioner.has_value() ? preconditioner->contiguous() : Tensor();
  const auto product = q.contiguous();
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "cg_step", [&] {
    step<scalar_t>(x, r, p, product, m, rz, rr, limit, status, iterations);
  });
}

}  // namespace
}  // namespace metasparse::cpu

TORCH_LIBRARY_IMPL(metasparse, CPU, m) { m.impl("cg_step", metasparse::cpu::cg_step); }
