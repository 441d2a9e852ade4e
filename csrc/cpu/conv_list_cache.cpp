#include "conv_list_cache.h"

#include <cstring>
#include <list>
#include <mutex>
#include <unordered_map>

namespace metasparse::cpu {

namespace {

constexpr size_t kKeepBytes = size_t{16} << 20;  // of each kind of lists

struct Key {
  std::vector<uint8_t> active;
  int64_t out_channels, in_channels;
  ListPlan plan;

  bool is(const ActiveKernels& kernels, const ListPlan& wanted) const {
    return out_channels == kernels.out_channels && in_channels == kernels.in_channels &&
           plan == wanted && active == kernels.active;
  }
};

uint64_t mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * uint64_t{0x9e3779b97f4a7c15};
  return hash ^ hash >> 32;
}

// Four sums side by side: one alone would wait for its multiplications.
uint64_t hash_of(const ActiveKernels& kernels, const ListPlan& plan) {
  const uint8_t* bytes = kernels.active.data();
  const size_t size = kernels.active.size();
  uint64_t sums[4] = {1, 2, 3, 4};
  size_t done = 0;
  for (; done + 32 <= size; done += 32) {
    uint64_t words[4];
    std::memcpy(words, bytes + done, 32);
    for (int i = 0; i < 4; ++i) sums[i] = mix(sums[i], words[i]);
  }
  for (; done < size; ++done) sums[0] = mix(sums[0], bytes[done]);
  uint64_t hash = mix(kernels.in_channels, plan.transposed);
  hash = mix(mix(hash, plan.cache_chunks), plan.longest_sum);
  for (const int32_t place : plan.layout.tap_place) hash = mix(hash, place);
  for (const uint64_t sum : sums) hash = mix(hash, sum);
  return hash;
}

size_t bytes_of(const ColumnLists& lists) { return lists.places.size() * sizeof(int32_t); }

template <class Lists>
size_t bytes_of(const Lists& lists) {
  return (lists.source_rows.size() + lists.places.size()) * sizeof(int32_t);
}

template <class Lists>
class ListCache {
 public:
  std::shared_ptr<const Lists> get(const ActiveKernels& kernels, const ListPlan& plan) {
    const uint64_t hash = hash_of(kernels, plan);
    if (auto found = find(hash, kernels, plan)) return found;
    // Built without the lock. Two threads that miss the same mask both build it, and one stays.
    auto lists = std::make_shared<const Lists>(kernels, plan);
    insert(hash, {kernels.active, kernels.out_channels, kernels.in_channels, plan}, lists);
    return lists;
  }

 private:
  struct Entry {
    uint64_t hash;
    Key key;
    std::shared_ptr<const Lists> lists;
    size_t bytes;
  };

  std::shared_ptr<const Lists> find(uint64_t hash, const ActiveKernels& kernels,
                                    const ListPlan& plan) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = by_hash_.find(hash);
    if (found == by_hash_.end() || !found->second->key.is(kernels, plan)) return nullptr;
    entries_.splice(entries_.begin(), entries_, found->second);
    return found->second->lists;
  }

  void insert(uint64_t hash, Key key, std::shared_ptr<const Lists> lists) {
    const std::lock_guard<std::mutex> lock(mutex_);
    drop(hash);
    const size_t bytes = bytes_of(*lists) + key.active.size();
    entries_.push_front({hash, std::move(key), std::move(lists), bytes});
    by_hash_[hash] = entries_.begin();
    bytes_ += bytes;
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
  std::list<Entry> entries_;  // the latest used first
  std::unordered_map<uint64_t, typename std::list<Entry>::iterator> by_hash_;
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
