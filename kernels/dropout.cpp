#include "kernels/dropout.h"

#include "kernels/check.h"

namespace dstrain {

void Dropout::validate() const {
  check_rank(x, 2, "dropout: x");
  check_rows(x, x.dim(0), x.dim(1), "dropout: x");
  check_rows(y, x.dim(0), x.dim(1), "dropout: y");
  check_same_dtype(y, x, "dropout: y");
  check_vector(sample_ids, DType::i64, x.dim(0), "dropout: sample_ids");
  check_vector(positions, DType::i32, x.dim(0), "dropout: positions");
  check(p >= 0 && p < 1, "dropout: p {}", p);
  check(columns == 0 || (first_column >= 0 && first_column + x.dim(1) <= columns), "dropout: columns [{}, {}) of {}",
        first_column, first_column + x.dim(1), columns);
  check(columns != 0 || first_column == 0, "dropout: first column {} without a width", first_column);
}

Cost Dropout::cost() const { return {0, 0, bytes_of({&y, &x, &sample_ids, &positions})}; }

}  // namespace dstrain
