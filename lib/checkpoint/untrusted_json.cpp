#include "lib/checkpoint/untrusted_json.h"

#include <nlohmann/json.hpp>

namespace dstrain {

// From nlohmann's events to the reader's.
class JsonEvents final : public nlohmann::json::json_sax_t {
 public:
  JsonEvents(const std::string& where, JsonReader& reader) : where_(where), reader_(reader) {}

  bool null() override { return other(); }
  bool boolean(bool) override { return other(); }
  bool number_integer(number_integer_t) override { return other(); }
  bool number_float(number_float_t, const string_t&) override { return other(); }
  bool binary(binary_t&) override { return other(); }
  bool number_unsigned(number_unsigned_t value) override {
    enter();
    reader_.number(value);
    return leave();
  }
  bool string(string_t& value) override {
    enter();
    reader_.text(value);
    return leave();
  }
  bool start_object(std::size_t) override { return open(false); }
  bool start_array(std::size_t) override { return open(true); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    Container& in = open_.back();
    require(in.names.insert(name).second, ExitCode::data, "{}: {} appears twice", where_, quote(name));
    reader_.path_.push_back(name);
    return true;
  }
  bool parse_error(std::size_t at, const std::string&, const nlohmann::json::exception&) override {
    fail(ExitCode::data, "{}: no JSON from byte {} on", where_, at);
  }

 private:
  struct Container {
    bool list = false;
    std::size_t elements = 0;
    std::set<std::string> names;
  };
  // An element of a list has no key.
  void enter() {
    if (open_.empty() || !open_.back().list) return;
    reader_.path_.emplace_back();
    reader_.element_ = open_.back().elements++;
  }
  bool leave() {
    if (!open_.empty()) reader_.path_.pop_back();
    return true;
  }
  bool other() {
    enter();
    reader_.other();
    return leave();
  }
  bool open(bool list) {
    enter();
    require(open_.size() < JsonReader::kDeepest, ExitCode::data, "{}: nested deeper than {}", where_,
            JsonReader::kDeepest);
    reader_.opened(list);
    open_.push_back({.list = list});
    return true;
  }
  bool close() {
    open_.pop_back();
    reader_.closed();
    return leave();
  }

  const std::string& where_;
  JsonReader& reader_;
  std::vector<Container> open_;
};

void read_json(const std::string& text, const std::string& where, JsonReader& reader) {
  JsonEvents events(where, reader);
  nlohmann::json::sax_parse(text, &events);
}

std::string quote(const std::string& text) {
  constexpr std::size_t kShown = 100;
  std::string out =
      nlohmann::json(text.substr(0, kShown)).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  out.front() = out.back() = '\'';
  return text.size() > kShown ? out + "..." : out;
}

}  // namespace dstrain
