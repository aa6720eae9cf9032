// dstrain eval RUN|CHECKPOINT: the loss on held-out data and the accuracy on questions, on any number of ranks.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <numbers>

#include "apps/commands.h"
#include "apps/ranks.h"
#include "apps/watch.h"
#include "lib/comm/agree.h"
#include "lib/train/choices.h"
#include "lib/train/evaluate.h"
#include "lib/train/inference.h"
#include "lib/train/machine.h"

namespace dstrain {

namespace {

using Json = nlohmann::ordered_json;

struct EvalOptions {
  std::string path, tokenizer, delimiter = " ", details;
  std::vector<std::string> overrides, data, choices;
  Index batch_size = 8;
  int ranks = 0;
  bool json = false;
};

// What `dstrain eval` knows of this rank.
struct Place {
  const EvalOptions& options;
  World& world;
  const Files& files;
  const Config config;  // of the run
  const Mesh mesh;
  const Device device;
  const Groups groups;  // for messages of the host
  const Tokenizer* tokenizer;
  Whereabouts* const here;

  void print(const Json& result, const std::string& words) const {
    if (world.rank() != 0) return;
    const std::string line = options.json ? result.dump(-1, ' ', false, Json::error_handler_t::replace) : words;
    require(std::printf("%s\n", line.c_str()) >= 0 && std::fflush(stdout) == 0, ExitCode::write,
            "cannot write to standard output");
  }
  std::unique_ptr<Engine> engine(const Config& sized) const {
    const RankPlan plan = plan_rank(sized, mesh, world.rank(), device, EngineUse::evaluation);
    auto made = make_engine(sized, world, mesh, device, pool_threads(sized, world), plan, EngineUse::evaluation);
    made->stream().set_whereabouts(here);
    return made;
  }
  Index load(Engine& engine) const {
    const Index step = load_run(files, options.path, world, engine,
                                [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); });
    here->step = step;
    return step;
  }
};

// NAME=PATH[,PATH...]
struct NamedData {
  std::string name;
  std::vector<DataSource> sources;
};
NamedData named_data(const std::string& text) {
  const std::size_t equals = text.find('=');
  require(equals != std::string::npos && equals > 0 && equals + 1 < text.size(), ExitCode::usage,
          "--data {}: not NAME=PATH[,PATH...]", text);
  NamedData data{.name = text.substr(0, equals)};
  for (std::size_t begin = equals + 1; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    require(end > begin, ExitCode::usage, "--data {}: an empty path", text);
    data.sources.push_back({.path = text.substr(begin, end - begin)});
    begin = end + 1;
  }
  return data;
}

// Bytes of the tokens that a micro-batch predicts: each stretch decoded by itself. The ends of documents have none.
Index target_bytes(const Tokenizer& tokenizer, const Batch& batch) {
  const std::int32_t* const targets = batch.targets.as<std::int32_t>();
  const float* const weights = batch.loss_weights.as<float>();
  std::vector<std::int32_t> stretch;
  std::size_t bytes = 0;
  const auto close = [&] {
    bytes += tokenizer.decode(stretch).size();
    stretch.clear();
  };
  for (Index row = 0; row < batch.rows(); ++row) {
    if (row % batch.length == 0) close();
    if (weights[row] > 0 && targets[row] != tokenizer.end_of_document())
      stretch.push_back(targets[row]);
    else
      close();
  }
  close();
  return static_cast<Index>(bytes);
}

void evaluate_data(const Place& place, const std::vector<NamedData>& lists) {
  std::unique_ptr<Engine> engine;
  Index step = 0;
  Agreement everyone(*place.groups.control, place.here);
  for (const NamedData& list : lists) {
    Config config = place.config;
    config.data.eval = list.sources;
    if (!engine) {
      engine = place.engine(config);
      step = place.load(*engine);
    }
    std::unique_ptr<Evaluator> evaluator;
    everyone.together([&] { evaluator = std::make_unique<Evaluator>(config, place.files, system_clock(), *engine); });
    Index bytes = 0;
    const Coordinates& at = engine->coordinates();
    const bool counts = place.tokenizer && at.tensor == 0 && at.pipeline == 0;
    const EvalRecord r = evaluator->run(step, [&](const Batch& batch) {
      if (counts) bytes += target_bytes(*place.tokenizer, batch);
    });
    bytes = everyone.sum(bytes);
    const double nats = r.eval_loss * static_cast<double>(r.eval_tokens);
    const double bits = nats / std::numbers::ln2 / static_cast<double>(bytes);
    Json result{{"step", r.step},
                {"name", list.name},
                {"loss", r.eval_loss},
                {"perplexity", std::exp(r.eval_loss)},
                {"tokens", r.eval_tokens}};
    if (bytes > 0) result.update(Json{{"bits_per_byte", bits}, {"bytes", bytes}});
    result["seconds"] = r.seconds;
    place.print(result,
                format("step {}: {} loss {:.4f} nats a token (perplexity {:.2f}), {} over {} tokens, {:.1f} s", r.step,
                       list.name, r.eval_loss, std::exp(r.eval_loss),
                       bytes > 0 ? format("{:.4f} bits a byte", bits) : std::string("no tokenizer to count bytes"),
                       r.eval_tokens, r.seconds));
  }
}

std::string details_of(const std::vector<Question>& questions, const std::vector<std::vector<double>>& scores) {
  std::string lines;
  for (std::size_t i = 0; i < questions.size(); ++i)
    lines += Json{{"place", questions[i].place},
                  {"answer", questions[i].answer},
                  {"log_likelihoods", scores[i]},
                  {"bytes", questions[i].bytes}}
                 .dump(-1, ' ', false, Json::error_handler_t::replace) +
             "\n";
  return lines;
}

void evaluate_choices(const Place& place) {
  Agreement everyone(*place.groups.control, place.here);
  std::string details;
  for (const std::string& path : place.options.choices) {
    require(place.tokenizer != nullptr, ExitCode::usage, "the job names no data.tokenizer: use --tokenizer");
    std::vector<Question> questions;
    everyone.together([&] {
      questions = read_questions(place.files, path, *place.tokenizer, place.options.delimiter,
                                 place.config.model.max_position_embeddings);
    });
    Config config = place.config;
    config.training.micro_batch_size = place.options.batch_size;
    config.training.global_batch_size = place.options.batch_size * config.parallel.data;
    config.training.sequence_length = longest_input(questions);
    const auto engine = place.engine(config);
    const Index step = place.load(*engine);
    const double begin = system_clock().now();
    const std::vector<std::vector<double>> scores = log_likelihoods(*engine, questions);
    everyone.together([&] {
      for (std::size_t i = 0; i < scores.size(); ++i)
        for (const double s : scores[i])
          require(std::isfinite(s), ExitCode::nonfinite, "{}: a log-likelihood is {}", questions[i].place, s);
    });
    const Accuracy right = accuracy(questions, scores);
    const double seconds = system_clock().now() - begin;
    details += details_of(questions, scores);
    place.print(Json{{"step", step},
                     {"name", path},
                     {"acc", right.sum},
                     {"acc_norm", right.normalised},
                     {"questions", questions.size()},
                     {"seconds", seconds}},
                format("step {}: {} acc {:.4f}, acc_norm {:.4f} over {} questions, {:.1f} s", step, path, right.sum,
                       right.normalised, questions.size(), seconds));
  }
  everyone.together([&] {
    if (!place.options.details.empty() && place.world.rank() == 0)
      write_file_atomically(place.files, place.options.details, details);
  });
}

void evaluate(const EvalOptions& o, World& world, const Config& config, const Mesh& mesh, Whereabouts* here) {
  const Files& files = system_files();
  here->enter(PackedText("evaluation"), 0);
  std::vector<NamedData> lists;
  for (const std::string& text : o.data) lists.push_back(named_data(text));
  if (lists.empty() && o.choices.empty()) {
    require(!config.data.eval.empty(), ExitCode::usage,
            "{}: the job names no data.eval; name token files with --data, or questions with --choices", o.path);
    lists.push_back({"eval", config.data.eval});
  }
  const Device device = run_device(config);
  use_device(config, world, device);
  Groups groups = make_groups(world, mesh, Poster::checkpoint);
  std::optional<Tokenizer> tokenizer;
  Agreement(*groups.control, here).together([&] { tokenizer = tokenizer_of(files, config, o.tokenizer); });
  Config used = config;
  if (!o.tokenizer.empty()) used.data.tokenizer = o.tokenizer;
  const Place place{o, world, files, used, mesh, device, std::move(groups), tokenizer ? &*tokenizer : nullptr, here};
  if (!lists.empty()) evaluate_data(place, lists);
  if (!o.choices.empty()) evaluate_choices(place);
}

}  // namespace

RunCommand add_eval(CLI::App& command) {
  auto o = std::make_shared<EvalOptions>();
  command.add_option("run", o->path, "Run directory, or one of its checkpoints")->required();
  command.add_option("overrides", o->overrides, "key=value ... of the run's job, say eval.samples=100");
  command
      .add_option(
          "--data", o->data,
          "NAME=PATH[,PATH...]: token files or globs to take the loss and bits per byte of; may be given again. "
          "Left out, and no --choices: the job's data.eval")
      ->allow_extra_args(false);
  command
      .add_option("--choices", o->choices,
                  "JSONL file of {context, choices, answer} to take the accuracy of; may be given again")
      ->allow_extra_args(false);
  command.add_option("--delimiter", o->delimiter, "Text between a context and its choices")->capture_default_str();
  command.add_option("--details", o->details, "File for the log-likelihoods of every choice, as lines of JSON");
  command.add_option("--batch-size", o->batch_size, "Choices that a data rank scores at once")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command.add_option("--tokenizer", o->tokenizer, "tokenizer.json, when the job names none");
  command.add_flag("--json", o->json, "Results as lines of JSON, with all their digits");
  command.add_option("--ranks", o->ranks, "Ranks as threads of this process")->check(CLI::Range(1, 256));
  return [o] {
    std::once_flag told;
    run_ranks(o->ranks, [&](World& world) {
      const Config config = config_of_run(system_files(), o->path, o->overrides, world.size());
      const Mesh mesh(mesh_sizes(config.parallel));
      run_watched(world, config, mesh, told, [&](Whereabouts* here) { evaluate(*o, world, config, mesh, here); });
    });
    return ExitCode::ok;
  };
}

}  // namespace dstrain
