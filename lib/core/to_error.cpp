#include "lib/core/to_error.h"

#include <new>
#include <system_error>

namespace dstrain {

Error to_error(const std::exception& e) {
  if (const auto* const error = dynamic_cast<const Error*>(&e)) return *error;
  if (dynamic_cast<const std::bad_alloc*>(&e)) return {ExitCode::device, "out of host memory"};
  const auto* const system = dynamic_cast<const std::system_error*>(&e);
  if (system && system->code() == std::errc::resource_unavailable_try_again)
    return {ExitCode::device, format("cannot start a thread: {}; see ulimit -u", e.what())};
  return {ExitCode::bug, e.what()};
}

}  // namespace dstrain
