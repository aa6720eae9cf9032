#include "kernels/embedding.h"

#include "kernels/check.h"

namespace dstrain {

void EmbeddingForward::validate() const {
  check_rank(y, 2, "embedding: y");
  check_rank(table, 2, "embedding: table");
  check_rows(y, y.dim(0), y.dim(1), "embedding: y");
  check_rows(table, table.dim(0), y.dim(1), "embedding: table");
  check_same_dtype(table, y, "embedding: table");
  check_vector(tokens, DType::i32, y.dim(0), "embedding: tokens");
}

Cost EmbeddingForward::cost() const {
  return {0, 0, bytes_of({&y, &y, &tokens}) + (write == Write::accumulate ? bytes_of({&y}) : 0.0)};
}

void EmbeddingBackward::validate() const {
  check_rank(dy, 2, "embedding_backward: dy");
  check_rank(dtable, 2, "embedding_backward: dtable");
  check_rows(dy, dy.dim(0), dy.dim(1), "embedding_backward: dy");
  check_rows(dtable, dtable.dim(0), dy.dim(1), "embedding_backward: dtable");
  check_dtype(dtable, DType::f32, "embedding_backward: dtable");
  check_vector(tokens, DType::i32, dy.dim(0), "embedding_backward: tokens");
}

Cost EmbeddingBackward::cost() const {
  const double read = bytes_of({&dy, &tokens});
  const double rows = 2.0 * static_cast<double>(dy.numel()) * sizeof(float);
  return {0, 0, read + rows + (write == Write::overwrite ? bytes_of({&dtable}) : 0.0)};
}

}  // namespace dstrain
