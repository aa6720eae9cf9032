#include "lib/core/to_error.h"

#include <new>
#include <system_error>

namespace dstrain {

namespace {
// Made while there is memory; copies of it take none.
const Error kOutOfMemory(ExitCode::device, "out of host memory");
}  // namespace

Error to_error(const std::exception& e) {
  if (const auto* const error = dynamic_cast<const Error*>(&e)) return *error;
  if (dynamic_cast<const std::bad_alloc*>(&e)) return kOutOfMemory;
  const auto* const system = dynamic_cast<const std::system_error*>(&e);
  if (system && system->code() == std::errc::resource_unavailable_try_again)
    return {ExitCode::device, format("cannot start a thread: {}; see ulimit -u", e.what())};
  return {ExitCode::bug, format("internal error: {}", e.what())};
}

}  // namespace dstrain
