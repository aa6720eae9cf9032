#include "lib/observe/series.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

namespace dstrain {

namespace {

constexpr std::size_t kLongestLine = std::size_t{1} << 20;
constexpr std::size_t kMostKeys = 1024;
constexpr int kDeepest = 2;  // lists in lists
constexpr std::size_t kReadBytes = std::size_t{1} << 20;

// Takes one line apart: an object of numbers and nulls.
class LineReader final : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::vector<std::pair<std::string, double>> values;
  std::int64_t step = -1;
  std::string problem;

  void reset() {
    values.clear();
    step = -1;
    problem.clear();
    open_ = false;
    lists_ = 0;
  }
  bool null() override { return take(std::numeric_limits<double>::quiet_NaN(), -1); }
  bool boolean(bool) override { return other("true or false"); }
  bool number_integer(number_integer_t v) override { return take(static_cast<double>(v), v); }
  bool number_unsigned(number_unsigned_t v) override {
    const bool fits = v <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    return take(static_cast<double>(v), fits ? static_cast<std::int64_t>(v) : -1);
  }
  bool number_float(number_float_t v, const string_t&) override { return take(v, -1); }
  bool string(string_t&) override { return other("a string"); }
  bool binary(binary_t&) override { return other("binary"); }
  bool start_object(std::size_t) override {
    if (open_ || lists_ > 0) return other("an object");
    return open_ = true;
  }
  bool key(string_t& name) override {
    key_ = name;
    return true;
  }
  bool end_object() override { return true; }
  bool start_array(std::size_t) override {
    if (!open_ || key_ == "step" || lists_ == kDeepest) return other("an array");
    if (lists_++ == 0) place_ = 0;
    return true;
  }
  bool end_array() override {
    --lists_;
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& e) override {
    problem = e.what();
    return false;
  }

 private:
  bool other(const char* what) {
    problem = open_ ? format("key '{}' is {}, not a number", key_, what) : format("{} instead of an object", what);
    return false;
  }
  bool take(double value, std::int64_t integer) {
    if (!open_) return other("a value");
    if (key_ == "step") {
      if (integer < 0)
        problem = "the step is no integer from 0 on";
      else if (step >= 0)
        problem = "two steps";
      step = integer;
      return problem.empty();
    }
    if (lists_ == 0) values.emplace_back(key_, value);
    if (lists_ == 1) values.emplace_back(format("{}.{}", key_, place_++), value);
    return true;
  }

  std::string key_;
  bool open_ = false;
  int lists_ = 0, place_ = 0;
};

class MetricsReader {
 public:
  explicit MetricsReader(const std::string& path) : path_(path) {}

  void line(std::string_view text) {
    ++number_;
    reader_.reset();
    nlohmann::json::sax_parse(text, &reader_);
    const auto sound = [&](bool ok, const std::string& problem) {
      require(ok, ExitCode::data, "{}:{}: {}", path_, number_, problem);
    };
    sound(reader_.problem.empty(), reader_.problem);
    sound(reader_.step >= 0, "no step");
    sound(reader_.step >= last_step_, format("step {} after step {}", reader_.step, last_step_));
    last_step_ = reader_.step;
    for (const auto& [key, value] : reader_.values) {
      Column& column = columns_[key];
      sound(column.line != number_, format("key '{}' twice", key));
      sound(columns_.size() <= kMostKeys, format("more than {} keys", kMostKeys));
      column.line = number_;
      column.series.steps.push_back(reader_.step);
      column.series.values.push_back(value);
    }
  }

  std::map<std::string, Series> finish() {
    std::map<std::string, Series> all;
    for (auto& [key, column] : columns_) all.emplace(key, std::move(column.series));
    return all;
  }
  void too_long() const {
    fail(ExitCode::data, "{}:{}: a line longer than {} bytes", path_, number_ + 1, kLongestLine);
  }

 private:
  struct Column {
    Series series;
    std::int64_t line = 0;  // that last had the key
  };
  const std::string& path_;
  LineReader reader_;
  std::int64_t number_ = 0, last_step_ = 0;
  std::map<std::string, Column> columns_;
};

}  // namespace

std::map<std::string, Series> read_metrics(const Files& files, const std::string& path) {
  const auto file = files.open(path, OpenMode::read);
  const std::uint64_t size = file->size();  // what is appended from here on belongs to the next reading
  MetricsReader reader(path);
  std::string text;
  for (std::uint64_t at = 0; at < size;) {
    const std::size_t kept = text.size();
    const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(kReadBytes, size - at));
    text.resize(kept + n);
    file->pread(std::as_writable_bytes(std::span(text).subspan(kept)), at);
    at += n;
    std::size_t begin = 0;
    for (std::size_t end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
      if (end - begin > kLongestLine) reader.too_long();
      reader.line(std::string_view(text).substr(begin, end - begin));
    }
    text.erase(0, begin);
    if (text.size() > kLongestLine) reader.too_long();
  }
  return reader.finish();
}

std::vector<std::size_t> points_to_draw(std::span<const double> values, std::size_t buckets) {
  const std::size_t n = values.size();
  std::vector<std::size_t> kept;
  if (n <= 2 * buckets) {
    for (std::size_t i = 0; i < n; ++i) kept.push_back(i);
    return kept;
  }
  constexpr std::size_t kNone = std::numeric_limits<std::size_t>::max();
  kept.push_back(0);
  for (std::size_t b = 0; b < buckets; ++b) {
    const std::size_t begin = b * n / buckets, end = (b + 1) * n / buckets;
    std::size_t low = kNone, high = kNone, gap = kNone;
    for (std::size_t i = begin; i < end; ++i) {
      if (!std::isfinite(values[i])) {
        if (gap == kNone) gap = i;
        continue;
      }
      if (low == kNone || values[i] < values[low]) low = i;
      if (high == kNone || values[i] > values[high]) high = i;
    }
    for (const std::size_t i : {low, high, gap})
      if (i != kNone) kept.push_back(i);
  }
  kept.push_back(n - 1);
  std::sort(kept.begin(), kept.end());
  kept.erase(std::unique(kept.begin(), kept.end()), kept.end());
  return kept;
}

}  // namespace dstrain
