// dstrain bench ops: every op, forward and backward, at the shapes of a job's step, against the rate of matmuls or of
// copies that touch as many bytes.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <utility>

#include "apps/bench.h"
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
#include "kernels/matmul.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "lib/config/resolve.h"
#include "lib/core/files.h"
#include "lib/core/rng.h"
#include "lib/train/ceiling.h"
#include "lib/train/trainer.h"

namespace dstrain {

namespace {

// Tensors of random numbers, alive as long as this is.
class Operands {
 public:
  Tensor uniform(const Shape& shape, float low = -1, float high = 1) {
    const Tensor t = allocate(shape, DType::f32);
    const Philox generator = philox(buffers_.size(), "bench ops");
    float* values = t.as<float>();
    for (Index i = 0; i < t.numel(); ++i) {
      if (i % 4 == 0) bits_ = generator(0, static_cast<std::uint64_t>(i / 4));
      values[i] = low + (high - low) * dstrain::uniform(bits_[static_cast<std::size_t>(i % 4)]);
    }
    return t;
  }
  // (n) i32, below `bound`.
  Tensor integers(Index n, Index bound) {
    const Tensor t = allocate({n}, DType::i32);
    const Philox generator = philox(buffers_.size(), "bench ops");
    for (Index i = 0; i < n; ++i)
      t.as<std::int32_t>()[i] =
          static_cast<std::int32_t>(generator(0, static_cast<std::uint64_t>(i))[0] % static_cast<std::uint32_t>(bound));
    return t;
  }
  // Zeros.
  Tensor allocate(const Shape& shape, DType dtype) {
    const std::size_t bytes = static_cast<std::size_t>(shape.numel()) * size_of(dtype);
    buffers_.emplace_back("bench operands", Device::cpu, bytes);
    return Tensor(buffers_.back().data(), dtype, Device::cpu, shape);
  }

 private:
  std::vector<Buffer> buffers_;
  std::array<std::uint32_t, 4> bits_{};
};

// The shapes of rank 0's layers.
struct Dimensions {
  Index batch, length, rows;            // of a micro-batch
  Index hidden, heads, kv_heads, head;  // heads of this rank
  Index inner, vocabulary, parameters;  // of this rank
  bool gated;                           // SwiGLU: two inner matrices in one

  Dimensions(const Config& c, Index own_parameters)
      : batch(c.training.micro_batch_size),
        length(c.training.sequence_length),
        rows(batch * length),
        hidden(c.model.hidden_size),
        heads(c.model.num_attention_heads / c.parallel.tensor),
        kv_heads(std::max<Index>(1, c.model.num_key_value_heads / c.parallel.tensor)),
        head(c.model.head_dim),
        inner(c.model.intermediate_size / c.parallel.tensor),
        vocabulary((c.model.vocab_size + c.parallel.tensor - 1) / c.parallel.tensor),
        parameters(own_parameters),
        gated(c.model.type == "llama") {}

  Index qkv() const { return (heads + 2 * kv_heads) * head; }
  Index loss_rows() const { return std::min<Index>(rows, 512); }  // the loss head works in chunks
};

class OpBench {
 public:
  OpBench(ThreadPool& pool, double seconds) : pool_(pool), seconds_(seconds) {
    std::printf("%-20s %-30s %9s %9s %8s %-7s %8s %6s\n", "op", "shape", "ms", "p95", "rate", "", "ceiling", "ratio");
  }

  // Times the op and prints its row. Ops that multiply matrices are held against the matmul rate, the others against a
  // copy that touches as many bytes; both are measured beside the op.
  template <class Op>
  void run(const std::string& shape, const Op& op) {
    std::size_t bytes = 0;
    if constexpr (requires { op.workspace(Device::cpu); }) bytes = op.workspace(Device::cpu);
    Arena workspace("bench workspace", Device::cpu, bytes + Arena::kAlign);
    Stream stream(Device::cpu, Device::cpu, &pool_, &workspace, nullptr);
    launch(stream, op);
    std::vector<double> times;
    for (double sum = 0; times.size() < 5 || (sum < seconds_ && times.size() < 100000);) {
      const double begin = system_clock().now();
      launch(stream, op);
      times.push_back(system_clock().now() - begin);
      sum += times.back();
    }
    print(Op::name, shape, op.cost(), times, stream);
  }

 private:
  void print(const char* name, const std::string& shape, const Cost& cost, const std::vector<double>& times,
             Stream& stream) {
    constexpr double kSmall = 65536;  // bytes: a copy of fewer measures the pool
    const double median = quantile(times, 0.5);
    std::printf("%-20s %-30s %9.3f %9.3f ", name, shape.c_str(), 1e3 * median, 1e3 * quantile(times, 0.95));
    if (cost.flops == 0 && cost.bytes < kSmall) {
      std::printf("%8s %-7s %8s %6s\n", "-", "", "-", "-");
      return;
    }
    const bool matrices = cost.flops > 0;
    const double rate = (matrices ? cost.flops : cost.bytes) / median;
    const double ceiling = matrices ? measure_matmul_rate(stream) : touch_rate(stream, cost.bytes);
    std::printf("%8.1f %-7s %8.1f %5.0f%%\n", rate / 1e9, matrices ? "GFLOP/s" : "GB/s", ceiling / 1e9,
                100 * rate / ceiling);
    std::fflush(stdout);
  }

  // Bytes read and written a second by the faster kind of copy that touches as many.
  static double touch_rate(Stream& stream, double bytes) {
    const auto half = static_cast<std::size_t>(bytes / 2);
    return 2 * std::max(measure_copy_rate(stream, half), measure_stream_copy_rate(stream, half));
  }

  ThreadPool& pool_;
  double seconds_;
};

std::string text(const Shape& shape) { return shape.to_string(); }

void bench_linear(OpBench& bench, const char* what, Index rows, Index in, Index out) {
  Operands of;
  const Tensor x = of.uniform({rows, in}), w = of.uniform({out, in}), y = of.uniform({rows, out});
  const Tensor dx = of.uniform({rows, in}), dw = of.uniform({out, in});
  const auto label = [&](const char* pass) { return format("{} {} {}x{}x{}", what, pass, rows, in, out); };
  bench.run(label("y"), Matmul{.c = y, .a = x, .b = w, .transpose_b = true});
  bench.run(label("dx"), Matmul{.c = dx, .a = y, .b = w});
  bench.run(label("dw"), Matmul{.c = dw, .a = y, .b = x, .transpose_a = true});
}

void bench_attention(OpBench& bench, const Dimensions& d) {
  Operands of;
  const Shape q{d.batch, d.length, d.heads, d.head};
  const auto heads = [&](const Tensor& qkv, Index begin, Index count) {
    return qkv.slice(2, begin * d.head, (begin + count) * d.head).split_last(count);
  };
  const Tensor qkv = of.uniform({d.batch, d.length, d.qkv()}), dqkv = of.uniform({d.batch, d.length, d.qkv()});
  const Tensor o = of.uniform(q), dout = of.uniform(q), lse = of.uniform({d.batch, d.heads, d.length});
  const Tensor k = heads(qkv, d.heads, d.kv_heads), v = heads(qkv, d.heads + d.kv_heads, d.kv_heads);
  const float scale = 1.0f / std::sqrt(static_cast<float>(d.head));
  bench.run(text(q), AttentionForward{.o = o, .lse = lse, .q = heads(qkv, 0, d.heads), .k = k, .v = v, .scale = scale});
  bench.run(text(q), AttentionBackward{.dq = heads(dqkv, 0, d.heads),
                                       .dk = heads(dqkv, d.heads, d.kv_heads),
                                       .dv = heads(dqkv, d.heads + d.kv_heads, d.kv_heads),
                                       .dout = dout,
                                       .o = o,
                                       .lse = lse,
                                       .q = heads(qkv, 0, d.heads),
                                       .k = k,
                                       .v = v,
                                       .scale = scale});
  const Tensor rows = qkv.view({d.rows, d.qkv()}).slice(1, 0, d.heads * d.head).split_last(d.heads);
  const Tensor rotated = of.uniform({d.rows, d.heads, d.head}), frequencies = of.uniform({d.head / 2}, 0, 1);
  const Tensor positions = of.integers(d.rows, d.length);
  for (const bool backward : {false, true})
    bench.run(
        text(rotated.shape) + (backward ? " back" : ""),
        Rope{
            .y = rotated, .x = rows, .positions = positions, .inverse_frequencies = frequencies, .backward = backward});
}

void bench_rows(OpBench& bench, const Dimensions& d) {
  Operands of;
  const Shape shape{d.rows, d.hidden};
  const Tensor x = of.uniform(shape), y = of.uniform(shape), branch = of.uniform(shape), sum = of.uniform(shape);
  const Tensor weight = of.uniform({d.hidden}), bias = of.uniform({d.hidden});
  const Tensor dweight = of.uniform({d.hidden}), dbias = of.uniform({d.hidden});
  const Tensor mean = of.uniform({d.rows}, 0, 0.1f), rstd = of.uniform({d.rows}, 1, 2);
  const std::string label = text(shape);
  bench.run(label, RmsNormForward{.y = y, .rstd = rstd, .sum = sum, .x = x, .branch = branch, .weight = weight});
  bench.run(label,
            RmsNormBackward{
                .dx = sum, .dweight = dweight, .dy = y, .x = x, .rstd = rstd, .weight = weight, .dresidual = branch});
  bench.run(
      label,
      LayerNormForward{
          .y = y, .mean = mean, .rstd = rstd, .sum = sum, .x = x, .branch = branch, .weight = weight, .bias = bias});
  bench.run(label, LayerNormBackward{.dx = sum,
                                     .dweight = dweight,
                                     .dbias = dbias,
                                     .dy = y,
                                     .x = x,
                                     .mean = mean,
                                     .rstd = rstd,
                                     .weight = weight,
                                     .dresidual = branch});
  const Tensor ids = of.allocate({d.rows}, DType::i64), positions = of.integers(d.rows, d.length);
  for (Index i = 0; i < d.rows; ++i) ids.as<std::int64_t>()[i] = i / d.length;
  bench.run(label,
            Dropout{.y = y, .x = x, .sample_ids = ids, .positions = positions, .key = philox(1, "x"), .p = 0.1f});
  bench.run(label, BiasGradient{.grad = dbias, .dy = y});
  bench.run(label, Add{.y = sum, .a = x, .b = y});
  bench.run(label, Copy{.y = sum, .x = x});
  bench.run(label, Cast{.y = of.allocate(shape, DType::bf16), .x = x});
  bench.run(label, Fill{.y = sum});
}

void bench_activations(OpBench& bench, const Dimensions& d) {
  Operands of;
  const Tensor pair = of.uniform({d.rows, 2 * d.inner}), dpair = of.uniform({d.rows, 2 * d.inner});
  const Tensor y = of.uniform({d.rows, d.inner}), x = of.uniform({d.rows, d.inner}), dx = of.uniform({d.rows, d.inner});
  const std::string label = text(y.shape);
  bench.run(label, SwiGluForward{.y = y, .gate_up = pair});
  bench.run(label, SwiGluBackward{.dgate_up = dpair, .dy = y, .gate_up = pair});
  bench.run(label + " tanh", GeluForward{.y = y, .x = x});
  bench.run(label + " tanh", GeluBackward{.dx = dx, .dy = y, .x = x});
  bench.run(label + " erf", GeluForward{.y = y, .x = x, .tanh = false});
  bench.run(label + " erf", GeluBackward{.dx = dx, .dy = y, .x = x, .tanh = false});
}

void bench_vocabulary(OpBench& bench, const Dimensions& d) {
  Operands of;
  const Tensor table = of.uniform({d.vocabulary, d.hidden}), y = of.uniform({d.rows, d.hidden});
  const Tensor tokens = of.integers(d.rows, d.vocabulary);
  const std::string label = text(y.shape) + " of " + std::to_string(d.vocabulary);
  bench.run(label, EmbeddingForward{.y = y, .tokens = tokens, .table = table});
  bench.run(label, EmbeddingBackward{.dtable = table, .dy = y, .tokens = tokens});

  const Index rows = d.loss_rows();
  const Tensor logits = of.uniform({rows, d.vocabulary}), targets = tokens.slice(0, 0, rows);
  const Tensor stats = of.uniform({rows, 3}), weights = of.uniform({rows}, 0, 1), loss = of.allocate({1}, DType::f64);
  bench.run(text(logits.shape), CrossEntropyStats{.stats = stats, .logits = logits, .targets = targets});
  bench.run(text(logits.shape), CrossEntropyFinish{.loss = loss,
                                                   .logits = logits,
                                                   .stats = stats.view({1, rows, 3}),
                                                   .targets = targets,
                                                   .weights = weights,
                                                   .scale = of.uniform({1}, 0, 1)});
}

void bench_optimizer(OpBench& bench, const Dimensions& d) {
  Operands of;
  const Shape shape{d.parameters};
  const Tensor gradient = of.uniform(shape), master = of.uniform(shape), exp_avg = of.uniform(shape);
  const Tensor exp_avg_sq = of.uniform(shape, 0, 1), norm = of.allocate({1}, DType::f64),
               scalars = of.uniform({4}, 0, 1);
  const std::string label = text(shape);
  bench.run(label, SquaredNorm{.result = norm, .x = gradient});
  const Tensor state = of.allocate({2}, DType::i64), loss = of.allocate({1}, DType::f64);
  bench.run("", UpdateScalars{.scalars = scalars, .state = state, .squared_norm = norm, .loss = loss, .max_norm = 1});
  const float values[] = {1e-3f, 1, 0.1f, 0.05f};
  std::copy(std::begin(values), std::end(values), scalars.as<float>());
  bench.run(label, AdamW{.master = master,
                         .exp_avg = exp_avg,
                         .exp_avg_sq = exp_avg_sq,
                         .gradient = gradient,
                         .scalars = scalars,
                         .weight_decay = 0.1f});
}

ExitCode bench_ops(const JobOptions& options, double seconds) {
  const auto world = World::make();
  const Config config = resolve(load_config(system_files(), options.job, options.overrides), world->size());
  run_device(config);
  if (world->rank() != 0) return ExitCode::ok;
  const Dimensions d(config, plan_rank(config, Mesh(mesh_sizes(config.parallel)), 0, Device::cpu).parameters);
  ThreadPool pool(pool_threads(config, *world));
  std::printf("job %s, %d thread(s), BLAS kernel %s; ceilings: float32 matmul 1024^3, or a copy of as many bytes\n",
              options.job.c_str(), pool.threads(), cpu::blas_info().kernel.c_str());
  OpBench bench(pool, seconds);
  bench_linear(bench, "qkv", d.rows, d.hidden, d.qkv());
  bench_linear(bench, "out", d.rows, d.heads * d.head, d.hidden);
  bench_linear(bench, "up", d.rows, d.hidden, d.gated ? 2 * d.inner : d.inner);
  bench_linear(bench, "down", d.rows, d.inner, d.hidden);
  bench_linear(bench, "head", d.loss_rows(), d.hidden, d.vocabulary);
  bench_attention(bench, d);
  bench_rows(bench, d);
  bench_activations(bench, d);
  bench_vocabulary(bench, d);
  bench_optimizer(bench, d);
  return ExitCode::ok;
}

}  // namespace

RunCommand add_bench_ops(CLI::App& command) {
  struct Options {
    JobOptions job{.job = "configs/bench_cpu.yaml"};
    double seconds = 0.3;
  };
  auto o = std::make_shared<Options>();
  command.add_option("--job", o->job.job, "Job file whose step gives the shapes")->capture_default_str();
  command.add_option("overrides", o->job.overrides, "key=value ...");
  command.add_option("--seconds", o->seconds, "Time for each op")->check(CLI::Range(0.0, 60.0))->capture_default_str();
  return [o] { return bench_ops(o->job, o->seconds); };
}

}  // namespace dstrain
