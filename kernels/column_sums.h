#pragma once
// Sums over the rows of a (rows, C) matrix whose bits do not depend on the number of threads: rows are cut into chunks
// fixed by the row count, each chunk is summed in order into its own row of the workspace, chunks are added in order.

#include <algorithm>

#include "kernels/check.h"

namespace dstrain {

struct RowChunks {
  Index rows, size, count;
  explicit RowChunks(Index row_count) : rows(row_count), size(std::max<Index>(32, (row_count + 63) / 64)) {
    count = (rows + size - 1) / size;
  }
  Index begin(Index i) const { return i * size; }
  Index end(Index i) const { return std::min(rows, (i + 1) * size); }
};

// Workspace of `outputs` such sums made in one pass.
inline std::size_t column_sums_bytes(Index rows, Index columns, Index outputs) {
  return arena_bytes({static_cast<std::size_t>(RowChunks(rows).count * columns * outputs) * sizeof(float)});
}

}  // namespace dstrain
