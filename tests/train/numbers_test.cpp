// Bad numbers put into every tensor, and flipped bits, on thread ranks. Prints its figures.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>

#include "lib/comm/agree.h"
#include "lib/train/diagnose.h"
#include "tests/support/catch.h"
#include "tests/train/tiny_run.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

const char* const kLlama =
    "{ type: llama, vocab_size: 331, hidden_size: 32, num_hidden_layers: 4, num_attention_heads: 4, "
    "num_key_value_heads: 2, intermediate_size: 40, tie_word_embeddings: true, attention_bias: true, mlp_bias: true, "
    "initializer_range: 0.1 }";
const char* const kGpt2 =
    "{ type: gpt2, vocab_size: 331, hidden_size: 24, num_hidden_layers: 4, num_attention_heads: 4, "
    "intermediate_size: 40, max_position_embeddings: 17, initializer_range: 0.1, tie_word_embeddings: true, "
    "resid_pdrop: 0.1 }";
const char* const kGpt2NoDropout =
    "{ type: gpt2, vocab_size: 331, hidden_size: 24, num_hidden_layers: 3, num_attention_heads: 4, "
    "intermediate_size: 40, max_position_embeddings: 17, initializer_range: 0.1, tie_word_embeddings: true }";

struct Layout {
  const char* model;
  int data, tensor, pipeline;
  bool bf16 = false;  // weights and gradients
};
const std::vector<Layout>& layouts() {
  static const std::vector<Layout> all{{kLlama, 1, 1, 1}, {kLlama, 2, 1, 2}, {kLlama, 1, 2, 2},      {kGpt2, 3, 1, 1},
                                       {kGpt2, 1, 2, 2},  {kLlama, 2, 2, 1}, {kLlama, 2, 1, 1, true}};
  return all;
}

constexpr double kBad[] = {NAN, INFINITY, -INFINITY, 1e38};

std::uint64_t state_hash(Engine& engine) {
  const ParamArena& p = engine.params();
  Xxh3Hasher hasher;
  for (const Tensor& t : {p.compute(), p.master(), p.low(), p.exp_avg(), p.exp_avg_sq()})
    if (t.defined()) hasher.update({t.data, t.bytes()});
  return hasher.digest();
}

void flip(float* place, int bit) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, place, sizeof bits);
  bits ^= 1u << bit;
  std::memcpy(place, &bits, sizeof bits);
}

void put(const Tensor& element, float value) {
  if (element.dtype == DType::bf16)
    *element.as<bfloat16>() = bfloat16(value);
  else
    *element.as<float>() = value;
}
float get(const Tensor& element) {
  return element.dtype == DType::bf16 ? static_cast<float>(*element.as<bfloat16>()) : *element.as<float>();
}

// Writes a value where it is told to, once an op of a layer's pass has run.
class Injector final : public OpObserver {
 public:
  void arm(const char* phase, int layer, const Tensor& element, double value) {
    phase_ = phase, layer_ = layer, element_ = element, value_ = static_cast<float>(value);
  }
  // The first value of the main output of the op number `op` of the phase.
  void arm_output(const char* phase, int op, double value) {
    phase_ = phase, layer_ = -2, op_ = op, value_ = static_cast<float>(value);
  }
  // Flips a bit before the checksum number `op` since begin().
  void arm_flip(int op, float* place, int bit) { op_ = op, place_ = place, bit_ = bit; }
  void disarm() { phase_ = nullptr, bit_ = -1; }
  const std::string& written() const { return written_; }
  int ops() const { return ops_; }  // of the phase, since begin()
  void begin() { ops_ = checksums_ = 0; }

  void before(Stream&, const char* op, const Cost&) override {
    if (std::strcmp(op, "checksum") != 0 || bit_ < 0 || checksums_++ != op_) return;
    flip(place_, bit_);
  }
  void after(Stream& stream, const char* op, std::span<const Tensor> outputs) override {
    const Place& at = stream.place();
    if (!phase_ || std::strcmp(at.phase, phase_) != 0) return;
    if (layer_ != -2) {
      if (at.layer == layer_) put(element_, value_);
      return;
    }
    if (outputs.empty() || !outputs[0].defined()) return;
    if (ops_++ != op_) return;
    const Tensor& t = outputs[0];
    written_ = format("{} in layer {}, micro-batch {}, {}", op, at.layer, at.micro_batch, t.to_string());
    if (t.dtype == DType::f32) *t.as<float>() = value_;
    if (t.dtype == DType::f64) *t.as<double>() = static_cast<double>(value_);
  }

 private:
  const char* phase_ = nullptr;
  int layer_ = -1, op_ = -1, ops_ = 0, checksums_ = 0, bit_ = -1;
  float* place_ = nullptr;
  Tensor element_;
  float value_ = 0;
  std::string written_;
};

// Finite numbers come of it, rightly: a query of 1e38 saturates a softmax; a logit of -inf is a token that cannot be; a
// tensor rank does not use the loss that another one counts, nor the gradient of a token whose row another one holds.
bool is_absorbed(const std::string& written, double value) {
  const auto has = [&](const char* text) { return written.find(text) != std::string::npos; };
  const bool qkv = written.starts_with("matmul") && (has("(52, 72)") || has("(52, 64)") || has("(52, 32)"));
  const bool logits = written.starts_with("matmul") && has("layer -1") && (has(", 384)") || has(", 256)"));
  if (value == 1e38) return written.starts_with("rope") || qkv;
  return value == -INFINITY && (logits || written.starts_with("cross_entropy_stats"));
}
bool is_another_ranks(const std::string& written) {
  return written.starts_with("cross_entropy_finish") || written.starts_with("rms_norm_backward in layer 0");
}

struct Target {
  Param* param;
  int layer;
};

std::vector<Target> targets_of(Engine& engine) {
  std::vector<Target> all;
  const StageModel& m = engine.stage().model();
  for (std::size_t i = 0; i < m.layers.size(); ++i)
    m.layers[i]->visit([&](Param& p) { all.push_back({&p, static_cast<int>(m.numbers[i])}); });
  return all;
}

// What one rank sees of a mesh: its engine, the step's batch, and what all ranks agree on.
struct Rank {
  Rank(World& world, const Config& config)
      : mesh(mesh_sizes(config.parallel)),
        engine(make_engine(config, world, mesh, Device::cpu, 1)),
        groups(make_groups(world, mesh, Poster::guard)),
        everyone(*groups.control),
        data(config, engine->coordinates().data, 0) {
    engine->initialize(config.run.seed);
    engine->stream().set_observer(&injector);
  }
  StepResult step(const StepChecks& checks = {}) {
    injector.begin();
    return engine->train_step(data.batches(), data.valid(), 1e-3, false, {}, checks);
  }
  bool mine(int rank) const { return everyone.rank() == rank; }

  Mesh mesh;
  std::unique_ptr<Engine> engine;
  Groups groups;
  Agreement everyone;
  TinyData data;
  Injector injector;
};

Config job(const Layout& l, const std::vector<std::string>& more = {}) {
  std::vector<std::string> overrides{"guard.on_nonfinite=skip"};
  overrides.insert(overrides.end(), more.begin(), more.end());
  if (l.bf16) overrides.insert(overrides.end(), {"precision.compute=bfloat16", "precision.gradients=bfloat16"});
  return tiny_job(l.model, l.data, l.tensor, l.pipeline, l.bf16 ? kSamples / l.data : 4, overrides);
}

}  // namespace

// Of each rank's parameters every `stride`-th.
void bad_tensors(Index stride) {
  std::atomic<int> cases{0}, missed{0}, changed{0}, disagreed{0}, unnamed{0};
  for (const Layout& l : layouts()) {
    run_threads(l.data * l.tensor * l.pipeline, [&](World& world) {
      Rank r(world, job(l));
      r.step();
      const std::vector<Target> targets = targets_of(*r.engine);
      for (int rank = 0; rank < world.size(); ++rank) {
        const Index params = r.everyone.sum(r.mine(rank) ? static_cast<Index>(targets.size()) : Index{0});
        for (Index i = rank % stride; i < params; i += stride)
          for (const bool gradient : {false, true})
            for (const double value : kBad) {
              Tensor place;
              float before = 0;
              std::string name;
              if (r.mine(rank)) {
                const Target& t = targets[static_cast<std::size_t>(i)];
                name = t.param->pieces.front().name;
                const Index at = i * 7919 % t.param->pieces.front().extent.numel();
                const Tensor& whole = gradient ? t.param->gradient : t.param->compute;
                place = whole.view({whole.numel()}).slice(0, at, at + 1);
                before = get(place);
                if (gradient)
                  r.injector.arm("backward", t.layer, place, value);
                else
                  put(place, static_cast<float>(value));
              }
              const std::uint64_t hash = state_hash(*r.engine);
              const StepResult result = r.step();
              const bool same = state_hash(*r.engine) == hash;
              // Two cases a tensor are followed to their origin.
              if (std::isnan(value) || value == 1e38) {
                const Culprit culprit =
                    find_culprit(*r.engine, *r.groups.control, r.data.batches(), r.data.valid(), true);
                const bool named = culprit.text.find(format("rank {}", rank)) != std::string::npos &&
                                   (name.empty() || gradient || culprit.text.find(name) != std::string::npos);
                if (!named) {
                  ++unnamed;
                  if (r.mine(rank)) std::printf("unnamed: %s: %s\n", name.c_str(), culprit.text.c_str());
                }
              }
              r.injector.disarm();
              if (place.defined() && !gradient) put(place, before);
              const Index found = r.everyone.sum(result.finite ? Index{0} : Index{1});
              if (!same) ++changed;
              if (!r.mine(0)) continue;
              ++cases;
              if (found == 0) {
                ++missed;
                std::printf("missed: %g in a %s, rank %d, %d\n", value, gradient ? "gradient" : "weight", rank,
                            static_cast<int>(i));
              }
              if (found != 0 && found != world.size()) ++disagreed;
            }
      }
    });
  }
  std::printf(
      "numbers: %d bad values in weights and gradients: %d missed, %d changed a weight, %d without agreement, %d "
      "not traced\n",
      cases.load(), missed.load(), changed.load(), disagreed.load(), unnamed.load());
  CHECK(cases > 4000 / stride);
  CHECK(missed == 0);
  CHECK(changed == 0);
  CHECK(disagreed == 0);
  CHECK(unnamed == 0);
}

TEST_CASE("a bad number in any tensor of any rank is found in its step, and changes no weight", "[numbers]") {
  bad_tensors(4);
}
TEST_CASE("a bad number in every tensor of every rank", "[.nightly]") { bad_tensors(1); }

TEST_CASE("a bad number in what any op of a pass writes is found in its step", "[numbers]") {
  std::atomic<int> cases{0}, missed{0}, changed{0}, absorbed{0};
  for (const Layout& l : {Layout{kLlama, 1, 1, 1}, Layout{kLlama, 1, 2, 2}, Layout{kGpt2NoDropout, 3, 1, 1}}) {
    run_threads(l.data * l.tensor * l.pipeline, [&](World& world) {
      Rank r(world, job(l));
      // No row is without a loss: what it holds would mean nothing.
      for (const Batch& b : r.data.batches()) std::fill_n(b.loss_weights.as<float>(), b.rows(), 1.0f);
      for (const char* phase : {"forward", "backward"}) {
        r.injector.arm_output(phase, -5, 0);
        r.step();
        const int ops = r.injector.ops();
        for (int rank = 0; rank < world.size(); ++rank) {
          const Index n = r.everyone.sum(r.mine(rank) ? Index{ops} : Index{0});
          for (Index op = 0; op < n; op += 3)
            for (const double value : kBad) {
              r.injector.disarm();
              if (r.mine(rank)) r.injector.arm_output(phase, static_cast<int>(op), value);
              const std::uint64_t hash = state_hash(*r.engine);
              const StepResult result = r.step();
              r.injector.disarm();
              if (!result.finite && state_hash(*r.engine) != hash) ++changed;
              if (r.mine(0)) ++cases;
              if (result.finite && r.mine(rank) &&
                  (is_absorbed(r.injector.written(), value) ||
                   (r.engine->coordinates().tensor > 0 && is_another_ranks(r.injector.written()))))
                ++absorbed;
              else if (result.finite && r.mine(rank)) {
                ++missed;
                std::printf("missed: %s op %d of rank %d, value %g: %s\n", phase, static_cast<int>(op), rank, value,
                            r.injector.written().c_str());
              }
            }
        }
      }
    });
  }
  std::printf("numbers: %d bad values in outputs of ops: %d missed, %d changed a weight, %d absorbed by the maths\n",
              cases.load(), missed.load(), changed.load(), absorbed.load());
  CHECK(cases > 300);
  CHECK(missed == 0);
  CHECK(changed == 0);
}

void flipped_bits(int flips) {
  std::atomic<int> cases{0}, missed{0}, alarms{0};
  for (const Layout& l : {Layout{kLlama, 3, 1, 1}, Layout{kGpt2, 3, 2, 1}, Layout{kLlama, 3, 1, 2}}) {
    run_threads(l.data * l.tensor * l.pipeline, [&](World& world) {
      Rank r(world, job(l));
      std::mt19937_64 random(20261126);  // the same on every rank
      for (int i = 0; i < flips / 3; ++i) {
        const StepResult clean = r.step({.recompute = true, .replicas = true});
        alarms += r.mine(0) && !find_corruption(r.mesh, clean.sums).empty();
        const int rank = static_cast<int>(random() % static_cast<std::uint64_t>(world.size()));
        const std::uint64_t what = random() % 4, place = random(), bit = random() % 23;
        float* at = nullptr;
        if (r.mine(rank)) {
          const ParamArena& p = r.engine->params();
          const Tensor flat = what == 0   ? p.compute()
                              : what == 1 ? p.exp_avg()
                              : what == 2 ? p.exp_avg_sq()
                                          : p.gradients()[1];
          // Of an owned element: gaps hold zeros, and a gradient's is written anew.
          const ParamArena::Entry& e = p.entries()[place % p.entries().size()];
          at = flat.as<float>() + e.range.begin +
               static_cast<Index>((place >> 20) % static_cast<std::uint64_t>(e.range.size()));
          // Three sums are of the state; then those of the gradient, computed twice.
          if (what < 3)
            flip(at, static_cast<int>(bit));
          else
            r.injector.arm_flip(3 + static_cast<int>(place % 2), at, static_cast<int>(bit));
        }
        const StepResult result = r.step({.recompute = true, .replicas = true});
        r.injector.disarm();
        const std::string found = find_corruption(r.mesh, result.sums);
        if (r.mine(0)) {
          ++cases;
          if (found.find(format("rank {}:", rank)) == std::string::npos) {
            ++missed;
            std::printf("missed: kind %d, rank %d: '%s'\n", static_cast<int>(what), rank, found.c_str());
          }
        }
        // Ranks are equal again for the next flip.
        r.engine->initialize(7);
      }
    });
  }
  std::printf("numbers: %d flipped bits: %d missed or misnamed; %d false alarms\n", cases.load(), missed.load(),
              alarms.load());
  CHECK(cases == flips);
  CHECK(missed == 0);
  CHECK(alarms == 0);
}

TEST_CASE("one flipped bit of weights, moments or gradients on one rank is found at the next check and named",
          "[numbers]") {
  flipped_bits(60);
}
TEST_CASE("flipped bits, more of them", "[.nightly]") { flipped_bits(501); }

TEST_CASE("labels turned to noise are a spike, and the batch is left out", "[numbers]") {
  const Config config = tiny_job(kLlama, 1, 1, 1, 4, {"guard.on_spike=skip", "optimizer.lr=1.0e-2"});
  run_threads(1, [&](World& world) {
    Rank r(world, config);
    Guard guard(config.guard);
    // Each token follows from the one before, but for one in six: the loss comes to rest above zero.
    const auto fill = [&](Index step, bool noise) {
      for (const Batch& b : r.data.batches())
        for (Index i = 0; i < b.rows(); ++i) {
          const auto random =
              philox(5, "noise")(static_cast<std::uint64_t>(step),
                                 static_cast<std::uint64_t>(b.sample_ids.as<std::int64_t>()[0] * 1000 + i));
          const auto token = static_cast<std::int32_t>(random[0] % 40);
          b.tokens.as<std::int32_t>()[i] = token;
          b.targets.as<std::int32_t>()[i] =
              noise || random[1] % 6 == 0 ? static_cast<std::int32_t>(random[2] % 331) : (token * 7 + 3) % 40;
        }
    };
    Index false_alarms = 0, found = 0;
    for (Index step = 1; step <= 300; ++step) {
      const bool noise = step > 150 && step % 50 == 0;
      fill(step, noise);
      const StepLimits limits = guard.limits(step);
      const std::uint64_t before = state_hash(*r.engine);
      const StepResult s =
          r.engine->train_step(r.data.batches(), r.data.valid(), 1e-2, false, guard.device_limits(step));
      const auto d = guard.judge({.step = step,
                                  .loss = s.loss,
                                  .grad_norm = s.grad_norm,
                                  .finite = s.finite,
                                  .within = s.within,
                                  .samples = {step * 24 - 24, step * 24}},
                                 limits);
      if (noise) {
        found += d.action == Guard::Action::skip;
        CHECK(state_hash(*r.engine) == before);
      } else {
        false_alarms += d.action != Guard::Action::none;
      }
    }
    std::printf("numbers: label noise found in %d of 3 steps, %d false alarms in 297\n", static_cast<int>(found),
                static_cast<int>(false_alarms));
    CHECK(found == 3);
    CHECK(false_alarms == 0);
  });
}
