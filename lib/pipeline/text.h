#pragma once
// The text of a program: a header, then one line a rank.
//
//   schedule gpipe, 2 ranks, 2 chunks, 2 micro-batches
//   0: 0F0 0SEND_ACT0 0F1 ...
//   1: 1RECV_ACT0 1F0 ...

#include <string>
#include <string_view>

#include "lib/pipeline/action.h"

namespace dstrain {

std::string to_text(const Transfer& transfer);
std::string to_text(const Action& action);
std::string to_text(const Program& program);

// The inverse, slots assigned. A chunk belongs to the first rank that computes it; the program has a backward pass when
// any backward is in it. Throws Error{usage} naming line and word.
Program parse_program(std::string_view text);

}  // namespace dstrain
