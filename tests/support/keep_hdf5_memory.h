#pragma once
// For fuzzers that open HDF5 files, thousands a second. HDF5 takes half a megabyte for the cache of each open file; its
// lists of free memory would give it back to the system at the end of each, as more than they keep.

#include <hdf5.h>

namespace dstrain::test {

// The lists of objects keep up to 4 MiB, a list of one type 1 MiB; the others keep what HDF5 gives them.
inline void keep_hdf5_memory() {
  constexpr int kMiB = 1 << 20;
  H5set_free_list_limits(4 * kMiB, kMiB, 4 * kMiB, kMiB / 4, 16 * kMiB, kMiB);
}

}  // namespace dstrain::test
