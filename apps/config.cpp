#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "lib/config/resolve.h"
#include "lib/config/writer.h"

namespace dstrain {

namespace {

struct Options {
  std::string job, key;
  int ranks = 0;
  std::vector<std::string> overrides;
  ExitCode (*run)(const Options&) = nullptr;
};

ExitCode print(const Options& o) {
  require(o.ranks >= 0, ExitCode::usage, "--ranks: {} is not a number of ranks", o.ranks);
  const Loaded loaded = load_config(system_files(), o.job, o.overrides);
  const ParallelConfig& p = loaded.config.parallel;
  // The smallest number of ranks that the job allows, unless another is asked for.
  const int ranks = o.ranks > 0 ? o.ranks
                                : static_cast<int>(std::min<std::int64_t>(
                                      std::max<std::int64_t>(p.data, 1) * p.tensor * p.context * p.pipeline, 1 << 30));
  std::fputs(print_config(resolve(loaded, ranks), loaded).c_str(), stdout);
  return ExitCode::ok;
}

}  // namespace

RunCommand add_config(CLI::App& command) {
  const auto o = std::make_shared<Options>();
  command.require_subcommand(1);

  CLI::App* show = command.add_subcommand("print", "The resolved job, with where each value came from");
  show->add_option("job", o->job, "Job file")->required();
  show->add_option("overrides", o->overrides, "section.key=value");
  show->add_option("--ranks", o->ranks, "Ranks to resolve for; default: the fewest that the job allows");
  show->final_callback([o] { o->run = print; });

  CLI::App* help = command.add_subcommand("explain", "Type, range, default and meaning of a key or a section");
  help->add_option("key", o->key, "section.key, or a section")->required();
  help->final_callback([o] {
    o->run = [](const Options& x) {
      std::fputs(explain(x.key).c_str(), stdout);
      return ExitCode::ok;
    };
  });

  CLI::App* schema = command.add_subcommand("schema", "JSON Schema of job files, for editors");
  schema->final_callback([o] {
    o->run = [](const Options&) {
      std::fputs(json_schema().c_str(), stdout);
      return ExitCode::ok;
    };
  });
  return [o] { return o->run(*o); };
}

}  // namespace dstrain
