// Attention, the loss and the optimizer on more than 2^31 elements.
#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/gradient_norm.h"
#include "kernels/split_master.h"
#include "tests/kernels/large_case.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

constexpr Index kFlat = (Index{1} << 31) + 12345;

// One head of one sample of attention whose tensors are (B, T, H, D), causal, with its gradient.
struct Head {
  Index length, heads, size;
  Index sample, head;

  Index at(Index i, Index c) const { return ((sample * length + i) * heads + head) * size + c; }
  Doubles read(const Tensor& t) const {
    Doubles out;
    for (Index i = 0; i < length; ++i) {
      const Doubles row = elements(t, at(i, 0), size);
      out.insert(out.end(), row.begin(), row.end());
    }
    return out;
  }
  Doubles pattern(Index shift) const {
    return generate(static_cast<std::size_t>(length * size), [&](std::size_t i) {
      return Large::pattern(at(static_cast<Index>(i) / size, static_cast<Index>(i) % size) + shift);
    });
  }
};

struct Results {
  Doubles o, dq, dk, dv, o_bound, dq_bound, dk_bound, dv_bound;
};
// Bounds as in attention_test.cpp, of tensor cores: what they are given is rounded to bf16.
Results reference(const Head& p, const Doubles& q, const Doubles& k, const Doubles& v, const Doubles& dout) {
  const auto n = static_cast<std::size_t>(p.length), size = static_cast<std::size_t>(p.size);
  const double scale = 1 / std::sqrt(static_cast<double>(size)), rounded = 2 * unit_of(kHalf);
  const Doubles zeros(n * size);
  Results r{zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros};
  for (std::size_t i = 0; i < n; ++i) {
    Doubles probability(i + 1), score_size(i + 1);
    double most = -INFINITY, sum = 0, loss = 0;
    for (std::size_t j = 0; j <= i; ++j) {
      double dot = 0, all = 0;
      for (std::size_t c = 0; c < size; ++c) {
        dot += q[i * size + c] * k[j * size + c] * scale;
        all += std::abs(q[i * size + c] * k[j * size + c] * scale);
      }
      probability[j] = dot;
      most = std::max(most, dot);
      loss = std::max(loss, 2 * static_cast<double>(size + 3) * kUnit * all);
    }
    loss += static_cast<double>(4 * n + size + 60) * kUnit;
    for (double& x : probability) sum += x = std::exp(x - most);
    double delta = 0, delta_loss = 0, dp_size = 0;
    for (std::size_t j = 0; j <= i; ++j) {
      const double w = probability[j] /= sum;
      double all = 0;
      for (std::size_t c = 0; c < size; ++c) {
        r.o[i * size + c] += w * v[j * size + c];
        r.o_bound[i * size + c] += (loss + rounded) * std::abs(w * v[j * size + c]);
        all += std::abs(dout[i * size + c] * v[j * size + c]);
      }
      dp_size += w * all;
    }
    for (std::size_t c = 0; c < size; ++c) {
      delta += dout[i * size + c] * r.o[i * size + c];
      delta_loss += std::abs(dout[i * size + c]) *
                    (1.01 * unit_of(kHalf) * std::abs(r.o[i * size + c]) + r.o_bound[i * size + c]);
    }
    for (std::size_t j = 0; j <= i; ++j) {
      const double w = probability[j];
      double dp = 0, all = 0;
      for (std::size_t c = 0; c < size; ++c) {
        dp += dout[i * size + c] * v[j * size + c];
        all += std::abs(dout[i * size + c] * v[j * size + c]);
        r.dv[j * size + c] += w * dout[i * size + c];
        r.dv_bound[j * size + c] += (loss + rounded) * w * std::abs(dout[i * size + c]);
      }
      const double ds = w * (dp - delta) * scale;
      const double ds_loss = w * scale * (loss * (all + dp_size) + delta_loss) + rounded * std::abs(ds);
      for (std::size_t c = 0; c < size; ++c) {
        r.dq[i * size + c] += ds * k[j * size + c];
        r.dk[j * size + c] += ds * q[i * size + c];
        r.dq_bound[i * size + c] += ds_loss * std::abs(k[j * size + c]);
        r.dk_bound[j * size + c] += ds_loss * std::abs(q[i * size + c]);
      }
    }
  }
  for (auto [x, bound] :
       {std::pair{&r.o, &r.o_bound}, {&r.dq, &r.dq_bound}, {&r.dk, &r.dk_bound}, {&r.dv, &r.dv_bound}})
    for (std::size_t i = 0; i < x->size(); ++i) (*bound)[i] += 1.01 * unit_of(kHalf) * std::abs((*x)[i]);
  return r;
}

}  // namespace

TEST_CASE("large: attention", "[.large]") {
  if (!asked()) return;
  constexpr Index kLength = 128, kHeads = 32, kElements = (Index{1} << 31) + (Index{1} << 21);
  struct Kind {
    AttentionChoice choice;
    Index size;
  };
  // tensor cores, cuDNN, and the kernels of any size of heads
  for (const auto& [choice, size] :
       {Kind{AttentionChoice::native, 64}, {AttentionChoice::automatic, 64}, {AttentionChoice::native, 40}}) {
    CAPTURE(choice == AttentionChoice::native, size);
    const Index sample_size = kLength * kHeads * size, samples = kElements / sample_size;
    Large t;
    t.settings.attention = choice;
    const Shape shape{samples, kLength, kHeads, size};
    const auto apart = [&](Index shift) { return t.random(shape, kHalf, shift); };
    const Tensor q = apart(0), k = apart(101), v = apart(202), dout = apart(303);
    const Tensor o = t.zeros(shape, kHalf), lse = t.zeros({samples, kHeads, kLength}, DType::f32);
    const Tensor dq = t.zeros(shape, kHalf), dk = t.zeros(shape, kHalf), dv = t.zeros(shape, kHalf);
    const float scale = 1 / std::sqrt(static_cast<float>(size));
    t.launch(AttentionForward{.o = o, .lse = lse, .q = q, .k = k, .v = v, .scale = scale});
    t.launch(AttentionBackward{
        .dq = dq, .dk = dk, .dv = dv, .dout = dout, .o = o, .lse = lse, .q = q, .k = k, .v = v, .scale = scale});
    const Index half = (Index{1} << 30) / sample_size, whole = (Index{1} << 31) / sample_size;
    for (const auto& [sample, head] :
         {std::pair<Index, Index>{0, 0}, {half - 1, 31}, {half, 0}, {whole - 1, 31}, {whole, 0}, {samples - 1, 31}}) {
      const Head p{kLength, kHeads, size, sample, head};
      const Results r = reference(p, p.pattern(0), p.pattern(101), p.pattern(202), p.pattern(303));
      expect("o", sample, p.read(o), r.o, r.o_bound);
      expect("dq", sample, p.read(dq), r.dq, r.dq_bound);
      expect("dk", sample, p.read(dk), r.dk, r.dk_bound);
      expect("dv", sample, p.read(dv), r.dv, r.dv_bound);
    }
  }
}

TEST_CASE("large: cross-entropy", "[.large]") {
  if (!asked()) return;
  constexpr Index kRows = 65539, kColumns = 32768;
  Large t;
  const auto at = [](Index r, Index c) { return Large::pattern(r * kColumns + c); };
  std::vector<std::int32_t> targets(kRows);
  std::vector<float> weights(kRows);
  for (std::size_t i = 0; i < targets.size(); ++i) targets[i] = static_cast<std::int32_t>(i * 31 % kColumns);
  double expected_loss = 0, loss_bound = 0;
  constexpr double kLoss = (kColumns + 50) * kUnit;
  std::vector<double> sums;
  const std::vector<Index> rows = sampled(kRows, kColumns);
  for (const Index r : rows) {
    weights[static_cast<std::size_t>(r)] = 1;
    double sum = 0;
    for (Index c = 0; c < kColumns; ++c) sum += std::exp(at(r, c));
    sums.push_back(sum);
    expected_loss += std::log(sum) - at(r, targets[static_cast<std::size_t>(r)]);
    loss_bound += kLoss + 20 * kUnit * (std::log(sum) + 4);
  }
  const Tensor ids = t.values(targets, DType::i32), factors = t.values(weights, DType::f32);
  const Tensor scale = t.values(std::vector<float>{1}, DType::f32), stats = t.zeros({1, kRows, 3}, DType::f32);
  for (const bool together : {true, false}) {
    CAPTURE(together);
    const Tensor logits = t.random({kRows, kColumns}, kHalf), loss = t.zeros({1}, DType::f64);
    const CrossEntropy op{.loss = loss, .logits = logits, .targets = ids, .weights = factors, .scale = scale};
    if (together) {
      t.launch(op);
    } else {
      t.launch(op.first(stats.view({kRows, 3})));
      t.launch(op.second(stats.view({kRows, 3})));
    }
    expect("loss", 0, elements(loss, 0, 1), {expected_loss}, {loss_bound});
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const Index r = rows[i];
      const auto target = static_cast<std::size_t>(targets[static_cast<std::size_t>(r)]);
      const Doubles expected = generate(kColumns, [&](std::size_t c) {
        return std::exp(at(r, static_cast<Index>(c))) / sums[i] - (c == target ? 1.0 : 0.0);
      });
      expect("gradient", r, elements(logits, r * kColumns, kColumns), expected, generate(kColumns, [&](std::size_t c) {
               return kLoss * std::exp(2.0) / sums[i] + (c == target ? 4 * kUnit : 0.0) +
                      1.01 * unit_of(kHalf) * std::abs(expected[c]);
             }));
    }
  }
}

TEST_CASE("large: the optimizer", "[.large]") {
  if (!asked()) return;
  constexpr Index kWidth = 5, kRows = kFlat / kWidth, kAll = kRows * kWidth;
  constexpr DType kFull = DType::f32;
  const auto rows = [](const Tensor& t) { return Tensor(t.data, t.dtype, t.device, {kRows, kWidth}); };
  constexpr float kRate = 1e-3f, kFirst = 0.9f, kSecond = 0.95f, kDecay = 0.1f;
  const std::vector<float> scalars{kRate, 1, 1 - kFirst, 1 - kSecond};
  // A first update: exp_avg / (1 - beta1) = g, sqrt(exp_avg_sq / (1 - beta2)) = |g|
  const auto updated = [&](Index r, Index c) {
    const double w = Large::pattern(r * kWidth + c, kFull), g = Large::pattern(r * kWidth + c + 7, kFull);
    const auto rate = static_cast<double>(kRate);
    return w * (1 - rate * static_cast<double>(kDecay)) - rate * g / (std::abs(g) + 1e-8);
  };
  const auto bound = [](Index, Index, double v) {
    return 10 * kUnit * std::abs(v) + 60 * kUnit * static_cast<double>(kRate);
  };
  const auto exact = [](Index, Index, double) { return 0.0; };
  const auto master_at = [](Index r, Index c) { return Large::pattern(r * kWidth + c, kFull); };
  {
    Large t;
    const Tensor master = t.random({kAll}, kFull), compute = t.zeros({kAll}, kHalf);
    t.launch(AdamW{.master = master,
                   .exp_avg = t.zeros({kAll}, kFull),
                   .exp_avg_sq = t.zeros({kAll}, kFull),
                   .gradient = t.random({kAll}, kFull, 7),
                   .compute = compute,
                   .scalars = t.values(scalars, kFull),
                   .weight_decay = kDecay});
    expect_rows("adamw", rows(master), updated, bound);
    expect_rows("adamw: compute", rows(compute), updated,
                [&](Index r, Index c, double v) { return bound(r, c, v) + 1.01 * unit_of(kHalf) * std::abs(v); });
  }
  {
    Large t;
    const Tensor master = t.random({kAll}, kFull), hi = t.zeros({kAll}, kHalf), low = t.zeros({kAll}, DType::u16);
    t.launch(SplitMaster{.hi = hi, .low = low, .master = master});
    t.launch(Fill{.y = master});
    t.launch(JoinMaster{.master = master, .hi = hi, .low = low});
    expect_rows("split and joined", rows(master), master_at, exact);
    t.launch(AdamW{.exp_avg = t.zeros({kAll}, kFull),
                   .exp_avg_sq = t.zeros({kAll}, kFull),
                   .gradient = t.random({kAll}, kFull, 7),
                   .compute = hi,
                   .low = low,
                   .scalars = t.values(scalars, kFull),
                   .weight_decay = kDecay});
    t.launch(JoinMaster{.master = master, .hi = hi, .low = low});
    expect_rows("adamw, split", rows(master), updated, bound);
  }
  Large t;
  const Tensor x = t.zeros({kAll}, kFull), norm = t.zeros({1}, DType::f64);
  double squares = 0;
  for (const Index at : {Index{0}, Index{1} << 31, kAll - 1}) {
    put(x, at, {static_cast<double>(at % 1000) + 0.5});
    squares += std::pow(static_cast<double>(at % 1000) + 0.5, 2);
  }
  t.launch(SquaredNorm{.result = norm, .x = x});
  CHECK(elements(norm, 0, 1)[0] == squares);
}
