#pragma once
// How much memory this process may still take.

#include <cstdint>

namespace dstrain {

// The least of what the kernel calls available, what the control group has left and what RLIMIT_AS leaves; what cannot
// be read counts as no limit.
std::uint64_t available_host_memory();

}  // namespace dstrain
