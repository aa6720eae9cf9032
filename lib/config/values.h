#pragma once
// One value of the job file: from YAML to C++, checked against its Key. The number grammar is ours, not YAML's.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lib/config/fields.h"
#include "lib/config/yaml.h"

namespace dstrain {

// decimal, optional sign, no leading zeros.
std::optional<std::int64_t> parse_integer(std::string_view text);
std::optional<std::uint64_t> parse_unsigned(std::string_view text);
// decimal with optional fraction and exponent, finite.
std::optional<double> parse_real(std::string_view text);
// The shortest text that reads back as the same double.
std::string real_text(double value);

// "in (0, 1]", "at least 1", or "" when there is no bound.
std::string range_text(const Key& key);
// Whether a number lies in the key's range.
bool in_range(const Key& key, double value);
// The candidate nearest to `text` by edit distance, or "" when none is near.
std::string nearest(std::string_view text, const std::vector<std::string>& candidates);

// Reads `node` into `value`; on a mistake adds to `problems`, naming `path`, and leaves `value` alone.
void read_value(const Key& key, const YamlNode& node, const std::string& path, bool& value,
                std::vector<Problem>& problems);
void read_value(const Key& key, const YamlNode& node, const std::string& path, int& value,
                std::vector<Problem>& problems);
void read_value(const Key& key, const YamlNode& node, const std::string& path, std::int64_t& value,
                std::vector<Problem>& problems);
void read_value(const Key& key, const YamlNode& node, const std::string& path, std::uint64_t& value,
                std::vector<Problem>& problems);
void read_value(const Key& key, const YamlNode& node, const std::string& path, double& value,
                std::vector<Problem>& problems);
void read_value(const Key& key, const YamlNode& node, const std::string& path, std::string& value,
                std::vector<Problem>& problems);
void read_value(const Key& key, const YamlNode& node, const std::string& path, std::vector<double>& value,
                std::vector<Problem>& problems);
void read_value(const Key& key, const YamlNode& node, const std::string& path, std::vector<DataSource>& value,
                std::vector<Problem>& problems);

}  // namespace dstrain
