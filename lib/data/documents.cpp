#include "lib/data/documents.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "lib/config/yaml.h"

namespace dstrain {

namespace {

constexpr std::size_t kBuffer = 1 << 16;
constexpr const char* kNames[] = {"file", "blank-line", "record"};

// Finds one string of the outermost object, without keeping the rest.
class FindText : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit FindText(const std::string& key) : key_(key) {}

  std::optional<std::string> text;
  const char* found = nullptr;  // what stands under the key, or instead of the object, if not what is asked for
  std::string error;
  std::size_t position = 0;

  bool null() override { return value("null"); }
  bool boolean(bool) override { return value("true or false"); }
  bool number_integer(number_integer_t) override { return value("a number"); }
  bool number_unsigned(number_unsigned_t) override { return value("a number"); }
  bool number_float(number_float_t, const string_t&) override { return value("a number"); }
  bool binary(binary_t&) override { return value("bytes"); }
  bool string(string_t& s) override {
    if (depth_ == 1 && here_) {
      text = std::move(s);
      found = nullptr;
      here_ = false;
      return true;
    }
    return value("text");
  }
  bool key(string_t& name) override {
    if (depth_ == 1) here_ = name == key_;
    return true;
  }
  bool start_object(std::size_t) override { return (depth_ == 0 || value("an object")) && ++depth_ > 0; }
  bool end_object() override { return --depth_ >= 0; }
  bool start_array(std::size_t) override { return value("an array") && ++depth_ > 0; }
  bool end_array() override { return --depth_ >= 0; }
  bool parse_error(std::size_t at, const std::string&, const nlohmann::detail::exception& e) override {
    // "[json.exception.parse_error.101] parse error at line 1, column 9: syntax error while parsing value - invalid
    // literal; last read: '{x'": the middle part. What was read may be long.
    error = e.what();
    if (const auto colon = error.find(": "); colon != std::string::npos) error = error.substr(colon + 2);
    error = error.substr(0, std::min<std::size_t>(error.find("; last read"), 200));
    position = at;
    return false;
  }

 private:
  bool value(const char* what) {
    if (depth_ == 0) {
      found = what;
      return false;
    }
    if (depth_ == 1 && std::exchange(here_, false)) {
      found = what;
      text.reset();
    }
    return true;
  }
  const std::string& key_;
  std::int64_t depth_ = 0;
  bool here_ = false;  // the value that follows is under the key
};

}  // namespace

const char* name_of(DocumentRule rule) { return kNames[static_cast<std::size_t>(rule)]; }

DocumentRule document_rule(std::string_view name) {
  for (const DocumentRule rule : {DocumentRule::file, DocumentRule::blank_line, DocumentRule::record})
    if (name == name_of(rule)) return rule;
  check(false, "no rule for documents is named {}", std::string(name));
  return DocumentRule::file;
}

bool is_blank(std::string_view text) { return text.find_first_not_of(" \t\r\n\v\f") == std::string_view::npos; }

DocumentReader::DocumentReader(const Files& files, std::vector<TextFile> texts, DocumentRule rule)
    : files_(files), texts_(std::move(texts)), rule_(rule), buffer_(kBuffer) {}

DocumentReader::~DocumentReader() = default;

void DocumentReader::guard(std::size_t bytes, Index line) const {
  const TextFile& text = texts_[file_];
  require(bytes <= kMaxDocument, ExitCode::data, "{}: line {}: a document of more than {} bytes{}", text.path, line,
          kMaxDocument,
          rule_ == DocumentRule::file && !text.records ? "; --documents blank-line or record cuts it" : "");
}

bool DocumentReader::next_line(std::string& into) {
  const std::size_t before = into.size();
  bool any = false;
  while (true) {
    if (at_ == held_) {
      at_ = 0;
      held_ = stream_->read(buffer_);
      if (held_ == 0) {
        line_ += any ? 1 : 0;
        return any;
      }
    }
    any = true;
    const char* begin = buffer_.data() + at_;
    const auto* end = static_cast<const char*>(std::memchr(begin, '\n', held_ - at_));
    const std::size_t n = end ? static_cast<std::size_t>(end - begin) : held_ - at_;
    guard(into.size() - before + n, line_ + 1);
    into.append(begin, n);
    at_ += n;
    if (!end) continue;
    ++at_;
    ++line_;
    return true;
  }
}

bool DocumentReader::next(RawDocument& into) {
  for (; file_ < texts_.size(); ++file_) {
    if (!stream_) {
      stream_ = std::make_unique<TextStream>(files_, texts_[file_].path);
      at_ = held_ = 0;
      line_ = 0;
    }
    into.file = file_;
    into.json = texts_[file_].records;
    into.bytes.clear();
    if (next_of_file(into)) return true;
    before_ += texts_[file_].bytes;
    stream_.reset();
  }
  return false;
}

bool DocumentReader::next_of_file(RawDocument& into) {
  if (into.json) {
    while (next_line(into.bytes)) {
      into.line = line_;
      if (!is_blank(into.bytes)) return true;
      into.bytes.clear();
    }
    return false;
  }
  if (rule_ == DocumentRule::record) {
    const bool any = next_line(into.bytes);
    if (into.bytes.ends_with('\r')) into.bytes.pop_back();
    into.line = line_;
    return any;
  }
  if (rule_ == DocumentRule::file) {
    if (line_ > 0) return false;  // it was given
    into.line = line_ = 1;
    for (std::size_t n; (n = stream_->read(buffer_)) > 0;) {
      guard(into.bytes.size() + n, 1);
      into.bytes.append(buffer_.data(), n);
    }
    return true;
  }
  std::string line;
  while (true) {
    line.clear();
    const bool any = next_line(line);
    if (!any || is_blank(line)) {
      if (into.bytes.ends_with('\r')) into.bytes.pop_back();
      if (!any || !into.bytes.empty()) return !into.bytes.empty();
      continue;
    }
    if (into.bytes.empty())
      into.line = line_;
    else
      into.bytes += '\n';
    guard(into.bytes.size() + line.size(), into.line);
    into.bytes += line;
  }
}

std::string text_of(RawDocument&& document, const std::vector<TextFile>& texts, const std::string& key) {
  if (!document.json) return std::move(document.bytes);
  FindText find(key);
  const bool good = nlohmann::json::sax_parse(document.bytes, &find);
  if (good && find.text) return *std::move(find.text);
  const std::string place = format("{}: line {}", texts[document.file].path, document.line);
  if (!find.error.empty()) {
    // It may not be UTF-8.
    for (char& c : document.bytes)
      if (static_cast<unsigned char>(c) >= 0x80) c = '?';
    fail(ExitCode::data, "{}: not JSON, byte {} of '{}': {}", place, find.position, shown(document.bytes), find.error);
  }
  if (!good) fail(ExitCode::data, "{}: expected an object, found {}: '{}'", place, find.found, shown(document.bytes));
  if (find.found) fail(ExitCode::data, "{}: expected text under '{}', found {}", place, shown(key), find.found);
  fail(ExitCode::data, "{}: no key '{}' in '{}'", place, shown(key), shown(document.bytes));
}

}  // namespace dstrain
