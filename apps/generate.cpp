// dstrain generate RUN|CHECKPOINT: text from a prompt.

#include <algorithm>
#include <cstdio>
#include <memory>

#include "apps/commands.h"
#include "lib/data/tokenizer.h"
#include "lib/train/inference.h"
#include "lib/train/machine.h"

namespace dstrain {

namespace {

struct GenerateOptions {
  std::string path, prompt, tokenizer;
  SamplingOptions sampling;
};

// Bytes that do not end a UTF-8 character wait for the next token.
std::size_t complete_prefix(const std::string& s) {
  for (std::size_t back = 1; back <= 3 && back <= s.size(); ++back) {
    const auto c = static_cast<unsigned char>(s[s.size() - back]);
    if ((c & 0xC0) == 0x80) continue;
    const std::size_t length = c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : c >= 0xC0 ? 2 : 1;
    return length > back ? s.size() - back : s.size();
  }
  return s.size();
}

ExitCode generate(const GenerateOptions& o) {
  const auto world = World::make();
  require(world->size() == 1, ExitCode::usage, "generate runs on one rank, there are {}", world->size());
  Config config =
      config_of_run(system_files(), o.path, {"training.global_batch_size=1", "training.micro_batch_size=1"}, 1);
  const std::string path = o.tokenizer.empty() ? config.data.tokenizer : o.tokenizer;
  require(!path.empty(), ExitCode::usage, "the job names no data.tokenizer: use --tokenizer");
  const Tokenizer tokenizer = Tokenizer::load(system_files(), path);
  require(tokenizer.vocab_size() <= config.model.vocab_size, ExitCode::data,
          "{}: {} tokens, the model's vocabulary has {}", path, tokenizer.vocab_size(), config.model.vocab_size);
  std::vector<std::int32_t> prompt;
  Encoder(tokenizer).encode(o.prompt, prompt);
  if (prompt.empty()) prompt.push_back(tokenizer.end_of_document());  // an empty prompt: a new document
  config.training.sequence_length =
      std::min<Index>(config.model.max_position_embeddings, static_cast<Index>(prompt.size()) + o.sampling.tokens);

  const Mesh mesh(mesh_sizes(config.parallel));
  const Device device = run_device(config);
  use_device(config, *world, device);
  const auto owned = make_engine(config, *world, mesh, device, pool_threads(config, *world));
  Engine& engine = *owned;
  load_run(system_files(), o.path, *world, engine,
           [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); });
  std::fputs(o.prompt.c_str(), stdout);
  std::string pending;
  const auto flush = [&](std::size_t n) {
    std::fwrite(pending.data(), 1, n, stdout);
    std::fflush(stdout);
    pending.erase(0, n);
  };
  Generator(config, engine).run(prompt, o.sampling, tokenizer.end_of_document(), [&](std::int32_t token) {
    // A padded vocabulary has rows that no tokenizer names: such an id prints nothing.
    if (token < tokenizer.vocab_size()) pending += tokenizer.decode({&token, 1});
    flush(complete_prefix(pending));
    return true;
  });
  flush(pending.size());
  std::fputc('\n', stdout);
  return ExitCode::ok;
}

}  // namespace

RunCommand add_generate(CLI::App& command) {
  auto o = std::make_shared<GenerateOptions>();
  command.add_option("run", o->path, "Run directory, or one of its checkpoints")->required();
  command.add_option("--prompt", o->prompt, "Text to continue");
  command.add_option("--tokens", o->sampling.tokens, "Tokens to write at most")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command.add_option("--temperature", o->sampling.temperature, "0: the most likely token always")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  command.add_option("--top-k", o->sampling.top_k, "Sample among the k most likely tokens; 0: all")
      ->check(CLI::Range(0, 1 << 30))
      ->capture_default_str();
  command.add_option("--seed", o->sampling.seed, "Of the sampling")->capture_default_str();
  command.add_option("--tokenizer", o->tokenizer, "tokenizer.json, when the job names none");
  return [o] { return generate(*o); };
}

}  // namespace dstrain
