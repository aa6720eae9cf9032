#pragma once
// What the norms of every device share.

#include <limits>

namespace dstrain {

// A reciprocal deviation; NaN instead of 0, which is that of a row whose squares are beyond float32: what is wrong must
// not vanish in a product with 0.
constexpr float or_nan(float rstd) { return rstd > 0 ? rstd : std::numeric_limits<float>::quiet_NaN(); }

}  // namespace dstrain
