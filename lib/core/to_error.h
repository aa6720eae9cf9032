#pragma once
// What was caught, as an Error.

#include <exception>

#include "lib/core/errors.h"

namespace dstrain {

// Host memory or threads that are short are Error{device}, as the machine cannot run this; what nobody expects is
// Error{bug}. Takes no memory for std::bad_alloc.
Error to_error(const std::exception& e);

}  // namespace dstrain
