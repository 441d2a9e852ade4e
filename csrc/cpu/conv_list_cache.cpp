#include "conv_list_cache.h"

#include <algorithm>
#include <cstring>
#include <list>
#include <memory_resource>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

namespace metasparse::cpu {

namespace {

constexpr size_t kKeepBytes = size_t{16} << 20;  // of each kind of lists

using Bytes = std::vector<uint8_t>;

void append(Bytes& bytes, const void* data, size_t size) {
  const auto* begin = static_cast<const uint8_t*>(data);
  bytes.insert(bytes.end(), begin, begin + size);
}

// All that lists depend on, as bytes, in the calling thread's memory.
const Bytes& key_of(const ActiveKernels& kernels, const ListPlan& plan) {
  thread_local Bytes key;
  key.clear();
  const int64_t numbers[] = {kernels.out_channels,  kernels.in_channels, plan.transposed,
                             plan.cache_chunks,     plan.longest_sum,    plan.layout.kernel_size,
                             plan.layout.taps()};
  append(key, numbers, sizeof numbers);
  append(key, plan.layout.tap_place.data(), plan.layout.tap_place.size() * sizeof(int32_t));
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

size_t bytes_of(const PairLists& lists) {
  return (lists.source_rows.size() + lists.places.size()) * sizeof(int32_t) +
         lists.runs.size() * sizeof(PairRun);
}
size_t bytes_of(const ColumnLists& lists) { return lists.places.size() * sizeof(int32_t); }
size_t bytes_of(const RowLists& lists) {
  return (lists.source_rows.size() + lists.places.size() + lists.row_begin.size()) *
         sizeof(int32_t);
}

// Everything in here outlives the call: it lies in list_memory().
template <class Lists>
class ListCache {
 public:
  std::shared_ptr<const Lists> get(const ActiveKernels& kernels, const ListPlan& plan) {
    const Bytes& key = key_of(kernels, plan);
    const uint64_t hash = hash_of(key);
    if (auto found = find(hash, key)) return found;
    // Built without the lock. Two threads that miss the same mask both build it, and one stays.
    const std::pmr::polymorphic_allocator<Lists> allocator(&list_memory());
    auto lists = std::allocate_shared<Lists>(allocator, kernels, plan);
    insert(hash, key, lists);
    return lists;
  }

 private:
  struct Entry {
    uint64_t hash;
    KeptVector<uint8_t> key;
    std::shared_ptr<const Lists> lists;
    size_t bytes;
  };

  std::shared_ptr<const Lists> find(uint64_t hash, const Bytes& key) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = by_hash_.find(hash);
    if (found == by_hash_.end()) return nullptr;
    const Entry& entry = *found->second;
    if (!std::equal(key.begin(), key.end(), entry.key.begin(), entry.key.end())) return nullptr;
    entries_.splice(entries_.begin(), entries_, found->second);
    return entry.lists;
  }

  void insert(uint64_t hash, const Bytes& key, std::shared_ptr<const Lists> lists) {
    const std::lock_guard<std::mutex> lock(mutex_);
    drop(hash);
    Entry entry{hash, {}, std::move(lists), 0};
    entry.key.assign(key.begin(), key.end());
    entry.bytes = bytes_of(*entry.lists) + key.size();
    bytes_ += entry.bytes;
    entries_.push_front(std::move(entry));
    by_hash_[hash] = entries_.begin();
    while (bytes_ > kKeepBytes) drop(entries_.back().hash);
  }

  void drop(uint64_t hash) {
    const auto found = by_hash_.find(hash);
    if (found == by_hash_.end()) return;
    bytes_ -= found->second->bytes;
    entries_.erase(found->second);
    by_hash_.erase(found);
  }

  std::mutex mutex_;
  std::pmr::list<Entry> entries_{&list_memory()};  // the latest used first
  std::pmr::unordered_map<uint64_t, typename std::pmr::list<Entry>::iterator> by_hash_{
      &list_memory()};
  size_t bytes_ = 0;
};

}  // namespace

template <class Lists>
std::shared_ptr<const Lists> lists_of(const ActiveKernels& kernels, const ListPlan& plan) {
  // Never destroyed: threads may still compute while the process ends.
  static auto* cache = new ListCache<Lists>;
  return cache->get(kernels, plan);
}

template std::shared_ptr<const PairLists> lists_of(const ActiveKernels&, const ListPlan&);
template std::shared_ptr<const ColumnLists> lists_of(const ActiveKernels&, const ListPlan&);
template std::shared_ptr<const RowLists> lists_of(const ActiveKernels&, const ListPlan&);

}  // namespace metasparse::cpu
