// manifest.jsonl: as it is, and with the checksum of its last line made right, so that what lies behind it is met.

#include "lib/checkpoint/manifest.h"
#include "lib/core/hash.h"
#include "tests/support/fuzz.h"

using namespace dstrain;

namespace {

std::string manifest() {
  Manifest m;
  m.state = {.step = 12,
             .optimizer_step = 11,
             .seed = 7,
             .next_sample = 288,
             .tokens = 3456,
             .config_hash = "ab",
             .data_hash = "cd",
             .mesh = {.tensor = 2}};
  m.state.guard = {
      .window = {{11, 2.5, 0.25}, {12, 2.25, 1e-300}}, .skips = 1, .suspects = {{264, 288}}, .passed = {{0, 24}}};
  for (int r = 0; r < 2; ++r) m.shards.push_back({format("rank_{:05}.h5", r), 5000, {0x1234567890abcdefull}});
  for (const char* role : {"exp_avg", "exp_avg_sq", "weight"})
    for (const char* name : {"a.weight", "b.bias"}) {
      const bool matrix = name[0] == 'a';
      TensorRecord t{name, role, matrix ? Shape{6, 4} : Shape{8}, {}};
      for (int r = 0; r < 2; ++r)
        t.entries.push_back({r, format("{}/{}", role, name), matrix ? Shape{3 * r, 0} : Shape{4 * r},
                             matrix ? Shape{3, 4} : Shape{4}, matrix && r == 1});
      m.tensors.push_back(t);
    }
  return to_text(m);
}

void subject(const std::string& input) {
  std::string text = input;
  if (text.ends_with('\n') && text.size() > 1) {
    const std::size_t before = text.rfind('\n', text.size() - 2);
    if (before != std::string::npos && text.size() % 8 != 0) {
      text.resize(before + 1);
      text += "{\"xxh3\":\"" + hex(xxh3(text)) + "\"}\n";
    }
  }
  const Manifest m = parse_manifest(text, "manifest");
  check(to_text(m) == to_text(parse_manifest(to_text(m), "again")), "a manifest that was taken does not read back");
}

}  // namespace

int main(int argc, char** argv) {
  return fuzz::run(argc, argv, {manifest()},
                   {"\"shard\":", "\"flat\":null", "\"order\":\"F\"", "[", "]", "{", "}", "null", "-1", "1e999", "\"",
                    "\\u0000", "../../x", "\n", "9223372036854775807", "\"guard\":{}", "true"},
                   subject);
}
