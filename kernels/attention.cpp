#include "kernels/attention.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/attention_rule.h"

namespace dstrain {

namespace {

// Checks (B, T, H, D), last stride 1, of q's dtype.
void check_heads(const Tensor& t, const Shape& shape, const Tensor& q, const char* what) {
  check_shape(t, shape, what);
  check_same_dtype(t, q, what);
  check_last_dense(t, what);
}

void check_inputs(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& lse, const Tensor& first_keys,
                  const AttentionDropout& dropout) {
  check_rank(q, 4, "attention: q");
  check_rank(k, 4, "attention: k");
  check_rank(v, 4, "attention: v");
  check_float(q, "attention: q");
  check_heads(q, q.shape, q, "attention: q");
  check_heads(k, {q.dim(0), k.dim(1), k.dim(2), q.dim(3)}, q, "attention: k");
  check_heads(v, {q.dim(0), k.dim(1), k.dim(2), v.dim(3)}, q, "attention: v");
  check(k.dim(2) > 0 && q.dim(2) % k.dim(2) == 0, "attention: {} query heads over {} key-value heads", q.dim(2),
        k.dim(2));
  check(q.dim(3) <= AttentionForward::kMaxHead && v.dim(3) <= AttentionForward::kMaxHead,
        "attention: head sizes {} and {}, at most {}", q.dim(3), v.dim(3), AttentionForward::kMaxHead);
  check_shape(lse, {q.dim(0), q.dim(2), q.dim(1)}, "attention: lse");
  check_dtype(lse, DType::f32, "attention: lse");
  check_flat(lse, "attention: lse");
  if (first_keys.defined()) {
    check_shape(first_keys, {q.dim(0), q.dim(1)}, "attention: first_keys");
    check_dtype(first_keys, DType::i32, "attention: first_keys");
    check_flat(first_keys, "attention: first_keys");
  }
  check(dropout.p >= 0 && dropout.p < 1, "attention: dropout {}", dropout.p);
  if (dropout.p > 0) check_vector(dropout.sample_ids, DType::i64, q.dim(0), "attention: dropout.sample_ids");
}

// Of both products of the forward pass, every key seen by every query.
double full_flops(const Tensor& q, const Tensor& k, const Tensor& v) {
  return 2.0 * static_cast<double>(q.dim(0) * q.dim(2)) * static_cast<double>(q.dim(1)) *
         static_cast<double>(k.dim(1)) * static_cast<double>(q.dim(3) + v.dim(3));
}

}  // namespace

void AttentionForward::validate() const {
  check_inputs(q, k, v, lse, first_keys, dropout);
  check_heads(o, {q.dim(0), q.dim(1), q.dim(2), v.dim(3)}, q, "attention: o");
}

Cost AttentionForward::cost() const {
  const double full = full_flops(q, k, v);
  return {mask == AttentionMask::causal ? full / 2 : full, full, bytes_of({&o, &lse, &q, &k, &v})};
}

std::size_t AttentionForward::workspace(Device target) const {
  return target == Device::cuda && cuda::may_use_cudnn(*this) ? arena_bytes({cuda::cudnn_workspace_bound(*this)}) : 0;
}

void AttentionBackward::validate() const {
  check_inputs(q, k, v, lse, first_keys, dropout);
  check_heads(o, {q.dim(0), q.dim(1), q.dim(2), v.dim(3)}, q, "attention_backward: o");
  check_heads(dout, o.shape, q, "attention_backward: dout");
  check_heads(dq, q.shape, q, "attention_backward: dq");
  check_heads(dk, k.shape, q, "attention_backward: dk");
  check_heads(dv, v.shape, q, "attention_backward: dv");
}

// The four products of the gradient; making the probabilities again is not counted, as is usual for MFU.
Cost AttentionBackward::cost() const {
  const double full = 2 * full_flops(q, k, v);
  return {mask == AttentionMask::causal ? full / 2 : full, full,
          bytes_of({&dq, &dk, &dv, &dout, &o, &lse, &q, &k, &v})};
}

// CPU: dout . o of each query; with bf16 storage dq in f32; with bf16 storage or shared keys dk and dv of each head in
// f32. CUDA: dout . o, or what cuDNN or our own kernel for Hopper takes.
std::size_t AttentionBackward::workspace(Device target) const {
  const auto floats = [](Index n) { return static_cast<std::size_t>(n) * sizeof(float); };
  const Index queries = q.dim(0) * q.dim(2) * q.dim(1), keys = q.dim(0) * q.dim(2) * k.dim(1);
  if (target == Device::cuda) {
    std::size_t most = arena_bytes({floats(queries)});
    if (cuda::may_use_cudnn(*this)) most = std::max(most, arena_bytes({cuda::cudnn_workspace_bound(*this)}));
    if (cuda::why_not_wgmma(*this, false, 9) == nullptr) most = std::max(most, cuda::wgmma_workspace(*this));
    return most;
  }
  const bool half = q.dtype == DType::bf16, apart = half || q.dim(2) != k.dim(2);
  return arena_bytes({floats(queries), half ? floats(queries * q.dim(3)) : 0, apart ? floats(keys * q.dim(3)) : 0,
                      apart ? floats(keys * v.dim(3)) : 0});
}

}  // namespace dstrain
