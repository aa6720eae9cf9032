#include "lib/train/evaluate.h"

#include <algorithm>

#include "lib/core/hash.h"
#include "lib/data/tokenizer.h"

namespace dstrain {

std::vector<std::string> paths_of(const std::vector<DataSource>& sources) {
  std::vector<std::string> paths;
  for (const DataSource& s : sources) paths.push_back(s.path);
  return paths;
}

void check_tokenizer(const Config& config, const Files& files, const TokenFileInfo& info, const std::string& tokens) {
  if (config.data.tokenizer.empty()) return;
  const std::uint64_t hash = Tokenizer::load(files, config.data.tokenizer).hash();
  require(hash == info.tokenizer_hash, ExitCode::data, "{}: its tokenizer has hash {}, data.tokenizer {} has {}",
          tokens, hex(info.tokenizer_hash), config.data.tokenizer, hex(hash));
}

BatchPlan data_plan(const Config& config, const Coordinates& at, Index end, bool pinned) {
  return {.global_batch = config.training.global_batch_size,
          .micro_batch = config.training.micro_batch_size,
          .data_ranks = static_cast<int>(config.parallel.data),
          .data_rank = at.data,
          .end = end,
          .pinned = pinned};
}

Evaluator::Evaluator(const Config& config, const Files& files, const Clock& clock, Engine& engine)
    : clock_(clock),
      engine_(engine),
      sources_(files, paths_of(config.data.eval), config.model.vocab_size),
      sampler_(sources_.tokens(), config.training.sequence_length, config.run.seed, false),
      samples_(config.eval.samples > 0 ? std::min(config.eval.samples, sampler_.samples()) : sampler_.samples()),
      global_batch_(config.training.global_batch_size),
      reader_(sources_, sampler_,
              data_plan(config, engine.coordinates(), samples_, engine.stream().device() == Device::cuda)) {
  check_tokenizer(config, files, sources_.info(), config.data.eval.front().path);
  for (Index i = 0; i < samples_; ++i) tokens_ += sampler_.locate(i).tokens - 1;
}

EvalRecord Evaluator::run(std::int64_t step, const std::function<void(const Batch&)>& look) {
  const double begin = clock_.now();
  double sum = 0;
  for (Index cursor = 0; cursor < samples_; cursor += global_batch_) {
    reader_.read(cursor, step_, memory_);
    if (look)
      for (const Batch& batch : step_.batches) look(batch);
    sum += engine_.evaluate(step_.batches);
  }
  return {.step = step,
          .eval_loss = sum / static_cast<double>(tokens_),
          .eval_tokens = tokens_,
          .seconds = clock_.now() - begin};
}

}  // namespace dstrain
