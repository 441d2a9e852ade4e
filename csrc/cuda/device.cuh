#pragma once
// The few things for which the kernels need more than the CUDA language: dynamic shared memory,
// asynchronous copies to it, and clusters. A host compiler finds their emulation instead, behind
// the cuda_runtime.h of the tests.
#include <cuda_runtime.h>

#ifdef __CUDACC__
#include <cooperative_groups.h>
#endif

namespace metasparse::cuda {

#ifdef __CUDACC__

__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

// Starts a copy of kBytes (4, 8 or 16; aligned) to shared memory; zeros where not valid. `from`
// must be an address of the tensor even then.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool valid) {
  const auto shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
  const int bytes = valid ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from),
                 "r"(bytes));
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(from),
                 "n"(kBytes), "r"(bytes));
  }
}

// Closes the group of the copies started since the last one.
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;"); }

// Waits until at most kGroups of this thread's groups are under way.
template <int kGroups>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

#else

inline unsigned char* dynamic_shared() {
  return emulation::shared_memory(emulation::cluster_rank());
}

template <int kBytes>
void copy_async(void* to, const void* from, bool valid) {
  emulation::copy_later(to, valid ? from : nullptr, kBytes);
}

inline void copy_async_commit() { emulation::commit_copies(); }

template <int kGroups>
void copy_async_wait() {
  emulation::finish_copies(kGroups);
}

#endif

// kBlocks blocks that work on one thing. More than one form a cluster (sm_90) and see each other's
// shared memory.
template <int kBlocks>
struct Team {
  static __device__ __forceinline__ int rank();
  // All threads of the team meet, and see what the others have written.
  static __device__ __forceinline__ void sync();
  // Where another block of the team keeps what this block keeps at `shared`.
  template <class T>
  static __device__ __forceinline__ T* peer(T* shared, int rank);
};

template <>
struct Team<1> {
  static __device__ __forceinline__ int rank() { return 0; }
  static __device__ __forceinline__ void sync() { __syncthreads(); }
  template <class T>
  static __device__ __forceinline__ T* peer(T* shared, int) {
    return shared;
  }
};

#ifdef __CUDACC__
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

template <int kBlocks>
__device__ __forceinline__ int Team<kBlocks>::rank() {
  return static_cast<int>(cooperative_groups::this_cluster().block_rank());
}

template <int kBlocks>
__device__ __forceinline__ void Team<kBlocks>::sync() {
  cooperative_groups::this_cluster().sync();
}

template <int kBlocks>
template <class T>
__device__ __forceinline__ T* Team<kBlocks>::peer(T* shared, int rank) {
  return cooperative_groups::this_cluster().map_shared_rank(shared, rank);
}

#else  // never run there: runs_in_clusters() asks first

template <int kBlocks>
__device__ __forceinline__ int Team<kBlocks>::rank() {
  return 0;
}

template <int kBlocks>
__device__ __forceinline__ void Team<kBlocks>::sync() {
  __trap();
}

template <int kBlocks>
template <class T>
__device__ __forceinline__ T* Team<kBlocks>::peer(T* shared, int) {
  return shared;
}

#endif
#else

template <int kBlocks>
int Team<kBlocks>::rank() {
  return static_cast<int>(emulation::cluster_rank());
}

template <int kBlocks>
void Team<kBlocks>::sync() {
  emulation::cluster_barrier();
}

template <int kBlocks>
template <class T>
T* Team<kBlocks>::peer(T* shared, int rank) {
  const auto* own = emulation::shared_memory(emulation::cluster_rank());
  const auto offset = reinterpret_cast<unsigned char*>(shared) - own;
  return reinterpret_cast<T*>(emulation::shared_memory(rank) + offset);
}

#endif

}  // namespace metasparse::cuda
