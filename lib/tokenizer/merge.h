#pragma once

#include <cstdint>

namespace dstrain {

// Two ids that become one.
struct Merge {
  std::int32_t left, right, result;
};

}  // namespace dstrain
