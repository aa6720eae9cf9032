// A checkpoint of every format version that was ever released loads for ever.

#include "tests/checkpoint/made_up_model.h"
#include "tests/support/catch.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {
std::string golden(int version) {
  return std::string(DSTRAIN_SOURCE_DIR) + format("/tests/golden/checkpoint_v{}", version);
}
}  // namespace

TEST_CASE("the golden checkpoint of every version loads", "[checkpoint]") {
  for (int version = kOldestVersion; version <= kCheckpointVersion; ++version) {
    INFO("version " << version);
    const std::string directory = golden(version);
    REQUIRE(fs::exists(directory));
    std::uintmax_t bytes = 0;
    for (const auto& f : fs::recursive_directory_iterator(directory))
      if (f.is_regular_file()) bytes += f.file_size();
    CHECK(bytes <= 100'000);
    CHECK(format_version(slurp(directory + "/step_00000007/manifest.jsonl")) == version);
    for (int ranks = 1; ranks <= 3; ++ranks) CHECK(load(directory, 50 + static_cast<unsigned>(ranks), ranks) == 7);
  }
}

// How one is made, once for a version: test_checkpoint "[.make-golden]", and commit what it wrote.
TEST_CASE("write the golden checkpoint of this version", "[.make-golden]") {
  const std::string directory = golden(kCheckpointVersion);
  REQUIRE_FALSE(fs::exists(directory));
  run_threads(2, [&](World& w) { save_step(w, system_files(), directory, 7, 3); });
}
