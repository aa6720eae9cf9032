// The JSON Schema accepts every file in configs/ and refuses broken ones, by the word of another implementation.
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "lib/config/writer.h"
#include "tests/support/catch.h"

using namespace dstrain;

TEST_CASE("python3-jsonschema validates every file in configs/ with our schema") {
  const auto directory = std::filesystem::temp_directory_path() / format("dstrain-schema-{}", getpid());
  std::filesystem::create_directories(directory);
  std::ofstream(directory / "schema.json") << json_schema();
  std::ofstream(directory / "check.py") << R"(
import glob, json, sys, yaml, jsonschema
schema = json.load(open(sys.argv[1]))
jsonschema.Draft7Validator.check_schema(schema)
validator = jsonschema.Draft7Validator(schema)
files = sorted(glob.glob(sys.argv[2] + '/*.yaml'))
assert len(files) >= 6, files
for f in files:
    job = yaml.safe_load(open(f))
    validator.validate(job)
    for section, key, value in [('optimizer', 'lr', 'fast'), ('optimizer', 'wieght_decay', 1), ('training', 'steps', 0),
                                ('model', 'type', 'gpt3'), ('parallel', 'context', 2), ('optimizer', 'betas', [0.9]),
                                ('model', 'rms_norm_eps', 0), ('data', 'train', [{'path': 'a', 'weight': 0}])]:
        broken = json.loads(json.dumps(job))
        broken.setdefault(section, {})[key] = value
        assert not validator.is_valid(broken), (f, section, key)
    del job['training']['steps']
    assert not validator.is_valid(job)
)";
  const std::string command = format("/usr/bin/python3 {}/check.py {}/schema.json {}/configs", directory.string(),
                                     directory.string(), DSTRAIN_SOURCE_DIR);
  const int rc = std::system(command.c_str());
  std::filesystem::remove_all(directory);
  CHECK(rc == 0);
}
