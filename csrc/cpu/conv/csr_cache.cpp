// Where matrices of active kernels are kept: declared in active_kernels.h as `cached`.
#include <algorithm>
#include <cstring>
#include <list>
#include <memory_resource>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "active_kernels.h"

namespace metasparse::cpu {

namespace {

using Bytes = std::vector<uint8_t>;

void append(Bytes& bytes, const void* data, size_t size) {
  const auto* begin = static_cast<const uint8_t*>(data);
  bytes.insert(bytes.end(), begin, begin + size);
}

// All that a matrix depends on, as bytes, in the calling thread's memory.
const Bytes& key_of(const ActiveKernels& kernels, const CsrLayout& layout) {
  thread_local Bytes key;
  key.clear();
  const int64_t numbers[] = {kernels.out_channels, kernels.in_channels,     layout.transposed,
                             layout.cache_chunks,  layout.max_accumulation, layout.taps.kernel_size,
                             layout.taps.taps()};
  append(key, numbers, sizeof numbers);
  append(key, layout.taps.tap_index.data(), layout.taps.tap_index.size() * sizeof(int32_t));
  append(key, kernels.active.data(), kernels.active.size());
  return key;
}

uint64_t mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * uint64_t{0x9e3779b97f4a7c15};
  return hash ^ hash >> 32;
}

// Four sums side by side: one alone would wait for its multiplications.
uint64_t hash_of(const Bytes& key) {
  uint64_t sums[4] = {1, 2, 3, 4};
  size_t done = 0;
  for (; done + 32 <= key.size(); done += 32) {
    uint64_t words[4];
    std::memcpy(words, key.data() + done, 32);
    for (int i = 0; i < 4; ++i) sums[i] = mix(sums[i], words[i]);
  }
  for (; done < key.size(); ++done) sums[0] = mix(sums[0], key[done]);
  uint64_t hash = key.size();
  for (const uint64_t sum : sums) hash = mix(hash, sum);
  return hash;
}

size_t bytes_of(const PairedCsr& matrix) {
  return (matrix.source.size() + matrix.weight_index.size()) * sizeof(int32_t) +
         matrix.rows.size() * sizeof(RowPair);
}
size_t bytes_of(const DenseIndex& matrix) { return matrix.weight_index.size() * sizeof(int32_t); }
size_t bytes_of(const Csr& matrix) {
  return (matrix.source.size() + matrix.weight_index.size() + matrix.row_begin.size()) *
         sizeof(int32_t);
}

// Everything in here outlives the call: it lies in kept_memory().
template <class Matrix>
class MatrixCache {
 public:
  std::shared_ptr<const Matrix> get(const ActiveKernels& kernels, const CsrLayout& layout) {
    const Bytes& key = key_of(kernels, layout);
    const uint64_t hash = hash_of(key);
    if (auto found = find(hash, key)) return found;
    // Built without the lock. Two threads that miss the same mask both build it, and one stays.
    const std::pmr::polymorphic_allocator<Matrix> allocator(&kept_memory());
    auto matrix = std::allocate_shared<Matrix>(allocator, kernels, layout);
    insert(hash, key, matrix);
    return matrix;
  }

 private:
  struct Entry {
    uint64_t hash;
    KeptVector<uint8_t> key;
    std::shared_ptr<const Matrix> matrix;
    size_t bytes;
  };

  std::shared_ptr<const Matrix> find(uint64_t hash, const Bytes& key) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = by_hash_.find(hash);
    if (found == by_hash_.end()) return nullptr;
    const Entry& entry = *found->second;
    if (!std::equal(key.begin(), key.end(), entry.key.begin(), entry.key.end())) return nullptr;
    entries_.splice(entries_.begin(), entries_, found->second);
    return entry.matrix;
  }

  void insert(uint64_t hash, const Bytes& key, std::shared_ptr<const Matrix> matrix) {
    const std::lock_guard<std::mutex> lock(mutex_);
    drop(hash);
    Entry entry{hash, {}, std::move(matrix), 0};
    entry.key.assign(key.begin(), key.end());
    entry.bytes = bytes_of(*entry.matrix) + key.size();
    bytes_ += entry.bytes;
    entries_.push_front(std::move(entry));
    by_hash_[hash] = entries_.begin();
    while (bytes_ > heuristics::kKeptBytes) drop(entries_.back().hash);
  }

  void drop(uint64_t hash) {
    const auto found = by_hash_.find(hash);
    if (found == by_hash_.end()) return;
    bytes_ -= found->second->bytes;
    entries_.erase(found->second);
    by_hash_.erase(found);
  }

  std::mutex mutex_;
  std::pmr::list<Entry> entries_{&kept_memory()};  // the latest used first
  std::pmr::unordered_map<uint64_t, typename std::pmr::list<Entry>::iterator> by_hash_{
      &kept_memory()};
  size_t bytes_ = 0;
};

}  // namespace

template <class Matrix>
std::shared_ptr<const Matrix> cached(const ActiveKernels& kernels, const CsrLayout& layout) {
  // Never destroyed: threads may still compute while the process ends.
  static auto* cache = new MatrixCache<Matrix>;
  return cache->get(kernels, layout);
}

template std::shared_ptr<const PairedCsr> cached(const ActiveKernels&, const CsrLayout&);
template std::shared_ptr<const DenseIndex> cached(const ActiveKernels&, const CsrLayout&);
template std::shared_ptr<const Csr> cached(const ActiveKernels&, const CsrLayout&);

}  // namespace metasparse::cpu
