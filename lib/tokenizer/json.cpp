#include "lib/tokenizer/json.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "lib/core/errors.h"
#include "lib/tokenizer/utf8.h"

namespace dstrain {

namespace {

constexpr int kDepth = 64;
const Json kNull;

}  // namespace

Json parse_json(const std::string& text, const std::string& path) {
  std::vector<std::unordered_set<std::string>> keys;
  const Json::parser_callback_t check_event = [&](int depth, Json::parse_event_t event, Json& parsed) {
    require(depth < kDepth, ExitCode::data, "{}: nested deeper than {} levels", path, kDepth);
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key) {
      const auto& name = parsed.get_ref<const std::string&>();
      require(keys.back().insert(name).second, ExitCode::data, "{}: the key '{}' is there twice", path, name);
    }
    return true;
  };
  try {
    return Json::parse(text, check_event);
  } catch (const Json::exception& e) {
    fail(ExitCode::data, "{}: not JSON: {}", path, e.what());
  }
}

JsonNode JsonNode::operator[](std::string_view key) const {
  const std::string name = (key_.empty() ? "" : key_ + ".").append(key);
  if (!value_->is_object()) return {kNull, file_, name};
  const auto found = value_->find(std::string(key));
  return {found == value_->end() ? kNull : *found, file_, name};
}

JsonNode JsonNode::operator[](std::size_t index) const {
  return {value_->at(index), file_, key_ + "[" + std::to_string(index) + "]"};
}

void JsonNode::refuse(std::string_view why) const {
  std::string text = value_->dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 80) {
    std::size_t cut = 77;
    while ((static_cast<unsigned char>(text[cut]) & 0xc0u) == 0x80) --cut;
    text = text.substr(0, cut) + "...";
  }
  fail(ExitCode::data, "{}: {}: {}", place(), text, why);
}

std::string JsonNode::text() const {
  if (!value_->is_string()) refuse("expected text");
  return value_->get<std::string>();
}

std::uint32_t JsonNode::character() const {
  const std::string s = text();
  if (s.empty() || utf8::decode(s, 0).size != s.size()) refuse("expected one character");
  return utf8::decode(s, 0).code;
}

bool JsonNode::flag() const {
  if (!value_->is_boolean()) refuse("expected true or false");
  return value_->get<bool>();
}

std::int64_t JsonNode::integer(std::int64_t least, std::int64_t most) const {
  const bool fits = value_->is_number_unsigned() ? value_->get<std::uint64_t>() <= static_cast<std::uint64_t>(most)
                                                 : value_->is_number_integer();
  if (!fits || value_->get<std::int64_t>() < least || value_->get<std::int64_t>() > most)
    refuse(format("expected an integer from {} to {}", least, most));
  return value_->get<std::int64_t>();
}

double JsonNode::real() const {
  if (!value_->is_number() || !std::isfinite(value_->get<double>())) refuse("expected a number");
  return value_->get<double>();
}

const Json& JsonNode::array() const {
  if (!value_->is_array()) refuse("expected a list");
  return *value_;
}

void JsonNode::only(std::initializer_list<std::string_view> keys) const {
  if (!value_->is_object()) refuse("expected an object");
  for (const auto& [key, value] : value_->items())
    if (std::find(keys.begin(), keys.end(), std::string_view(key)) == keys.end())
      (*this)[key].refuse("is not supported: unknown key");
}

}  // namespace dstrain
