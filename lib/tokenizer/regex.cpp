#include "lib/tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <time.h>

#include <algorithm>
#include <utility>

#include "lib/core/errors.h"
#include "lib/tokenizer/utf8.h"

namespace dstrain {

namespace {

constexpr std::uint32_t kMatchLimit = 10'000'000;
constexpr std::uint32_t kHeapLimit = 256u << 10;  // KiB
constexpr std::size_t kWindow = 256;              // positions that one call of PCRE2 may start a match at
constexpr double kGrace = 5, kPerByte = 2e-5;     // seconds of this thread

// Time that this thread has run: waiting for a core must not look like a regex that explodes.
double thread_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

}  // namespace

struct Regex::Code {
  pcre2_code* code = nullptr;
  ~Code() { pcre2_code_free(code); }
};

Regex::Regex(std::string pattern, std::string place)
    : pattern_(std::move(pattern)), place_(std::move(place)), code_(std::make_unique<Code>()) {
  require(utf8::valid_prefix(pattern_) == pattern_.size(), ExitCode::data, "{}: not UTF-8", place_);
  const std::string text = to_pcre2(pattern_, place_);
  int error = 0;
  PCRE2_SIZE at = 0;
  pcre2_compile_context* context = pcre2_compile_context_create(nullptr);
  check(context != nullptr, "no memory");
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context, 250);
  code_->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_USE_OFFSET_LIMIT, &error, &at, context);
  pcre2_compile_context_free(context);
  if (code_->code == nullptr) {
    PCRE2_UCHAR message[256];
    pcre2_get_error_message(error, message, sizeof message);
    fail(ExitCode::data, "{}: not a regex: {}", place_, reinterpret_cast<const char*>(message));
  }
  // Without a JIT (a hardened kernel, another processor) PCRE2 interprets: slower, the same matches.
  pcre2_jit_compile(code_->code, PCRE2_JIT_COMPLETE);
}
Regex::~Regex() = default;

struct RegexMatcher::State {
  pcre2_match_data* match = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32u << 10, 4u << 20, nullptr);

  State() {
    check(match != nullptr && context != nullptr && stack != nullptr, "no memory");
    pcre2_jit_stack_assign(context, nullptr, stack);
    pcre2_set_match_limit(context, kMatchLimit);
    pcre2_set_heap_limit(context, kHeapLimit);
  }
  ~State() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(match);
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
};

RegexMatcher::RegexMatcher() : state_(std::make_unique<State>()) {}
RegexMatcher::~RegexMatcher() = default;
RegexMatcher::RegexMatcher(RegexMatcher&&) noexcept = default;

void RegexMatcher::find(const Regex& regex, std::string_view text, std::vector<Part>& parts) {
  if (text.empty()) {
    parts.push_back({0, 0, false});
    return;
  }
  pcre2_code* const code = regex.code_->code;
  const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  // Matches from `at`; false when there is none before `limit`.
  const auto match = [&](std::size_t at, std::size_t limit, PCRE2_SIZE& begin, PCRE2_SIZE& end) {
    pcre2_set_offset_limit(state_->context, limit);
    int rc = pcre2_match(code, subject, text.size(), at, PCRE2_NO_UTF_CHECK, state_->match, state_->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
      rc = pcre2_match(code, subject, text.size(), at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, state_->match,
                       state_->context);
    if (rc == PCRE2_ERROR_NOMATCH) return false;
    require(rc != PCRE2_ERROR_MATCHLIMIT && rc != PCRE2_ERROR_HEAPLIMIT && rc != PCRE2_ERROR_DEPTHLIMIT, ExitCode::data,
            "{}: the regex explodes at byte {} of {}: more than {} backtracks", regex.place(), at, text.size(),
            kMatchLimit);
    require(rc >= 0, ExitCode::data, "{}: the regex fails at byte {} of {}: PCRE2 error {}", regex.place(), at,
            text.size(), rc);
    const PCRE2_SIZE* span = pcre2_get_ovector_pointer(state_->match);
    begin = span[0];
    end = span[1];
    return true;
  };
  const auto next_character = [&](std::size_t at) { return at + utf8::decode(text, at).size; };

  auto check_time = [&, started = -1.0](std::size_t at) mutable {
    const double now = thread_seconds();
    if (started < 0) started = now;
    require(now - started < kGrace + kPerByte * static_cast<double>(at), ExitCode::data,
            "{}: the regex explodes: it took {:.0f} s for {} of {} bytes", regex.place(), now - started, at,
            text.size());
  };
  std::size_t previous = 0, at = 0, last_end = text.size() + 1, limit = 0, calls = 0;
  while (at <= text.size()) {
    limit = std::min(text.size(), at + kWindow);
    while (limit < text.size() && (static_cast<unsigned char>(text[limit]) & 0xc0u) == 0x80) ++limit;
    if (++calls % 64 == 0) check_time(at);
    PCRE2_SIZE begin = 0, end = 0;
    if (!match(at, limit, begin, end)) {
      if (limit == text.size()) break;
      check_time(limit);
      at = next_character(limit);
      continue;
    }
    // \K and lookarounds can move a match backwards; Oniguruma's library would not end then.
    require(begin >= previous && end >= begin, ExitCode::data, "{}: a match that ends before it begins at byte {}",
            regex.place(), at);
    if (begin == end && end == last_end) {  // no empty match just behind another
      if (at >= text.size()) break;
      at = next_character(at);
      continue;
    }
    at = last_end = end;
    if (previous != begin) parts.push_back({previous, begin, false});
    parts.push_back({begin, end, true});
    previous = end;
  }
  if (previous != text.size()) parts.push_back({previous, text.size(), false});
}

}  // namespace dstrain
