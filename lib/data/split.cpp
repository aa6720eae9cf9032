#include "lib/data/split.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <utility>

#include "lib/core/errors.h"

namespace dstrain {

namespace {

// Unicode's White_Space. PCRE2's own \s has U+180E as well, which Unicode took out in 6.3.
constexpr const char* kSpace =
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";

// Oniguruma's pattern in PCRE2's words: the same but for \s and \S.
std::string to_pcre2(const std::string& pattern) {
  std::string out;
  bool in_class = false;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\') {
      const char next = pattern.at(++i);
      if (next == 's')
        out += in_class ? std::string(kSpace) : std::string("[").append(kSpace).append("]");
      else if (next == 'S' && !in_class)
        out.append("[^").append(kSpace).append("]");
      else
        out.append({c, next});
      continue;
    }
    if (c == '[') in_class = true;
    if (c == ']') in_class = false;
    out += c;
  }
  return out;
}

// Length of the valid UTF-8 at the front of `s`; where there is none, minus the number of bytes to set aside.
std::ptrdiff_t valid_prefix(std::string_view s) {
  std::size_t i = 0;
  const auto at = [&](std::size_t k) { return k < s.size() ? static_cast<unsigned char>(s[k]) : 0u; };
  while (i < s.size()) {
    const unsigned c = at(i);
    if (c < 0x80) {
      ++i;
      continue;
    }
    std::size_t n = c >= 0xc2 && c <= 0xdf ? 2 : (c & 0xf0u) == 0xe0 ? 3 : c >= 0xf0 && c <= 0xf4 ? 4 : 0;
    const unsigned second = at(i + 1);
    for (std::size_t k = 1; k < n; ++k)
      if ((at(i + k) & 0xc0u) != 0x80) n = 0;
    if ((c == 0xe0 && second < 0xa0) || (c == 0xed && second > 0x9f) || (c == 0xf0 && second < 0x90) ||
        (c == 0xf4 && second > 0x8f))
      n = 0;
    if (n == 0) break;
    i += n;
  }
  if (i > 0 || s.empty()) return static_cast<std::ptrdiff_t>(i);
  std::size_t bad = 1;
  while (bad < s.size() && (at(bad) & 0xc0u) == 0x80) ++bad;
  return -static_cast<std::ptrdiff_t>(bad);
}

struct Regex {
  pcre2_code* code = nullptr;
  pcre2_match_data* match = nullptr;
  pcre2_match_context* context = nullptr;
  pcre2_jit_stack* stack = nullptr;

  explicit Regex(const std::string& pattern) {
    int error = 0;
    PCRE2_SIZE at = 0;
    const std::string text = to_pcre2(pattern);
    code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), PCRE2_UTF | PCRE2_UCP, &error, &at,
                         nullptr);
    check(code != nullptr, "PCRE2 error {} at byte {} of {}", error, at, text);
    // Without a JIT (a hardened kernel, another processor) PCRE2 interprets: slower, the same matches.
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
    match = pcre2_match_data_create_from_pattern(code, nullptr);
    context = pcre2_match_context_create(nullptr);
    stack = pcre2_jit_stack_create(32u << 10, 4u << 20, nullptr);
    pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~Regex() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(match);
    pcre2_code_free(code);
  }
  Regex(const Regex&) = delete;
  Regex& operator=(const Regex&) = delete;

  // Appends matches and gaps of `text`, which is valid UTF-8.
  void isolate(std::string_view text, std::vector<std::string_view>& pieces) {
    std::size_t at = 0;
    while (at < text.size()) {
      int rc = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at, PCRE2_NO_UTF_CHECK, match,
                           context);
      if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                         PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, match, context);
      if (rc == PCRE2_ERROR_NOMATCH) break;
      check(rc > 0, "PCRE2 error {} at byte {} of {}", rc, at, text.size());
      const PCRE2_SIZE* span = pcre2_get_ovector_pointer(match);
      check(span[1] > span[0], "an empty match at byte {}", span[0]);
      if (span[0] > at) pieces.push_back(text.substr(at, span[0] - at));
      pieces.push_back(text.substr(span[0], span[1] - span[0]));
      at = span[1];
    }
    if (at < text.size()) pieces.push_back(text.substr(at));
  }
};

}  // namespace

const char* name_of(Split split) {
  return split == Split::gpt2 ? "gpt2" : split == Split::llama3 ? "llama3" : "deepseek_v3";
}

const std::vector<std::string>& patterns_of(Split split) {
  static const std::vector<std::string> gpt2 = {
      R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)"};
  static const std::vector<std::string> llama3 = {
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"};
  static const std::vector<std::string> deepseek_v3 = {
      R"(\p{N}{1,3})", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
      R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"};
  return split == Split::gpt2 ? gpt2 : split == Split::llama3 ? llama3 : deepseek_v3;
}

struct Splitter::State {
  std::vector<std::unique_ptr<Regex>> regexes;
  std::vector<std::string_view> before;
};

Splitter::Splitter(Split split) : state_(std::make_unique<State>()) {
  for (const auto& p : patterns_of(split)) state_->regexes.push_back(std::make_unique<Regex>(p));
}
Splitter::~Splitter() = default;
Splitter::Splitter(Splitter&&) noexcept = default;
Splitter& Splitter::operator=(Splitter&&) noexcept = default;

void Splitter::split(std::string_view text, std::vector<std::string_view>& pieces) {
  pieces.clear();
  while (!text.empty()) {
    const std::ptrdiff_t n = valid_prefix(text);
    const std::size_t size = static_cast<std::size_t>(n < 0 ? -n : n);
    const std::string_view part = text.substr(0, size);
    text.remove_prefix(size);
    if (n < 0) {
      pieces.push_back(part);
      continue;
    }
    const std::size_t first = pieces.size();
    state_->regexes[0]->isolate(part, pieces);
    for (std::size_t r = 1; r < state_->regexes.size(); ++r) {
      state_->before.assign(pieces.begin() + static_cast<std::ptrdiff_t>(first), pieces.end());
      pieces.resize(first);
      for (const auto piece : state_->before) state_->regexes[r]->isolate(piece, pieces);
    }
  }
}

}  // namespace dstrain
