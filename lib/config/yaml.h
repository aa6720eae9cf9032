#pragma once
// The subset of YAML that a job file is written in: one document of mappings, lists and scalars, without anchors,
// aliases, tags or merge keys. Marks are 1-based; columns count bytes.

#include <string>
#include <string_view>
#include <vector>

namespace dstrain {

struct Mark {
  int line = 0;
  int column = 0;
};

struct YamlNode {
  enum class Kind { null, scalar, map, list };
  Kind kind = Kind::null;
  Mark mark;
  std::string text;     // scalar
  bool quoted = false;  // scalar written in quotes or as a block
  std::string key;      // in a map
  Mark key_mark;
  std::vector<YamlNode> children;

  const YamlNode* find(std::string_view name) const;
};

// One line of an error report.
struct Problem {
  Mark mark;
  std::string path;  // of the key, with dots; may be empty
  std::string message;
};

inline constexpr std::size_t kYamlBytes = 1u << 20;
inline constexpr int kYamlDepth = 32;
inline constexpr int kYamlNodes = 10000;

// Never throws: what is wrong is appended to `problems`, and the tree then holds what could be read. `complete` tells
// whether the text was read to its end.
struct YamlTree {
  YamlNode root;
  bool complete = false;
};
YamlTree parse_yaml(const std::string& text, std::vector<Problem>& problems);

// For messages: at most 60 bytes, without control characters.
std::string shown(std::string_view text);

}  // namespace dstrain
