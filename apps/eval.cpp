// dstrain eval RUN|CHECKPOINT: the loss on held-out data, on any number of ranks.

#include <cmath>
#include <cstdio>
#include <memory>

#include "apps/commands.h"
#include "apps/ranks.h"
#include "lib/train/evaluate.h"
#include "lib/train/inference.h"
#include "lib/train/machine.h"

namespace dstrain {

RunCommand add_eval(CLI::App& command) {
  struct Options {
    std::string path;
    std::vector<std::string> overrides;
    int ranks = 0;
  };
  auto o = std::make_shared<Options>();
  command.add_option("run", o->path, "Run directory, or one of its checkpoints")->required();
  command.add_option("overrides", o->overrides, "key=value ... of the run's job, say data.eval=[other.h5]");
  command.add_option("--ranks", o->ranks, "Ranks as threads of this process")->check(CLI::Range(1, 256));
  return [o] {
    run_ranks(o->ranks, [&](World& world) {
      const Config config = config_of_run(system_files(), o->path, o->overrides, world.size());
      require(!config.data.eval.empty(), ExitCode::usage, "{}: the job names no data.eval", o->path);
      const Mesh mesh(mesh_sizes(config.parallel));
      const Device device = run_device(config);
      use_device(config, world, device);
      const auto owned = make_engine(config, world, mesh, device, pool_threads(config, world));
      Engine& engine = *owned;
      const Index step = load_run(system_files(), o->path, world, engine,
                                  [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); });
      const EvalRecord r = Evaluator(config, system_files(), system_clock(), engine).run(step);
      if (world.rank() == 0)
        std::printf("step %lld: eval loss %.4f nats a token (perplexity %.2f) over %lld tokens, %.1f s\n",
                    static_cast<long long>(r.step), r.eval_loss, std::exp(r.eval_loss),
                    static_cast<long long>(r.eval_tokens), r.seconds);
    });
    return ExitCode::ok;
  };
}

}  // namespace dstrain
