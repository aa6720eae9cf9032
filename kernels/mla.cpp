#include "kernels/mla.h"

#include "kernels/check.h"

namespace dstrain {

namespace {

void check_heads(const Tensor& q, const Tensor& k, const Tensor& kv, const Tensor& shared, const Tensor& positions,
                 const Tensor& frequencies) {
  check_rank(q, 3, "mla_heads: q");
  check_float(q, "mla_heads: q");
  check_last_dense(q, "mla_heads: q");
  check_shape(k, q.shape, "mla_heads: k");
  check_same_dtype(k, q, "mla_heads: k");
  check_last_dense(k, "mla_heads: k");
  check_rank(shared, 2, "mla_heads: shared");
  const Index rows = q.dim(0), rotated = shared.dim(1), nope = q.dim(2) - rotated;
  check_rows(shared, rows, rotated, "mla_heads: shared");
  check_same_dtype(shared, q, "mla_heads: shared");
  check(rotated % 2 == 0 && nope >= 0, "mla_heads: {} of {} elements carry the position", rotated, q.dim(2));
  check_rank(kv, 3, "mla_heads: kv");
  check(kv.dim(0) == rows && kv.dim(1) == q.dim(1) && kv.dim(2) >= nope, "mla_heads: kv is {}, q {}, shared {}",
        kv.to_string(), q.to_string(), shared.to_string());
  check_same_dtype(kv, q, "mla_heads: kv");
  check_last_dense(kv, "mla_heads: kv");
  check_vector(positions, DType::i32, rows, "mla_heads: positions");
  check_vector(frequencies, DType::f32, rotated / 2, "mla_heads: inverse_frequencies");
}

// What is rotated is read and written, what is copied likewise; values are not touched.
double moved(const Tensor& q, const Tensor& k, const Tensor& shared) {
  const double element = static_cast<double>(size_of(q.dtype));
  const double rotated = static_cast<double>(q.dim(0) * q.dim(1) * shared.dim(1));
  const double copied = static_cast<double>(q.dim(0) * q.dim(1) * (q.dim(2) - shared.dim(1)));
  return 2 * rotated * element + copied * element + bytes_of({&k, &shared});
}

}  // namespace

void MlaHeads::validate() const { check_heads(q, k, kv, shared, positions, inverse_frequencies); }

Cost MlaHeads::cost() const { return {0, 0, moved(q, k, shared) + bytes_of({&positions})}; }

void MlaHeadsGradient::validate() const { check_heads(dq, dk, dkv, dshared, positions, inverse_frequencies); }

Cost MlaHeadsGradient::cost() const { return {0, 0, moved(dq, dk, dshared) + bytes_of({&positions})}; }

}  // namespace dstrain
