#include "kernels/cuda/cudnn_attention.h"

#include <cudnn_frontend.h>

#include <algorithm>
#include <bit>
#include <unordered_map>
#include <vector>

#include "kernels/cuda/state.h"

namespace dstrain::cuda {

namespace {

namespace fe = cudnn_frontend;

// Names of the tensors in a graph.
enum Uid : std::int64_t { kQ = 1, kK, kV, kO, kLse, kDout, kDq, kDk, kDv };

struct AttentionPlan {
  fe::graph::Graph graph;
  std::size_t workspace = 0;
};

struct AttentionPlans final : PlanCache {
  std::map<std::vector<Index>, std::unique_ptr<AttentionPlan>> plans;
};

void fe_check(fe::error_t error, const char* op, const char* call) {
  if (error.is_bad()) [[unlikely]]
    fail(ExitCode::device, "{}: cuDNN {}: {}: {}", op, fe::detail::get_backend_version_string(), call,
         error.get_message());
}

// (B, T, H, D) as cuDNN sees it: (B, H, T, D), wherever the elements lie.
fe::graph::Tensor_attributes& describe_heads(fe::graph::Tensor_attributes& made, const Tensor& t, Uid uid) {
  return made.set_uid(uid)
      .set_dim({t.dim(0), t.dim(2), t.dim(1), t.dim(3)})
      .set_stride({t.stride(0), t.stride(2), t.stride(1), 1})
      .set_data_type(fe::DataType_t::BFLOAT16);
}

fe::graph::Tensor_attributes heads(const Tensor& t, Uid uid) {
  fe::graph::Tensor_attributes made;
  return describe_heads(made, t, uid);
}

void set_heads(fe::graph::Tensor_attributes& out, const Tensor& t, Uid uid) {
  describe_heads(out, t, uid).set_output(true);
}

// (B, H, T), dense.
void describe_lse(fe::graph::Tensor_attributes& out, const Tensor& lse, Uid uid) {
  const Index length = lse.dim(2), every = lse.dim(1);
  out.set_uid(uid)
      .set_dim({lse.dim(0), every, length, 1})
      .set_stride({every * length, length, 1, 1})
      .set_data_type(fe::DataType_t::FLOAT);
}

template <class Op>
std::vector<Index> key_of(const Op& op, bool backward, bool deterministic) {
  std::vector<Index> key{backward, deterministic, op.mask == AttentionMask::causal,
                         std::bit_cast<std::int32_t>(op.scale)};
  const auto add = [&](const Tensor& t) {
    for (int d = 0; d < 4; ++d) key.push_back(t.dim(d));
    for (int d = 0; d < 3; ++d) key.push_back(t.stride(d));
  };
  for (const Tensor* t : {&op.q, &op.k, &op.v, &op.o}) add(*t);
  if constexpr (requires { op.dq; }) {
    for (const Tensor* t : {&op.dout, &op.dq, &op.dk, &op.dv}) add(*t);
  }
  return key;
}

void build(AttentionPlan& plan, CudaState& state, const Stream& stream, const char* op) {
  fe_check(plan.graph.build(state.dnn(stream), {fe::HeurMode_t::A}), op, "build");
  std::int64_t bytes = 0;
  fe_check(plan.graph.get_workspace_size(bytes), op, "get_workspace_size");
  plan.workspace = static_cast<std::size_t>(bytes);
}

void describe_types(fe::graph::Graph& graph) {
  graph.set_io_data_type(fe::DataType_t::BFLOAT16)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
}

void describe(fe::graph::Graph& graph, const AttentionForward& op, bool) {
  describe_types(graph);
  auto attributes =
      fe::graph::SDPA_attributes().set_name("attention").set_generate_stats(true).set_attn_scale(op.scale);
  // The node that every card has; what the front end takes by itself differs with the mask.
  attributes.set_implementation(fe::AttentionImplementation_t::COMPOSITE);
  attributes.set_causal_mask(op.mask == AttentionMask::causal);
  auto [o, lse] = graph.sdpa(graph.tensor(heads(op.q, kQ)), graph.tensor(heads(op.k, kK)),
                             graph.tensor(heads(op.v, kV)), attributes);
  set_heads(*o, op.o, kO);
  describe_lse(*lse, op.lse, kLse);
  lse->set_output(true);
}

void describe(fe::graph::Graph& graph, const AttentionBackward& op, bool deterministic) {
  describe_types(graph);
  fe::graph::Tensor_attributes lse;
  describe_lse(lse, op.lse, kLse);
  auto attributes = fe::graph::SDPA_backward_attributes()
                        .set_name("attention_backward")
                        .set_attn_scale(op.scale)
                        .set_deterministic_algorithm(deterministic);
  attributes.set_causal_mask(op.mask == AttentionMask::causal);
  auto [dq, dk, dv] = graph.sdpa_backward(graph.tensor(heads(op.q, kQ)), graph.tensor(heads(op.k, kK)),
                                          graph.tensor(heads(op.v, kV)), graph.tensor(heads(op.o, kO)),
                                          graph.tensor(heads(op.dout, kDout)), graph.tensor(lse), attributes);
  set_heads(*dq, op.dq, kDq);
  set_heads(*dk, op.dk, kDk);
  set_heads(*dv, op.dv, kDv);
}

template <class Op>
void execute(Stream& stream, const Op& op, std::size_t bound, bool deterministic,
             std::unordered_map<std::int64_t, void*> addresses) {
  constexpr bool backward = requires { op.dq; };
  CudaState& state = state_of(stream);
  if (!state.attention_plans) state.attention_plans = std::make_unique<AttentionPlans>();
  std::unique_ptr<AttentionPlan>& plan =
      static_cast<AttentionPlans&>(*state.attention_plans).plans[key_of(op, backward, deterministic)];
  if (!plan) {
    auto made = std::make_unique<AttentionPlan>();
    describe(made->graph, op, deterministic);
    build(*made, state, stream, Op::name);
    require(made->workspace <= bound, ExitCode::device,
            "{}: cuDNN {} wants {} bytes of workspace for q {}, k {}, v {}; at most {} are planned", Op::name,
            fe::detail::get_backend_version_string(), made->workspace, op.q.to_string(), op.k.to_string(),
            op.v.to_string(), bound);
    state.note(format("{}: cuDNN {}{}", Op::name, fe::detail::get_backend_version_string(),
                      backward && deterministic ? ", deterministic" : ""));
    plan = std::move(made);
  }
  const ArenaScope scope(stream.workspace());
  const Tensor workspace = stream.workspace().allocate({static_cast<Index>(plan->workspace)}, DType::u8);
  fe_check(plan->graph.execute(state.dnn(stream), addresses, workspace.data), Op::name, "execute");
}

void backward_part(Stream& stream, const AttentionBackward& op, std::size_t bound) {
  execute(stream, op, bound, stream.settings().deterministic,
          {{kQ, op.q.data},
           {kK, op.k.data},
           {kV, op.v.data},
           {kO, op.o.data},
           {kLse, op.lse.data},
           {kDout, op.dout.data},
           {kDq, op.dq.data},
           {kDk, op.dk.data},
           {kDv, op.dv.data}});
}

}  // namespace

CudnnFacts cudnn_facts(Stream& stream) { return {cudnnGetVersion(), state_of(stream).device().major}; }

void attention_forward_cudnn(Stream& stream, const AttentionForward& op) {
  execute(stream, op, cudnn_workspace_bound(op), false,
          {{kQ, op.q.data}, {kK, op.k.data}, {kV, op.v.data}, {kO, op.o.data}, {kLse, op.lse.data}});
}

void attention_backward_cudnn(Stream& stream, const AttentionBackward& op) {
  const BackwardParts parts = cudnn_backward_parts(op);
  const Index samples = op.q.dim(0), key_heads = op.k.dim(2), group = op.q.dim(2) / key_heads;
  for (Index b = 0; b < samples; b += parts.samples) {
    for (Index h = 0; h < key_heads; h += parts.key_heads) {
      const Index b_end = std::min(samples, b + parts.samples), h_end = std::min(key_heads, h + parts.key_heads);
      const auto of_keys = [&](const Tensor& t) { return t.slice(0, b, b_end).slice(2, h, h_end); };
      const auto of_queries = [&](const Tensor& t) { return t.slice(0, b, b_end).slice(2, h * group, h_end * group); };
      AttentionBackward part = op;
      part.q = of_queries(op.q);
      part.o = of_queries(op.o);
      part.dout = of_queries(op.dout);
      part.dq = of_queries(op.dq);
      part.k = of_keys(op.k);
      part.v = of_keys(op.v);
      part.dk = of_keys(op.dk);
      part.dv = of_keys(op.dv);
      part.lse = op.lse.slice(0, b, b_end).slice(1, h * group, h_end * group);  // dense: all heads, or one sample
      backward_part(stream, part, cudnn_workspace_bound(op));
    }
  }
}

}  // namespace dstrain::cuda
