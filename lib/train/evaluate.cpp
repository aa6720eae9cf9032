#include "lib/train/evaluate.h"

#include <algorithm>

#include "lib/core/hash.h"
#include "lib/tokenizer/tokenizer.h"

namespace dstrain {

namespace {

// Of the whole run, after `step` steps of `samples` samples; never more than a Mixture counts.
Index train_samples(const TrainingConfig& t, Index step = 0, Index samples = 0) {
  constexpr Index kMost = Index{1} << 62;
  const Index left = std::max<Index>(0, t.steps - step);
  return left > (kMost - samples) / t.global_batch_size ? kMost : samples + left * t.global_batch_size;
}

// Without weights an evaluation ends with the list; a mixture has no end of its own.
Index eval_samples(const Config& config, const Sampler& sampler) {
  if (config.data.eval.front().weight > 0) return config.eval.samples;
  return config.eval.samples > 0 ? std::min(config.eval.samples, sampler.samples()) : sampler.samples();
}

}  // namespace

void require_train_epochs(const Config& config, const TokenSources& sources, const Sampler& sampler, Index step,
                          Index samples) {
  const TrainingConfig& t = config.training;
  const std::string before = step > 0 ? format("{} samples of {} steps and ", samples, step) : std::string();
  sources.require_epochs(
      sampler, train_samples(t, step, samples), 0, "data.train",
      format("{}training.steps: {} of {} samples", before, std::max<Index>(0, t.steps - step), t.global_batch_size));
}

Sampler train_sampler(const Config& config, const TokenSources& sources) {
  Sampler sampler = sources.sampler(config.training.sequence_length, config.run.seed, true);
  require_train_epochs(config, sources, sampler, 0, 0);
  return sampler;
}

void check_tokenizer(const Config& config, const Files& files, const TokenFileInfo& info, const std::string& tokens) {
  if (config.data.tokenizer.empty()) return;
  const std::uint64_t hash = Tokenizer::load(files, config.data.tokenizer).hash();
  require(hash == info.tokenizer_hash, ExitCode::data, "{}: its tokenizer has hash {}, data.tokenizer {} has {}",
          tokens, hex(info.tokenizer_hash), config.data.tokenizer, hex(hash));
}

std::vector<std::string> describe_sources(const Config& config, const TokenSources& sources, const Sampler& sampler) {
  const Index samples = train_samples(config.training);
  const auto epochs = sampler.epochs(samples);
  std::vector<std::string> lines;
  for (std::size_t i = 0; i < epochs.size(); ++i) {
    const double of_source = epochs[i] * static_cast<double>(sampler.samples(static_cast<Index>(i)));
    lines.push_back(format(
        "{}: {} tokens, {:.2f}% of the samples, {:.3f} epochs{}", sources.entries[i].path, sources.sources[i]->tokens(),
        100 * of_source / static_cast<double>(samples), epochs[i],
        sources.entries[i].epochs > 0 ? format(" of at most {:.3f}", sources.entries[i].epochs) : std::string()));
  }
  return lines;
}

BatchPlan data_plan(const Config& config, const Coordinates& at, Index end, bool pinned) {
  return {.global_batch = config.training.global_batch_size,
          .micro_batch = config.training.micro_batch_size,
          .data_ranks = static_cast<int>(config.parallel.data),
          .data_rank = at.data,
          .end = end,
          .pinned = pinned,
          .document_mask = config.data.document_mask,
          .mtp_depths = end < 0 ? config.model.num_nextn_predict_layers : 0};
}

Evaluator::Evaluator(const Config& config, const Files& files, const Clock& clock, Engine& engine)
    : clock_(clock),
      engine_(engine),
      sources_(files, config.data.eval, config.model.vocab_size),
      sampler_(sources_.sampler(config.training.sequence_length, config.run.seed, false)),
      samples_(eval_samples(config, sampler_)),
      global_batch_(config.training.global_batch_size),
      reader_(sources_, sampler_,
              data_plan(config, engine.coordinates(), samples_, engine.stream().device() == Device::cuda)) {
  check_tokenizer(config, files, sources_.info(), config.data.eval.front().path);
  // A mixture reads an entry once unless told otherwise; a list reads all of them once.
  sources_.require_epochs(sampler_, samples_, config.data.eval.front().weight > 0 ? 1 : 0, "data.eval",
                          format("{} samples of an evaluation", samples_));
  tokens_ = predicted_tokens(sources_, sampler_, 0, samples_, config.data.document_mask);
  require(tokens_ > 0, ExitCode::data, "data.eval: no token to predict in {} sample(s)", samples_);
}

EvalRecord Evaluator::run(std::int64_t step, const std::function<void(const Batch&)>& look,
                          const std::function<bool()>& stop) {
  const double begin = clock_.now();
  double sum = 0;
  for (Index cursor = 0; cursor < samples_; cursor += global_batch_) {
    if (cursor > 0 && stop && stop()) return {.step = step};
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
