// What a snapshot holds is the state at the time of take(), on every device of DSTRAIN_TEST_DEVICES, however much of it
// comes by way of memory on the device, and whatever the next update writes.
#include <limits>
#include <string>
#include <vector>

#include "lib/train/snapshot.h"
#include "tests/support/catch.h"
#include "tests/support/devices.h"
#include "tests/train/tiny_job.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

// The slabs' values, one after another.
std::vector<float> values_of(const Snapshot& snapshot) {
  std::vector<float> all;
  for (const TensorSlab& slab : snapshot.slabs()) all.insert(all.end(), slab.data, slab.data + slab.extent.numel());
  return all;
}

// The same as the arena gives it, role by role as the snapshot has it.
std::vector<float> state_of(Engine& engine) {
  std::vector<float> all;
  for (const Role role : {Role::weight, Role::exp_avg, Role::exp_avg_sq})
    for (const ParamArena::Entry& e : engine.params().entries()) {
      if (!e.piece->owned || e.range.size() == 0) continue;
      const std::size_t at = all.size();
      all.resize(at + static_cast<std::size_t>(e.range.size()));
      engine.params().read(engine.stream(), role, e.range, all.data() + at);
    }
  return all;
}

}  // namespace

TEST_CASE("a snapshot is the state, however much of it waits on the device", "[snapshot]") {
  for (const TinyModel& model : tiny_models())
    for (const std::string& where : test_devices())
      for (const bool split : {false, true}) {
        std::vector<std::string> keys{"run.device=" + where};
        if (split) keys.insert(keys.end(), {"precision.compute=bfloat16", "precision.master=split"});
        const Config config = tiny_job(model.yaml, 1, 1, 1, 4, keys);
        run_threads(1, [&](World& world) {
          const Mesh mesh(mesh_sizes(config.parallel));
          const Device device = run_device(config);
          use_device(config, world, device);
          const auto engine = make_engine(config, world, mesh, device, 1);
          engine->initialize(1);
          const TinyData batches(config, 0, 0);
          const auto step = [&] { engine->train_step(batches.batches(), batches.valid(), 1e-2, false); };
          step();
          Snapshot all(engine->params(), engine->groups(), std::numeric_limits<std::size_t>::max());
          std::vector<std::size_t> sizes{
              0, 1, 256, 1000, all.bytes() / 3, all.bytes() / 2 + 1, all.bytes() - 4, all.bytes()};
          for (const std::size_t size : sizes) {
            INFO(model.name << " on " << where << ", " << size << " of " << all.bytes() << " bytes held");
            Snapshot snapshot(engine->params(), engine->groups(), size);
            const std::size_t staging = Snapshot(engine->params(), engine->groups(), 0).device_bytes();
            CHECK(snapshot.bytes() == all.bytes());
            CHECK(snapshot.device_bytes() - staging <= size);
            CHECK((size < all.bytes() || snapshot.device_bytes() - staging == all.bytes()));
            for (int i = 0; i < 2; ++i) {
              const std::vector<float> expected = state_of(*engine);
              snapshot.take(engine->stream());
              if (const gpu::Event* copied = snapshot.copied()) engine->update_after(*copied);
              step();
              snapshot.wait();
              // In parentheses: a failure does not print all values.
              CHECK((values_of(snapshot) == expected));
              CHECK((state_of(*engine) != expected));
            }
          }
        });
      }
}
