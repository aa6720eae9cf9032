#pragma once
// Whole runs of tiny models on token files made here, in a directory that is removed.

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "lib/checkpoint/names.h"
#include "lib/checkpoint/reader.h"
#include "lib/data/token_file.h"
#include "lib/train/trainer.h"
#include "tests/train/tiny_job.h"

namespace dstrain::test {

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "dstrain-XXXXXX").string();
    check(mkdtemp(name.data()) != nullptr, "no temporary directory");
    path_ = name;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// A token file of `tokens` ids that a small model can learn: each follows from the one before, most of the time.
inline void write_tokens(const std::string& prefix, Index tokens, std::uint64_t seed, Index vocabulary = kVocabulary) {
  TokenWriter writer(system_files(), prefix, {.tokenizer_hash = 1, .vocab_size = vocabulary, .end_of_document = 0});
  std::vector<std::int32_t> document;
  std::int32_t id = 1;
  for (Index i = 0; writer.tokens() + static_cast<Index>(document.size()) + 1 < tokens; ++i) {
    const auto r = philox(seed, "tiny tokens")(0, static_cast<std::uint64_t>(i));
    id = r[0] % 4 == 0 ? 1 + static_cast<std::int32_t>(r[1] % 40) : 1 + (id * 7 + 3) % 40;
    document.push_back(id);
    if (r[2] % 64 == 0) {
      writer.add(document);
      document.clear();
    }
  }
  writer.add(document);
  writer.finish();
}

// The job of a run in `directory`: 24 samples a step; 40 samples an epoch, so 20 steps are 12 epochs.
inline std::string tiny_run_yaml(const std::string& model, const std::string& directory, const std::string& run) {
  return format(
      "run: {{ dir: {}, seed: 7, threads: 1, device: cpu }}\nmodel: {}\n"
      "data: {{ train: ['{}/train-*.h5'], eval: ['{}/eval-*.h5'] }}\n"
      "training: {{ steps: 12, sequence_length: {}, global_batch_size: {}, micro_batch_size: 2 }}\n"
      "optimizer: {{ lr: 3.0e-3 }}\nlr_schedule: {{ type: cosine, warmup_steps: 2, min_lr: 1.0e-4 }}\n"
      "eval: {{ every: 4 }}\n",
      run, model, directory, directory, kLength, kSamples);
}

// Trains on thread ranks. Throws what the trainer throws.
inline ExitCode train_tiny(const std::string& yaml, int ranks, const std::vector<std::string>& overrides = {},
                           const Files& files = system_files(), const Clock& clock = system_clock()) {
  const Loaded loaded = parse_config(system_files(), "tiny.yaml", yaml, overrides);
  ExitCode code = ExitCode::ok;
  std::mutex mutex;
  const StopSignal signal;
  run_threads(ranks, [&](World& world) {
    const ExitCode mine = Trainer(resolve(loaded, world.size()), world, files, clock, true, {.signal = &signal}).run();
    const std::lock_guard lock(mutex);
    code = std::max(code, mine);
  });
  return code;
}

// Everything that a checkpoint holds: role/name -> values.
inline std::map<std::string, std::vector<float>> checkpoint_tensors(const std::string& run, Index step) {
  Checkpoint checkpoint = Checkpoint::open(system_files(), checkpoints_directory(run) + "/" + step_name(step));
  std::map<std::string, std::vector<float>> all;
  for (const TensorRecord& t : checkpoint.manifest().tensors) {
    std::vector<float>& values = all[t.role + "/" + t.name];
    values.resize(static_cast<std::size_t>(t.shape.numel()));
    Shape zero = t.shape;
    for (int i = 0; i < zero.rank(); ++i) zero[i] = 0;
    checkpoint.read({.name = t.name,
                     .role = t.role,
                     .global = t.shape,
                     .offset = zero,
                     .extent = t.shape,
                     .data = values.data(),
                     .row_stride = t.shape[t.shape.rank() - 1]});
  }
  return all;
}

// loss, grad_norm and eval_loss of each line.
inline std::vector<std::string> numbers_of(const std::string& run) {
  std::vector<std::string> lines;
  std::ifstream in(run + "/metrics.jsonl");
  for (std::string line; std::getline(in, line);) {
    if (line.find("\"checkpoint_step\"") != line.npos) continue;  // when a write ends is the disk's matter
    const auto seconds = line.find("\"seconds\""), eval_seconds = line.find("\"eval_seconds\"");
    lines.push_back(line.substr(0, std::min(seconds, eval_seconds)));
  }
  return lines;
}

}  // namespace dstrain::test
