// dstrain parity DIR: forward, backward and optimizer steps against stored results of another program.
// DIR holds config.json, model.safetensors and golden.safetensors; docs/parity.md defines errors and bounds.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "lib/config/resolve.h"
#include "lib/core/transfer.h"
#include "lib/layers/host_batch.h"
#include "lib/train/machine.h"
#include "lib/train/weights.h"

namespace dstrain {

namespace {

constexpr double kLr = 1e-3;  // of the recorded training

// One line of the table.
struct Row {
  std::string name;
  double error = 0;  // max |a - b| / max |reference|
  Index over = 0;    // elements over the tolerance
  Index count = 0;
  double largest = 0;  // max |a - b|
  bool pass = true;
};

Row compare(const std::string& name, std::span<const float> ours, std::span<const float> reference, double tolerance) {
  require(ours.size() == reference.size(), ExitCode::data, "{}: {} values here, {} in the reference", name, ours.size(),
          reference.size());
  Row row{.name = name, .count = static_cast<Index>(ours.size())};
  double scale = 0;
  for (const float r : reference) scale = std::max(scale, std::fabs(static_cast<double>(r)));
  for (std::size_t i = 0; i < ours.size(); ++i) {
    double difference = std::fabs(static_cast<double>(ours[i]) - static_cast<double>(reference[i]));
    if (std::isnan(difference)) difference = std::numeric_limits<double>::infinity();
    if (difference > tolerance * scale) ++row.over;
    row.largest = std::max(row.largest, difference);
  }
  row.error = scale > 0 ? row.largest / scale : row.largest;
  row.pass = row.error <= tolerance;
  return row;
}

// A weight after training: Adam turns rounding noise of almost-zero gradients into whole updates, so a few elements
// may be over the tolerance, and none may be further off than the updates can carry it.
Row compare_final(const std::string& name, std::span<const float> ours, std::span<const float> reference,
                  double tolerance, Index steps, bool key_bias) {
  Row row = compare(name, ours, reference, tolerance);
  const Index allowed = std::max<Index>(2, row.count / 500);
  row.pass = (key_bias || row.over <= allowed) && row.largest <= 2 * kLr * static_cast<double>(steps);
  return row;
}

// A tensor's rows that one line of the table is about.
struct Part {
  const char* suffix;
  std::size_t count;
  bool key_bias;
};

// A constant added to every key changes no softmax: the gradient of GPT-2's key biases is zero, and that of rotated
// ones almost, in the pairs that hardly turn over the sample.
std::vector<Part> parts_of(const std::string& name, std::size_t size, const ModelConfig& model) {
  if (name.ends_with("attn.c_attn.bias"))
    return {{"[q]", size / 3, false}, {"[k]", size / 3, true}, {"[v]", size / 3, false}};
  if (name.ends_with("self_attn.k_proj.bias")) return {{"", size, true}};
  const auto rotated = static_cast<std::size_t>(model.qk_rope_head_dim);
  if (name.ends_with("kv_a_proj_with_mqa.bias") && size > rotated)
    return {{"[kv]", size - rotated, false}, {"[k]", rotated, true}};
  return {{"", size, false}};
}

// input_ids (steps, B, T) of one step as a micro-batch; the last position predicts nothing, and of a depth of
// multi-token prediction so many more.
struct Samples : HostBatch {
  Samples(std::span<const std::int64_t> ids, Index b, Index t, const ModelConfig& model, const std::string& path)
      : HostBatch(b, t) {
    const Index vocabulary = model.vocab_size;
    predict_further(model.num_nextn_predict_layers);
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      require(0 <= ids[i] && ids[i] < vocabulary, ExitCode::data, "{}: input_ids holds {}, the vocabulary has {}", path,
              ids[i], vocabulary);
      tokens[i] = static_cast<std::int32_t>(ids[i]);
      const bool last = static_cast<Index>(i) % t == t - 1;
      targets[i] = last ? 0 : static_cast<std::int32_t>(ids[i + 1]);
      loss_weights[i] = last ? 0.0f : 1.0f;
    }
  }
  ValidTokens valid(const Batch& made) const {
    return {static_cast<double>(batch * (length - 1)), mtp_tokens({&made, 1})};
  }
};

// A router's balancing bias has no gradient, and the recorded training leaves it as it is.
bool learned(const Param& p) { return p.rule == UpdateRule::adamw; }

class Parity {
 public:
  Parity(const std::string& directory, const std::string& device, double tolerance, std::vector<std::string> overrides)
      : tolerance_(tolerance),
        overrides_(std::move(overrides)),
        device_(device),
        directory_(directory),
        golden_(system_files(), join_path(directory, "golden.safetensors")) {}

  ExitCode run() {
    const Shape ids = golden_.entry("input_ids").shape;
    require(ids.rank() == 3 && ids[0] > 0 && ids[2] > 1, ExitCode::data, "{}: input_ids has shape {}", golden_.path(),
            ids.to_string());
    const Index steps = ids[0], batch = ids[1], length = ids[2];
    const Config config = job(steps, batch, length);
    const std::vector<std::int64_t> tokens = golden_.read_i64("input_ids");
    const auto samples = [&](Index step) {
      return Samples(std::span(tokens).subspan(static_cast<std::size_t>(step * batch * length),
                                               static_cast<std::size_t>(batch * length)),
                     batch, length, config.model, golden_.path());
    };

    const auto world = World::make();
    require(world->size() == 1, ExitCode::usage, "parity runs on one rank, there are {}", world->size());
    const Mesh mesh{MeshSizes{}};
    const Device device = run_device(config);
    use_device(config, *world, device);
    const auto owned = make_engine(config, *world, mesh, device, available_cores());
    Engine& engine = *owned;
    engine.initialize(1);
    const SafetensorsModel weights(system_files(), join_path(directory_, "model.safetensors"));
    check_all_used(config.model, weights);
    load_weights(engine, weights);

    Samples first = samples(0);
    compare_logits(engine, config, first);
    compare_gradients(engine, first);
    compare_training(engine, steps, samples);
    return print();
  }

 private:
  Config job(Index steps, Index batch, Index length) const {
    std::string path = join_path(directory_, "config.json");
    for (std::size_t at = 0; (at = path.find('\'', at)) != std::string::npos; at += 2) path.insert(at, "'");
    const std::string yaml = format(
        "run: {{ dir: unused, device: {} }}\nmodel: {{ from: '{}' }}\n"
        "training: {{ steps: {}, sequence_length: {}, global_batch_size: {}, micro_batch_size: {} }}\n"
        "data: {{ train: [unused] }}\n"
        "optimizer: {{ lr: {}, betas: [0.9, 0.95], eps: 1.0e-8, weight_decay: 0.1, clip_grad_norm: 1.0 }}\n"
        "lr_schedule: {{ type: constant }}\n",
        device_, path, steps, length, batch, batch, kLr);
    Config config = resolve(parse_config(system_files(), "parity", yaml, overrides_), 1);
    // transformers' model has no multi-token prediction, whatever its config.json says.
    if (!golden_.entries().contains("mtp_loss")) config.model.num_nextn_predict_layers = 0;
    config.moe = {.bias_update_rate = 0, .balance_loss_alpha = 0};  // the recorded loss is cross-entropy alone
    return config;
  }

  void compare_logits(Engine& engine, const Config& config, Samples& samples) {
    const Batch batch = samples.view();
    Stream& stream = engine.stream();
    const Buffer loss_memory("loss", stream.device(), sizeof(double));
    const Tensor loss_tensor(loss_memory.data(), DType::f64, stream.device(), {1});
    engine.stage().forward(stream, 0, batch, {.mode = Mode::eval, .loss = loss_tensor});
    const Index columns = engine.stage().model().head->weight().shape[0], vocabulary = config.model.vocab_size;
    const Buffer memory("logits", stream.device(), static_cast<std::size_t>(batch.rows() * columns) * sizeof(float));
    const Tensor logits(memory.data(), DType::f32, stream.device(), {batch.rows(), columns});
    engine.stage().logits(stream, engine.stage().output(), logits);
    stream.synchronize();
    engine.stage().release(0);
    double loss = 0;
    download_now(&loss, loss_tensor);
    std::vector<float> all(static_cast<std::size_t>(logits.numel())), ours;
    download_now(all.data(), logits);
    for (Index r = 0; r < batch.rows(); ++r)
      ours.insert(ours.end(), all.begin() + r * columns, all.begin() + r * columns + vocabulary);
    rows_.push_back(compare("logits", ours, golden_.read_f32("logits"), tolerance_));
    add("loss (eval)", {static_cast<float>(loss / samples.valid(batch).next)}, "loss");
  }

  void compare_gradients(Engine& engine, Samples& samples) {
    const Batch batch = samples.view();
    const StepResult result = engine.gradients({&batch, 1}, samples.valid(batch), false);
    add("loss (train)", {static_cast<float>(result.loss)}, "loss");
    if (engine.config().model.num_nextn_predict_layers > 0)
      add("mtp_loss", {static_cast<float>(result.mtp_loss)}, "mtp_loss");
    for (const auto& [name, tensor] : gather_tensors(engine.stage().model(), [&](const Param& p) {
           return learned(p) ? engine.gradient(p) : std::vector<float>{};
         }))
      add("grad." + name, tensor.values, "grad." + name);
  }

  template <class MakeSamples>
  void compare_training(Engine& engine, Index steps, MakeSamples make_samples) {
    std::vector<float> losses, norms, further;
    for (Index step = 0; step < steps; ++step) {
      Samples samples = make_samples(step);
      const Batch batch = samples.view();
      const StepResult result = engine.train_step({&batch, 1}, samples.valid(batch), kLr, false);
      further.push_back(static_cast<float>(result.mtp_loss));
      losses.push_back(static_cast<float>(result.loss));
      norms.push_back(static_cast<float>(result.grad_norm));
    }
    add("losses", losses, "losses");
    if (engine.config().model.num_nextn_predict_layers > 0) add("mtp_losses", further, "mtp_losses");
    add("grad_norms", norms, "grad_norms");
    for (const auto& [name, tensor] : gather_tensors(engine.stage().model(), [&](const Param& p) {
           return learned(p) ? engine.read(p, Role::weight) : std::vector<float>{};
         })) {
      const std::vector<float> reference = golden_.read_f32("final." + name);
      require(reference.size() == tensor.values.size(), ExitCode::data, "final.{}: {} values here, {} in the reference",
              name, tensor.values.size(), reference.size());
      std::size_t begin = 0;
      for (const Part& part : parts_of(name, reference.size(), engine.config().model)) {
        rows_.push_back(
            compare_final("final." + name + part.suffix, std::span(tensor.values).subspan(begin, part.count),
                          std::span(reference).subspan(begin, part.count), tolerance_, steps, part.key_bias));
        begin += part.count;
      }
    }
  }

  void add(const std::string& name, const std::vector<float>& ours, const std::string& reference) {
    rows_.push_back(compare(name, ours, golden_.read_f32(reference), tolerance_));
  }

  ExitCode print() const {
    std::printf("%-64s %10s %10s %8s\n", "tensor", "error", "over", "result");
    const Row* worst = &rows_.front();
    bool pass = true;
    for (const Row& r : rows_) {
      std::printf("%-64s %10.2e %9.3f%% %8s\n", r.name.c_str(), r.error,
                  100.0 * static_cast<double>(r.over) / static_cast<double>(std::max<Index>(r.count, 1)),
                  r.pass ? "ok" : "FAIL");
      if (!(r.error <= worst->error) && !r.name.starts_with("final.")) worst = &r;
      pass = pass && r.pass;
    }
    std::printf("worst before training: %s, %.2e; tolerance %.2e: %s\n", worst->name.c_str(), worst->error, tolerance_,
                pass ? "pass" : "FAIL");
    return pass ? ExitCode::ok : ExitCode::no;
  }

  double tolerance_;
  std::vector<std::string> overrides_;
  std::string device_;
  std::string directory_;
  SafetensorsFile golden_;
  std::vector<Row> rows_;
};

}  // namespace

RunCommand add_parity(CLI::App& command) {
  auto directory = std::make_shared<std::string>();
  auto tolerance = std::make_shared<double>(1e-5);
  auto device = std::make_shared<std::string>("cpu");
  auto overrides = std::make_shared<std::vector<std::string>>();
  command.add_option("dir", *directory, "Holds config.json, model.safetensors and golden.safetensors")->required();
  command.add_option("overrides", *overrides, "key=value ... of the job");
  command.add_option("--tolerance", *tolerance, "Bound on max |a - b| / max |reference|")->capture_default_str();
  command.add_option("--device", *device, "Where to run")->check(CLI::IsMember({"cpu", "cuda"}))->capture_default_str();
  return [=] { return Parity(*directory, *device, *tolerance, *overrides).run(); };
}

}  // namespace dstrain
