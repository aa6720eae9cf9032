#pragma once
// One exception type for everything that a user can cause or meet, and check() for our own bugs.
// Messages are formatted out of line (fmt's "{}" syntax), so that no header pulls in fmt.

#include <cstdint>
#include <initializer_list>
#include <source_location>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace dstrain {

// The process exit codes. Documented in README.md; batch scripts rely on them.
enum class ExitCode : int {
  ok = 0,
  no = 1,          // the answer is no: parity, diff, plan, verify
  usage = 2,       // bad job file or arguments
  data = 3,        // bad tokens, tokenizer, text or tensors
  checkpoint = 4,  // checkpoint unusable
  write = 5,       // cannot write: full, read-only
  stopped = 10,    // stopped on a signal after saving; run again
  lost = 11,       // a rank was lost or hung
  nonfinite = 12,  // loss or gradient not finite or out of limits
  device = 13,     // bad device
  bug = 70,        // our own mistake
};

// An error that carries its exit code. Throw it through fail(); the one catch is in apps/main.cpp.
class Error : public std::runtime_error {
 public:
  // `shared`: every rank throws the same, so that one of them need tell it.
  Error(ExitCode code, const std::string& message, bool shared = false)
      : std::runtime_error(message), code_(code), shared_(shared) {}
  ExitCode code() const { return code_; }
  bool shared() const { return shared_; }

 private:
  ExitCode code_;
  bool shared_;
};

// One argument of a message, type-erased so that formatting can happen in errors.cpp.
struct FormatArg {
  enum class Kind { integer, unsigned_integer, real, text } kind;
  std::int64_t integer = 0;
  std::uint64_t unsigned_integer = 0;
  double real = 0;
  std::string text;

  template <class T>
  requires std::is_integral_v<T> || std::is_enum_v<T> FormatArg(T v) {  // NOLINT(google-explicit-constructor)
    if constexpr (std::is_unsigned_v<T>) {
      kind = Kind::unsigned_integer;
      unsigned_integer = v;
    } else {
      kind = Kind::integer;
      integer = static_cast<std::int64_t>(v);
    }
  }
  FormatArg(double v) : kind(Kind::real), real(v) {}            // NOLINT(google-explicit-constructor)
  FormatArg(float v) : kind(Kind::real), real(v) {}             // NOLINT(google-explicit-constructor)
  FormatArg(const char* v) : kind(Kind::text), text(v) {}       // NOLINT(google-explicit-constructor)
  FormatArg(std::string_view v) : kind(Kind::text), text(v) {}  // NOLINT(google-explicit-constructor)
  FormatArg(std::string v) : kind(Kind::text), text(static_cast<std::string&&>(v)) {}  // NOLINT
};

// Formats with fmt's syntax: format("{} of {}", 3, "x").
std::string format_args(std::string_view format, std::initializer_list<FormatArg> args);
template <class... A>
std::string format(std::string_view text, const A&... args) {
  return format_args(text, {FormatArg(args)...});
}

// Throws Error{code, formatted message}.
[[noreturn]] void fail_args(ExitCode code, std::string_view format, std::initializer_list<FormatArg> args);
template <class... A>
[[noreturn]] void fail(ExitCode code, std::string_view text, const A&... args) {
  fail_args(code, text, {FormatArg(args)...});
}
// Throws Error{code, ...} unless `ok`.
template <class... A>
void require(bool ok, ExitCode code, std::string_view text, const A&... args) {
  if (!ok) [[unlikely]]
    fail_args(code, text, {FormatArg(args)...});
}

// A message with the place it was written at.
struct Located {
  const char* text;
  std::source_location where;
  Located(const char* t, std::source_location w = std::source_location::current())  // NOLINT
      : text(t), where(w) {}
};
[[noreturn]] void fail_check(const Located& message, std::initializer_list<FormatArg> args);

// States an invariant of our own code. Throws Error{ExitCode::bug} with file, line and the values; user input must
// never be able to trigger it.
template <class... A>
void check(bool ok, const Located& message, const A&... args) {
  if (!ok) [[unlikely]]
    fail_check(message, {FormatArg(args)...});
}

}  // namespace dstrain
