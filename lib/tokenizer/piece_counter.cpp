#include "lib/tokenizer/piece_counter.h"

#include <cstring>

#include "lib/core/hash.h"
#include "lib/tokenizer/utf8.h"

namespace dstrain {

void PieceCounter::add(std::string_view piece, std::int64_t count) {
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

void PieceCounter::grow() {
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

void PieceCounter::add_text(std::string_view text) {
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
