#pragma once
// A copy past the caches.

#include <cstddef>

namespace dstrain {

// memcpy for blocks larger than the caches whose copy is not read soon: it neither reads the target's lines first, as
// ordinary stores do, nor evicts what the caller works on. The copy is visible to other threads by the usual means.
void stream_copy(void* to, const void* from, std::size_t bytes);

}  // namespace dstrain
