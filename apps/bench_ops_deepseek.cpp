#include "apps/bench_ops_deepseek.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <numeric>
#include <random>

#include "kernels/attention.h"
#include "kernels/experts.h"
#include "kernels/grouped_matmul.h"
#include "kernels/matmul.h"
#include "kernels/mla.h"
#include "kernels/router.h"

namespace dstrain {

namespace {

struct Heads {
  Index batch, length, rows, heads, nope, rope, value;
  explicit Heads(const Config& c)
      : batch(c.training.micro_batch_size),
        length(c.training.sequence_length),
        rows(batch * length),
        heads(c.model.num_attention_heads / c.parallel.tensor),
        nope(c.model.qk_nope_head_dim),
        rope(c.model.qk_rope_head_dim),
        value(c.model.v_head_dim) {}
  Index key() const { return nope + rope; }
  // (B, T, H, width) of rows of `row_width` a head, from `first` on.
  Tensor of(const Tensor& rows_of_heads, Index first, Index width) const {
    return rows_of_heads.split_last(heads).slice(3, first, first + width);
  }
};

AttentionForward attention(Operands& of, const Heads& h) {
  const auto rows = [&](Index width) { return of.uniform({h.batch, h.length, h.heads * width}); };
  return {.o = rows(h.value).split_last(h.heads),
          .lse = of.allocate({h.batch, h.heads, h.length}, DType::f32),
          .q = rows(h.key()).split_last(h.heads),
          .k = rows(h.key()).split_last(h.heads),
          .v = h.of(rows(h.nope + h.value), h.nope, h.value),
          .scale = 1.0f / std::sqrt(static_cast<float>(h.key()))};
}

AttentionBackward attention_gradient(Operands& of, const Heads& h) {
  const AttentionForward f = attention(of, h);
  const auto keys = static_cast<float>(h.length);
  const auto zeros = [&](Index width) {
    return of.allocate({h.batch, h.length, h.heads * width}, of.dtype()).split_last(h.heads);
  };
  return {.dq = zeros(h.key()),
          .dk = zeros(h.key()),
          .dv = zeros(h.nope + h.value).slice(3, h.nope, h.nope + h.value),
          .dout = of.uniform({h.batch, h.length, h.heads * h.value}).split_last(h.heads),
          .o = f.o,
          // Near the sums of such scores, so that probabilities are neither all zero nor infinite.
          .lse = of.uniform(f.lse.shape, DType::f32, std::log(keys / 4), std::log(keys)),
          .q = f.q,
          .k = f.k,
          .v = f.v,
          .scale = f.scale};
}

// Choices of experts as ExpertOrder sorts them.
struct Choices {
  std::vector<std::int32_t> experts, offsets, place, choice_at, row_at;

  Choices(Index rows, Index top, Index all) : offsets(static_cast<std::size_t>(all + 1)) {
    std::mt19937 random(1);
    std::vector<std::int32_t> everyone(static_cast<std::size_t>(all));
    std::iota(everyone.begin(), everyone.end(), 0);
    for (Index r = 0; r < rows; ++r)
      std::sample(everyone.begin(), everyone.end(), std::back_inserter(experts), top, random);
    for (const std::int32_t e : experts) ++offsets[static_cast<std::size_t>(e) + 1];
    std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
    std::vector<std::int32_t> next = offsets;
    place.resize(experts.size());
    choice_at.resize(experts.size());
    row_at.resize(experts.size());
    for (std::size_t c = 0; c < experts.size(); ++c) {
      place[c] = next[static_cast<std::size_t>(experts[c])]++;
      const auto at = static_cast<std::size_t>(place[c]);
      choice_at[at] = static_cast<std::int32_t>(c);
      row_at[at] = static_cast<std::int32_t>(static_cast<Index>(c) / top);
    }
  }
};

}  // namespace

void bench_latent_attention(OpBench& bench, const Config& config) {
  const Heads h(config);
  const std::string label = format("({}, {}, {}, {} and {})", h.batch, h.length, h.heads, h.key(), h.value);
  bench.run(label, [&](Operands& of) { return attention(of, h); });
  bench.run(label, [&](Operands& of) { return attention_gradient(of, h); });
  if (bench.device() == Device::cuda && bench.settings().deterministic)
    bench.run_fastest(label + " fastest", [&](Operands& of) { return attention_gradient(of, h); });
  const auto rows = [&](Operands& of, Index width) {
    return of.uniform({h.rows, h.heads * width}).split_last(h.heads);
  };
  const auto angles = [&](Operands& of) { return of.uniform({h.rope / 2}, DType::f32, 0, 1); };
  bench.run(label, [&](Operands& of) {
    return MlaHeads{.q = rows(of, h.key()),
                    .k = rows(of, h.key()),
                    .kv = rows(of, h.nope + h.value),
                    .shared = of.uniform({h.rows, h.rope}),
                    .positions = of.integers(h.rows, h.length),
                    .inverse_frequencies = angles(of)};
  });
  bench.run(label, [&](Operands& of) {
    return MlaHeadsGradient{.dq = rows(of, h.key()),
                            .dkv = rows(of, h.nope + h.value),
                            .dshared = of.uniform({h.rows, h.rope}),
                            .dk = rows(of, h.key()),
                            .positions = of.integers(h.rows, h.length),
                            .inverse_frequencies = angles(of)};
  });
}

void bench_experts(OpBench& bench, const Config& config) {
  const ModelConfig& m = config.model;
  const Index rows = config.training.micro_batch_size * config.training.sequence_length, top = m.num_experts_per_tok,
              all = m.n_routed_experts, hidden = m.hidden_size,
              inner = m.moe_intermediate_size / config.parallel.tensor, places = rows * top;
  const Choices choices(rows, top, all);
  const auto offsets = [&](Operands& of) { return of.indices({all + 1}, choices.offsets); };
  const auto place = [&](Operands& of) { return of.indices({rows, top}, choices.place); };
  const auto row_at = [&](Operands& of) { return of.indices({places}, choices.row_at); };
  const auto weights = [&](Operands& of) { return of.uniform({rows, top}, DType::f32, 0, 1); };
  const std::string shape = format("({}, {}) of {}, {} wide", rows, top, all, inner);
  double seconds = 0, around = 0;  // of the layer; of router, order and sums in it
  const auto product = [&](const char* what, const auto& make) {
    bench.run(what[0] == 0 ? shape : format("{} {}", what, shape), make);
    seconds += bench.last_seconds();
  };
  const auto other = [&](const auto& make) {
    bench.run(shape, make);
    seconds += bench.last_seconds();
    around += bench.last_seconds();
  };
  const RouterRule rule{.scoring = m.type == "deepseek_v3" ? RouterScores::sigmoid : RouterScores::softmax,
                        .normalize = m.norm_topk_prob};
  other([&](Operands& of) {
    return Matmul{.c = of.allocate({rows, all}, DType::f32),
                  .a = of.uniform({rows, hidden}),
                  .b = of.uniform({all, hidden}),
                  .transpose_b = true};
  });
  other([&](Operands& of) {
    return Route{.scores = of.allocate({rows, all}, DType::f32),
                 .experts = of.indices({rows, top}, choices.experts),
                 .weights = weights(of),
                 .logits = of.uniform({rows, all}, DType::f32),
                 .rule = rule};
  });
  other([&](Operands& of) {
    return ExpertOrder{.offsets = offsets(of),
                       .place = place(of),
                       .choice_at = of.indices({places}, choices.choice_at),
                       .row_at = row_at(of),
                       .experts = of.indices({rows, top}, choices.experts)};
  });
  product("gate, up, SwiGLU", [&](Operands& of) {
    return GroupedMatmul{.c = of.allocate({places, 2 * inner}, of.dtype()),
                         .a = of.uniform({rows, hidden}),
                         .b = of.uniform({all * 2 * inner, hidden}),
                         .offsets = offsets(of),
                         .rows_of = row_at(of),
                         .transpose_b = true,
                         .activated = of.allocate({places, inner}, of.dtype())};
  });
  product("down", [&](Operands& of) {
    return GroupedMatmul{.c = of.allocate({places, hidden}, of.dtype()),
                         .a = of.uniform({places, inner}),
                         .b = of.uniform({all * hidden, inner}),
                         .offsets = offsets(of),
                         .transpose_b = true};
  });
  const auto sum = [&](Operands& of, bool weighted) {
    return ExpertSum{.y = of.allocate({rows, hidden}, of.dtype()),
                     .x = of.uniform({places, hidden}),
                     .place = place(of),
                     .weights = weighted ? weights(of) : Tensor{},
                     .start = of.uniform({rows, hidden})};
  };
  other([&](Operands& of) { return sum(of, true); });
  product("down dx", [&](Operands& of) {
    return GroupedMatmul{.c = of.allocate({places, inner}, of.dtype()),
                         .a = of.uniform({rows, hidden}),
                         .b = of.uniform({all * hidden, inner}),
                         .offsets = offsets(of),
                         .rows_of = row_at(of)};
  });
  product("", [&](Operands& of) {
    const Tensor gate_up = of.uniform({places, 2 * inner}), d = of.uniform({places, inner});
    return ExpertActivationGradient{.dgate_up = gate_up,
                                    .weighted = d,
                                    .dweights = weights(of),
                                    .d = d,
                                    .gate_up = gate_up,
                                    .weights = weights(of),
                                    .choice_at = of.indices({places}, choices.choice_at)};
  });
  product("down dw", [&](Operands& of) {
    return GroupedGradient{.c = of.allocate({all * hidden, inner}, of.gradient_dtype()),
                           .a = of.uniform({rows, hidden}),
                           .b = of.uniform({places, inner}),
                           .offsets = offsets(of),
                           .a_rows_of = row_at(of),
                           .rows = places};
  });
  product("gate, up dw", [&](Operands& of) {
    return GroupedGradient{.c = of.allocate({all * 2 * inner, hidden}, of.gradient_dtype()),
                           .a = of.uniform({places, 2 * inner}),
                           .b = of.uniform({rows, hidden}),
                           .offsets = offsets(of),
                           .b_rows_of = row_at(of),
                           .rows = places};
  });
  product("gate, up dx", [&](Operands& of) {
    return GroupedMatmul{.c = of.allocate({places, hidden}, of.dtype()),
                         .a = of.uniform({places, 2 * inner}),
                         .b = of.uniform({all * 2 * inner, hidden}),
                         .offsets = offsets(of)};
  });
  other([&](Operands& of) { return sum(of, false); });
  other([&](Operands& of) {
    return RouteGradient{.dlogits = of.allocate({rows, all}, DType::f32),
                         .dweights = weights(of),
                         .scores = of.uniform({rows, all}, DType::f32, 0, 1),
                         .experts = of.indices({rows, top}, choices.experts),
                         .rule = rule};
  });
  other([&](Operands& of) {
    return Matmul{.c = of.allocate({all, hidden}, DType::f32),
                  .a = of.uniform({rows, all}, DType::f32),
                  .b = of.uniform({rows, hidden}),
                  .transpose_a = true};
  });
  other([&](Operands& of) {
    return Matmul{.c = of.uniform({rows, hidden}),
                  .a = of.uniform({rows, all}, DType::f32),
                  .b = of.uniform({all, hidden}),
                  .write = Write::accumulate};
  });
  const double flops = 3 * 6.0 * static_cast<double>(places) * static_cast<double>(hidden * inner);
  std::printf("routed experts, forward and backward: %.3f ms, %.1f GFLOP/s; router, order and sums are %.1f%% of it\n",
              1e3 * seconds, flops / seconds / 1e9, 100 * around / seconds);
}

}  // namespace dstrain
