#include "kernels/embedding.h"

#include <cmath>

#include "tests/kernels/op_case.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

void check_embedding(Index rows, Index columns, Index entries, Index first, DType dtype, Write write, Index gap,
                     Index frozen = -1) {
  CAPTURE(rows, columns, entries, first, name_of(dtype), gap, frozen);
  for_each_run([&](OpCase& t) {
    const bool accumulate = write == Write::accumulate;
    const Tensor tokens = t.integers({rows}, DType::i32, std::max<Index>(0, first - 2), first + entries + 2);
    const Tensor table = t.normal({entries, columns}, dtype, 1, gap), dy = t.normal({rows, columns}, dtype, 1, gap);
    const Tensor y = accumulate ? t.normal({rows, columns}, dtype, 1, gap) : t.unset({rows, columns}, dtype, gap);
    const Tensor dtable =
        accumulate ? t.normal({entries, columns}, DType::f32) : t.unset({entries, columns}, DType::f32, gap);
    Doubles expected = accumulate ? to_doubles(y) : Doubles(static_cast<std::size_t>(rows * columns));
    Doubles gradient = accumulate ? to_doubles(dtable) : Doubles(static_cast<std::size_t>(entries * columns));
    t.launch(EmbeddingForward{.y = y, .tokens = tokens, .table = table, .first_row = first, .write = write});
    t.launch(EmbeddingBackward{
        .dtable = dtable, .dy = dy, .tokens = tokens, .first_row = first, .frozen = frozen, .write = write});
    if (!t.compare()) return;
    const Doubles v = to_doubles(table), d = to_doubles(dy);
    Doubles size = generate(gradient.size(), [&](std::size_t i) { return std::abs(gradient[i]); });
    for (Index r = 0; r < rows; ++r) {
      const Index entry = tokens.as<std::int32_t>()[r] - first;
      if (entry < 0 || entry >= entries) continue;
      for (Index c = 0; c < columns; ++c) {
        const auto from = static_cast<std::size_t>(entry * columns + c), to = static_cast<std::size_t>(r * columns + c);
        expected[to] += v[from];
        if (tokens.as<std::int32_t>()[r] == frozen) continue;
        gradient[from] += d[to];
        size[from] += std::abs(d[to]);
      }
    }
    t.expect("y", y, expected, generate(expected.size(), [&](std::size_t i) {
               return accumulate ? unit_of(dtype) * 1.01 * std::abs(expected[i]) : 0.0;
             }));
    for (double& s : size) s *= static_cast<double>(rows) * kUnit;
    t.expect("dtable", dtable, gradient, size);
  });
}

}  // namespace

TEST_CASE("embedding and its gradient") {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const Write write : {Write::overwrite, Write::accumulate}) {
      for (const Index columns : {1, 3, 7, 65, 127, 129}) check_embedding(65, columns, 11, 0, dtype, write, 0);
      check_embedding(127, 65, 7, 100, dtype, write, 3);
      check_embedding(0, 7, 3, 0, dtype, write, 0);
      // Long runs of one id (natural text has them), more rows than a GPU's block lists at once; many entries.
      check_embedding(5000, 12, 1, 3, dtype, write, 0);
      check_embedding(9001, 260, 3, 0, dtype, write, 4);
      check_embedding(1025, 40, 40000, 0, dtype, write, 0);
      check_embedding(200, 7, 5, 0, dtype, write, 0, 0);
      check_embedding(200, 12, 7, 100, dtype, write, 3, 102);
    }
  }
}

// The map is linear: L = sum(dy y) changes by dy at the rows that read an entry. Central differences of it, by the op.
TEST_CASE("embedding: backward is the gradient of forward") {
  OpCase t(1, true);
  const Tensor tokens = t.values({4}, DType::i32, {2, 0, 2, 5}), dy = t.values({4, 1}, DType::f32, {1, 10, 100, 1000});
  const Tensor dtable = t.unset({3, 1}, DType::f32);
  t.launch(EmbeddingBackward{.dtable = dtable, .dy = dy, .tokens = tokens});
  t.expect_equal("dtable", dtable, {10, 0, 101});
}

TEST_CASE("embedding: what it rejects") {
  OpCase t(1, true);
  const Tensor y = t.unset({2, 3}, DType::f32), table = t.normal({5, 4}, DType::f32),
               tokens = t.integers({2}, DType::i32, 0, 5);
  check_rejects([&] { t.launch(EmbeddingForward{.y = y, .tokens = tokens, .table = table}); },
                "embedding: table has shape (5, 4), expected (5, 3)");
  const Tensor half = t.normal({5, 3}, DType::bf16);
  check_rejects([&] { t.launch(EmbeddingBackward{.dtable = half, .dy = y, .tokens = tokens}); },
                "embedding_backward: dtable is bf16, expected f32");
}
