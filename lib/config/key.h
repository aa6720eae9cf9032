#pragma once
// What the job file says of one key: name, constraint, help.

#include <limits>
#include <string_view>
#include <vector>

namespace dstrain {

struct Key {
  const char* name;
  const char* help;  // one line, with units
  bool required = false;
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  bool open_min = false;  // the bound itself is excluded
  bool open_max = false;
  std::vector<std::string_view> choices = {};
  const char* only = "";  // why the range or the choices are so narrow
  // The model.types, apart by ", ", for which the key has a meaning; "": all.
  const char* model_type = "";
  std::size_t count = 0;      // exact length of a list; 0: any
  bool may_be_empty = false;  // or no element at all
};

// Whether the key has a meaning for a model of this type.
inline bool has_meaning(const Key& key, std::string_view type) {
  std::string_view list = key.model_type;
  if (list.empty()) return true;
  while (true) {
    const std::size_t end = list.find(", ");
    if (list.substr(0, end) == type) return true;
    if (end == std::string_view::npos) return false;
    list.remove_prefix(end + 2);
  }
}
constexpr const char* kDeepseek = "deepseek_v2, deepseek_v3";
constexpr const char* kLlamaDeepseek = "llama, deepseek_v2, deepseek_v3";
inline constexpr double kBig = 2147483647.0;

}  // namespace dstrain
