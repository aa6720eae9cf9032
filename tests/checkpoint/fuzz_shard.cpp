// A shard: behind its hash as a checkpoint is read, and once without it.

#include "lib/checkpoint/shard.h"
#include "tests/support/fuzz.h"
#include "tests/support/keep_hdf5_memory.h"
#include "tests/support/memory_files.h"

// HDF5 1.10 loses a few hundred bytes of its own when an object header is malformed; the file is refused all the same.
extern "C" const char* __lsan_default_suppressions() { return "leak:libhdf5"; }

using namespace dstrain;
using namespace dstrain::test;

namespace {

struct Written {
  std::vector<float> values = std::vector<float>(6 * 40, 1.5f);
  MemoryFiles files;
  WrittenShard shard;
  Written() {
    const std::vector<TensorSlab> slabs{
        {.name = "a.weight",
         .role = "weight",
         .global = {6, 40},
         .offset = {0, 0},
         .extent = {6, 40},
         .data = values.data(),
         .row_stride = 40},
        {.name = "b.bias", .role = "exp_avg", .global = {40}, .offset = {0}, .extent = {40}, .data = values.data()}};
    files.make_directory("d");
    shard = write_shard(files, "d", 0, 3, slabs);
  }
};

const Written& written() {
  static const Written w;
  return w;
}

void subject(const std::string& input) {
  MemoryFiles files;
  files.put("d/rank_00000.h5", input);
  const ShardRecord& record = written().shard.record;
  bool same = false;
  try {
    check_shard_size(files, "d/rank_00000.h5", record);
    check_shard_blocks(files, "d/rank_00000.h5", record);
    same = true;
  } catch (const Error& e) {
    if (e.code() != ExitCode::checkpoint) throw;
  }
  check(same == (input == written().files.get("d/rank_00000.h5")), "the hash of other bytes");
  const Hdf5File file = Hdf5File::open(files, "d/rank_00000.h5", ExitCode::checkpoint);
  std::vector<float> values(6 * 40);
  for (const TensorRecord& t : written().shard.tensors) {
    const TensorSlab slab{.name = t.name,
                          .role = t.role,
                          .global = t.shape,
                          .offset = t.entries[0].offset,
                          .extent = t.entries[0].extent,
                          .data = values.data(),
                          .row_stride = 40};
    read_entry(file, t.entries[0], slab);
  }
}

}  // namespace

int main(int argc, char** argv) {
  keep_hdf5_memory();
  return fuzz::run(argc, argv, {written().files.get("d/rank_00000.h5")}, {"OHDR", "FRHP", "FADB", "\x89HDF", "weight"},
                   subject);
}
