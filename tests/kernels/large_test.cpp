// Kernels of rows, elements and columns on tensors of more than 2^32 elements.
#include <cmath>

#include "kernels/dropout.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/finite.h"
#include "kernels/gelu.h"
#include "kernels/layer_norm.h"
#include "kernels/matmul.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "tests/kernels/large_case.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

constexpr Index kColumns = 2048, kRows = (Index{1} << 21) + 3;  // 2^32 + 6144 elements
constexpr Index kFlat = (Index{1} << 31) + 12345;
}  // namespace

TEST_CASE("large: moves", "[.large]") {
  if (!asked()) return;
  {
    Large t;
    const Tensor a = t.random({kRows, kColumns}, kHalf), y = t.zeros({kRows, kColumns}, kHalf);
    t.launch(Add{.y = y, .a = a, .b = a});
    expect_rows(
        "add", y, [](Index r, Index c) { return 2 * Large::pattern(r * kColumns + c); }, kStored);
    // the columns in two halves, the other way round
    const Index half = kColumns / 2;
    t.launch(Copy{.y = y.slice(1, 0, half), .x = a.slice(1, half, kColumns)});
    t.launch(Copy{.y = y.slice(1, half, kColumns), .x = a.slice(1, 0, half)});
    expect_rows(
        "copy", y, [&](Index r, Index c) { return Large::pattern(r * kColumns + (c + half) % kColumns); }, kStored);
    t.launch(Fill{.y = y, .value = 3});
    expect_rows(
        "fill", y, [](Index, Index) { return 3.0; }, [](Index, Index, double) { return 0.0; });
    const Tensor flag = t.zeros({1}, DType::i32);
    t.launch(FiniteCheck{.flag = flag, .x = a});
    CHECK(elements(flag, 0, 1)[0] == 0);
    put(a, a.numel() - 1, {INFINITY});
    t.launch(FiniteCheck{.flag = flag, .x = a});
    CHECK(elements(flag, 0, 1)[0] == 1);
  }
  Large t;
  const Tensor x = t.random({kFlat / 5, 5}, DType::f32), half = t.zeros(x.shape, kHalf),
               back = t.zeros(x.shape, DType::f32);
  t.launch(Cast{.y = half, .x = x});
  t.launch(Cast{.y = back, .x = half});
  const auto rounded = [](Index r, Index c) { return Large::pattern(r * 5 + c); };
  expect_rows("cast", half, rounded, [](Index, Index, double) { return 0.0; });
  expect_rows("cast back", back, rounded, [](Index, Index, double) { return 0.0; });
}

TEST_CASE("large: activations and dropout", "[.large]") {
  if (!asked()) return;
  Large t;
  const Index inner = kColumns / 2;
  const Tensor x = t.random({kRows, kColumns}, kHalf), y = t.zeros({kRows, kColumns}, kHalf),
               dy = t.random({kRows, kColumns}, kHalf);
  const auto at = [](Index r, Index c) { return Large::pattern(r * kColumns + c); };
  // gates and derivatives lie below 1.2 and are known within 100 u; what is stored is rounded
  const auto bound = [](Index, Index, double v) { return 800 * kUnit + 1.01 * unit_of(kHalf) * std::abs(v); };
  const auto gate = [](double v) { return (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v))) / 2; };
  const auto gelu = [&](double v) { return v * gate(v); };
  const auto slope = [&](const auto& f, double v) { return (f(v + 1e-5) - f(v - 1e-5)) / 2e-5; };
  t.launch(GeluForward{.y = y, .x = x});
  expect_rows(
      "gelu", y, [&](Index r, Index c) { return gelu(at(r, c)); }, bound);
  t.launch(GeluBackward{.dx = y, .dy = dy, .x = x});
  expect_rows(
      "gelu_backward", y, [&](Index r, Index c) { return at(r, c) * slope(gelu, at(r, c)); }, bound);

  const auto silu = [](double v) { return v / (1 + std::exp(-v)); };
  const Tensor active = Tensor(y.data, kHalf, Device::cuda, {kRows, inner});
  t.launch(SwiGluForward{.y = active, .gate_up = x});
  expect_rows(
      "swiglu", active, [&](Index r, Index c) { return silu(at(r, c)) * at(r, inner + c); }, bound);
  const Tensor dactive = Tensor(dy.data, kHalf, Device::cuda, {kRows, inner});
  const auto d = [&](Index r, Index c) { return Large::pattern(r * inner + c); };
  t.launch(SwiGluBackward{.dgate_up = y, .dy = dactive, .gate_up = x});
  expect_rows(
      "swiglu_backward", y,
      [&](Index r, Index c) {
        return c < inner ? d(r, c) * at(r, inner + c) * slope(silu, at(r, c))
                         : d(r, c - inner) * silu(at(r, c - inner));
      },
      bound);

  constexpr Philox kKey{{1u, 2u}};
  std::vector<std::int64_t> samples(static_cast<std::size_t>(kRows));
  std::vector<std::int32_t> positions(samples.size());
  for (std::size_t i = 0; i < samples.size(); ++i)
    samples[i] = static_cast<std::int64_t>(i / 4096), positions[i] = static_cast<std::int32_t>(i % 4096);
  t.launch(Dropout{.y = y,
                   .x = x,
                   .sample_ids = t.values(samples, DType::i64),
                   .positions = t.values(positions, DType::i32),
                   .key = kKey,
                   .p = 0.5f});
  expect_rows(
      "dropout", y,
      [&](Index r, Index c) {
        const Index e = r % 4096 * kColumns + c;
        const auto bits = kKey(static_cast<std::uint64_t>(r / 4096), static_cast<std::uint64_t>(e / 4));
        return uniform(bits[static_cast<std::size_t>(e % 4)]) >= 0.5f ? 2 * at(r, c) : 0.0;
      },
      kStored);
}

namespace {

// Rows around the powers of two hold pattern(.., shift), the others zeros: what sums over all rows then sums over.
Tensor sparse_rows(Large& t, Index shift) {
  const Tensor y = t.zeros({kRows, kColumns}, kHalf);
  for (const Index r : sampled(kRows, kColumns))
    put(y, r * kColumns, generate(kColumns, [&](std::size_t c) {
          return Large::pattern(r * kColumns + static_cast<Index>(c) + shift);
        }));
  return y;
}

struct Sums {
  Doubles value = Doubles(kColumns), size = Doubles(kColumns);
};
// f over the rows of sparse_rows.
template <class F>
Sums column_sums(F f) {
  Sums out;
  for (const Index r : sampled(kRows, kColumns))
    for (Index c = 0; c < kColumns; ++c) {
      const double v = f(r, c);
      out.value[static_cast<std::size_t>(c)] += v;
      out.size[static_cast<std::size_t>(c)] += std::abs(v);
    }
  return out;
}
void expect_sums(const char* what, const Tensor& found, Index begin, const Sums& sums) {
  expect(what, 0, elements(found, begin, kColumns), sums.value,
         generate(kColumns, [&](std::size_t c) { return 60 * kUnit * sums.size[c]; }));
}

constexpr double kLoss = 2 * (kColumns + 20) * kUnit;  // of a sum over a row and what is made of it

}  // namespace

TEST_CASE("large: norms", "[.large]") {
  if (!asked()) return;
  constexpr double kEps = 1e-3;
  const auto weight_at = [](Index c) { return Large::pattern(c + 77); };
  const auto bias_at = [](Index c) { return Large::pattern(c + 99); };
  for (const bool layer : {false, true}) {
    CAPTURE(layer);
    {
      Large t;
      const Shape shape{kRows, kColumns};
      const Tensor x = t.random(shape, kHalf), branch = t.random(shape, kHalf), y = t.zeros(shape, kHalf),
                   sum = t.zeros(shape, kHalf);
      const Tensor weight = t.random({kColumns}, kHalf, 77), bias = t.random({kColumns}, kHalf, 99);
      const Tensor mean = t.zeros({kRows}, DType::f32), rstd = t.zeros({kRows}, DType::f32);
      const auto eps = static_cast<float>(kEps);
      if (layer)
        t.launch(LayerNormForward{.y = y,
                                  .mean = mean,
                                  .rstd = rstd,
                                  .sum = sum,
                                  .x = x,
                                  .branch = branch,
                                  .weight = weight,
                                  .bias = bias,
                                  .eps = eps});
      else
        t.launch(
            RmsNormForward{.y = y, .rstd = rstd, .sum = sum, .x = x, .branch = branch, .weight = weight, .eps = eps});
      const auto at = [](Index r, Index c) { return 2 * Large::pattern(r * kColumns + c); };
      expect_rows("sum", sum, at, [](Index, Index, double) { return 0.0; });
      for (const Index r : sampled(kRows, kColumns)) {
        double m = 0, squares = 0;
        for (Index c = 0; c < kColumns && layer; ++c) m += at(r, c) / kColumns;
        for (Index c = 0; c < kColumns; ++c) squares += std::pow(at(r, c) - m, 2) / kColumns;
        const double scale = 1 / std::sqrt(squares + kEps);
        const auto value = [&](std::size_t i) {
          const auto c = static_cast<Index>(i);
          return (at(r, c) - m) * scale * weight_at(c) + (layer ? bias_at(c) : 0.0);
        };
        // |x| and |mean| below 4, weights and biases below 2
        expect("norm", r, elements(y, r * kColumns, kColumns), generate(kColumns, value),
               generate(kColumns, [&](std::size_t i) {
                 return 2 * kLoss * (8 * scale + 2) + 2.02 * unit_of(kHalf) * (std::abs(value(i)) + 8 * kLoss);
               }));
      }
    }
    Large t;
    const Shape shape{kRows, kColumns};
    const Tensor x = t.random(shape, kHalf), residual = t.random(shape, kHalf, 5), dx = t.zeros(shape, kHalf);
    const Tensor dy = sparse_rows(t, 11), weight = t.random({kColumns}, kHalf, 77);
    const Tensor mean = t.zeros({kRows}, DType::f32), rstd = t.zeros({kRows}, DType::f32);
    const Tensor dweight = t.zeros({kColumns}, DType::f32), dbias = t.zeros({kColumns}, DType::f32);
    // Any mean and rstd will do.
    const double m = layer ? 0.25 : 0.0, scale = 0.75;
    t.launch(Fill{.y = mean, .value = static_cast<float>(m)});
    t.launch(Fill{.y = rstd, .value = static_cast<float>(scale)});
    if (layer)
      t.launch(LayerNormBackward{.dx = dx,
                                 .dweight = dweight,
                                 .dbias = dbias,
                                 .dy = dy,
                                 .x = x,
                                 .mean = mean,
                                 .rstd = rstd,
                                 .weight = weight,
                                 .dresidual = residual});
    else
      t.launch(RmsNormBackward{
          .dx = dx, .dweight = dweight, .dy = dy, .x = x, .rstd = rstd, .weight = weight, .dresidual = residual});
    const auto normal = [&](Index r, Index c) { return (Large::pattern(r * kColumns + c) - m) * scale; };
    const auto dy_at = [](Index r, Index c) { return Large::pattern(r * kColumns + c + 11); };
    for (const Index r : sampled(kRows, kColumns)) {
      double mean_g = 0, mean_gn = 0, size_g = 0, size_gn = 0;
      for (Index c = 0; c < kColumns; ++c) {
        const double g = dy_at(r, c) * weight_at(c) / kColumns;
        mean_g += layer ? g : 0.0, size_g += std::abs(g);
        mean_gn += g * normal(r, c), size_gn += std::abs(g * normal(r, c));
      }
      const auto value = [&](std::size_t i) {
        const auto c = static_cast<Index>(i);
        return scale * (dy_at(r, c) * weight_at(c) - mean_g - normal(r, c) * mean_gn) +
               Large::pattern(r * kColumns + c + 5);
      };
      // |dy| and weights below 2, |normal| below 1.7
      expect("norm_backward", r, elements(dx, r * kColumns, kColumns), generate(kColumns, value),
             generate(kColumns, [&](std::size_t i) {
               return kLoss * (4 + size_g + 2 * size_gn) * 3 + 1.01 * unit_of(kHalf) * std::abs(value(i));
             }));
    }
    expect_sums("dweight", dweight, 0, column_sums([&](Index r, Index c) { return dy_at(r, c) * normal(r, c); }));
    if (layer) expect_sums("dbias", dbias, 0, column_sums(dy_at));
  }
}

TEST_CASE("large: rope", "[.large]") {
  if (!asked()) return;
  Large t;
  constexpr Index kHeads = 16, kHead = 128, kHalfHead = kHead / 2;
  const Tensor x = t.random({kRows, kHeads, kHead}, kHalf);
  std::vector<std::int32_t> positions(kRows);
  for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::int32_t>(i % 4096);
  std::vector<float> frequencies;
  for (Index i = 0; i < kHalfHead; ++i)
    frequencies.push_back(static_cast<float>(std::pow(10000.0, -static_cast<double>(i) / kHalfHead)));
  t.launch(Rope{.y = x,
                .x = x,
                .positions = t.values(positions, DType::i32),
                .inverse_frequencies = t.values(frequencies, DType::f32)});
  expect_rows(
      "rope", x,
      [&](Index r, Index c) {
        const Index i = c % kHalfHead, at = r * kColumns + c - c % kHead + i;
        const auto angle = static_cast<double>(static_cast<float>(r % 4096) * frequencies[static_cast<std::size_t>(i)]);
        const double low = Large::pattern(at), high = Large::pattern(at + kHalfHead);
        return c % kHead < kHalfHead ? low * std::cos(angle) - high * std::sin(angle)
                                     : high * std::cos(angle) + low * std::sin(angle);
      },
      [](Index, Index, double v) { return 20 * kUnit + 1.01 * unit_of(kHalf) * std::abs(v); });
}

TEST_CASE("large: embedding and bias gradient", "[.large]") {
  if (!asked()) return;
  constexpr Index kVocabulary = (Index{1} << 20) + 5;  // the table too has more than 2^31 elements
  std::vector<std::int32_t> tokens(kRows);
  {
    Large t;
    const Tensor table = t.random({kVocabulary, kColumns}, kHalf), y = t.zeros({kRows, kColumns}, kHalf);
    for (std::size_t i = 0; i < tokens.size(); ++i)
      tokens[i] = static_cast<std::int32_t>(kVocabulary - 1 - static_cast<Index>(i) * 7919 % kVocabulary);
    t.launch(EmbeddingForward{.y = y, .tokens = t.values(tokens, DType::i32), .table = table});
    expect_rows(
        "embedding", y,
        [&](Index r, Index c) { return Large::pattern(tokens[static_cast<std::size_t>(r)] * kColumns + c); },
        [](Index, Index, double) { return 0.0; });
  }
  Large t;
  const auto dy_at = [](Index r, Index c) { return Large::pattern(r * kColumns + c + 11); };
  const Tensor dy = sparse_rows(t, 11), grad = t.zeros({kColumns}, DType::f32);
  t.launch(BiasGradient{.grad = grad, .dy = dy});
  expect_sums("bias_gradient", grad, 0, column_sums(dy_at));
  // the rows that are not zero belong to the last token
  for (std::size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<std::int32_t>(static_cast<Index>(i) % (kVocabulary - 1));
  for (const Index r : sampled(kRows, kColumns)) tokens[static_cast<std::size_t>(r)] = kVocabulary - 1;
  const Tensor dtable = t.zeros({kVocabulary, kColumns}, DType::f32);
  t.launch(EmbeddingBackward{.dtable = dtable, .dy = dy, .tokens = t.values(tokens, DType::i32)});
  expect_sums("embedding_backward", dtable, (kVocabulary - 1) * kColumns, column_sums(dy_at));
}
