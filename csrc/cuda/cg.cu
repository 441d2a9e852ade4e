// A step is three passes over the vectors with a sum between each two. On sm_90 the eight blocks of
// a cluster do all three in one launch and exchange their partial sums through distributed shared
// memory; elsewhere there are three launches and the partial sums lie in device memory. Either way
// they are added in a fixed order, by everyone who needs them: no atomics, equal results every run.
#include <math.h>

#include <limits>

#include "cg.h"
#include "device.cuh"
#include "launch.h"
#include "reduce.cuh"

namespace metasparse::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kBlocks = 8;  // per task: the largest portable cluster
constexpr int kWarps = kThreads / kWarpSize;

enum Status : int64_t { kConverged = 0, kRunning = 1, kNotPositive = 2, kNotFinite = 3 };

struct CurvatureDots {
  double pq = 0, pp = 0, qq = 0;
};

struct ResidualDots {
  double rz = 0, rr = 0;
};

// What the curvature p'Ap says about the step.
struct Decision {
  double rz;  // before the step
  double alpha;
  int64_t status;

  __device__ bool moves() const { return status == kRunning; }
};

// The entries of a task that one block takes.
struct Part {
  int64_t begin, end;
};

__device__ Part part_of(int64_t task, int64_t size, int rank) {
  return {task * size + size * rank / kBlocks, task * size + size * (rank + 1) / kBlocks};
}

template <class F>
__device__ CurvatureDots curvature(const CgSystem<F>& s, Part part) {
  CurvatureDots sum;
#pragma unroll 4
  for (int64_t e = part.begin + threadIdx.x; e < part.end; e += kThreads) {
    const double p = s.p[e], q = s.q[e];
    sum.pq += p * q;
    sum.pp += p * p;
    sum.qq += q * q;
  }
  return sum;
}

template <class F>
__device__ Decision decide(const CgSystem<F>& s, int64_t task, const CurvatureDots& dots) {
  Decision decision = {s.rz[task], 0, s.status[task]};
  if (!decision.moves()) return decision;
  // Below the rounding of p'Ap a direction cannot be told from one in the null space.
  const double floor = std::numeric_limits<F>::epsilon() * sqrt(dots.pp * dots.qq);
  if (!isfinite(dots.pq)) {
    decision.status = kNotFinite;
  } else if (!(dots.pq > floor)) {
    decision.status = kNotPositive;
  }
  decision.alpha = decision.rz / dots.pq;
  return decision;
}

template <class F>
__device__ ResidualDots advance(const CgSystem<F>& s, Part part, F alpha) {
  ResidualDots sum;
#pragma unroll 4
  for (int64_t e = part.begin + threadIdx.x; e < part.end; e += kThreads) {
    s.x[e] += alpha * s.p[e];
    const F r = s.r[e] - alpha * s.q[e];
    s.r[e] = r;
    const F z = s.diagonal == nullptr ? r : s.diagonal[e] * r;
    sum.rz += static_cast<double>(r) * z;
    sum.rr += static_cast<double>(r) * r;
  }
  return sum;
}

template <class F>
__device__ void turn(const CgSystem<F>& s, Part part, F beta) {
#pragma unroll 4
  for (int64_t e = part.begin + threadIdx.x; e < part.end; e += kThreads) {
    const F z = s.diagonal == nullptr ? s.r[e] : s.diagonal[e] * s.r[e];
    s.p[e] = z + beta * s.p[e];
  }
}

// Writes a task's state; nobody may read the old one any more.
template <class F>
__device__ void record(const CgSystem<F>& s, int64_t task, Decision decision, ResidualDots dots) {
  if (decision.moves()) {
    s.rz[task] = dots.rz;
    s.rr[task] = dots.rr;
    ++s.counts[task];
    if (!isfinite(dots.rr)) {
      decision.status = kNotFinite;
    } else if (dots.rr <= s.limit[task]) {
      decision.status = kConverged;
    }
  }
  s.status[task] = decision.status;
}

// The block's sum of a bundle of doubles, in thread 0; `warps` holds one bundle per warp.
template <class Dots>
__device__ Dots block_sum(Dots dots, Dots* warps) {
  constexpr int kCount = sizeof(Dots) / sizeof(double);
  auto* const values = reinterpret_cast<double*>(&dots);
  for (int v = 0; v < kCount; ++v) values[v] = warp_sum(values[v]);
  if (threadIdx.x % kWarpSize == 0) warps[threadIdx.x / kWarpSize] = dots;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kWarps; ++w) {
      for (int v = 0; v < kCount; ++v) values[v] += reinterpret_cast<double*>(warps + w)[v];
    }
  }
  return dots;
}

template <class Dots>
__device__ void add(Dots& sum, const Dots& dots) {
  for (int v = 0; v < static_cast<int>(sizeof(Dots) / sizeof(double)); ++v) {
    reinterpret_cast<double*>(&sum)[v] += reinterpret_cast<const double*>(&dots)[v];
  }
}

// ---- one launch, a cluster per task ------------------------------------------------------------

template <class Dots>
struct Exchange {
  Dots warps[kWarps], own;
};

struct Shared {
  Exchange<CurvatureDots> curvature;
  Exchange<ResidualDots> residual;
};

template <class Dots>
__device__ Dots team_sum(const Dots& dots, Exchange<Dots>& shared) {
  using Blocks = Team<kBlocks>;
  const Dots block = block_sum(dots, shared.warps);
  if (threadIdx.x == 0) shared.own = block;
  Blocks::sync();
  Dots sum;
  for (int rank = 0; rank < kBlocks; ++rank) add(sum, *Blocks::peer(&shared.own, rank));
  return sum;
}

template <class F>
__global__ void __launch_bounds__(kThreads) cg_step_cluster(CgSystem<F> s) {
  using Blocks = Team<kBlocks>;
  auto& shared = *reinterpret_cast<Shared*>(dynamic_shared());
  const int64_t task = blockIdx.x / kBlocks;
  const Part part = part_of(task, s.size, Blocks::rank());

  const auto dots = team_sum(curvature(s, part), shared.curvature);
  const Decision decision = decide(s, task, dots);
  ResidualDots residual;
  if (decision.moves()) residual = advance(s, part, static_cast<F>(decision.alpha));
  residual = team_sum(residual, shared.residual);
  if (decision.moves()) turn(s, part, static_cast<F>(residual.rz / decision.rz));
  // Nobody leaves while its shared memory may be read, and all have read the old state.
  Blocks::sync();
  if (Blocks::rank() == 0 && threadIdx.x == 0) record(s, task, decision, residual);
}

// ---- three launches ----------------------------------------------------------------------------

// What one launch leaves for the next, per task.
struct Workspace {
  CurvatureDots curvature[kBlocks];
  ResidualDots residual[kBlocks];
  Decision decision;
};

template <class Dots>
__device__ Dots sum_in_order(const Dots* parts) {
  Dots sum;
  for (int rank = 0; rank < kBlocks; ++rank) add(sum, parts[rank]);
  return sum;
}

template <class F>
__global__ void __launch_bounds__(kThreads) cg_step_curvature(CgSystem<F> s, Workspace* space) {
  auto* const warps = reinterpret_cast<CurvatureDots*>(dynamic_shared());
  const int task = blockIdx.y, rank = blockIdx.x;
  const auto dots = block_sum(curvature(s, part_of(task, s.size, rank)), warps);
  if (threadIdx.x == 0) space[task].curvature[rank] = dots;
}

template <class F>
__global__ void __launch_bounds__(kThreads) cg_step_advance(CgSystem<F> s, Workspace* space) {
  auto* const warps = reinterpret_cast<ResidualDots*>(dynamic_shared());
  const int task = blockIdx.y, rank = blockIdx.x;
  const Decision decision = decide(s, task, sum_in_order(space[task].curvature));
  ResidualDots dots;
  if (decision.moves()) {
    dots = advance(s, part_of(task, s.size, rank), static_cast<F>(decision.alpha));
  }
  dots = block_sum(dots, warps);
  if (threadIdx.x != 0) return;
  space[task].residual[rank] = dots;
  if (rank == 0) space[task].decision = decision;
}

template <class F>
__global__ void __launch_bounds__(kThreads) cg_step_turn(CgSystem<F> s, Workspace* space) {
  const int task = blockIdx.y, rank = blockIdx.x;
  const Decision decision = space[task].decision;
  const ResidualDots dots = sum_in_order(space[task].residual);
  if (decision.moves()) {
    turn(s, part_of(task, s.size, rank), static_cast<F>(dots.rz / decision.rz));
  }
  if (rank == 0 && threadIdx.x == 0) record(s, task, decision, dots);
}

}  // namespace

int64_t cg_step_workspace(int64_t tasks) { return tasks * static_cast<int64_t>(sizeof(Workspace)); }

template <class F>
cudaError_t cg_step(const CgSystem<F>& system, void* workspace, cudaStream_t stream) {
  if (system.tasks == 0) return cudaSuccess;
  const auto tasks = static_cast<unsigned>(system.tasks);
  if (runs_in_clusters(cg_step_cluster<F>)) {
    return launch(cg_step_cluster<F>,
                  {{tasks * kBlocks, 1, 1}, {kThreads, 1, 1}, sizeof(Shared), kBlocks}, stream,
                  system);
  }
  auto* const space = static_cast<Workspace*>(workspace);
  const Launch shape = {{kBlocks, tasks, 1}, {kThreads, 1, 1}, kWarps * sizeof(CurvatureDots), 1};
  auto error = launch(cg_step_curvature<F>, shape, stream, system, space);
  if (error == cudaSuccess) error = launch(cg_step_advance<F>, shape, stream, system, space);
  if (error == cudaSuccess) error = launch(cg_step_turn<F>, shape, stream, system, space);
  return error;
}

template cudaError_t cg_step(const CgSystem<float>&, void*, cudaStream_t);
template cudaError_t cg_step(const CgSystem<double>&, void*, cudaStream_t);

}  // namespace metasparse::cuda
