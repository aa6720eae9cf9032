#include <atomic>

#include "lib/checkpoint/compare.h"
#include "tests/checkpoint/made_up_model.h"
#include "tests/support/catch.h"
#include "tests/support/forwarding_files.h"

using namespace dstrain;
using namespace dstrain::test;
using Catch::Matchers::Contains;

TEST_CASE("what any layout saved, any other layout loads", "[checkpoint]") {
  const TemporaryDirectory t;
  for (int ranks = 1; ranks <= 4; ++ranks) {
    const std::string directory = join_path(t.path, std::to_string(ranks));
    run_threads(ranks, [&](World& w) { save_step(w, system_files(), directory, 7, static_cast<unsigned>(ranks)); });
    CHECK(names_in(directory) == std::vector<std::string>{"step_00000007"});
    for (int readers = 1; readers <= 4; ++readers)
      for (unsigned seed = 20; seed < 24; ++seed) CHECK(load(directory, seed, readers) == 7);
  }
}

TEST_CASE("the same save gives the same bytes", "[checkpoint]") {
  const TemporaryDirectory a, b;
  save_alone(system_files(), a.path, 3);
  save_alone(system_files(), b.path, 3);
  for (const char* name : {"step_00000003/manifest.jsonl", "step_00000003/rank_00000.h5"}) {
    CHECK(slurp(join_path(a.path, name)) == slurp(join_path(b.path, name)));
    CHECK(!slurp(join_path(a.path, name)).empty());
  }
}

TEST_CASE("compare tells what differs, and not how it is sharded", "[checkpoint]") {
  const TemporaryDirectory t;
  const std::string a = join_path(t.path, "a"), b = join_path(t.path, "b"), c = join_path(t.path, "c");
  run_threads(2, [&](World& w) { save_step(w, system_files(), a, 4, 1); });
  run_threads(3, [&](World& w) { save_step(w, system_files(), b, 4, 2); });
  run_threads(1, [&](World& w) {  // one element changed, one tensor dropped, another cursor
    Parts parts = layout(1, 0, 1);
    parts.fill(4);
    parts.each([](const TensorSlab& s, float& x, Index i, Index j) {
      if (s.role == "exp_avg" && s.name == "h.0.attn.c_attn.weight" && i == 8 && j == 30) x += 2;
    });
    std::erase_if(parts.slabs, [](const TensorSlab& s) { return s.role == "weight" && s.name == "lm_head.weight"; });
    CheckpointState state = state_of(4);
    state.next_sample = 5;
    CheckpointWriter(system_files(), c, *everyone(w), 1).save(state, parts.slabs);
  });
  const auto open = [](const std::string& d) {
    return Checkpoint::open(system_files(), join_path(d, "step_00000004"));
  };
  Checkpoint x = open(a), y = open(b), z = open(c);
  const Comparison same = compare(x, y);
  CHECK(same.state.empty());
  CHECK(same.tensors.empty());
  CHECK(same.compared == 12);
  const Comparison other = compare(x, z);
  CHECK(other.state == std::vector<std::string>{"next_sample: 64 and 5"});
  REQUIRE(other.tensors.size() == 2);
  CHECK(other.tensors[0].name == "h.0.attn.c_attn.weight");
  CHECK(other.tensors[0].different == 1);
  CHECK(std::abs(other.tensors[0].largest - 2) < 1e-6);  // 2 and float's rounding of x + 2
  CHECK(other.tensors[1].name == "lm_head.weight");
  CHECK(other.tensors[1].problem == "only in the first");
}

TEST_CASE("replicas share the writing by bytes", "[checkpoint]") {
  const std::vector<Index> bytes = {100, 10, 10, 90, 5, 0, 200};
  CHECK(assign_writers(bytes, 1) == std::vector<int>{0, 0, 0, 0, 0, 0, 0});
  CHECK(assign_writers(bytes, 2) == std::vector<int>{0, 1, 1, 1, 0, 0, 0});
  CHECK(assign_writers(bytes, 3) == std::vector<int>{0, 1, 2, 1, 2, 2, 2});
}

TEST_CASE("a layout that does not cover its tensors is our bug, and nothing is published", "[checkpoint]") {
  const TemporaryDirectory t;
  const auto save = [&](auto change) {
    run_threads(1, [&](World& w) {
      Parts parts = layout(1, 0, 1);
      std::erase_if(parts.slabs, [](const TensorSlab& s) { return s.extent.numel() == 0; });
      change(parts);
      CheckpointWriter(system_files(), t.path, *everyone(w), 2).save(state_of(1), parts.slabs);
    });
  };
  CHECK_THROWS_WITH(save([](Parts& p) { p.slabs.erase(p.slabs.begin() + 2); }), Contains("entries cover"));
  CHECK_THROWS_WITH(save([](Parts& p) { p.slabs.push_back(p.slabs[1]); }), Contains("overlap"));
  CHECK_THROWS_WITH(save([](Parts& p) { p.slabs[0].global = {99, 24}; }), Contains("(99, 24)"));
  CHECK(names_in(t.path) == std::vector<std::string>{});
}

TEST_CASE("tensors that are missing or of another shape are named", "[checkpoint]") {
  const TemporaryDirectory t;
  save_alone(system_files(), t.path, 1);
  Checkpoint c = Checkpoint::open(system_files(), join_path(t.path, "step_00000001"));
  std::vector<float> x(64);
  CHECK(c.has("model.norm.weight", "exp_avg"));
  CHECK_FALSE(c.has("model.norm.weight", "momentum"));
  CHECK_THROWS_WITH(c.read({"no.such", "weight", {4}, {0}, {4}, false, x.data(), 0}), Contains("no weight of no.such"));
  CHECK_THROWS_WITH(c.read({"model.norm.weight", "weight", {40}, {0}, {40}, false, x.data(), 0}),
                    Contains("has shape (41), this model wants (40)"));
}

TEST_CASE("keep deletes the oldest, and never the newest two that are verified", "[checkpoint]") {
  const TemporaryDirectory t;
  for (Index step = 1; step <= 5; ++step) save_alone(system_files(), t.path, step, 3);
  CHECK(names_in(t.path) == std::vector<std::string>{"step_00000003", "step_00000004", "step_00000005"});
  save_alone(system_files(), t.path, 6, 1);
  CHECK(names_in(t.path) == std::vector<std::string>{"step_00000005", "step_00000006"});
  // 5 and 6 decay: whatever keep says, 7 and the newest other good one stay. There is none but 7.
  for (const char* name : {"step_00000005", "step_00000006"}) spill(join_path(t.path, name) + "/manifest.jsonl", "x");
  save_alone(system_files(), t.path, 7, 1);
  CHECK(names_in(t.path).size() == 3);
  save_alone(system_files(), t.path, 8, 1);
  CHECK(names_in(t.path) == std::vector<std::string>{"step_00000007", "step_00000008"});
}

TEST_CASE("a step that is saved already is left alone, and replaced when it is not usable", "[checkpoint]") {
  const TemporaryDirectory t;
  save_alone(system_files(), t.path, 1);
  const auto manifest = fs::path(t.path) / "step_00000001/manifest.jsonl";
  const auto before = fs::last_write_time(manifest);
  save_alone(system_files(), t.path, 1);
  CHECK(fs::last_write_time(manifest) == before);
  spill(manifest, "broken");
  save_alone(system_files(), t.path, 1);
  CHECK(load(t.path, 5) == 1);
  CHECK(names_in(t.path) == std::vector<std::string>{"step_00000001"});
}

TEST_CASE("names that are not of a complete checkpoint are not listed", "[checkpoint]") {
  const TemporaryDirectory t;
  for (const char* name : {"step_00000010", "step_00000009", "step_123456789", "step_00000011.partial", "step_8",
                           "step_", "step_0000001x", "step_-0000001", "other"})
    fs::create_directory(fs::path(t.path) / name);
  spill(fs::path(t.path) / "step_00000012", "a file");
  CHECK(list_steps(system_files(), t.path) == std::vector<Index>{123456789, 10, 9});
  CHECK(list_steps(system_files(), join_path(t.path, "absent")).empty());
  CHECK(load(join_path(t.path, "absent"), 1) == 0);
}

TEST_CASE("each rank reads the blocks that it needs, whoever wrote them", "[checkpoint]") {
  // Counts what is read of shards; threads.
  struct CountingFiles final : ForwardingFiles {
    std::unique_ptr<File> open(const std::string& path, OpenMode mode) const override {
      struct Counting final : ForwardingFile {
        Counting(std::unique_ptr<File> real, std::atomic<std::uint64_t>& count)
            : ForwardingFile(std::move(real)), bytes(count) {}
        void pread(std::span<std::byte> into, std::uint64_t at) const override {
          bytes += into.size();
          real_->pread(into, at);
        }
        std::atomic<std::uint64_t>& bytes;
      };
      return std::make_unique<Counting>(real_.open(path, mode), bytes);
    }
    mutable std::atomic<std::uint64_t> bytes{0};
  };
  const TemporaryDirectory t;
  const TensorSpec tensor{"wide", {4096, 1024}};
  const Index bytes = tensor.shape.numel() * 4;
  for (const int writers : {1, 3})
    for (const bool transposed : {false, true}) {
      const std::string directory = join_path(t.path, format("{}-{}", writers, static_cast<int>(transposed)));
      run_threads(writers, [&](World& w) {
        Parts parts;
        const Index begin = 4096 * w.rank() / writers, end = 4096 * (w.rank() + 1) / writers;
        parts.add("weight", tensor, {begin, 0}, {end - begin, 1024}, transposed, 0);
        for (std::size_t i = 0; i < parts.memory[0].size(); ++i) parts.memory[0][i] = static_cast<float>(i % 1000);
        CheckpointWriter(system_files(), directory, *everyone(w), 1).save(state_of(1), parts.slabs);
      });
      // What each of 8 ranks reads beyond its share of the hashing.
      std::atomic<std::uint64_t> most{0};
      run_threads(8, [&](World& w) {
        const CountingFiles files;
        const auto group = everyone(w);
        auto checkpoint = open_newest(files, directory, *group, [](const std::string&) {});
        const std::uint64_t before = files.bytes;
        Parts parts;
        if (transposed)
          parts.add("weight", tensor, {0, 128 * w.rank()}, {4096, 128}, false, 0);
        else
          parts.add("weight", tensor, {512 * w.rank(), 0}, {512, 1024}, false, 0);
        checkpoint->read(parts.slabs[0]);
        const std::uint64_t read = files.bytes - before;
        for (std::uint64_t m = most; m < read && !most.compare_exchange_weak(m, read);) {
        }
      });
      INFO(writers << " writers, transposed " << transposed);
      // Its eighth, and of each writer up to two chunks of 1 MiB that are others' too, and metadata.
      CHECK(most < static_cast<std::uint64_t>(bytes / 8 + 2 * writers * (1 << 20) + (1 << 18)));
    }
}
