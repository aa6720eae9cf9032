#include "lib/core/errors.h"

#include <fmt/args.h>
#include <fmt/format.h>

namespace dstrain {

std::string format_args(std::string_view text, std::initializer_list<FormatArg> args) {
  fmt::dynamic_format_arg_store<fmt::format_context> store;
  for (const FormatArg& a : args) switch (a.kind) {
      case FormatArg::Kind::integer:
        store.push_back(a.integer);
        break;
      case FormatArg::Kind::unsigned_integer:
        store.push_back(a.unsigned_integer);
        break;
      case FormatArg::Kind::real:
        store.push_back(a.real);
        break;
      case FormatArg::Kind::text:
        store.push_back(a.text);
        break;
    }
  return fmt::vformat(text, store);
}

void fail_args(ExitCode code, std::string_view text, std::initializer_list<FormatArg> args) {
  throw Error(code, format_args(text, args));
}

void fail_check(const Located& message, std::initializer_list<FormatArg> args) {
  std::string_view file = message.where.file_name();
  if (auto slash = file.rfind('/'); slash != std::string_view::npos) file.remove_prefix(slash + 1);
  throw Error(ExitCode::bug,
              fmt::format("internal error: {} ({}:{})", format_args(message.text, args), file, message.where.line()));
}

}  // namespace dstrain
