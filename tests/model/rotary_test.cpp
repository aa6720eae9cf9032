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

// Llama 3.2's: pairs turn by 500000^(-i/32). Worked out by hand from the report's rule.
TEST_CASE("Llama 3's and linear frequencies") {
  ModelConfig m;
  m.head_dim = 64;
  m.rope_theta = 500000;
  m.rope_type = "llama3";
  m.rope_factor = 32;
  m.rope_original_max_position_embeddings = 8192;
  const std::vector<float> f = inverse_frequencies(m);
  REQUIRE(f.size() == 32);
  const auto near = [](double a, double b) { return std::fabs(a - b) <= 1e-6 * b; };
  CHECK(near(f[0], 1));
  CHECK(near(f[14], 3.211446e-3));  // 4.19 turns over the original length: as it is
  CHECK(near(f[15], 1.290548e-3));  // 2.78 turns: between
  CHECK(near(f[17], 9.708288e-5));  // 1.22
  CHECK(near(f[18], 1.946164e-5));  // 0.81: slowed by the whole factor
  CHECK(near(f[31], 9.418307e-8));
  CHECK(attention_factor(m) == 1.0f);
  CHECK(near(attention_scale(m), 0.125));
  m.rope_type = "linear";
  CHECK(near(inverse_frequencies(m)[0], 1.0 / 32));
  CHECK(near(inverse_frequencies(m)[31], 9.418307e-8));
  m.rope_type = "dynamic";  // which begins beyond max_position_embeddings
  CHECK(inverse_frequencies(m)[0] == 1.0f);
  m.rope_type = "yarn";  // a llama's scores have the square of what DeepSeek's rotated part has
  m.rope_attention_factor = 1.5;
  CHECK(near(attention_scale(m), 0.125 * 2.25));
}

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
