#pragma once
// A trie of byte strings: which of them start at a place of a text.

#include <cstdint>
#include <string_view>
#include <vector>

namespace dstrain {

// The longest string that a trie takes: a search from one place costs up to this.
inline constexpr std::size_t kMaxTrieString = 1024;

class ByteTrie {
 public:
  ByteTrie();
  // Of equal strings the last value stays. REQUIRES: 0 < text.size() <= kMaxTrieString, value >= 0.
  void add(std::string_view text, std::int32_t value);
  bool empty() const { return values_.size() == 1; }

  // Calls visit(length, value) for every string of the trie at the front of `text`, shortest first.
  template <class F>
  void prefixes(std::string_view text, F&& visit) const {
    if (text.empty()) return;
    std::uint32_t node = first_[static_cast<unsigned char>(text[0])];
    for (std::size_t i = 1; node != 0; ++i) {
      if (values_[node] >= 0) visit(i, values_[node]);
      if (i >= text.size()) return;
      node = child(node, static_cast<unsigned char>(text[i]));
    }
  }
  // The longest string at the front of `text`: its length, 0 when there is none, and its value.
  std::size_t longest(std::string_view text, std::int32_t& value) const {
    std::size_t found = 0;
    prefixes(text, [&](std::size_t length, std::int32_t v) {
      found = length;
      value = v;
    });
    return found;
  }

 private:
  static constexpr std::uint64_t kEmpty = ~0ull;
  static std::size_t mix(std::uint64_t key) {
    key *= 0x9E3779B97F4A7C15ull;
    return static_cast<std::size_t>(key ^ (key >> 32));
  }
  std::uint32_t child(std::uint32_t node, unsigned byte) const {
    const std::uint64_t key = static_cast<std::uint64_t>(node) << 8 | byte;
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t i = mix(key) & mask;; i = (i + 1) & mask) {
      if (slots_[i].key == key) return slots_[i].node;
      if (slots_[i].key == kEmpty) return 0;
    }
  }
  std::uint32_t make_child(std::uint32_t node, unsigned byte);

  struct Slot {
    std::uint64_t key;
    std::uint32_t node;
  };
  std::uint32_t first_[256] = {};     // children of the root
  std::vector<std::int32_t> values_;  // by node; 0 is the root
  std::vector<Slot> slots_;           // open addressing: node and byte -> child
  std::size_t used_ = 0;
};

}  // namespace dstrain
