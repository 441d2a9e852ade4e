// The scheduler behind the emulated cuda_runtime.h.
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "cuda_runtime.h"
#include "races.h"

namespace metasparse::emulation {
namespace {

// Not a power of two: stacks would all lie on the same lines of the caches.
constexpr size_t kStack = (64 << 10) + 320;
constexpr unsigned kWarp = 32;

struct Barrier {
  unsigned expected = 0, arrived = 0;
  uint64_t generation = 0;

  // Whether the caller must wait for the next generation.
  bool arrive() {
    if (++arrived < expected) return true;
    arrived = 0;
    ++generation;
    return false;
  }
};

struct Warp {
  Barrier barrier;
  unsigned lanes = 0;
  uint64_t slots[2][kWarp];
};

// A block's shared memory, its end at a page that nobody may touch.
class SharedMemory {
 public:
  explicit SharedMemory(size_t bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t used = (bytes + 15) / 16 * 16, room = (used + page - 1) / page * page;
    size_ = room + page;
    base_ = static_cast<unsigned char*>(
        mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) throw std::bad_alloc();
    mprotect(base_ + room, page, PROT_NONE);
    data_ = base_ + room - used;
    std::memset(data_, 0xff, used);
  }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  ~SharedMemory() { munmap(base_, size_); }

  unsigned char* data() const { return data_; }
  size_t room() const { return static_cast<size_t>(base_ + size_ - data_); }

 private:
  unsigned char *base_, *data_;
  size_t size_;
};

struct Block {
  uint3 index;
  unsigned rank = 0, cluster = 0;
  Barrier barrier;
  std::vector<Warp> warps;
  std::unique_ptr<SharedMemory> shared;
};

struct Copy {
  void* to;
  const void* from;  // null: zeros
  size_t bytes;
};

// swapcontext would cost system calls at every switch: a context only starts a fiber, and from then
// on scheduler and fiber jump to and fro.
struct Fiber {
  ucontext_t beginning;
  jmp_buf place;
  bool started = false;
  Block* block = nullptr;
  unsigned thread = 0;
  bool done = false;
  const Barrier* awaited = nullptr;
  uint64_t generation = 0;
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;

  bool can_run() const {
    return !done && (awaited == nullptr || awaited->generation != generation);
  }
  Warp& warp() const { return block->warps[thread / kWarp]; }
};

// The launch in progress. One at a time: the tests call kernels from one thread.
jmp_buf scheduler;
const std::function<void()>* kernel;
Fiber* running;
Barrier* cluster;
std::vector<Block>* team;
unsigned char *stacks_begin, *stacks_end;

void to_scheduler() {
  if (_setjmp(running->place) == 0) _longjmp(scheduler, 1);
}

void to_fiber(Fiber& fiber) {
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  setcontext(&fiber.beginning);
}

void start() {
  (*kernel)();
  running->done = true;
  to_scheduler();
}

void wait(Barrier& barrier) {
  const uint64_t generation = barrier.generation;
  if (!barrier.arrive()) return;
  running->awaited = &barrier;
  running->generation = generation;
  to_scheduler();
  running->awaited = nullptr;
}

// Memory for the fibers' stacks, kept from launch to launch.
unsigned char* stacks(size_t fibers) {
  static std::vector<std::unique_ptr<unsigned char[]>> pieces;
  static size_t held = 0;
  if (fibers > held) {
    pieces.clear();
    pieces.emplace_back(new unsigned char[fibers * kStack]);
    held = fibers;
  }
  return pieces.front().get();
}

void resume(Fiber& fiber) {
  running = &fiber;
  blockIdx = fiber.block->index;
  threadIdx = {fiber.thread % blockDim.x, fiber.thread / blockDim.x % blockDim.y,
               fiber.thread / blockDim.x / blockDim.y};
  to_fiber(fiber);
  running = nullptr;
}

// Runs the blocks of one cluster to their end; false if they wait for each other for ever.
bool run_team(std::vector<Block>& blocks, unsigned threads, std::mt19937& random) {
  std::vector<Fiber> fibers(blocks.size() * threads);
  std::vector<Fiber*> order;
  Barrier whole;
  whole.expected = static_cast<unsigned>(fibers.size());
  cluster = &whole;
  team = &blocks;
  unsigned char* const stack = stacks(fibers.size());
  stacks_begin = stack;
  stacks_end = stack + fibers.size() * kStack;
  for (size_t f = 0; f < fibers.size(); ++f) {
    Fiber& fiber = fibers[f];
    fiber.block = &blocks[f / threads];
    fiber.thread = static_cast<unsigned>(f % threads);
    getcontext(&fiber.beginning);
    fiber.beginning.uc_stack.ss_sp = stack + f * kStack;
    fiber.beginning.uc_stack.ss_size = kStack;
    fiber.beginning.uc_link = nullptr;
    makecontext(&fiber.beginning, start, 0);
    order.push_back(&fiber);
  }
  for (size_t left = fibers.size(); left > 0;) {
    std::shuffle(order.begin(), order.end(), random);
    bool moved = false;
    for (Fiber* fiber : order) {
      if (!fiber->can_run()) continue;
      resume(*fiber);
      moved = true;
      left -= fiber->done;
    }
    if (!moved) return false;
  }
  for (const Block& block : blocks) {
    forget_accesses(block.shared->data(), block.shared->room());  // another block's may lie there
  }
  return true;
}

int from_environment(const char* name, int otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::atoi(value);
}

Block make_block(uint3 index, unsigned rank, unsigned cluster, unsigned threads, size_t shared) {
  Block block;
  block.index = index;
  block.rank = rank;
  block.cluster = cluster;
  block.barrier.expected = threads;
  block.warps.resize((threads + kWarp - 1) / kWarp);
  for (size_t w = 0; w < block.warps.size(); ++w) {
    auto& warp = block.warps[w];
    warp.lanes = std::min(kWarp, threads - static_cast<unsigned>(w) * kWarp);
    warp.barrier.expected = warp.lanes;
  }
  block.shared = std::make_unique<SharedMemory>(shared);
  return block;
}

}  // namespace

cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& body) {
  const unsigned in_team = config.numAttrs > 0 ? config.attrs[0].val.clusterDim.x : 1;
  const unsigned threads = config.blockDim.x * config.blockDim.y * config.blockDim.z;
  const bool whole = in_team > 0 && config.gridDim.x % in_team == 0;
  if (!whole || threads == 0 || threads > 1024 || config.gridDim.x == 0 || config.gridDim.y == 0 ||
      config.gridDim.z == 0 || config.gridDim.y > 65535 || config.gridDim.z > 65535 ||
      config.dynamicSmemBytes > 163 * 1024) {
    return cudaErrorInvalidValue;
  }
  std::mt19937 random(static_cast<unsigned>(from_environment("METASPARSE_EMULATED_SEED", 1)));
  kernel = &body;
  blockDim = config.blockDim;
  gridDim = config.gridDim;
  forget_accesses();
  const unsigned teams_in_row = gridDim.x / in_team;
  std::vector<unsigned> teams(size_t{teams_in_row} * gridDim.y * gridDim.z);
  std::iota(teams.begin(), teams.end(), 0u);
  std::shuffle(teams.begin(), teams.end(), random);
  for (const unsigned place : teams) {
    const unsigned x = place % teams_in_row * in_team, row = place / teams_in_row;
    const unsigned y = row % gridDim.y, z = row / gridDim.y;
    std::vector<Block> blocks;
    for (unsigned rank = 0; rank < in_team; ++rank) {
      blocks.push_back(make_block({x + rank, y, z}, rank, place, threads, config.dynamicSmemBytes));
    }
    if (!run_team(blocks, threads, random)) {
      std::fprintf(stderr, "block (%u, %u, %u): not all threads reach a barrier\n", x, y, z);
      return cudaErrorLaunchFailure;
    }
  }
  return cudaSuccess;
}

bool current(Moment& moment) {
  if (running == nullptr) return false;
  const Block& block = *running->block;
  moment.block = (block.index.z * gridDim.y + block.index.y) * gridDim.x + block.index.x;
  moment.thread = running->thread;
  moment.cluster = block.cluster;
  moment.cluster_barriers = static_cast<uint32_t>(cluster->generation);
  moment.block_barriers = static_cast<uint32_t>(block.barrier.generation);
  moment.warp_barriers = static_cast<uint32_t>(running->warp().barrier.generation);
  return true;
}

bool is_own(const void* address) { return address >= stacks_begin && address < stacks_end; }

namespace {

cudaError_t last = cudaSuccess;

}  // namespace

int device_attribute(cudaDeviceAttr attribute) {
  if (attribute == cudaDevAttrComputeCapabilityMajor) {
    return from_environment("METASPARSE_EMULATED_MAJOR", 9);
  }
  return from_environment("METASPARSE_EMULATED_SHARED", 227 << 10);
}

int ptx_version() { return from_environment("METASPARSE_EMULATED_PTX", 90); }

cudaError_t failed(cudaError_t error) {
  if (error != cudaSuccess) last = error;
  return error;
}

cudaError_t last_error() {
  const cudaError_t error = last;
  last = cudaSuccess;
  return error;
}

void block_barrier() { wait(running->block->barrier); }
void cluster_barrier() { wait(*cluster); }
unsigned cluster_rank() { return running->block->rank; }
unsigned char* shared_memory(unsigned rank) { return (*team)[rank].shared->data(); }
unsigned warp_lanes() { return running->warp().lanes; }
unsigned lane() { return running->thread % kWarp; }

const uint64_t* warp_exchange(uint64_t value) {
  // Two sets of slots: who has passed this barrier may write the next exchange's at once.
  Warp& warp = running->warp();
  auto& slots = warp.slots[warp.barrier.generation % 2];
  slots[lane()] = value;
  wait(warp.barrier);
  return slots;
}

void copy_later(void* to, const void* from, size_t bytes) {
  // It may take place at any time from here to where it is waited for.
  log_alignment(to, bytes);
  log_write(to, bytes);
  if (from != nullptr) {
    log_alignment(from, bytes);
    log_read(from, bytes);
  }
  running->open.push_back({to, from, bytes});
}

void commit_copies() {
  running->groups.push_back(std::move(running->open));
  running->open.clear();
}

void finish_copies(size_t groups_left) {
  for (auto& groups = running->groups; groups.size() > groups_left; groups.pop_front()) {
    for (const Copy& copy : groups.front()) {
      log_write(copy.to, copy.bytes);
      if (copy.from == nullptr) {
        std::memset(copy.to, 0, copy.bytes);
      } else {
        std::memcpy(copy.to, copy.from, copy.bytes);
      }
    }
  }
}

}  // namespace metasparse::emulation
