#pragma once
// debug.collectives: a group that compares what its members are about to do before they do it.

#include <memory>

#include "lib/comm/process_group.h"

namespace dstrain {

// `group` with every call on a host stream announced to the members first: its number, name, bytes, dtype and argument.
// When they differ, Error{bug} names both ranks and both calls instead of a hang or of wrong sums. Every member must
// check. Twice the messages.
std::unique_ptr<ProcessGroup> make_checked_group(std::unique_ptr<ProcessGroup> group);

}  // namespace dstrain
