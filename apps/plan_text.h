#pragma once
// A plan in words and tables: what `dstrain plan` prints and `dstrain report` shows.

#include <string>

#include "lib/train/plan.h"

namespace dstrain {

std::string plan_text(const Config& config, const Plan& plan);

}  // namespace dstrain
