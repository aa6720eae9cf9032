#include "lib/model/rotary.h"

#include <cmath>

#include "tests/support/catch.h"

using namespace dstrain;

namespace {

ModelConfig v3() {
  ModelConfig m;
  m.type = "deepseek_v3";
  m.head_dim = 192;
  m.qk_rope_head_dim = 64;
  m.rope_type = "yarn";
  m.rope_factor = 40;
  m.rope_original_max_position_embeddings = 4096;
  m.rope_mscale = m.rope_mscale_all_dim = 1;
  return m;
}

}  // namespace

// The numbers are those of DeepSeek-V3's and V2-Lite's own configurations, worked out by hand.
TEST_CASE("YaRN of DeepSeek-V3 and V2-Lite") {
  const std::vector<float> f = inverse_frequencies(v3());
  REQUIRE(f.size() == 32);
  const auto near = [](double a, double b) { return std::fabs(a - b) <= 1e-6 * b; };
  CHECK(near(f[0], 1));
  CHECK(near(f[9], 7.498942e-2));
  CHECK(near(f[11], 3.900693e-2));
  CHECK(near(f[16], 5.5e-3));
  CHECK(near(f[22], 1.778279e-4));
  CHECK(near(f[23], 3.333804e-5));
  CHECK(near(f[31], 3.333804e-6));
  CHECK(near(attention_scale(v3()), 0.1352337789));
  CHECK(attention_factor(v3()) == 1.0f);
  ModelConfig lite = v3();
  lite.rope_mscale = lite.rope_mscale_all_dim = 0.707;
  CHECK(near(attention_scale(lite), 0.1147213868));
  lite.rope_mscale = 0;
  lite.rope_mscale_all_dim = 0;
  CHECK(near(attention_factor(lite), 0.1 * std::log(40.0) + 1));
  CHECK(near(attention_scale(lite), 0.0721687836));
  lite.rope_type = "default";
  CHECK(near(inverse_frequencies(lite)[31], std::pow(10000.0, -62.0 / 64)));
  CHECK(attention_factor(lite) == 1.0f);
}
