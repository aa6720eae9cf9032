#pragma once
// How often each piece of text occurs.

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "lib/core/hash.h"
#include "lib/tokenizer/split.h"
#include "lib/tokenizer/utf8.h"

namespace dstrain {

// Used by one thread at a time.
class PieceCounter {
 public:
  explicit PieceCounter(Split split) : split_(split), slots_(1u << 10) {}

  // Counts the pieces of a text. Bytes that are not UTF-8 are pieces of their own.
  void add_text(std::string_view text);
  void add(std::string_view piece, std::int64_t count);
  std::size_t size() const { return used_; }

  template <class F>
  void for_each(F&& visit) const {
    for (const Slot& s : slots_)
      if (s.count != 0) visit(std::string_view(bytes_).substr(s.begin, s.size), s.count);
  }

 private:
  struct Slot {
    std::uint64_t hash = 0, begin = 0, size = 0;
    std::int64_t count = 0;
  };
  void grow();

  Split split_;
  std::string bytes_;  // of all pieces
  std::vector<Slot> slots_;
  std::size_t used_ = 0;
  std::vector<std::size_t> ends_;
};

inline void PieceCounter::add(std::string_view piece, std::int64_t count) {
  const std::uint64_t hash = xxh3(piece);
  const std::size_t mask = slots_.size() - 1;
  std::size_t i = hash & mask;
  for (; slots_[i].count != 0; i = (i + 1) & mask) {
    Slot& s = slots_[i];
    if (s.hash == hash && s.size == piece.size() && std::memcmp(bytes_.data() + s.begin, piece.data(), s.size) == 0) {
      s.count += count;
      return;
    }
  }
  slots_[i] = {hash, bytes_.size(), piece.size(), count};
  bytes_ += piece;
  if (++used_ * 2 > slots_.size()) grow();
}

inline void PieceCounter::grow() {
  std::vector<Slot> old(slots_.size() * 2);
  old.swap(slots_);
  const std::size_t mask = slots_.size() - 1;
  for (const Slot& s : old) {
    if (s.count == 0) continue;
    std::size_t i = s.hash & mask;
    while (slots_[i].count != 0) i = (i + 1) & mask;
    slots_[i] = s;
  }
}

inline void PieceCounter::add_text(std::string_view text) {
  while (!text.empty()) {
    const std::size_t good = utf8::valid_prefix(text);
    ends_.clear();
    append_pieces(split_, text, 0, good, ends_);
    std::size_t begin = 0;
    for (const std::size_t end : ends_) {
      add(text.substr(begin, end - begin), 1);
      begin = end;
    }
    text.remove_prefix(good);
    const std::size_t bad = utf8::invalid_prefix(text);
    if (bad > 0) add(text.substr(0, bad), 1);
    text.remove_prefix(bad);
  }
}

}  // namespace dstrain
