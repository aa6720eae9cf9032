// dstrain generate RUN|CHECKPOINT: text from a prompt, or from a file of prompts, on any number of ranks.

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "apps/commands.h"
#include "apps/ranks.h"
#include "apps/watch.h"
#include "lib/comm/agree.h"
#include "lib/tokenizer/tokenizer.h"
#include "lib/train/generator.h"
#include "lib/train/inference.h"
#include "lib/train/machine.h"
#include "lib/train/written_text.h"

namespace dstrain {

namespace {

struct GenerateOptions {
  std::string path, prompt, prompts, tokenizer;
  std::vector<std::string> stops, overrides;
  SamplingOptions sampling;
  Index tokens = 100, batch_size = 8;
  int ranks = 0;
  bool special_tokens = false;
};

struct Prompt {
  std::string place;  // for messages: "--prompt", "prompts.txt:3"
  std::string text;
  std::vector<std::int32_t> ids;
};

void encode(Prompt& prompt, Encoder& encoder, bool special) {
  try {
    encoder.encode(prompt.text, prompt.ids, {.special_tokens = special, .template_tokens = special});
  } catch (const Error& e) {
    fail(e.code(), "{}: {}", prompt.place, e.what());
  }
}

// A line of a .jsonl file: {"prompt": text} or {"tokens": [ids]}.
Prompt json_prompt(const std::string& place, const std::string& line, const Tokenizer& tokenizer, Encoder& encoder,
                   bool special, Index vocabulary) {
  const nlohmann::json json = nlohmann::json::parse(line, nullptr, false);
  require(json.is_object(), ExitCode::data, "{}: not a JSON object", place);
  Prompt prompt{.place = place};
  if (json.contains("prompt")) {
    require(json["prompt"].is_string(), ExitCode::data, "{}: 'prompt' is no text", place);
    prompt.text = json["prompt"];
    encode(prompt, encoder, special);
    return prompt;
  }
  require(json.contains("tokens") && json["tokens"].is_array(), ExitCode::data,
          "{}: neither 'prompt', a text, nor 'tokens', a list of ids", place);
  std::vector<std::int32_t> named;
  for (const nlohmann::json& id : json["tokens"]) {
    require(id.is_number_integer() && id >= 0 && id < vocabulary, ExitCode::data,
            "{}: number {} of 'tokens' is no id below {}", place, prompt.ids.size(), vocabulary);
    prompt.ids.push_back(id.get<std::int32_t>());
    if (prompt.ids.back() < tokenizer.vocab_size()) named.push_back(prompt.ids.back());
  }
  prompt.text = tokenizer.decode(named);
  return prompt;
}

std::vector<Prompt> read_prompts(const GenerateOptions& o, const Tokenizer& tokenizer, const ModelConfig& model) {
  std::vector<Prompt> prompts;
  Encoder encoder(tokenizer);
  if (o.prompts.empty()) {
    prompts.push_back({.place = "--prompt", .text = o.prompt});
    encode(prompts.back(), encoder, o.special_tokens);
  } else {
    const std::string text = read_file(system_files(), o.prompts);
    const bool json = o.prompts.ends_with(".jsonl");
    for (std::size_t begin = 0, number = 1; begin < text.size(); ++number) {
      const std::size_t end = std::min(text.find('\n', begin), text.size());
      std::string line = text.substr(begin, end - begin);
      begin = end + 1;
      if (line.ends_with('\r')) line.pop_back();
      const std::string place = format("{}:{}", o.prompts, number);
      if (json) {
        prompts.push_back(json_prompt(place, line, tokenizer, encoder, o.special_tokens, model.vocab_size));
      } else {
        prompts.push_back({.place = place, .text = line});
        encode(prompts.back(), encoder, o.special_tokens);
      }
    }
    require(!prompts.empty(), ExitCode::data, "{}: no prompt in it", o.prompts);
  }
  for (Prompt& prompt : prompts) {
    if (prompt.ids.empty()) prompt.ids.push_back(tokenizer.end_of_document());  // an empty prompt: a new document
    require(static_cast<Index>(prompt.ids.size()) <= model.max_position_embeddings,
            o.prompts.empty() ? ExitCode::usage : ExitCode::data,
            "{}: the prompt has {} tokens, the model has {} positions (max_position_embeddings)", prompt.place,
            prompt.ids.size(), model.max_position_embeddings);
  }
  return prompts;
}

void print(const std::string& text) {
  require(std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0, ExitCode::write,
          "cannot write to standard output");
}

std::string json_line(const Prompt& prompt, const WrittenText& written, Index positions) {
  const bool full = static_cast<Index>(prompt.ids.size() + written.ids().size()) > positions;
  const nlohmann::ordered_json json{{"prompt", prompt.text},
                                    {"text", written.text()},
                                    {"tokens", written.ids()},
                                    {"reason", !written.reason().empty() ? written.reason()
                                               : full                    ? "positions"
                                                                         : "tokens"}};
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

// Writes to one prompt as its tokens come.
void stream_one(Generator& generator, const GenerateOptions& o, const Tokenizer& tokenizer, const Prompt& prompt) {
  WrittenText written(tokenizer, prompt.ids, o.stops);
  bool begun = false;
  generator.run({&prompt.ids, 1}, o.tokens, o.sampling, [&](std::size_t, std::int32_t id) {
    if (!begun) print(prompt.text);
    begun = true;
    const bool goes_on = written.add(id);
    print(written.take(!goes_on));
    return goes_on;
  });
  if (generator.chooses()) print(written.take(true) + "\n");
}

// Lines of JSON of the prompts, on the rank that chooses.
std::string write_batch(Generator& generator, const GenerateOptions& o, const Tokenizer& tokenizer,
                        std::span<const Prompt> prompts, Index positions) {
  std::vector<std::vector<std::int32_t>> ids;
  std::vector<WrittenText> written;
  for (const Prompt& prompt : prompts) {
    ids.push_back(prompt.ids);
    written.emplace_back(tokenizer, prompt.ids, o.stops);
  }
  generator.run(ids, o.tokens, o.sampling, [&](std::size_t i, std::int32_t id) { return written[i].add(id); });
  std::string lines;
  if (generator.chooses())
    for (std::size_t i = 0; i < prompts.size(); ++i) lines += json_line(prompts[i], written[i], positions);
  return lines;
}

void generate(const GenerateOptions& o, World& world, Config config, const Mesh& mesh, Whereabouts* here) {
  here->enter(PackedText("generation"), 0);
  const Groups groups = make_groups(world, mesh, Poster::checkpoint);
  Agreement everyone(*groups.control, here);
  std::optional<Tokenizer> tokenizer;
  std::vector<Prompt> prompts;
  everyone.together([&] {
    tokenizer = tokenizer_of(system_files(), config, o.tokenizer);
    require(tokenizer.has_value(), ExitCode::usage, "the job names no data.tokenizer: use --tokenizer");
    const std::string& path = o.tokenizer.empty() ? config.data.tokenizer : o.tokenizer;
    require(tokenizer->vocab_size() <= config.model.vocab_size, ExitCode::data,
            "{}: {} tokens, the model's vocabulary has {}", path, tokenizer->vocab_size(), config.model.vocab_size);
    prompts = read_prompts(o, *tokenizer, config.model);
  });

  Index longest = 0;
  for (const Prompt& prompt : prompts) longest = std::max(longest, static_cast<Index>(prompt.ids.size()));
  const Index batch = std::min(o.batch_size, static_cast<Index>(prompts.size())), replicas = config.parallel.data;
  config.training.micro_batch_size = batch;
  config.training.global_batch_size = batch * replicas;
  config.training.sequence_length = longest;
  const Index positions = config.model.max_position_embeddings;
  // The first position that is past the end of every sample.
  const Index length = longest + std::min(o.tokens, positions);

  const Device device = run_device(config);
  use_device(config, world, device);
  const RankPlan plan = plan_rank(config, mesh, world.rank(), device, EngineUse::generation, length);
  const auto engine =
      make_engine(config, world, mesh, device, pool_threads(config, world), plan, EngineUse::generation);
  engine->stream().set_whereabouts(here);
  load_run(system_files(), o.path, world, *engine,
           [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); });
  Generator generator(*engine, *groups.model, *groups.expert, length);

  const auto count = static_cast<Index>(prompts.size());
  for (Index begin = 0; begin < count; begin += batch * replicas) {
    std::string lines;
    everyone.together([&] {
      const Index first = begin + engine->coordinates().data * batch, n = std::min(batch, count - first);
      if (n <= 0) {
        // Its experts are needed all the same.
        const std::vector<std::int32_t> nothing{0};
        if (groups.expert->size() > 1)
          generator.run({&nothing, 1}, o.tokens, o.sampling, [](std::size_t, std::int32_t) { return false; });
        return;
      }
      const std::span<const Prompt> mine(&prompts[static_cast<std::size_t>(first)], static_cast<std::size_t>(n));
      if (o.prompts.empty())
        stream_one(generator, o, *tokenizer, mine.front());
      else
        lines = write_batch(generator, o, *tokenizer, mine, positions);
    });
    const std::vector<std::string> all = everyone.gather(lines);
    everyone.together([&] {
      for (const std::string& part : all) print(part);
    });
  }
}

}  // namespace

RunCommand add_generate(CLI::App& command) {
  auto o = std::make_shared<GenerateOptions>();
  command.add_option("run", o->path, "Run directory, or one of its checkpoints")->required();
  command.add_option("overrides", o->overrides, "key=value ... of the run's job, say parallel.tensor=2");
  CLI::Option* one = command.add_option("--prompt", o->prompt, "Text to continue; written as it comes");
  command
      .add_option(
          "--prompts", o->prompts,
          "File of prompts: one a line, or .jsonl of {\"prompt\": text} or {\"tokens\": [ids]}; written as lines "
          "of JSON {prompt, text, tokens, reason} in their order")
      ->excludes(one);
  command.add_option("--batch-size", o->batch_size, "Prompts of a file that a data rank continues at once")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command.add_option("--tokens", o->tokens, "Tokens to write at most")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command.add_option("--temperature", o->sampling.temperature, "0: the most likely token always")
      ->check(number_in(0, 100))
      ->capture_default_str();
  command.add_option("--top-k", o->sampling.top_k, "Sample among the k most likely tokens; 0: all")
      ->check(CLI::Range(0, 1 << 30))
      ->capture_default_str();
  command
      .add_option("--top-p", o->sampling.top_p, "Sample among the fewest tokens whose probabilities sum to p; 1: all")
      ->check(number_in(0, 1))
      ->capture_default_str();
  command
      .add_option("--repetition-penalty", o->sampling.repetition_penalty,
                  "Makes tokens seen less likely (above 1) or more (below); 1: neither")
      ->check(number_in(0.01, 100))
      ->capture_default_str();
  command.add_option("--stop", o->stops, "Text before which the output ends; may be given again")
      ->allow_extra_args(false)
      ->check([](const std::string& s) { return s.empty() ? "is empty" : ""; });
  command.add_option("--seed", o->sampling.seed, "Of the sampling: the same seed and prompt give the same text")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command.add_flag(
      "--special-tokens", o->special_tokens,
      "Text of a prompt that spells a special token becomes it, and the tokenizer's template adds its own, "
      "as a beginning of sequence");
  command.add_option("--tokenizer", o->tokenizer, "tokenizer.json, when the job names none");
  command.add_option("--ranks", o->ranks, "Ranks as threads of this process")->check(CLI::Range(1, 256));
  return [o] {
    std::once_flag told;
    run_ranks(o->ranks, [&](World& world) {
      const Config config = config_of_run(system_files(), o->path, o->overrides, world.size());
      const Mesh mesh(mesh_sizes(config.parallel));
      run_watched(world, config, mesh, told, [&](Whereabouts* here) { generate(*o, world, config, mesh, here); });
    });
    return ExitCode::ok;
  };
}

}  // namespace dstrain
