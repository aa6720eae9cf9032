#include "kernels/attention.h"

#include <algorithm>
#include <initializer_list>

#include "kernels/cuda/attention_tiled.h"
#include "kernels/cuda/attention_wgmma.h"
#include "kernels/cuda/cudnn_attention.h"
#include "kernels/cuda/state.h"

namespace dstrain {

namespace {

bool aligned(std::initializer_list<const Tensor*> tensors) {
  return std::all_of(tensors.begin(), tensors.end(),
                     [](const Tensor* t) { return reinterpret_cast<std::uintptr_t>(t->data) % 16 == 0; });
}

// Whether cuDNN runs the op; says in fast_paths() why not. Throws Error{device} when the job insists on it in vain.
template <class Op>
bool choose_cudnn(Stream& stream, const Op& op, std::initializer_list<const Tensor*> tensors) {
  const ComputeSettings& settings = stream.settings();
  if (settings.attention == AttentionChoice::native) return false;
  const char* why = cuda::why_not_cudnn(op, settings.deterministic, cuda::cudnn_facts(stream));
  if (why == nullptr && !aligned(tensors)) why = cuda::kUnaligned;
  if (why == nullptr) return true;
  require(settings.attention != AttentionChoice::cudnn, ExitCode::device,
          "{} of q {}, k {}, v {}: the job asks for cuDNN, which cannot run it: {}", Op::name, op.q.to_string(),
          op.k.to_string(), op.v.to_string(), why);
  cuda::state_of(stream).note(format("{}: our tiled kernels: {}", Op::name, why));
  return false;
}

// Whether our kernel for Hopper runs the op.
bool choose_wgmma(Stream& stream, const AttentionBackward& op) {
  const ComputeSettings& settings = stream.settings();
  if (settings.attention == AttentionChoice::cudnn) return false;
  cuda::CudaState& state = cuda::state_of(stream);
  if (cuda::why_not_wgmma(op, settings.deterministic, state.device().major) != nullptr) return false;
  if (!aligned({&op.q, &op.k, &op.v, &op.o, &op.dout, &op.dq, &op.dk, &op.dv}) || !cuda::has_wgmma_attention())
    return false;
  state.note(format("{}: our kernel for Hopper", AttentionBackward::name));
  return true;
}

}  // namespace

void run(Cuda, Stream& stream, const AttentionForward& op) {
  if (choose_cudnn(stream, op, {&op.q, &op.k, &op.v, &op.o}))
    cuda::attention_forward_cudnn(stream, op);
  else
    cuda::attention_forward_tiled(stream, op);
}

void run(Cuda, Stream& stream, const AttentionBackward& op) {
  if (choose_wgmma(stream, op))
    cuda::attention_backward_wgmma(stream, op);
  else if (choose_cudnn(stream, op, {&op.q, &op.k, &op.v, &op.o, &op.dout, &op.dq, &op.dk, &op.dv}))
    cuda::attention_backward_cudnn(stream, op);
  else
    cuda::attention_backward_tiled(stream, op);
}

}  // namespace dstrain
