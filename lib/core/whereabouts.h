#pragma once
// Whereabouts: what a rank is doing, published for the watchdogs of its peers. It lives in memory that they share (or
// in this process alone) and is written with relaxed stores of the rank's own threads: a handful of words an op, no
// lock, no system call. Readers may see two fields of two neighbouring moments.

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>

namespace dstrain {

// Up to 24 bytes of text in three words, made at compile time for names of ops.
struct PackedText {
  std::array<std::uint64_t, 3> words{};

  constexpr PackedText() = default;
  constexpr PackedText(std::string_view text) {  // NOLINT(google-explicit-constructor)
    for (std::size_t i = 0; i < text.size() && i < 24; ++i)
      words[i / 8] |= static_cast<std::uint64_t>(static_cast<unsigned char>(text[i])) << (i % 8 * 8);
  }
};

// Text that one thread writes and others read.
class SharedText {
 public:
  void set(const PackedText& text) {
    for (std::size_t i = 0; i < 3; ++i) words_[i].store(text.words[i], std::memory_order_relaxed);
  }
  bool empty() const { return words_[0].load(std::memory_order_relaxed) == 0; }
  std::string get() const {
    std::string text;
    for (const auto& word : words_) {
      const std::uint64_t w = word.load(std::memory_order_relaxed);
      for (int i = 0; i < 8; ++i) {
        const char c = static_cast<char>(w >> (i * 8));
        if (c == 0) return text;
        text += c;
      }
    }
    return text;
  }

 private:
  std::array<std::atomic<std::uint64_t>, 3> words_{};
};

// One rank's.
struct alignas(64) Whereabouts {
  static constexpr int kRunning = -1;

  // The watchdog's.
  std::atomic<std::uint64_t> beats{0};
  std::atomic<std::int32_t> process{0};

  // The training thread's.
  std::atomic<std::uint64_t> changes{0};  // any publication: progress
  std::atomic<std::int64_t> step{0};
  std::atomic<std::int32_t> layer{-1}, micro_batch{-1};
  std::atomic<double> limit{0};  // seconds that may pass without progress in this activity; 0: no limit
  SharedText activity;           // start, step, evaluation, save, end
  SharedText phase;              // forward, backward, reduce, optimizer; empty between
  SharedText op;                 // the last one launched
  SharedText waits;              // whom or what the thread waits for: a group's name, or "loader", "device", "writer"
  std::atomic<std::int32_t> peer{-1};         // the member of the group that it waits for; -1: several
  std::atomic<std::int32_t> directory{0};     // 1: the run directory is this run's
  std::atomic<std::int32_t> ended{kRunning};  // the exit code, once the rank has come to its end by itself

  // The checkpoint writer's: the step being written, or -1.
  std::atomic<std::int64_t> saving{-1};

  void changed() { changes.store(changes.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed); }
  void enter(const PackedText& what, double seconds) {
    activity.set(what);
    limit.store(seconds, std::memory_order_relaxed);
    changed();
  }
  void place(int at_layer, int at_micro_batch, const char* at_phase) {
    layer.store(at_layer, std::memory_order_relaxed);
    micro_batch.store(at_micro_batch, std::memory_order_relaxed);
    phase.set(PackedText(at_phase));
    changed();
  }
  void launched(const PackedText& name) {
    op.set(name);
    changed();
  }
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free && std::atomic<double>::is_always_lock_free);

// Says in a Whereabouts, which may be null, that its thread waits, from construction to destruction.
class Waiting {
 public:
  Waiting(Whereabouts* here, const PackedText& what, int peer = -1) : here_(here) {
    if (!here_) return;
    here_->peer.store(peer, std::memory_order_relaxed);
    here_->waits.set(what);
    here_->changed();
  }
  ~Waiting() {
    if (!here_) return;
    here_->waits.set({});
    here_->changed();
  }
  Waiting(const Waiting&) = delete;
  Waiting& operator=(const Waiting&) = delete;

 private:
  Whereabouts* here_;
};

}  // namespace dstrain
