#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <numeric>
#include <random>

#include "lib/checkpoint/compare.h"
#include "lib/checkpoint/names.h"
#include "lib/checkpoint/reader.h"
#include "lib/checkpoint/run_lock.h"
#include "lib/checkpoint/writer.h"
#include "lib/comm/world.h"
#include "lib/core/hash.h"
#include "tests/checkpoint/faulty_files.h"
#include "tests/support/catch.h"

using namespace dstrain;
using namespace dstrain::test;
namespace fs = std::filesystem;
using Catch::Matchers::Contains;

namespace {

struct TemporaryDirectory {
  std::string path;
  TemporaryDirectory() {
    // In memory where there is such a place: what is tested is the order of the calls, not the disk.
    const fs::path base = access("/dev/shm", W_OK) == 0 ? fs::path("/dev/shm") : fs::temp_directory_path();
    std::string name = (base / "dstrain-XXXXXX").string();
    if (!mkdtemp(name.data())) throw std::runtime_error("mkdtemp");
    path = name;
  }
  ~TemporaryDirectory() { fs::remove_all(path); }
};

struct TensorSpec {
  std::string name;
  Shape shape;
};
// A matrix, one with odd sides, a vector, and one of a single row.
const std::vector<TensorSpec> kModel = {{"model.embed_tokens.weight", {37, 24}},
                                        {"h.0.attn.c_attn.weight", {9, 31}},
                                        {"model.norm.weight", {41}},
                                        {"lm_head.weight", {1, 5}}};
const std::vector<std::string> kRoles = {"weight", "exp_avg", "exp_avg_sq"};

// The value of an element: told by step, role, tensor and place, so that nothing can be mixed up.
float value(Index step, const std::string& role, const std::string& name, Index i, Index j) {
  const std::uint64_t h = xxh3(format("{}/{}/{}/{}/{}", step, role, name, i, j));
  return std::ldexp(static_cast<float>(h >> 40), -24) - 0.5f;
}

// Slabs that own their memory.
struct Parts {
  std::vector<TensorSlab> slabs;
  std::vector<std::vector<float>> memory;

  void add(const std::string& role, const TensorSpec& t, const Shape& offset, const Shape& extent, bool transposed,
           Index padding) {
    TensorSlab slab{t.name, role, t.shape, offset, extent, transposed, nullptr, 0};
    slab.row_stride = slab.columns() + padding;
    memory.emplace_back(static_cast<std::size_t>(slab.rows() * slab.row_stride + 1), -7.0f);
    slab.data = memory.back().data();
    slabs.push_back(slab);
  }
  template <class Visit>
  void each(Visit visit) {  // (slab, element, i, j)
    for (TensorSlab& s : slabs) {
      const bool vector = s.global.rank() == 1;
      for (Index i = 0; i < s.extent[0]; ++i)
        for (Index j = 0; j < (vector ? 1 : s.extent[1]); ++j) {
          float& x = vector ? s.data[i] : s.transposed ? s.data[j * s.row_stride + i] : s.data[i * s.row_stride + j];
          visit(s, x, s.offset[0] + i, vector ? 0 : s.offset[1] + j);
        }
    }
  }
  void fill(Index step) {
    each([&](const TensorSlab& s, float& x, Index i, Index j) { x = value(step, s.role, s.name, i, j); });
  }
  // Elements that are not what `step` wrote.
  Index wrong(Index step) {
    Index count = 0;
    each([&](const TensorSlab& s, const float& x, Index i, Index j) {
      count += x != value(step, s.role, s.name, i, j);
    });
    return count;
  }
};

// Cuts every tensor at random places into rectangles and deals them to the ranks. The same seed gives the same layout.
Parts layout(unsigned seed, int rank, int ranks) {
  std::mt19937 random(seed);
  const auto cuts = [&](Index n) {
    std::vector<Index> at = {0, n};
    for (int k = 0; k < 2; ++k) at.push_back(static_cast<Index>(random() % static_cast<unsigned>(n + 1)));
    std::sort(at.begin(), at.end());
    return at;
  };
  Parts parts;
  for (const std::string& role : kRoles)
    for (const TensorSpec& t : kModel) {
      const bool vector = t.shape.rank() == 1;
      const std::vector<Index> rows = cuts(t.shape[0]), columns = vector ? std::vector<Index>{0, 1} : cuts(t.shape[1]);
      for (std::size_t r = 0; r + 1 < rows.size(); ++r)
        for (std::size_t c = 0; c + 1 < columns.size(); ++c) {
          const bool mine = static_cast<int>(random() % static_cast<unsigned>(ranks)) == rank;
          const bool transposed = !vector && random() % 2 == 0;
          const Index padding = static_cast<Index>(random() % 3);
          if (!mine) continue;
          const Index height = rows[r + 1] - rows[r], width = columns[c + 1] - columns[c];
          if (vector)
            parts.add(role, t, {rows[r]}, {height}, false, 0);
          else
            parts.add(role, t, {rows[r], columns[c]}, {height, width}, transposed, padding);
        }
    }
  return parts;
}

CheckpointState state_of(Index step) {
  return {.step = step,
          .optimizer_step = step - 1,
          .seed = 18446744073709551615ull,
          .next_sample = step * 16,
          .tokens = step * 4096,
          .config_hash = "00ff00ff00ff00ff",
          .mesh = {.tensor = 2, .data = 3}};
}

std::unique_ptr<ProcessGroup> everyone(World& world, Poster poster = Poster::checkpoint) {
  std::vector<int> all(static_cast<std::size_t>(world.size()));
  std::iota(all.begin(), all.end(), 0);
  return world.group(poster, GroupKind::control, all);
}

void save_step(World& world, const Files& files, const std::string& directory, Index step, unsigned seed,
               Index keep = 10) {
  const auto group = everyone(world);
  Parts parts = layout(seed, world.rank(), world.size());
  parts.fill(step);
  CheckpointWriter(files, directory, *group, keep).save(state_of(step), parts.slabs);
}

// Saves alone; throws what save throws.
void save_alone(const Files& files, const std::string& directory, Index step, Index keep = 10) {
  run_threads(1, [&](World& w) { save_step(w, files, directory, step, 1, keep); });
}

// Opens the newest and reads everything in another layout: the step found, 0 when nothing is there; throws when an
// element is wrong. The lines that were reported are added to `lines`.
Index load(const std::string& directory, unsigned seed, int ranks = 1, std::vector<std::string>* lines = nullptr) {
  Index step = 0;
  std::mutex mutex;
  run_threads(ranks, [&](World& world) {
    const auto group = everyone(world);
    auto checkpoint = open_newest(system_files(), directory, *group, [&](const std::string& line) {
      const std::scoped_lock lock(mutex);
      if (lines && world.rank() == 0) lines->push_back(line);
    });
    if (!checkpoint) return;
    const Index found = checkpoint->state().step;
    if (!(checkpoint->state() == state_of(found))) throw std::runtime_error("the state is wrong");
    Parts parts = layout(seed, world.rank(), world.size());
    for (const TensorSlab& s : parts.slabs) checkpoint->read(s);
    if (const Index n = parts.wrong(found); n > 0) throw std::runtime_error(format("{} elements are wrong", n));
    for (std::size_t i = 0; i < parts.memory.size(); ++i)  // what lies outside the slab is untouched
      if (parts.memory[i].back() != -7.0f) throw std::runtime_error("memory past a slab was written");
    const std::scoped_lock lock(mutex);
    step = found;
  });
  return step;
}

std::string slurp(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
void spill(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc).write(text.data(), static_cast<std::streamsize>(text.size()));
}
std::vector<std::string> names_in(const std::string& directory) { return system_files().list(directory); }

}  // namespace

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

TEST_CASE("any failing file call leaves the old checkpoint, and the new one whole or absent", "[checkpoint]") {
  const bool sticky = GENERATE(false, true);
  const TemporaryDirectory clean;
  save_alone(system_files(), clean.path, 1, 1);
  save_alone(system_files(), clean.path, 2, 1);
  int calls = 0;
  {  // how many calls a save makes, with a crashed save and an old checkpoint to clean up
    const TemporaryDirectory t;
    fs::copy(clean.path, t.path, fs::copy_options::recursive);
    fs::create_directory(fs::path(t.path) / "step_00000009.partial");
    const FaultyFiles files(system_files());
    save_alone(files, t.path, 3, 1);
    calls = files.calls();
    REQUIRE(calls > 20);
  }
  int published = 0;
  for (int n = 1; n <= calls; ++n) {
    INFO("call " << n << " of " << calls);
    const TemporaryDirectory t;
    fs::copy(clean.path, t.path, fs::copy_options::recursive);
    fs::create_directory(fs::path(t.path) / "step_00000009.partial");
    const FaultyFiles files(system_files(), n, sticky);
    bool threw = false;
    try {
      save_alone(files, t.path, 3, 1);
    } catch (const Error& e) {
      threw = true;
      CHECK(e.code() == ExitCode::write);
      CHECK_THAT(e.what(), Contains("injected"));
    }
    REQUIRE(files.failed());
    std::vector<std::string> lines;
    const Index step = load(t.path, 3, 1, &lines);
    CHECK(lines.empty());
    CHECK((step == 2 || step == 3));
    if (!threw) CHECK(step == 3);
    published += step == 3;
    // The next save works, and cleans up.
    save_alone(system_files(), t.path, 4, 1);
    CHECK(load(t.path, 3) == 4);
    CHECK(names_in(t.path).size() == 2);
  }
  CHECK(published > 0);          // some calls come after the rename
  CHECK(published < calls / 2);  // most come before it
}

TEST_CASE("when one rank cannot write, all ranks learn why and nothing is published", "[checkpoint]") {
  const TemporaryDirectory t;
  run_threads(3, [&](World& w) { save_step(w, system_files(), t.path, 1, 1); });
  std::mutex mutex;
  std::vector<std::string> heard;
  run_threads(3, [&](World& w) {
    const FaultyFiles faulty(system_files(), w.rank() == 2 ? 5 : 0);
    try {
      save_step(w, faulty, t.path, 2, 1);
    } catch (const Error& e) {
      const std::scoped_lock lock(mutex);
      if (e.code() == ExitCode::write) heard.push_back(e.what());
    }
  });
  REQUIRE(heard.size() == 3);
  for (const auto& text : heard) CHECK_THAT(text, Contains("checkpoint of step 2: rank 2: injected"));
  CHECK(names_in(t.path) == std::vector<std::string>{"step_00000001"});
  CHECK(load(t.path, 3, 2) == 1);
}

TEST_CASE("too little room is found before anything is written", "[checkpoint]") {
  const TemporaryDirectory t;
  CHECK_NOTHROW(require_free_space(system_files(), join_path(t.path, "not/there/yet"), 1));
  CHECK_THROWS_WITH(require_free_space(system_files(), t.path, 1ull << 60), Contains("are free"));
}

TEST_CASE("a flipped byte anywhere is refused, and the older checkpoint is taken", "[checkpoint]") {
  const TemporaryDirectory t;
  run_threads(2, [&](World& w) { save_step(w, system_files(), t.path, 1, 1); });
  run_threads(2, [&](World& w) { save_step(w, system_files(), t.path, 2, 1); });
  const std::string directory = join_path(t.path, "step_00000002");
  const auto refused = [&](const fs::path& path, std::size_t at, int bit) {
    const std::string good = slurp(path);
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ (1 << bit));
    spill(path, bad);
    bool ok = false;
    try {
      Checkpoint::open(system_files(), directory);
    } catch (const Error& e) {
      ok =
          e.code() == ExitCode::checkpoint && std::string(e.what()).find(path.filename().string()) != std::string::npos;
    }
    spill(path, good);
    return ok;
  };
  std::mt19937 random(3);
  const fs::path manifest = fs::path(directory) / "manifest.jsonl";
  const std::size_t length = fs::file_size(manifest);
  int missed = 0;
  {  // In memory: every byte, every bit.
    const std::string good = slurp(manifest);
    for (std::size_t at = 0; at < length; ++at)
      for (int bit = 0; bit < 8; ++bit) {
        std::string bad = good;
        bad[at] = static_cast<char>(bad[at] ^ (1 << bit));
        try {
          parse_manifest(bad, "manifest");
          ++missed;
        } catch (const Error& e) {
          missed += e.code() != ExitCode::checkpoint;
        }
      }
  }
  CHECK(missed == 0);
  for (const char* shard : {"rank_00000.h5", "rank_00001.h5"}) {
    const fs::path path = fs::path(directory) / shard;
    const std::size_t size = fs::file_size(path);
    for (int i = 0; i < 300; ++i) missed += !refused(path, random() % size, static_cast<int>(random() % 8));
  }
  CHECK(missed == 0);
  std::string bad = slurp(manifest);
  bad[bad.size() / 2] ^= 1;
  spill(manifest, bad);
  std::vector<std::string> lines;
  CHECK(load(t.path, 4, 3, &lines) == 1);
  REQUIRE(lines.size() == 1);
  CHECK_THAT(lines[0], Contains("step_00000002 is not usable: ") && Contains("manifest.jsonl") && Contains("checksum"));
  spill(fs::path(t.path) / "step_00000001/manifest.jsonl", "");
  CHECK_THROWS_WITH(load(t.path, 4), Contains("none of 2 checkpoints is usable"));
}

TEST_CASE("cut, missing, extra, swapped and foreign shards are named", "[checkpoint]") {
  const TemporaryDirectory t;
  run_threads(2, [&](World& w) { save_step(w, system_files(), t.path, 1, 1); });
  run_threads(2, [&](World& w) { save_step(w, system_files(), t.path, 2, 1); });
  const fs::path directory = fs::path(t.path) / "step_00000002";
  const fs::path first = directory / "rank_00000.h5", second = directory / "rank_00001.h5";
  const auto reason = [&] {
    try {
      Checkpoint::open(system_files(), directory);
    } catch (const Error& e) {
      return e.code() == ExitCode::checkpoint ? std::string(e.what()) : "another code";
    }
    return std::string();
  };
  REQUIRE(reason().empty());
  const std::string good = slurp(second);
  std::mt19937 random(5);
  for (int i = 0; i < 20; ++i) {
    const std::size_t size = i == 0 ? 0 : i == 1 ? 1 : i == 2 ? good.size() - 1 : random() % good.size();
    spill(second, good.substr(0, size));
    CHECK_THAT(reason(), Contains("rank_00001.h5: " + std::to_string(size) + " bytes, the manifest says " +
                                  std::to_string(good.size())));
  }
  spill(second, good + "x");
  CHECK_THAT(reason(), Contains("rank_00001.h5"));
  fs::remove(second);
  CHECK_THAT(reason(), Contains("rank_00001.h5: the file is missing"));
  spill(second, good);
  spill(directory / "rank_00002.h5", good);
  CHECK_THAT(reason(), Contains("rank_00002.h5: a shard that the manifest does not know"));
  fs::remove(directory / "rank_00002.h5");
  fs::rename(first, directory / "x");
  fs::rename(second, first);
  fs::rename(directory / "x", second);
  CHECK_THAT(reason(), Contains("rank_0000"));
  spill(first, slurp(fs::path(t.path) / "step_00000001/rank_00000.h5"));
  spill(second, good);
  CHECK_THAT(reason(), Contains("rank_00000.h5"));
  fs::remove_all(directory);
  fs::copy(fs::path(t.path) / "step_00000001", directory);
  CHECK_THAT(reason(), Contains("the manifest is of step 1"));
}

TEST_CASE("a newer format is refused by its number", "[checkpoint]") {
  const TemporaryDirectory t;
  save_alone(system_files(), t.path, 1);
  std::string text = slurp(fs::path(t.path) / "step_00000001/manifest.jsonl");
  text = text.substr(0, text.rfind('\n', text.size() - 2) + 1);
  const std::string old = "\"version\":1";
  text.replace(text.find(old), old.size(), "\"version\":2");
  text += "{\"xxh3\":\"" + hex(xxh3(text)) + "\"}\n";
  CHECK_THROWS_WITH(parse_manifest(text, "m"), "m: format version 2, this build reads version 1");
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

TEST_CASE("kill -9 at 50 random moments of a save leaves a good checkpoint", "[checkpoint]") {
  const TemporaryDirectory t;
  save_alone(system_files(), t.path, 1, 2);
  using Time = std::chrono::steady_clock;
  const auto start = Time::now();
  save_alone(system_files(), t.path, 2, 2);
  const auto window = std::chrono::duration_cast<std::chrono::microseconds>(Time::now() - start).count();
  std::mt19937 random(11);
  Index newest = 2;
  int killed = 0;
  for (int i = 0; i < 50; ++i) {
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      try {
        save_alone(system_files(), t.path, newest + 1, 2);
      } catch (...) {
        _exit(1);
      }
      _exit(0);
    }
    usleep(static_cast<useconds_t>(random() % static_cast<unsigned>(window * 5 / 4 + 1)));
    kill(child, SIGKILL);
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    killed += WIFSIGNALED(status);
    std::vector<std::string> lines;
    const Index step = load(t.path, 9, 1, &lines);
    CHECK(lines.empty());
    CHECK((step == newest || step == newest + 1));
    if (WIFEXITED(status)) CHECK((WEXITSTATUS(status) == 0 && step == newest + 1));
    newest = step;
  }
  CHECK(killed >= 10);
}

TEST_CASE("a run directory has one owner", "[checkpoint]") {
  const TemporaryDirectory t;
  const std::string run = join_path(t.path, "run");
  {
    const RunLock lock(system_files(), run, "node7", system_clock());
    CHECK_THROWS_WITH(RunLock(system_files(), run, "node8", system_clock()),
                      Contains("is in use by host node7, process " + std::to_string(getpid()) + ", started 2"));
  }
  CHECK_NOTHROW(RunLock(system_files(), run, "node8", system_clock()));
  // An owner that dies leaves its text, and no lock.
  const pid_t child = fork();
  if (child == 0) {
    const RunLock lock(system_files(), run, "dead", system_clock());
    kill(getpid(), SIGKILL);
  }
  waitpid(child, nullptr, 0);
  CHECK_THAT(slurp(fs::path(run) / "lock"), Contains("host dead"));
  CHECK_NOTHROW(RunLock(system_files(), run, "node9", system_clock()));
  CHECK_THAT(slurp(fs::path(run) / "lock"), Contains("host node9"));
}
