#include "lib/train/generator.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "lib/comm/agree.h"
#include "lib/core/transfer.h"
#include "lib/layers/host_batch.h"

namespace dstrain {

namespace {

constexpr std::int32_t kEnded = -1;

// A batch in which sample b's tokens end at the last column and count their positions from their own first; first_keys
// hides what is left of them. Rows of padding see themselves alone.
struct PaddedBatch {
  HostBatch host;
  std::vector<std::int32_t> first_keys;

  PaddedBatch(Index samples, Index length)
      : host(samples, length), first_keys(static_cast<std::size_t>(samples * length)) {}
  Batch view() {
    Batch batch = host.view();
    batch.first_keys = Tensor(first_keys.data(), DType::i32, Device::cpu, {static_cast<Index>(first_keys.size())});
    return batch;
  }
};

PaddedBatch padded(std::span<const std::vector<std::int32_t>> prompts, Index longest) {
  PaddedBatch batch(static_cast<Index>(prompts.size()), longest);
  for (std::size_t b = 0; b < prompts.size(); ++b) {
    const auto length = static_cast<Index>(prompts[b].size()), padding = longest - length;
    for (Index i = 0; i < longest; ++i) {
      const std::size_t row = b * static_cast<std::size_t>(longest) + static_cast<std::size_t>(i);
      const bool real = i >= padding;
      batch.host.tokens[row] = real ? prompts[b][static_cast<std::size_t>(i - padding)] : 0;
      batch.host.positions[row] = static_cast<std::int32_t>(real ? i - padding : 0);
      batch.first_keys[row] = static_cast<std::int32_t>(std::min(i, padding));
    }
  }
  return batch;
}

std::string bytes_of(const std::vector<std::int32_t>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(std::int32_t)};
}

}  // namespace

Generator::Generator(Engine& engine, ProcessGroup& model, ProcessGroup& experts, Index cache_length)
    : engine_(engine),
      model_(model),
      experts_(experts),
      memory_(engine, engine.config().training.micro_batch_size, cache_length),
      root_(static_cast<int>((engine.config().parallel.pipeline - 1) * engine.config().parallel.tensor)) {}

std::vector<float> Generator::whole_logits(const Tensor& logits) {
  // (ranks, B, columns) -> (B, ranks * columns)
  Stream& stream = engine_.stream();
  const Tensor gathered = memory_.gathered(logits.dim(0));
  ProcessGroup& tensor = *engine_.groups().tensor;
  if (tensor.size() > 1) tensor.all_gather(stream, gathered.view({gathered.numel()}), logits.view({logits.numel()}));
  if (!chooses()) return {};
  std::vector<float> parts(static_cast<std::size_t>(gathered.numel())), whole(parts.size());
  download(stream, parts.data(), gathered);
  stream.synchronize();
  const auto ranks = static_cast<std::size_t>(tensor.size()), samples = static_cast<std::size_t>(logits.dim(0)),
             columns = static_cast<std::size_t>(logits.dim(1));
  for (std::size_t r = 0; r < ranks; ++r)
    for (std::size_t b = 0; b < samples; ++b)
      std::copy_n(parts.begin() + static_cast<std::ptrdiff_t>((r * samples + b) * columns), columns,
                  whole.begin() + static_cast<std::ptrdiff_t>((b * ranks + r) * columns));
  return whole;
}

std::vector<std::int32_t> Generator::choose(std::span<const std::vector<std::int32_t>> ids,
                                            std::span<const std::vector<std::int32_t>> prompts,
                                            const std::vector<std::int32_t>& last, const SamplingOptions& options,
                                            Index index, std::span<const float> logits,
                                            const std::function<bool(std::size_t, std::int32_t)>& emit) const {
  const ModelConfig& model = engine_.config().model;
  const auto vocabulary = static_cast<std::size_t>(model.vocab_size);
  const std::size_t columns = logits.size() / ids.size();
  std::vector<std::int32_t> next(ids.size(), kEnded);
  for (std::size_t b = 0; b < ids.size(); ++b) {
    if (last[b] == kEnded) continue;
    const auto of_sample = logits.subspan(b * columns, vocabulary);
    const std::int32_t id = draw(candidates(of_sample, ids[b], options), options.seed, prompts[b], index);
    // The last token is chosen when every position is taken.
    const bool room = static_cast<Index>(ids[b].size()) < model.max_position_embeddings;
    if (emit(b, id) && room) next[b] = id;
  }
  return next;
}

void Generator::run(std::span<const std::vector<std::int32_t>> prompts, Index tokens, const SamplingOptions& options,
                    const std::function<bool(std::size_t, std::int32_t)>& emit) {
  const auto samples = static_cast<Index>(prompts.size());
  Index longest = 0;
  for (const auto& prompt : prompts) longest = std::max(longest, static_cast<Index>(prompt.size()));
  check(samples > 0 && longest > 0 && longest <= engine_.config().training.sequence_length, "{} prompts of {} ids",
        samples, longest);
  KvCache cache = memory_.cache(samples);
  const Tensor logits = memory_.logits(samples);
  std::vector<std::vector<std::int32_t>> ids(prompts.begin(), prompts.end());
  std::vector<std::int32_t> last(prompts.size(), 0);
  PaddedBatch batch = padded(prompts, longest);
  Whereabouts* const here = engine_.stream().whereabouts();
  Agreement agreement(model_, here), peers(experts_, here);
  for (Index index = 0; index < tokens; ++index) {
    engine_.decode(batch.view(), cache, logits);
    cache.length += batch.host.length;
    // Errors travel with the tokens: the others wait for them.
    std::string message;
    const std::vector<float> whole = logits.defined() ? whole_logits(logits) : std::vector<float>{};
    if (chooses()) try {
        message = "t" + bytes_of(choose(ids, prompts, last, options, index, whole, emit));
      } catch (const Error& e) {
        message = static_cast<char>(e.code()) + format("token {} of the output: {}", index, e.what());
      }
    message = agreement.broadcast(message, root_);
    if (message[0] != 't') throw Error(static_cast<ExitCode>(message[0]), message.substr(1), true);
    std::memcpy(last.data(), message.data() + 1, last.size() * sizeof(std::int32_t));
    const bool ended = std::all_of(last.begin(), last.end(), [](std::int32_t id) { return id == kEnded; });
    // Ranks whose experts others need go along.
    if (peers.sum(ended ? Index{0} : Index{1}) == 0) return;

    PaddedBatch next(samples, 1);
    for (std::size_t b = 0; b < prompts.size(); ++b) {
      next.first_keys[b] = static_cast<std::int32_t>(longest - static_cast<Index>(prompts[b].size()));
      if (last[b] == kEnded) continue;  // goes along, unread
      next.host.tokens[b] = last[b];
      next.host.positions[b] = static_cast<std::int32_t>(ids[b].size());
      ids[b].push_back(last[b]);
    }
    batch = std::move(next);
  }
}

}  // namespace dstrain
