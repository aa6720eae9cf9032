// dstrain bench ops: every op, forward and backward, at the shapes of a job's step, against the rate of matmuls or of
// copies that touch as many bytes.

#include <cmath>
#include <cstdio>

#include "apps/bench.h"
#include "apps/bench_ops_deepseek.h"
#include "apps/bench_ops_timer.h"
#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/cpu/blas.h"
#include "kernels/cross_entropy.h"
#include "kernels/dropout.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/gelu.h"
#include "kernels/gradient_norm.h"
#include "kernels/layer_norm.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/split_master.h"
#include "kernels/swiglu.h"
#include "lib/config/resolve.h"
#include "lib/core/files.h"
#include "lib/core/rng.h"
#include "lib/train/trainer.h"

namespace dstrain {

namespace {

// The shapes of rank 0's layers.
struct Dimensions {
  Index batch, length, rows;            // of a micro-batch
  Index hidden, heads, kv_heads, head;  // heads of this rank
  Index inner, vocabulary, parameters;  // of this rank
  bool llama;                           // RMSNorm, RoPE, SwiGLU, no bias; else LayerNorm, GELU, biases
  Index loss_rows;                      // of a chunk of the loss head
  float dropout;

  Dimensions(const Config& c, Index own_parameters, Device device)
      : batch(c.training.micro_batch_size),
        length(c.training.sequence_length),
        rows(batch * length),
        hidden(c.model.hidden_size),
        heads(c.model.num_attention_heads / c.parallel.tensor),
        kv_heads(std::max<Index>(1, c.model.num_key_value_heads / c.parallel.tensor)),
        head(c.model.deepseek() ? c.model.v_head_dim : c.model.head_dim),
        inner(c.model.intermediate_size / c.parallel.tensor),
        vocabulary(up_to(c.model.vocab_size, 128 * c.parallel.tensor) / c.parallel.tensor),
        parameters(own_parameters),
        llama(c.model.type != "gpt2"),
        dropout(c.model.attn_pdrop > 0 ? static_cast<float>(c.model.attn_pdrop) : 0.0f) {
    // As the loss head cuts them.
    const Index most = std::max<Index>(128, (Index{1} << (device == Device::cuda ? 28 : 21)) / vocabulary);
    const Index chunks = (rows + most - 1) / most;
    loss_rows = std::min(rows, up_to((rows + chunks - 1) / chunks, 128));
  }

  static Index up_to(Index n, Index multiple) { return (n + multiple - 1) / multiple * multiple; }
  Index qkv() const { return (heads + 2 * kv_heads) * head; }
  Index up() const { return llama ? 2 * inner : inner; }
};

std::string text(const Shape& shape) { return shape.to_string(); }

enum class Gelu : unsigned char { none, output, input };  // whether it follows a linear, or feeds it

// `layer`: the weight is a layer's own, else the head's, whose gradient is the sum of several products.
void bench_linear(OpBench& bench, const char* what, Index rows, Index in, Index out, bool bias, Gelu gelu,
                  bool layer = true) {
  const auto label = [&](const char* pass) { return format("{} {} {}x{}x{}", what, pass, rows, in, out); };
  bench.run(label("y"), [&](Operands& of) {
    Matmul op{.c = of.allocate({rows, out}, of.dtype()),
              .a = of.uniform({rows, in}),
              .b = of.uniform({out, in}),
              .transpose_b = true};
    if (bias) op.bias = of.uniform({out});
    if (gelu == Gelu::output) op.epilogue = Epilogue::gelu, op.pre = of.allocate({rows, out}, of.dtype());
    return op;
  });
  bench.run(label("dx"), [&](Operands& of) {
    Matmul op{.c = of.allocate({rows, in}, of.dtype()), .a = of.uniform({rows, out}), .b = of.uniform({out, in})};
    if (gelu == Gelu::input) op.epilogue = Epilogue::gelu_gradient, op.pre = of.uniform({rows, in});
    return op;
  });
  bench.run(label("dw"), [&](Operands& of) {
    const DType dtype = layer ? of.gradient_dtype() : DType::f32;
    return Matmul{.c = of.allocate({out, in}, dtype),
                  .a = of.uniform({rows, out}),
                  .b = of.uniform({rows, in}),
                  .transpose_a = true,
                  .write = dtype == DType::f32 ? Write::accumulate : Write::overwrite};
  });
  if (bias)
    bench.run(label("db"), [&](Operands& of) {
      return BiasGradient{
          .grad = of.allocate({out}, DType::f32), .dy = of.uniform({rows, out}), .write = Write::accumulate};
    });
}

// Queries, keys or values in the rows of the merged matrix.
Tensor heads_of(const Tensor& merged, Index begin, Index count, Index size) {
  return merged.slice(2, begin * size, (begin + count) * size).split_last(count);
}

AttentionForward attention(Operands& of, const Dimensions& d) {
  const Tensor qkv = of.uniform({d.batch, d.length, d.qkv()});
  AttentionForward op{.o = of.uniform({d.batch, d.length, d.heads, d.head}),
                      .lse = of.allocate({d.batch, d.heads, d.length}, DType::f32),
                      .q = heads_of(qkv, 0, d.heads, d.head),
                      .k = heads_of(qkv, d.heads, d.kv_heads, d.head),
                      .v = heads_of(qkv, d.heads + d.kv_heads, d.kv_heads, d.head),
                      .scale = 1.0f / std::sqrt(static_cast<float>(d.head))};
  if (d.dropout > 0)
    op.dropout = {.p = d.dropout, .key = philox(1, "bench attention"), .sample_ids = of.counting(d.batch, 1)};
  return op;
}

AttentionBackward attention_gradient(Operands& of, const Dimensions& d) {
  const AttentionForward f = attention(of, d);
  const Tensor gradient = of.allocate({d.batch, d.length, d.qkv()}, of.dtype());
  // Sums that are near those of such scores, so that probabilities are neither all zero nor infinite.
  const auto keys = static_cast<float>(d.length);
  return {.dq = heads_of(gradient, 0, d.heads, d.head),
          .dk = heads_of(gradient, d.heads, d.kv_heads, d.head),
          .dv = heads_of(gradient, d.heads + d.kv_heads, d.kv_heads, d.head),
          .dout = of.uniform(f.o.shape),
          .o = f.o,
          .lse = of.uniform(f.lse.shape, DType::f32, std::log(keys / 4), std::log(keys)),
          .q = f.q,
          .k = f.k,
          .v = f.v,
          .scale = f.scale,
          .dropout = f.dropout};
}

void bench_attention(OpBench& bench, const Dimensions& d) {
  const Shape q{d.batch, d.length, d.heads, d.head};
  bench.run(text(q), [&](Operands& of) { return attention(of, d); });
  bench.run(text(q), [&](Operands& of) { return attention_gradient(of, d); });
  // Whatever its bits.
  if (bench.device() == Device::cuda && bench.settings().deterministic)
    bench.run_fastest(text(q) + " fastest", [&](Operands& of) { return attention_gradient(of, d); });
  // In place, queries and the keys beside them.
  const Index heads = d.heads + d.kv_heads;
  for (const bool backward : {false, true})
    bench.run(text({d.rows, heads, d.head}) + (backward ? " back" : ""), [&](Operands& of) {
      const Tensor x = of.uniform({d.rows, d.qkv()}).slice(1, 0, heads * d.head).split_last(heads);
      return Rope{.y = x,
                  .x = x,
                  .positions = of.integers(d.rows, d.length),
                  .inverse_frequencies = of.uniform({d.head / 2}, DType::f32, 0, 1),
                  .backward = backward};
    });
}

void bench_rows(OpBench& bench, const Dimensions& d) {
  const Shape shape{d.rows, d.hidden};
  const std::string label = text(shape);
  const auto f32 = [](Operands& of, Index n, float low, float high) { return of.uniform({n}, DType::f32, low, high); };
  bench.run(label, [&](Operands& of) {
    return RmsNormForward{.y = of.allocate(shape, of.dtype()),
                          .rstd = f32(of, d.rows, 1, 2),
                          .sum = of.allocate(shape, of.dtype()),
                          .x = of.uniform(shape),
                          .branch = of.uniform(shape),
                          .weight = of.uniform({d.hidden})};
  });
  bench.run(label, [&](Operands& of) {
    return RmsNormBackward{.dx = of.allocate(shape, of.dtype()),
                           .dweight = f32(of, d.hidden, 0, 1),
                           .dy = of.uniform(shape),
                           .x = of.uniform(shape),
                           .rstd = f32(of, d.rows, 1, 2),
                           .weight = of.uniform({d.hidden}),
                           .dresidual = of.uniform(shape)};
  });
  bench.run(label, [&](Operands& of) {
    return LayerNormForward{.y = of.allocate(shape, of.dtype()),
                            .mean = f32(of, d.rows, 0, 0.1f),
                            .rstd = f32(of, d.rows, 1, 2),
                            .sum = of.allocate(shape, of.dtype()),
                            .x = of.uniform(shape),
                            .branch = of.uniform(shape),
                            .weight = of.uniform({d.hidden}),
                            .bias = of.uniform({d.hidden})};
  });
  bench.run(label, [&](Operands& of) {
    return LayerNormBackward{.dx = of.allocate(shape, of.dtype()),
                             .dweight = f32(of, d.hidden, 0, 1),
                             .dbias = f32(of, d.hidden, 0, 1),
                             .dy = of.uniform(shape),
                             .x = of.uniform(shape),
                             .mean = f32(of, d.rows, 0, 0.1f),
                             .rstd = f32(of, d.rows, 1, 2),
                             .weight = of.uniform({d.hidden}),
                             .dresidual = of.uniform(shape)};
  });
  bench.run(label, [&](Operands& of) {
    return Dropout{.y = of.allocate(shape, of.dtype()),
                   .x = of.uniform(shape),
                   .sample_ids = of.counting(d.rows, d.length),
                   .positions = of.integers(d.rows, d.length),
                   .key = philox(1, "x"),
                   .p = 0.1f};
  });
  bench.run(label,
            [&](Operands& of) { return BiasGradient{.grad = f32(of, d.hidden, 0, 1), .dy = of.uniform(shape)}; });
  bench.run(label, [&](Operands& of) {
    return Add{.y = of.allocate(shape, of.dtype()), .a = of.uniform(shape), .b = of.uniform(shape)};
  });
  bench.run(label, [&](Operands& of) { return Copy{.y = of.allocate(shape, of.dtype()), .x = of.uniform(shape)}; });
  bench.run(label + " to bf16", [&](Operands& of) {
    return Cast{.y = of.allocate(shape, DType::bf16), .x = of.uniform(shape, DType::f32)};
  });
  bench.run(label, [&](Operands& of) { return Fill{.y = of.allocate(shape, of.dtype())}; });
}

void bench_activations(OpBench& bench, const Dimensions& d) {
  const Shape shape{d.rows, d.inner}, pair{d.rows, 2 * d.inner};
  const std::string label = text(shape);
  bench.run(label, [&](Operands& of) {
    return SwiGluForward{.y = of.allocate(shape, of.dtype()), .gate_up = of.uniform(pair)};
  });
  // In place, as the layer has it.
  bench.run(label, [&](Operands& of) {
    const Tensor gate_up = of.uniform(pair);
    return SwiGluBackward{.dgate_up = gate_up, .dy = of.uniform(shape, 0.5f, 2), .gate_up = gate_up};
  });
  for (const bool tanh : {true, false}) {
    const std::string form = label + (tanh ? " tanh" : " erf");
    bench.run(form, [&](Operands& of) {
      return GeluForward{.y = of.allocate(shape, of.dtype()), .x = of.uniform(shape), .tanh = tanh};
    });
    bench.run(form, [&](Operands& of) {
      return GeluBackward{
          .dx = of.allocate(shape, of.dtype()), .dy = of.uniform(shape), .x = of.uniform(shape), .tanh = tanh};
    });
  }
}

void bench_vocabulary(OpBench& bench, const Dimensions& d) {
  const Shape table{d.vocabulary, d.hidden}, shape{d.rows, d.hidden};
  const std::string label = text(shape) + " of " + std::to_string(d.vocabulary);
  bench.run(label, [&](Operands& of) {
    return EmbeddingForward{
        .y = of.allocate(shape, of.dtype()), .tokens = of.integers(d.rows, d.vocabulary), .table = of.uniform(table)};
  });
  bench.run(label, [&](Operands& of) {
    return EmbeddingBackward{.dtable = of.allocate(table, DType::f32),
                             .dy = of.uniform(shape),
                             .tokens = of.integers(d.rows, d.vocabulary),
                             .write = Write::accumulate};
  });

  const Index n = d.loss_rows;
  const Shape logits{n, d.vocabulary};
  const auto targets = [&](Operands& of) { return of.integers(n, d.vocabulary); };
  const auto ones = [](Operands& of, Index count) { return of.uniform({count}, DType::f32, 0.5f, 1); };
  bench.run(text(logits), [&](Operands& of) {
    return CrossEntropy{.loss = of.allocate({1}, DType::f64),
                        .logits = of.uniform(logits),
                        .targets = targets(of),
                        .weights = ones(of, n),
                        .scale = ones(of, 1)};
  });
  bench.run(text(logits), [&](Operands& of) {
    return CrossEntropyStats{
        .stats = of.allocate({n, 3}, DType::f32), .logits = of.uniform(logits), .targets = targets(of)};
  });
  bench.run(text(logits), [&](Operands& of) {
    return CrossEntropyFinish{.loss = of.allocate({1}, DType::f64),
                              .logits = of.uniform(logits),
                              .stats = of.uniform({1, n, 3}, DType::f32, 1, 2),
                              .targets = targets(of),
                              .weights = ones(of, n),
                              .scale = ones(of, 1)};
  });
}

void bench_optimizer(OpBench& bench, const Dimensions& d) {
  const Shape shape{d.parameters};
  const std::string label = text(shape);
  bench.run(label, [&](Operands& of) {
    return SquaredNorm{.result = of.allocate({1}, DType::f64), .x = of.uniform(shape, of.gradient_dtype())};
  });
  bench.run("", [&](Operands& of) {
    return UpdateScalars{.scalars = of.values({1e-3f, 1, 0.1f, 0.05f}),
                         .state = of.allocate({2}, DType::i64),
                         .squared_norm = of.allocate({1}, DType::f64),
                         .loss = of.allocate({1}, DType::f64),
                         .bad = of.allocate({1}, DType::f64),
                         .limits = of.allocate({2}, DType::f64),
                         .max_norm = 1};
  });
  const auto adamw = [&](Operands& of, bool half, bool split) {
    AdamW op{.exp_avg = of.uniform(shape, DType::f32),
             .exp_avg_sq = of.uniform(shape, DType::f32, 0, 1),
             .gradient = of.uniform(shape, of.gradient_dtype()),
             .scalars = of.values({1e-3f, 1, 0.1f, 0.05f}),
             .weight_decay = 0.1f};
    if (!split) op.master = of.uniform(shape, DType::f32);
    if (half || split) op.compute = of.uniform(shape, DType::bf16);
    if (split) op.low = of.allocate(shape, DType::u16);
    return op;
  };
  bench.run(label, [&](Operands& of) { return adamw(of, of.dtype() == DType::bf16, false); });
  if (bench.device() == Device::cuda) bench.run(label + " split", [&](Operands& of) { return adamw(of, true, true); });
}

// Down and up to the latents of queries and keys, the heads, and the experts of a layer that has them.
void bench_latent(OpBench& bench, const Config& config, const Dimensions& d) {
  const ModelConfig& m = config.model;
  const Index queries = d.heads * (m.qk_nope_head_dim + m.qk_rope_head_dim);
  if (m.q_lora_rank > 0) {
    bench_linear(bench, "q_a", d.rows, d.hidden, m.q_lora_rank, false, Gelu::none);
    bench_linear(bench, "q_b", d.rows, m.q_lora_rank, queries, false, Gelu::none);
  } else {
    bench_linear(bench, "q", d.rows, d.hidden, queries, false, Gelu::none);
  }
  bench_linear(bench, "kv_a", d.rows, d.hidden, m.kv_lora_rank + m.qk_rope_head_dim, false, Gelu::none);
  bench_linear(bench, "kv_b", d.rows, m.kv_lora_rank, d.heads * (m.qk_nope_head_dim + m.v_head_dim), false, Gelu::none);
  bench_latent_attention(bench, config);
  if (m.first_k_dense_replace < m.num_hidden_layers) bench_experts(bench, config);
}

struct Options {
  JobOptions job{.job = "configs/bench_cpu.yaml"};
  double seconds = 0.3;
  std::string json;
};

ExitCode bench_ops(const Options& options) {
  const auto world = World::make();
  const Config config = resolve(load_config(system_files(), options.job.job, options.job.overrides), world->size());
  const Device device = run_device(config);
  use_device(config, *world, device);
  if (world->rank() != 0) return ExitCode::ok;
  const bool gpu = device == Device::cuda;
  const Dimensions d(config, plan_rank(config, Mesh(mesh_sizes(config.parallel)), 0, device).parameters, device);
  ThreadPool pool(pool_threads(config, *world));
  if (gpu)
    std::printf("job %s on %s\n", options.job.job.c_str(), gpu::info(gpu::current()).name.c_str());
  else
    std::printf("job %s, %d thread(s), BLAS kernel %s; ceilings: float32 matmul 1024^3, or a copy of as many bytes\n",
                options.job.job.c_str(), pool.threads(), cpu::blas_info().kernel.c_str());
  OpBench bench(pool, {.device = device,
                       .dtype = config.precision.compute == "bfloat16" ? DType::bf16 : DType::f32,
                       .gradient = config.precision.gradients == "bfloat16" ? DType::bf16 : DType::f32,
                       .settings = compute_settings(config),
                       .seconds = options.seconds});
  if (config.model.deepseek()) {
    bench_latent(bench, config, d);
  } else {
    bench_linear(bench, "qkv", d.rows, d.hidden, d.qkv(), !d.llama, Gelu::none);
    bench_attention(bench, d);
  }
  bench_linear(bench, "out", d.rows, d.heads * d.head, d.hidden, !d.llama, Gelu::none);
  bench_linear(bench, "up", d.rows, d.hidden, d.up(), !d.llama, d.llama ? Gelu::none : Gelu::output);
  bench_linear(bench, "down", d.rows, d.inner, d.hidden, !d.llama, d.llama ? Gelu::none : Gelu::input);
  bench_linear(bench, "head", d.loss_rows, d.hidden, d.vocabulary, false, Gelu::none, false);
  bench_rows(bench, d);
  bench_activations(bench, d);
  bench_vocabulary(bench, d);
  bench_optimizer(bench, d);
  if (gpu) std::printf("\n%s", bench.fast_paths().c_str());
  if (!options.json.empty()) write_file_atomically(system_files(), options.json, bench.json());
  return ExitCode::ok;
}

}  // namespace

RunCommand add_bench_ops(CLI::App& command) {
  auto o = std::make_shared<Options>();
  command.add_option("--job", o->job.job, "Job file whose step gives the shapes")->capture_default_str();
  command.add_option("arguments", o->job.overrides, "The job file, unless --job names it, and key=value ...");
  command.add_option("--seconds", o->seconds, "Time for each op")->check(number_in(0, 60))->capture_default_str();
  command.add_option("--json", o->json, "File for the same rows, in seconds, FLOP/s and bytes/s");
  return [o] {
    std::vector<std::string>& arguments = o->job.overrides;
    if (!arguments.empty() && arguments[0].find('=') == std::string::npos) {
      o->job.job = arguments[0];
      arguments.erase(arguments.begin());
    }
    return bench_ops(*o);
  };
}

}  // namespace dstrain
