#include "kernels/dropout.h"

#include <cmath>

#include "tests/kernels/op_case.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

constexpr Philox kKey{{0x12345678u, 0x9abcdef0u}};

bool kept(std::int64_t sample, std::int64_t element, float p) {
  const auto bits = kKey(static_cast<std::uint64_t>(sample), static_cast<std::uint64_t>(element / 4));
  return uniform(bits[static_cast<std::size_t>(element % 4)]) >= p;
}

// Kept elements lose a rounding of 1 / (1 - p) and one product; dropped ones are exactly 0.
void check_dropout(Index rows, Index columns, Index first, Index width, DType dtype, Index gap, float p) {
  CAPTURE(rows, columns, first, width, name_of(dtype), gap, p);
  for_each_run([&](OpCase& t) {
    const Tensor x = t.normal({rows, columns}, dtype, 1, gap), y = gap > 0 ? x : t.unset({rows, columns}, dtype);
    const Tensor samples = t.integers({rows}, DType::i64, 0, Index{1} << 40),
                 positions = t.integers({rows}, DType::i32, 0, 4096);
    const Doubles v = to_doubles(x);
    t.launch(Dropout{.y = y,
                     .x = x,
                     .sample_ids = samples,
                     .positions = positions,
                     .key = kKey,
                     .p = p,
                     .first_column = first,
                     .columns = width});
    if (!t.compare()) return;
    const Index all = width == 0 ? columns : width;
    const Doubles expected = generate(v.size(), [&](std::size_t i) {
      const auto r = static_cast<Index>(i) / columns, c = static_cast<Index>(i) % columns;
      const bool keep = kept(samples.as<std::int64_t>()[r], positions.as<std::int32_t>()[r] * all + first + c, p);
      return keep ? v[i] / (1 - static_cast<double>(p)) : 0.0;
    });
    t.expect("y", y, expected, generate(v.size(), [&](std::size_t i) {
               return (4 * kUnit + 1.01 * unit_of(dtype)) * std::abs(expected[i]);
             }));
  });
}

}  // namespace

TEST_CASE("dropout") {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const Index columns : {1, 3, 7, 65, 127, 129, 515}) check_dropout(7, columns, 0, 0, dtype, 0, 0.1f);
    for (const Index columns : {8, 64, 2056}) check_dropout(5, columns, 0, 0, dtype, 0, 0.1f);  // aligned rows
    check_dropout(5, 64, 64, 192, dtype, 8, 0.3f);
    check_dropout(5, 64, 66, 194, dtype, 8, 0.3f);  // whose counters are not
    check_dropout(65, 33, 66, 99, dtype, 5, 0.5f);
    check_dropout(3, 9, 0, 0, dtype, 0, 0.0f);
    check_dropout(0, 9, 0, 0, dtype, 0, 0.5f);
  }
}

TEST_CASE("dropout: shards see the bits of the whole, and p is kept") {
  OpCase t(2, true);
  const Tensor ones = t.values({64, 400}, DType::f32, Doubles(64 * 400, 1.0)), y = t.unset({64, 400}, DType::f32);
  const Tensor samples = t.integers({64}, DType::i64, 0, 99), positions = t.integers({64}, DType::i32, 0, 999);
  const Dropout whole{.y = y, .x = ones, .sample_ids = samples, .positions = positions, .key = kKey, .p = 0.25f};
  t.launch(whole);
  double keeps = 0;
  for (const double v : to_doubles(y)) keeps += v != 0 ? 1 : 0;
  // n = 25,600 draws: five standard deviations of the mean are 5 sqrt(p (1 - p) / n)
  CHECK(std::abs(keeps / 25600 - 0.75) < 5 * std::sqrt(0.25 * 0.75 / 25600));
  const Tensor part = t.unset({64, 131}, DType::f32);
  Dropout shard = whole;
  shard.y = part;
  shard.x = ones.slice(1, 0, 131);
  shard.first_column = 262;
  shard.columns = 400;
  t.launch(shard);
  t.expect_equal("shard", part, to_doubles(y.slice(1, 262, 393)));
}

TEST_CASE("dropout: what it rejects") {
  OpCase t(1, true);
  const Tensor x = t.normal({2, 3}, DType::f32), s = t.integers({2}, DType::i64, 0, 9),
               p = t.integers({2}, DType::i32, 0, 9);
  check_rejects([&] { t.launch(Dropout{.y = x, .x = x, .sample_ids = s, .positions = p, .key = kKey, .p = 1}); },
                "dropout: p 1");
  check_rejects(
      [&] {
        t.launch(Dropout{
            .y = x, .x = x, .sample_ids = s, .positions = p, .key = kKey, .p = 0.5f, .first_column = 4, .columns = 6});
      },
      "columns [4, 7) of 6");
}
