#include "lib/tokenizer/trie.h"

#include "lib/core/errors.h"

namespace dstrain {

ByteTrie::ByteTrie() : values_{-1}, slots_(16, {kEmpty, 0}) {}

void ByteTrie::add(std::string_view text, std::int32_t value) {
  check(!text.empty() && text.size() <= kMaxTrieString && value >= 0, "{} bytes, value {}", text.size(), value);
  std::uint32_t node = 0;
  for (const char c : text) node = make_child(node, static_cast<unsigned char>(c));
  values_[node] = value;
}

std::uint32_t ByteTrie::make_child(std::uint32_t node, unsigned byte) {
  const auto fresh = [&] {
    check(values_.size() < 0xffffffffu, "too many nodes");
    values_.push_back(-1);
    return static_cast<std::uint32_t>(values_.size() - 1);
  };
  if (node == 0) {
    if (first_[byte] == 0) first_[byte] = fresh();
    return first_[byte];
  }
  if (const std::uint32_t known = child(node, byte)) return known;
  const auto place = [&](std::vector<Slot>& slots, std::uint64_t key) -> Slot& {
    std::size_t i = mix(key) & (slots.size() - 1);
    while (slots[i].key != kEmpty) i = (i + 1) & (slots.size() - 1);
    return slots[i];
  };
  if (++used_ * 2 > slots_.size()) {
    std::vector<Slot> larger(slots_.size() * 2, {kEmpty, 0});
    for (const Slot& s : slots_)
      if (s.key != kEmpty) place(larger, s.key) = s;
    slots_.swap(larger);
  }
  const std::uint64_t key = static_cast<std::uint64_t>(node) << 8 | byte;
  const std::uint32_t made = fresh();
  place(slots_, key) = {key, made};
  return made;
}

}  // namespace dstrain
