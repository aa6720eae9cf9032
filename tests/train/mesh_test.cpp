// Every mesh trains the same model as one rank does.

#include "tests/support/catch.h"
#include "tests/support/devices.h"
#include "tests/train/tiny_job.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

constexpr int kSteps = 20;

// `score`: the size of attention's scores; softmax turns an error e of a score s, s e, into a relative one.
void check_equal(const TinyModel& model, const TinyResult& ours, const TinyResult& reference,
                 const std::vector<double>& spread, double score = 1) {
  REQUIRE(ours.gradients.size() == reference.gradients.size());
  const double tolerance = score * gradient_tolerance(model.layers, kSamples * kLength);
  for (const auto& [name, gradient] : reference.gradients) {
    INFO(name);
    CHECK(relative_error(ours.gradients.at(name), gradient) <= tolerance);
  }
  REQUIRE(ours.losses.size() == reference.losses.size());
  for (std::size_t i = 0; i < ours.losses.size(); ++i) {
    INFO("step " << i << ": " << ours.losses[i] << " and " << reference.losses[i] << ", spread " << spread[i]);
    CHECK(std::fabs(ours.losses[i] - reference.losses[i]) <= 10 * spread[i]);
  }
}

// This rank's own pieces of the gradients.
void check_owned(Engine& engine, const std::map<std::string, NamedTensor>& reference, double tolerance) {
  const StageModel& stage = engine.stage().model();
  const auto mine = gather_tensors(stage, [&](const Param& p) { return engine.gradient(p); });
  stage.visit([&](Param& param) {
    for (const Piece& piece : param.pieces) {
      const NamedTensor &ours = mine.at(piece.name), &theirs = reference.at(piece.name);
      double scale = 0, error = 0;
      for (const float v : theirs.values) scale = std::max(scale, std::fabs(static_cast<double>(v)));
      const bool matrix = piece.global.rank() == 2;
      for (Index i = 0; i < piece.extent[0]; ++i)
        for (Index j = 0; j < (matrix ? piece.extent[1] : 1); ++j) {
          const auto at = static_cast<std::size_t>(
              matrix ? (piece.offset[0] + i) * piece.global[1] + piece.offset[1] + j : piece.offset[0] + i);
          error =
              std::max(error, std::fabs(static_cast<double>(ours.values[at]) - static_cast<double>(theirs.values[at])));
        }
      INFO(piece.name);
      CHECK(error <= tolerance * scale);
    }
  });
}

}  // namespace

TEST_CASE("every mesh of 1 to 8 ranks gives the gradients and losses of one rank", "[mesh]") {
  for (const TinyModel& model : tiny_models()) {
    const Config one = tiny_job(model.yaml, 1, 1, 1, 8);  // on the CPU
    const TinyResult reference = run_tiny_threads(one, kSteps);
    const std::vector<double> spread = loss_spread(one, reference, kSteps);
    CHECK(reference.losses.back() < reference.losses.front());
    for (const std::string& device : test_devices()) {
      int meshes = 0;
      for (const int ranks : {1, 2, 3, 4, 6, 8})
        for (int tensor = 1; tensor <= ranks; ++tensor)
          for (int pipeline = 1; tensor * pipeline <= ranks; ++pipeline) {
            if (ranks % (tensor * pipeline) != 0 || !fits(model, tensor, pipeline)) continue;
            const int data = ranks / (tensor * pipeline);
            INFO(model.name << " on " << device << ": data " << data << ", tensor " << tensor << ", pipeline "
                            << pipeline);
            const Index micro = std::max<Index>(1, kSamples / data / (pipeline > 1 ? 3 : 1));
            check_equal(
                model,
                run_tiny_threads(tiny_job(model.yaml, data, tensor, pipeline, micro, {"run.device=" + device}), kSteps),
                reference, spread);
            ++meshes;
          }
      CHECK(meshes >= 16);
    }
  }
}

TEST_CASE("the same job twice gives the same bits, with passes recorded or not", "[mesh]") {
  for (const std::string& device : test_devices())
    for (const char* compute : {"float32", "bfloat16"}) {
      const auto run = [&](int data, int tensor, int pipeline, const char* graphs) {
        return run_tiny_threads(tiny_job(tiny_models()[1].yaml, data, tensor, pipeline, 4,
                                         {"run.device=" + device, format("precision.compute={}", compute),
                                          format("cuda.graphs={}", graphs)}),
                                5);
      };
      const TinyResult first = run(2, 2, 2, "auto"), second = run(2, 2, 2, "auto");
      CHECK(first.losses == second.losses);
      for (const auto& [name, weights] : first.weights) CHECK(weights.values == second.weights.at(name).values);
      const TinyResult recorded = run(1, 1, 1, "auto"), launched = run(1, 1, 1, "never");
      CHECK(recorded.losses == launched.losses);
      for (const auto& [name, weights] : recorded.weights) CHECK(weights.values == launched.weights.at(name).values);
    }
}

TEST_CASE("experts spread over ranks give the gradients and losses of one rank", "[mesh]") {
  struct Layout {
    int data, expert, tensor, pipeline;
    const char* factor;  // 1: some rank gets more than fits, and rows go in parts
  };
  std::vector<Layout> layouts;
  const char* const factors[] = {"1", "2", "1.5", "1024"};
  for (const int expert : {2, 3, 6})
    for (int data = expert; data <= 8; data += expert)
      for (int tensor = 1; data * tensor <= 8; ++tensor)
        for (int pipeline = 1; data * tensor * pipeline <= 8; ++pipeline)
          if (kSamples % data == 0) layouts.push_back({data, expert, tensor, pipeline, factors[layouts.size() % 4]});
  for (const bool skewed : {false, true})
    for (const TinyModel& model : tiny_models()) {
      if (std::string(model.yaml).find("deepseek") == std::string::npos) continue;
      // Softmax scores of large logits: nearly all tokens go to the same experts.
      std::vector<std::string> more;
      if (skewed) more = {"model.initializer_range=0.6", "model.n_group=1", "model.topk_group=1"};
      const auto job = [&](const Layout& l, Index micro, const std::string& device) {
        std::vector<std::string> keys{"run.device=" + device, format("parallel.expert={}", l.expert),
                                      format("moe.receive_factor={}", l.factor), "model.n_routed_experts=6"};
        keys.insert(keys.end(), more.begin(), more.end());
        return tiny_job(model.yaml, l.data, l.tensor, l.pipeline, micro, keys);
      };
      const int steps = skewed ? 1 : kSteps;
      const Config one = job({1, 1, 1, 1, "2"}, 8, "cpu");
      // Of normalised inputs, by weights of the deviation `initializer_range`, scaled by the root of the head's width.
      const double range = one.model.initializer_range;
      const double score = std::max(1.0, range * range * static_cast<double>(one.model.hidden_size));
      const TinyResult reference = run_tiny_threads(one, steps);
      const std::vector<double> spread = loss_spread(one, reference, steps);
      for (const std::string& device : test_devices())
        for (const Layout& l : layouts) {
          INFO(model.name << (skewed ? ", skewed, on " : " on ") << device << ": data " << l.data << ", expert "
                          << l.expert << ", tensor " << l.tensor << ", pipeline " << l.pipeline << ", room for "
                          << l.factor);
          if (!fits(model, l.tensor, l.pipeline)) continue;
          const Index micro = std::max<Index>(1, kSamples / l.data / (l.pipeline > 1 ? 3 : 1));
          check_equal(model, run_tiny_threads(job(l, micro, device), steps), reference, spread, score);
        }
    }
}

// Under mpirun: this rank's pieces against a one-rank run of its own.
TEST_CASE("MPI ranks have the gradients and losses of one rank", "[.mpi]") {
  const auto world = World::make();
  REQUIRE(world->size() > 1);
  REQUIRE(std::string(world->kind()) == "mpi");
  for (const TinyModel& model : tiny_models())
    for (int tensor = 1; tensor <= world->size(); ++tensor)
      for (int pipeline = 1; tensor * pipeline <= world->size(); ++pipeline) {
        const int data = world->size() / (tensor * pipeline);
        if (data * tensor * pipeline != world->size() || !fits(model, tensor, pipeline)) continue;
        const TinyResult reference = run_tiny_threads(tiny_job(model.yaml, 1, 1, 1, 8), 3);
        for (const std::string& device : test_devices())
          for (int expert = 1; expert <= data; ++expert) {
            const bool spread = std::string(model.yaml).find("n_routed_experts: 6") != std::string::npos;
            if (expert > 1 && (!spread || data % expert != 0 || 6 % expert != 0)) continue;
            INFO(model.name << ": data " << data << ", expert " << expert << ", tensor " << tensor << ", pipeline "
                            << pipeline);
            const Config config = tiny_job(model.yaml, data, tensor, pipeline, 3,
                                           {"run.device=" + device, format("parallel.expert={}", expert)});
            TinyResult ours;
            std::mutex mutex;
            run_tiny(*world, config, 3, 0, ours, mutex, [&](Engine& engine) {
              check_owned(engine, reference.gradients, gradient_tolerance(model.layers, kSamples * kLength));
            });
            for (std::size_t i = 0; i < ours.losses.size(); ++i)
              CHECK(std::fabs(ours.losses[i] - reference.losses[i]) <= 1e-5 * reference.losses[i]);
          }
      }
}

// A gradient is rounded on each of two ranks and once more as their sum.
TEST_CASE("two MPI ranks' bfloat16 gradients are those of float32 within three roundings", "[.mpi-gradients]") {
  const auto world = World::make();
  REQUIRE(std::string(world->kind()) == "mpi");
  REQUIRE(world->size() == 2);
  for (const TinyModel& model : tiny_models())
    for (const std::string& device : test_devices()) {
      INFO(model.name << " on " << device);
      struct Pass {
        std::vector<std::vector<float>> own, summed;  // of the parameters in order
      };
      const auto pass = [&](const char* gradients) {
        std::vector<std::string> keys = model.undecided;
        keys.insert(keys.end(), {"run.device=" + device, "precision.compute=bfloat16",
                                 format("precision.gradients={}", gradients)});
        const Config config = tiny_job(model.yaml, 2, 1, 1, kSamples / 2, keys);
        const Mesh mesh(mesh_sizes(config.parallel));
        const Device place = run_device(config);
        use_device(config, *world, place);
        const auto engine = make_engine(config, *world, mesh, place, 1);
        engine->initialize(config.run.seed);
        const TinyData data(config, engine->coordinates().data, 0);
        Pass p;
        const auto collect = [&](std::vector<std::vector<float>>& into) {
          engine->stage().model().visit([&](Param& param) {
            if (param.rule == UpdateRule::adamw) into.push_back(engine->gradient(param));
          });
        };
        engine->local_gradients(data.batches(), data.valid());
        collect(p.own);
        engine->gradients(data.batches(), data.valid(), false);
        collect(p.summed);
        return p;
      };
      const Pass exact = pass("float32"), ours = pass("bfloat16");
      for (std::size_t i = 0; i < exact.summed.size(); ++i) {
        double error = 0, sizes = 0;
        for (std::size_t j = 0; j < exact.summed[i].size(); ++j) {
          const double own = exact.own[i][j], sum = exact.summed[i][j];
          error += std::pow(ours.summed[i][j] - sum, 2);
          sizes += std::pow(std::fabs(own) + std::fabs(sum - own) + std::fabs(sum), 2);
        }
        INFO("parameter " << i);
        CHECK(std::sqrt(error) <= 0x1p-8 * std::sqrt(sizes));
      }
    }
}
