#pragma once
// How often each piece of text occurs.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "lib/tokenizer/split.h"

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

}  // namespace dstrain
