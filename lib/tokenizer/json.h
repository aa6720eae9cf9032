#pragma once
// Reading tokenizer.json: values that know their place in the file, so that every refusal names it.

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace dstrain {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

// Parses JSON whose nesting stays below 64 levels and whose keys are each there once. Throws Error{data} with `path`.
Json parse_json(const std::string& text, const std::string& path);

// A value with its place: "FILE: key.key[index]". Refers to a Json that outlives it.
class JsonNode {
 public:
  JsonNode(const Json& value, std::string file, std::string key = "")
      : value_(&value), file_(std::move(file)), key_(std::move(key)) {}

  const Json& value() const { return *value_; }
  bool is_null() const { return value_->is_null(); }
  std::string place() const { return key_.empty() ? file_ : file_ + ": " + key_; }
  const std::string& file() const { return file_; }

  JsonNode operator[](std::string_view key) const;  // null when it is absent
  JsonNode operator[](std::size_t index) const;     // REQUIRES: an array that has it
  std::size_t size() const { return value_->size(); }

  // Throws Error{data}: "<place>: <value>: <why>".
  [[noreturn]] void refuse(std::string_view why) const;

  // The value, which must be of the kind asked for.
  std::string text() const;
  std::uint32_t character() const;  // a text of one character
  bool flag() const;
  bool flag(bool when_absent) const { return is_null() ? when_absent : flag(); }
  std::int64_t integer(std::int64_t least, std::int64_t most) const;
  double real() const;
  const Json& array() const;

  // Demands an object without keys but these.
  void only(std::initializer_list<std::string_view> keys) const;

 private:
  const Json* value_;
  std::string file_, key_;
};

}  // namespace dstrain
