// What the instrumentation of the kernels calls: races.h.
#include "races.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <unordered_map>
#include <vector>

namespace metasparse::emulation {
namespace {

constexpr unsigned kWarp = 32;
constexpr size_t kMostFindings = 20;

struct Access {
  Moment by;
  bool writes = false, atomic = false;
};

// What is known of a word: the last write, and reads since then that the next one may race with. Of
// many the latest are enough: who races with an earlier one races with these.
struct Word {
  static constexpr size_t kReads = 8;

  bool written = false;
  Access write;
  Access reads[kReads];
  size_t count = 0;  // of all reads since the write
};

// Accesses of less than a word are taken for one of all of it.
constexpr uintptr_t kWordBytes = 4;

std::unordered_map<uintptr_t, Word> words;
std::vector<std::string> findings;
size_t more = 0;
bool instrumented = false;

bool same_thread(const Moment& a, const Moment& b) {
  return a.block == b.block && a.thread == b.thread;
}

// Whether a barrier that both threads passed lies between an earlier access and a later one.
bool ordered(const Moment& before, const Moment& after) {
  if (same_thread(before, after)) return true;
  if (before.cluster != after.cluster) return false;
  if (before.cluster_barriers < after.cluster_barriers) return true;
  if (before.block != after.block) return false;
  if (before.block_barriers < after.block_barriers) return true;
  return before.thread / kWarp == after.thread / kWarp &&
         before.warp_barriers < after.warp_barriers;
}

void report(const std::string& text) {
  for (const auto& known : findings) {
    if (known == text) return;
  }
  if (findings.size() < kMostFindings) {
    findings.push_back(text);
  } else {
    ++more;
  }
}

const char* verb(const Access& access) {
  return access.atomic ? "adds to" : access.writes ? "writes" : "reads";
}

void report_race(const Access& before, const Access& after) {
  char text[200];
  std::snprintf(text, sizeof text,
                "thread %u of block %u %s what thread %u of block %u %s, with no barrier between",
                after.by.thread, after.by.block, verb(after), before.by.thread, before.by.block,
                verb(before));
  report(text);
}

bool race(const Access& before, const Access& after) {
  if (before.atomic && after.atomic) return false;
  return !ordered(before.by, after.by);
}

void log(Word& word, const Access& access) {
  if (word.written && race(word.write, access)) report_race(word.write, access);
  const size_t kept = std::min(word.count, Word::kReads);
  if (!access.writes) {
    const size_t last = (word.count + Word::kReads - 1) % Word::kReads;
    if (kept > 0 && same_thread(word.reads[last].by, access.by)) {
      word.reads[last] = access;
    } else {
      word.reads[word.count++ % Word::kReads] = access;
    }
    return;
  }
  for (size_t r = 0; r < kept; ++r) {
    if (race(word.reads[r], access)) report_race(word.reads[r], access);
  }
  word.count = 0;
  word.write = access;
  word.written = true;
}

template <class Function>
void for_each_word(const void* address, size_t count, const Function& function) {
  const auto first = reinterpret_cast<uintptr_t>(address) / kWordBytes;
  const auto last = (reinterpret_cast<uintptr_t>(address) + count - 1) / kWordBytes;
  for (uintptr_t word = first; word <= last; ++word) function(word);
}

void log(const void* address, size_t count, bool writes, bool atomic) {
  Access access{{}, writes, atomic};
  if (!current(access.by) || is_own(address)) return;
  for_each_word(address, count, [&](uintptr_t word) { log(words[word], access); });
}

}  // namespace

void forget_accesses() { words.clear(); }

void forget_accesses(const void* from, size_t count) {
  for_each_word(from, count, [](uintptr_t word) { words.erase(word); });
}

void log_write(const void* address, size_t count) {
  if (instrumented) log(address, count, true, false);
}
void log_read(const void* address, size_t count) {
  if (instrumented) log(address, count, false, false);
}
void log_atomic(const void* address, size_t count) {
  if (instrumented) log(address, count, true, true);
}

void log_alignment(const void* address, size_t count) {
  Moment moment;
  if (reinterpret_cast<uintptr_t>(address) % count == 0 || !current(moment)) return;
  char text[120];
  std::snprintf(text, sizeof text, "a copy of %zu bytes at an address that they do not divide",
                count);
  report(text);
}

bool logs_accesses() { return instrumented; }

size_t take_findings(char* text, size_t room) {
  std::string all;
  for (const auto& each : findings) all += each + "\n";
  if (more > 0) all += "and " + std::to_string(more) + " more\n";
  const size_t count = std::min(room - 1, all.size());
  std::memcpy(text, all.data(), count);
  text[count] = 0;
  findings.clear();
  more = 0;
  return count;
}

}  // namespace metasparse::emulation

// ---- the functions that instrumented code calls ------------------------------------------------

using namespace metasparse::emulation;

#define METASPARSE_ACCESS(bytes)                                                 \
  void __tsan_read##bytes(void* address) { log_read(address, bytes); }           \
  void __tsan_write##bytes(void* address) { log_write(address, bytes); }         \
  void __tsan_unaligned_read##bytes(void* address) { log_read(address, bytes); } \
  void __tsan_unaligned_write##bytes(void* address) { log_write(address, bytes); }

namespace {

// What the check of alignments passes: where, of which type, and the logarithm of its alignment.
struct Mismatch {
  const char* file;
  uint32_t line, column;
  const void* type;
  unsigned char log_alignment, kind;
};

}  // namespace

extern "C" {
void __tsan_init() { instrumented = true; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
METASPARSE_ACCESS(1)
METASPARSE_ACCESS(2)
METASPARSE_ACCESS(4)
METASPARSE_ACCESS(8)
METASPARSE_ACCESS(16)
void __tsan_read_range(void* address, size_t count) { log_read(address, count); }
void __tsan_write_range(void* address, size_t count) { log_write(address, count); }
void __ubsan_handle_type_mismatch_v1(Mismatch* mismatch, void*) {
  Moment moment;
  if (!current(moment)) return;
  const std::string file(mismatch->file);
  report(file.substr(file.rfind('/') + 1) + ":" + std::to_string(mismatch->line) +
         ": an access that wants an address divisible by " +
         std::to_string(1u << mismatch->log_alignment));
}
}
