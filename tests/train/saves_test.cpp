// Saves of whole runs under fire: kill -9, failing file calls, storage that does not answer, every layout, every step.

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <fstream>
#include <new>
#include <random>
#include <set>

#include "lib/checkpoint/compare.h"
#include "lib/core/hash.h"
#include "tests/support/catch.h"
#include "tests/support/faulty_files.h"
#include "tests/support/forwarding_files.h"
#include "tests/train/tiny_run.h"

using namespace dstrain;
using namespace dstrain::test;
using Catch::Matchers::Contains;

namespace {

struct Fixture {
  TemporaryDirectory directory;
  Fixture() {
    write_tokens(directory / "train", 40 * kLength + 1, 1);
    write_tokens(directory / "eval", 9 * kLength + 5, 2);
  }
  std::string yaml(const std::string& model, const std::string& run) const {
    return tiny_run_yaml(model, directory / "", directory / run);
  }
};

// Small enough for thousands of runs.
constexpr const char* kSmall =
    "{ type: llama, vocab_size: 331, hidden_size: 8, num_hidden_layers: 2, num_attention_heads: 2, "
    "num_key_value_heads: 2, intermediate_size: 10, initializer_range: 0.1 }";

// A hash of state and all tensors of a checkpoint, whatever its layout.
std::uint64_t state_hash(const std::string& run, Index step) {
  const CheckpointState state =
      Checkpoint::open(system_files(), checkpoints_directory(run) + "/" + step_name(step)).state();
  std::uint64_t hash =
      xxh3(format("{} {} {} {} {}", state.step, state.optimizer_step, state.seed, state.next_sample, state.tokens));
  for (const auto& [name, values] : checkpoint_tensors(run, step))
    hash = xxh3(std::as_bytes(std::span(values)), xxh3(name, hash));
  return hash;
}

void copy_checkpoint(const std::string& from, const std::string& to, Index step) {
  std::filesystem::create_directories(checkpoints_directory(to));
  std::filesystem::copy(checkpoints_directory(from) + "/" + step_name(step),
                        checkpoints_directory(to) + "/" + step_name(step));
}

// Tells through memory that is shared with the parent that a save has begun: its .partial is made.
class SignallingFiles final : public ForwardingFiles {
 public:
  explicit SignallingFiles(std::atomic<int>& saves) : saves_(saves) {}
  void make_directory(const std::string& path) const override {
    if (path.ends_with(kPartialSuffix)) ++saves_;
    real_.make_directory(path);
  }

 private:
  std::atomic<int>& saves_;
};

// Ranks in one process, so that kill -9 ends all of them at the same instant, at a random microsecond of a save. The
// run that follows goes on from what is there; every state that is found must be the clean run's of that step.
void kill_saves(int kills, unsigned seed) {
  const Fixture f;
  constexpr int kRanks = 2, kEnd = 30;
  const std::vector<std::string> job{"parallel.data=2", "eval.every=0", "checkpoint.every=1",
                                     format("training.steps={}", kEnd)};
  auto with = [&](const char* more) {
    auto all = job;
    all.emplace_back(more);
    return all;
  };
  train_tiny(f.yaml(kSmall, "clean"), kRanks, with("checkpoint.keep=100"));
  std::vector<std::uint64_t> clean(kEnd + 1);
  for (Index step = 1; step <= kEnd; ++step)
    clean[static_cast<std::size_t>(step)] = state_hash(f.directory / "clean", step);
  REQUIRE(std::set(clean.begin() + 1, clean.end()).size() == kEnd);

  auto* saves =
      new (mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) std::atomic<int>(0);
  std::mt19937 random(seed);
  const std::string run = f.directory / "killed";
  int killed = 0, amid = 0, unusable = 0, wrong = 0, published = 0;
  double window = 0.01;  // seconds of a save, measured from the checkpoints that appear
  for (int attempt = 0; killed < kills; ++attempt) {
    REQUIRE(attempt < 5 * kills + 100);
    *saves = 0;
    const int at_save = 1 + static_cast<int>(random() % 3);  // of this process
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      try {
        train_tiny(f.yaml(kSmall, "killed"), kRanks, job, SignallingFiles(*saves));
      } catch (const std::exception& e) {
        std::fprintf(stderr, "%s\n", e.what());
        _exit(1);
      }
      _exit(0);
    }
    int status = 0;
    bool gone = false;
    const double begin = system_clock().now();
    while (*saves < at_save && !gone) {
      gone = waitpid(child, &status, WNOHANG) == child;
      usleep(20);
      if (system_clock().now() > begin + 60) FAIL("no save in a minute");
    }
    if (!gone) {
      usleep(static_cast<useconds_t>(1e6 * window * static_cast<double>(random() % 10000) / 10000));
      kill(child, SIGKILL);
      REQUIRE(waitpid(child, &status, 0) == child);
    }
    if (WIFSIGNALED(status)) {
      ++killed;
      for (const std::string& name : system_files().list(checkpoints_directory(run)))
        if (name.ends_with(kPartialSuffix) || name.ends_with(kTrashSuffix)) {
          ++amid;
          break;
        }
    } else {
      if (WEXITSTATUS(status) != 0) ++unusable;
    }
    // What is there is the clean run's.
    Index step = 0;
    std::vector<std::string> lines;
    try {
      run_threads(1, [&](World& w) {
        const auto group = make_groups(w, Mesh({}), Poster::checkpoint);
        const auto newest = open_newest(system_files(), checkpoints_directory(run), *group.control,
                                        [&](const std::string& line) { lines.push_back(line); });
        if (newest) step = newest->state().step;
      });
    } catch (const Error& e) {
      WARN(e.what());
      ++unusable;
    }
    unusable += !lines.empty();
    for (const Index older : list_steps(system_files(), checkpoints_directory(run))) try {
        Checkpoint::open(system_files(), checkpoints_directory(run) + "/" + step_name(older));
      } catch (const Error& e) {
        WARN(e.what());
        ++unusable;
      }
    if (step > 0 && state_hash(run, step) != clean[static_cast<std::size_t>(step)]) ++wrong;
    published += step > 0;
    if (step == kEnd) std::filesystem::remove_all(run);
    // The save takes what it takes here: aim at one and a quarter of it.
    if (attempt == 0 && std::filesystem::exists(run + "/metrics.jsonl")) {
      std::ifstream in(run + "/metrics.jsonl");
      double longest = 0;
      for (std::string line; std::getline(in, line);)
        if (const auto at = line.find("\"checkpoint_write_seconds\":"); at != line.npos)
          longest = std::max(longest, std::stod(line.substr(at + 27)));
      if (longest > 0) window = 1.25 * longest;
    }
  }
  munmap(saves, 4096);
  // The last of them goes on to the end.
  train_tiny(f.yaml(kSmall, "killed"), kRanks, job);
  CHECK(state_hash(run, kEnd) == clean[kEnd]);
  CHECK(unusable == 0);
  CHECK(wrong == 0);
  CHECK(published > kills / 2);
  CHECK(amid > kills / 4);
  std::printf(
      "proof: kill -9 of all ranks within a save: %d kills, %d of them left half a save, %d unusable, %d wrong\n",
      killed, amid, unusable, wrong);
}

struct Layout {
  int data, tensor, pipeline, expert = 1;
  int ranks() const { return data * tensor * pipeline; }
};

// Loads the newest checkpoint of `from` under a layout and saves it to `to` as another step's.
void reshard(const std::string& yaml, const Layout& l, const std::string& from, const std::string& to) {
  const Config config =
      resolve(parse_config(system_files(), "tiny.yaml", yaml,
                           {format("parallel.data={}", l.data), format("parallel.tensor={}", l.tensor),
                            format("parallel.pipeline={}", l.pipeline), format("parallel.expert={}", l.expert),
                            format("training.global_batch_size={}", 2 * l.data), "training.micro_batch_size=1"}),
              l.ranks());
  run_threads(l.ranks(), [&](World& world) {
    const Mesh mesh(mesh_sizes(config.parallel));
    const auto engine = make_engine(config, world, mesh, Device::cpu, 1);
    std::optional<CheckpointState> state;
    {
      Checkpointer reader(config, system_files(), system_clock(), checkpoints_directory(from), world, *engine);
      engine->initialize(99);
      state = reader.restore([](const std::string&) {});
    }
    check(state.has_value(), "nothing to restore");
    state->mesh = mesh.sizes();
    Checkpointer writer(config, system_files(), system_clock(), checkpoints_directory(to), world, *engine);
    writer.save(*state);
    for (const auto& outcome : writer.finish())
      if (outcome.error) std::rethrow_exception(outcome.error);
  });
}

// Pairs of layouts of 1 to 8 ranks.
void reshard_pairs(int pairs, unsigned seed) {
  const Fixture f;
  // Between them, every tensor size up to 8 fits one.
  struct Model {
    int heads, kv_heads, inner;
    bool tied;
    int experts;  // 0: llama, else deepseek_v3
    std::vector<Layout> layouts;
  };
  std::vector<Model> models{{6, 3, 24, false, 0, {}},
                            {8, 2, 40, true, 0, {}},
                            {5, 5, 35, false, 0, {}},
                            {7, 1, 21, true, 0, {}},
                            {8, 8, 40, false, 12, {}}};
  std::set<int> sizes;
  std::vector<std::string> yamls;
  for (std::size_t m = 0; m < models.size(); ++m) {
    Model& model = models[m];
    for (int d = 1; d <= 8; ++d)
      for (int t = 1; t * d <= 8; ++t)
        for (int p = 1; p * t * d <= 8; ++p)
          if (model.heads % t == 0 && model.inner % t == 0 && (model.kv_heads % t == 0 || t % model.kv_heads == 0))
            for (int e = 1; e <= d; ++e)
              if (e == 1 || (model.experts > 0 && d % e == 0 && model.experts % e == 0))
                for (int i = 0; i < (e > 1 ? 4 : 1); ++i) model.layouts.push_back({d, t, p, e});
    if (model.experts > 0) {
      yamls.push_back(
          f.yaml(format("{{ type: deepseek_v3, vocab_size: 331, hidden_size: 18, num_hidden_layers: 8, "
                        "num_attention_heads: {}, intermediate_size: {}, kv_lora_rank: 12, qk_nope_head_dim: 6, "
                        "qk_rope_head_dim: 4, v_head_dim: 5, first_k_dense_replace: 4, moe_intermediate_size: 8, "
                        "n_routed_experts: {}, num_experts_per_tok: 3, n_group: 1, topk_group: 1, q_lora_rank: 10, "
                        "max_position_embeddings: 64, initializer_range: 0.1 }}",
                        model.heads, model.inner, model.experts),
                 format("source-{}", m)));
      train_tiny(yamls.back(), 1, {"training.steps=2", "eval.every=0"});
      continue;
    }
    yamls.push_back(
        f.yaml(format("{{ type: llama, vocab_size: 331, hidden_size: 18, num_hidden_layers: 8, "
                      "num_attention_heads: {}, num_key_value_heads: {}, head_dim: 4, intermediate_size: {}, "
                      "tie_word_embeddings: {}, attention_bias: true, initializer_range: 0.1 }}",
                      model.heads, model.kv_heads, model.inner, model.tied ? "true" : "false"),
               format("source-{}", m)));
    train_tiny(yamls.back(), 1, {"training.steps=2", "eval.every=0"});
  }
  std::mt19937 random(seed);
  int equal = 0, spread = 0;
  for (int i = 0; i < pairs; ++i) {
    const std::size_t m = static_cast<std::size_t>(i) % models.size();
    const Model& model = models[m];
    // The first axis of choice is the number of ranks, so that 3, 5, 6 and 7 are met as often as 8.
    const auto pick = [&](int ranks) {
      std::vector<Layout> of;
      for (const Layout& l : model.layouts)
        if (l.ranks() == ranks) of.push_back(l);
      return of[random() % of.size()];
    };
    const Layout a = pick(1 + (i + i / 8) % 8), b = pick(1 + (3 * i + 4) % 8);
    INFO(format("model {}: {} x {} x {}, expert {} to {} x {} x {}, expert {} (data, tensor, pipeline)", m, a.data,
                a.tensor, a.pipeline, a.expert, b.data, b.tensor, b.pipeline, b.expert));
    spread += (a.expert > 1) + (b.expert > 1);
    sizes.insert({a.ranks(), b.ranks()});
    const std::string saved_a = f.directory / format("a-{}", i), saved_b = f.directory / format("b-{}", i);
    reshard(yamls[m], a, f.directory / format("source-{}", m), saved_a);
    reshard(yamls[m], b, saved_a, saved_b);
    const auto open = [&](const std::string& run) {
      return Checkpoint::open(system_files(), checkpoints_directory(run) + "/" + step_name(2));
    };
    Checkpoint source = open(f.directory / format("source-{}", m)), x = open(saved_a), y = open(saved_b);
    CHECK(x.world() == a.ranks());
    CHECK(y.world() == b.ranks());
    const Comparison first = compare(source, x), second = compare(x, y);
    const bool same = first.state.empty() && first.tensors.empty() && second.state.empty() && second.tensors.empty() &&
                      second.compared == first.compared && first.compared > 100;
    CHECK(same);
    equal += same;
    std::filesystem::remove_all(saved_a);
    std::filesystem::remove_all(saved_b);
  }
  CHECK(sizes == std::set<int>{1, 2, 3, 4, 5, 6, 7, 8});
  CHECK(spread > pairs / 10);
  std::printf("proof: save under A, load under B, save: %d pairs of layouts on 1 to 8 ranks, %d equal bit for bit\n",
              pairs, equal);
}

}  // namespace

TEST_CASE("kill -9 of all ranks within a save: what is left is the clean run's", "[saves]") { kill_saves(200, 1); }
TEST_CASE("kill -9 of all ranks within a save, many", "[.nightly]") { kill_saves(5000, 2); }

TEST_CASE("pairs of layouts: saved under one, loaded and saved under another, equal bit for bit", "[saves]") {
  reshard_pairs(25, 1);
}
TEST_CASE("pairs of layouts, many", "[.nightly]") { reshard_pairs(200, 2); }

TEST_CASE("N steps are k steps and the rest after a resume, for every k", "[saves]") {
  const Fixture f;
  constexpr int kEnd = 21;
  struct Case {
    const char* model;
    int ranks;
    std::vector<std::string> overrides;
  };
  const std::vector<Case> cases{
      {tiny_models()[0].yaml, 1, {}},
      {tiny_models()[3].yaml, 4, {"parallel.pipeline=2", "parallel.data=2"}},
      {tiny_models()[1].yaml, 2, {"parallel.tensor=2", "precision.compute=bfloat16", "precision.master=split"}}};
  int equal = 0, all = 0;
  for (std::size_t c = 0; c < cases.size(); ++c) {
    auto overrides = cases[c].overrides;
    overrides.insert(overrides.end(), {format("training.steps={}", kEnd), "eval.every=0"});
    auto saving = overrides;
    saving.insert(saving.end(), {"checkpoint.every=1", "checkpoint.keep=100"});
    const std::string whole = format("whole-{}", c);
    train_tiny(f.yaml(cases[c].model, whole), cases[c].ranks, saving);
    const std::uint64_t end = state_hash(f.directory / whole, kEnd);
    for (Index k = 1; k <= 20; ++k, ++all) {
      const std::string run = format("from-{}-{}", c, k);
      copy_checkpoint(f.directory / whole, f.directory / run, k);
      train_tiny(f.yaml(cases[c].model, run), cases[c].ranks, overrides);
      const bool same = state_hash(f.directory / run, kEnd) == end;
      CHECK(same);
      equal += same;
      std::filesystem::remove_all(f.directory / run);
    }
  }
  std::printf("proof: %d steps are k steps and a resume: %d of %d k and layouts equal bit for bit\n", kEnd, equal, all);
}

TEST_CASE("a run goes on when any file call of a save fails, and the checkpoints before and after are good",
          "[saves]") {
  const Fixture f;
  const std::vector<std::string> job{"parallel.data=2", "eval.every=0", "training.steps=4", "checkpoint.every=1",
                                     "checkpoint.keep=100"};
  train_tiny(f.yaml(kSmall, "clean"), 2, job);
  std::vector<std::uint64_t> clean(5);
  for (Index step = 1; step <= 4; ++step)
    clean[static_cast<std::size_t>(step)] = state_hash(f.directory / "clean", step);
  int points = 0, saved = 0;
  for (const Fault& kind :
       {Fault{.error = EIO}, Fault{.error = ENOSPC, .partial = true}, Fault{.sticky = true, .error = EDQUOT}})
    for (int n = 1;; ++n) {
      const std::string run = f.directory / "faulty";
      std::filesystem::remove_all(run);
      Fault fault = kind;
      fault.at = n;
      fault.within = step_name(2);
      const FaultyFiles files(system_files(), fault);
      INFO("call " << n << ", " << std::strerror(kind.error));
      CHECK(train_tiny(f.yaml(kSmall, "faulty"), 2, job, files) == ExitCode::ok);
      if (!files.failed()) {
        REQUIRE(n > 20);
        break;
      }
      ++points;
      for (const Index step : list_steps(system_files(), checkpoints_directory(run))) {
        CHECK(state_hash(run, step) == clean[static_cast<std::size_t>(step)]);
        saved += step == 2;
      }
      const auto steps_there = list_steps(system_files(), checkpoints_directory(run));
      // All but the one that failed; when nothing of it can be removed, the next ones fail too.
      if (!kind.sticky) CHECK(steps_there.size() >= 3);
      CHECK(steps_there.back() == 1);
      std::ifstream in(run + "/metrics.jsonl");
      int steps = 0;
      for (std::string line; std::getline(in, line);) steps += line.find("\"loss\"") != line.npos;
      CHECK(steps == 4);
    }
  CHECK(saved < points / 2);
  std::printf("proof: every n-th file call of a save fails within a run: %d points, all runs went on to their end\n",
              points);
}

namespace {

// Storage that stops answering: the calls on paths that hold `within` wait until release().
class HungFiles final : public ForwardingFiles {
 public:
  explicit HungFiles(std::string within) : within_(std::move(within)) {}
  void hang() { hung_ = true; }
  void release() { hung_ = false; }
  int waiting() const { return waiting_; }

  std::unique_ptr<File> open(const std::string& path, OpenMode mode) const override {
    auto file = real_.open(path, mode);
    if (path.find(within_) == path.npos) return file;
    return std::make_unique<Hung>(*this, std::move(file));
  }

 private:
  void wait() const {
    ++waiting_;
    while (hung_) usleep(1000);
    --waiting_;
  }
  class Hung final : public ForwardingFile {
   public:
    Hung(const HungFiles& owner, std::unique_ptr<File> real) : ForwardingFile(std::move(real)), owner_(owner) {}
    void pwrite(std::span<const std::byte> from, std::uint64_t at) override {
      owner_.wait();
      real_->pwrite(from, at);
    }

   private:
    const HungFiles& owner_;
  };
  std::string within_;
  std::atomic<bool> hung_{false};
  mutable std::atomic<int> waiting_{0};
};

std::string slurp_text(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace

TEST_CASE("storage that hangs costs a checkpoint and not the run", "[saves]") {
  const Fixture f;
  const std::string run = f.directory / "hung";
  const std::vector<std::string> job{"parallel.data=2",      "eval.every=0",           "training.steps=1200",
                                     "checkpoint.every=300", "checkpoint.timeout=0.3", "checkpoint.keep=100"};
  // The second save meets a write that does not come back before the third is due and past it; then it does.
  HungFiles files("step_00000600.partial/rank_00001");
  files.hang();
  std::thread releases([&] {
    const double begin = system_clock().now();
    const auto skipped = [&] {
      return slurp_text(run + "/log.txt").find("checkpoint of step 900 failed") != std::string::npos;
    };
    while (!skipped() && system_clock().now() < begin + 60) usleep(2000);
    files.release();
  });
  const ExitCode code = train_tiny(f.yaml(kSmall, "hung"), 2, job, files);
  releases.join();
  CHECK(code == ExitCode::ok);
  const std::string log = slurp_text(run + "/log.txt");
  CHECK_THAT(log, Contains("checkpoint of step 600 failed (1 so far), training goes on: given up after"));
  CHECK_THAT(
      log,
      Contains(
          "checkpoint of step 900 failed (2 so far), training goes on: an earlier write to this storage was given up"));
  CHECK(list_steps(system_files(), checkpoints_directory(run)) == std::vector<Index>{1200, 300});
  CHECK_THAT(slurp_text(run + "/metrics.jsonl"), Contains("\"checkpoints_failed\":2"));
  // The stall never was longer than the time given, and a little.
  double longest = 0;
  std::ifstream in(run + "/metrics.jsonl");
  for (std::string line; std::getline(in, line);)
    if (const auto at = line.find("\"checkpoint_stall_seconds\":"); at != line.npos)
      longest = std::max(longest, std::stod(line.substr(at + 27)));
  CHECK(longest < 2);
  std::printf("proof: a write that hangs: given up after 0.3 s, longest stall %.3f s, the checkpoint before it stays\n",
              longest);
}

TEST_CASE("storage that never answers again ends the run with an error, not in silence", "[saves]") {
  const Fixture f;
  const std::string run = f.directory / "gone";
  // Left behind with a thread in it: it must outlive the run.
  auto* files = new HungFiles("step_00000100.partial/rank_00000");
  files->hang();
  const double begin = system_clock().now();
  try {
    train_tiny(
        f.yaml(kSmall, "gone"), 2,
        {"parallel.data=2", "eval.every=0", "training.steps=100", "checkpoint.every=50", "checkpoint.timeout=0.3"},
        *files);
    FAIL("no error");
  } catch (const Error& e) {
    CHECK(e.code() == ExitCode::write);
    CHECK_THAT(e.what(), Contains("given up"));
  }
  CHECK(system_clock().now() - begin < 30);
  CHECK(list_steps(system_files(), checkpoints_directory(run)) == std::vector<Index>{50});
  CHECK(files->waiting() == 1);
  CHECK_THAT(slurp_text(run + "/exit.json"), Contains("\"code\":5"));
  const auto threads = [] {
    return std::distance(std::filesystem::directory_iterator("/proc/self/task"), std::filesystem::directory_iterator());
  };
  const auto left = threads();
  files->release();  // the thread that was left comes back, touches nothing and sleeps
  usleep(100000);
  CHECK(threads() == left);
  CHECK(list_steps(system_files(), checkpoints_directory(run)) == std::vector<Index>{50});
  CHECK(train_tiny(f.yaml(kSmall, "gone"), 2, {"parallel.data=2", "eval.every=0", "training.steps=100"}) ==
        ExitCode::ok);
}
