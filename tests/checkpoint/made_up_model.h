#pragma once
// Checkpoints of a small made-up model: every element tells where it belongs, layouts are cut at random.

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <numeric>
#include <random>
#include <tuple>

#include "lib/checkpoint/names.h"
#include "lib/checkpoint/reader.h"
#include "lib/checkpoint/writer.h"
#include "lib/comm/world.h"
#include "lib/core/hash.h"

namespace dstrain::test {

namespace fs = std::filesystem;

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
inline const std::vector<TensorSpec> kModel = {{"model.embed_tokens.weight", {37, 24}},
                                               {"h.0.attn.c_attn.weight", {9, 31}},
                                               {"model.norm.weight", {41}},
                                               {"lm_head.weight", {1, 5}}};
inline const std::vector<std::string> kRoles = {"weight", "exp_avg", "exp_avg_sq"};

// The value of an element: told by step, role, tensor and place, so that nothing can be mixed up.
inline float value(Index step, const std::string& role, const std::string& name, Index i, Index j) {
  const std::uint64_t h = xxh3(format("{}/{}/{}/{}/{}", step, role, name, i, j));
  return std::ldexp(static_cast<float>(h >> 40), -24) - 0.5f;
}

// Those of a tensor, row by row: made once, as thousands of files are compared with them.
inline const std::vector<float>& values(Index step, const std::string& role, const std::string& name,
                                        const Shape& shape) {
  static std::mutex mutex;
  static std::map<std::tuple<Index, std::string, std::string>, std::vector<float>> made;
  const std::lock_guard lock(mutex);
  std::vector<float>& all = made[{step, role, name}];
  if (all.empty())
    for (Index i = 0; i < shape[0]; ++i)
      for (Index j = 0; j < (shape.rank() == 1 ? 1 : shape[1]); ++j) all.push_back(value(step, role, name, i, j));
  return all;
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
  template <class Visit>
  void each_of(Index step, Visit visit) {  // (element, what the step wrote)
    const TensorSlab* of = nullptr;
    const float* written = nullptr;
    each([&](const TensorSlab& s, float& x, Index i, Index j) {
      if (of != &s) of = &s, written = values(step, s.role, s.name, s.global).data();
      visit(x, written[s.global.rank() == 1 ? i : i * s.global[1] + j]);
    });
  }
  void fill(Index step) {
    each_of(step, [](float& x, float written) { x = written; });
  }
  // Elements that are not what `step` wrote.
  Index wrong(Index step) {
    Index count = 0;
    each_of(step, [&](const float& x, float written) { count += x != written; });
    return count;
  }
};

// Cuts every tensor at random places into rectangles and deals them to the ranks. The same seed gives the same layout.
inline Parts layout(unsigned seed, int rank, int ranks) {
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

inline CheckpointState state_of(Index step) {
  return {.step = step,
          .optimizer_step = step - 1,
          .seed = 18446744073709551615ull,
          .next_sample = step * 16,
          .tokens = step * 4096,
          .config_hash = "00ff00ff00ff00ff",
          .mesh = {.tensor = 2, .data = 3}};
}

inline std::unique_ptr<ProcessGroup> everyone(World& world, Poster poster = Poster::checkpoint) {
  std::vector<int> all(static_cast<std::size_t>(world.size()));
  std::iota(all.begin(), all.end(), 0);
  return world.group(poster, GroupKind::control, all);
}

inline void save_step(World& world, const Files& files, const std::string& directory, Index step, unsigned seed,
                      Index keep = 10) {
  const auto group = everyone(world);
  Parts parts = layout(seed, world.rank(), world.size());
  parts.fill(step);
  CheckpointWriter(files, directory, *group, keep).save(state_of(step), parts.slabs);
}

// Saves alone; throws what save throws.
inline void save_alone(const Files& files, const std::string& directory, Index step, Index keep = 10) {
  run_threads(1, [&](World& w) { save_step(w, files, directory, step, 1, keep); });
}

// Opens the newest and reads everything in another layout: the step found, 0 when nothing is there; throws when an
// element is wrong. The lines that were reported are added to `lines`.
inline Index load(const std::string& directory, unsigned seed, int ranks = 1, std::vector<std::string>* lines = nullptr,
                  const Files& files = system_files()) {
  Index step = 0;
  std::mutex mutex;
  run_threads(ranks, [&](World& world) {
    const auto group = everyone(world);
    auto checkpoint = open_newest(files, directory, *group, [&](const std::string& line) {
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

// How many of those that have a checkpoint's name are not whole.
inline int broken(const std::string& directory, const Files& files = system_files()) {
  int found = 0;
  for (const Index step : list_steps(files, directory)) try {
      Checkpoint::open(files, join_path(directory, step_name(step)));
    } catch (const Error&) {
      ++found;
    }
  return found;
}

inline std::string slurp(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
inline void spill(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc).write(text.data(), static_cast<std::streamsize>(text.size()));
}
inline std::vector<std::string> names_in(const std::string& directory) { return system_files().list(directory); }

}  // namespace dstrain::test
