#include "kernels/attention.h"

#include <cmath>

#include "kernels/cuda/attention_rule.h"
#include "kernels/cuda/attention_tiled.h"
#include "tests/kernels/op_case.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

constexpr Philox kKey{{7u, 11u}};

struct AttentionCase {
  Index samples, queries, keys, heads, key_heads, size, value_size;
  DType dtype = DType::f32;
  AttentionMask mask = AttentionMask::causal;
  Index offset = 0;
  float dropout = 0;
  Index gap = 0;
  AttentionChoice choice = AttentionChoice::automatic;
  Doubles first_keys = {};  // (samples, queries), or empty
  bool deterministic = true;
  bool same_bits = true;  // in every run
};

// Of one sample packed with documents of these lengths.
Doubles documents(std::initializer_list<Index> lengths) {
  Doubles out;
  for (const Index length : lengths)
    out.insert(out.end(), static_cast<std::size_t>(length), static_cast<double>(out.size()));
  return out;
}

// The op's formula in double, with the roundings that each result may suffer beside it. `weights` is the unit that
// probabilities and score gradients are rounded to before they are multiplied: 0 where they stay f32.
class Reference {
 public:
  Reference(const AttentionCase& p, const Tensor& sample_ids, double weights = 0)
      : p_(p), scale_(1 / std::sqrt(static_cast<double>(p.size))), weights_(weights) {
    if (p.dropout > 0) samples_ = to_doubles(sample_ids);
  }

  bool sees(Index b, Index i, Index j) const {
    const bool late = !p_.first_keys.empty() && j < p_.first_keys[static_cast<std::size_t>(b * p_.queries + i)];
    return !late && (p_.mask == AttentionMask::full || j <= i + p_.offset);
  }
  double factor(Index b, Index h, Index i, Index j) const {
    if (p_.dropout == 0) return 1;
    const auto index = (static_cast<std::uint64_t>(h + 5) << 48) | (static_cast<std::uint64_t>(i + p_.offset) << 24) |
                       static_cast<std::uint64_t>(j / 4);
    const auto bits = kKey(static_cast<std::uint64_t>(samples_[static_cast<std::size_t>(b)]), index);
    return uniform(bits[static_cast<std::size_t>(j % 4)]) >= p_.dropout ? 1 / (1 - static_cast<double>(p_.dropout))
                                                                        : 0.0;
  }
  std::size_t q_at(Index b, Index i, Index h) const {
    return static_cast<std::size_t>(((b * p_.queries + i) * p_.heads + h) * p_.size);
  }
  std::size_t k_at(Index b, Index j, Index h) const {
    return static_cast<std::size_t>(((b * p_.keys + j) * p_.key_heads + h / (p_.heads / p_.key_heads)) * p_.size);
  }
  std::size_t v_at(Index b, Index j, Index h) const {
    return k_at(b, j, h) / static_cast<std::size_t>(p_.size) * static_cast<std::size_t>(p_.value_size);
  }
  std::size_t o_at(Index b, Index i, Index h) const {
    return q_at(b, i, h) / static_cast<std::size_t>(p_.size) * static_cast<std::size_t>(p_.value_size);
  }

  struct Row {
    Doubles probability;
    double lse = -INFINITY;
    double score_loss = 0;  // largest error of a score: (D + 3) u scale sum |q| |k|
  };
  Row row(const Doubles& q, const Doubles& k, Index b, Index h, Index i) const {
    Row out{Doubles(static_cast<std::size_t>(p_.keys))};
    double most = -INFINITY, sum = 0;
    for (Index j = 0; j < p_.keys; ++j) {
      double dot = 0, size = 0;
      for (std::size_t d = 0; d < static_cast<std::size_t>(p_.size); ++d) {
        const double x = q[q_at(b, i, h) + d] * k[k_at(b, j, h) + d] * scale_;
        dot += x;
        size += std::abs(x);
      }
      out.probability[static_cast<std::size_t>(j)] = dot;
      if (sees(b, i, j))
        most = std::max(most, dot),
        out.score_loss = std::max(out.score_loss, (static_cast<double>(p_.size) + 3) * kUnit * size);
    }
    for (Index j = 0; j < p_.keys; ++j) {
      double& s = out.probability[static_cast<std::size_t>(j)];
      s = sees(b, i, j) ? std::exp(s - most) : 0.0;
      sum += s;
    }
    if (sum > 0) {
      for (double& s : out.probability) s /= sum;
      out.lse = most + std::log(sum);
    }
    return out;
  }

  void forward(const Doubles& q, const Doubles& k, const Doubles& v, Doubles& o, Doubles* lse = nullptr,
               Doubles* bound = nullptr, Doubles* lse_bound = nullptr) const {
    const auto width = static_cast<std::size_t>(p_.value_size);
    o.assign(static_cast<std::size_t>(p_.samples * p_.queries * p_.heads) * width, 0.0);
    if (bound != nullptr) bound->assign(o.size(), 0.0);
    for (Index b = 0; b < p_.samples; ++b) {
      for (Index h = 0; h < p_.heads; ++h) {
        for (Index i = 0; i < p_.queries; ++i) {
          const Row r = row(q, k, b, h, i);
          const double lse_loss = 2 * r.score_loss + (static_cast<double>(p_.keys) + 20) * kUnit;
          const double loss = lse_loss + weights_;
          if (lse != nullptr)
            lse->push_back(r.lse), lse_bound->push_back(lse_loss + 2 * kUnit * std::abs(std::isinf(r.lse) ? 0 : r.lse));
          for (Index j = 0; j < p_.keys; ++j) {
            const double weight = r.probability[static_cast<std::size_t>(j)] * factor(b, h, i, j);
            for (std::size_t d = 0; d < width; ++d) {
              const double term = weight * v[v_at(b, j, h) + d];
              o[o_at(b, i, h) + d] += term;
              if (bound != nullptr) (*bound)[o_at(b, i, h) + d] += loss * std::abs(term);
            }
          }
        }
      }
    }
  }

  struct Gradient {
    Doubles dq, dk, dv, dq_bound, dk_bound, dv_bound;
  };
  Gradient backward(const Doubles& q, const Doubles& k, const Doubles& v, const Doubles& dout, const Doubles& o) const {
    Gradient g{Doubles(q.size()), Doubles(k.size()), Doubles(v.size()),
               Doubles(q.size()), Doubles(k.size()), Doubles(v.size())};
    const auto size = static_cast<std::size_t>(p_.size), width = static_cast<std::size_t>(p_.value_size);
    for (Index b = 0; b < p_.samples; ++b) {
      for (Index h = 0; h < p_.heads; ++h) {
        for (Index i = 0; i < p_.queries; ++i) {
          const Row r = row(q, k, b, h, i);
          const double rounds =
              static_cast<double>(p_.keys + p_.queries * (p_.heads / p_.key_heads) + p_.value_size + 40) * kUnit;
          const double loss = 2 * r.score_loss + rounds + kUnit * std::abs(std::isinf(r.lse) ? 0 : r.lse);
          double delta = 0, delta_loss = 0;
          for (std::size_t d = 0; d < width; ++d) {
            delta += dout[o_at(b, i, h) + d] * o[o_at(b, i, h) + d];
            // o is read as stored: rounded, and itself off by `loss` of its terms
            delta_loss += std::abs(dout[o_at(b, i, h) + d]) * unit_of(p_.dtype) * std::abs(o[o_at(b, i, h) + d]);
          }
          double dp_size = 0;
          for (Index j = 0; j < p_.keys; ++j) {
            double size_j = 0;
            for (std::size_t d = 0; d < width; ++d) size_j += std::abs(dout[o_at(b, i, h) + d] * v[v_at(b, j, h) + d]);
            dp_size += r.probability[static_cast<std::size_t>(j)] * factor(b, h, i, j) * size_j;
          }
          for (Index j = 0; j < p_.keys; ++j) {
            const double probability = r.probability[static_cast<std::size_t>(j)], f = factor(b, h, i, j);
            double dp = 0, dp_abs = 0;
            for (std::size_t d = 0; d < width; ++d) {
              dp += dout[o_at(b, i, h) + d] * v[v_at(b, j, h) + d];
              dp_abs += std::abs(dout[o_at(b, i, h) + d] * v[v_at(b, j, h) + d]);
              g.dv[v_at(b, j, h) + d] += probability * f * dout[o_at(b, i, h) + d];
              g.dv_bound[v_at(b, j, h) + d] += (loss + weights_) * probability * f * std::abs(dout[o_at(b, i, h) + d]);
            }
            const double ds = probability * (f * dp - delta) * scale_;
            const double ds_loss =
                probability * scale_ * (loss * (f * dp_abs + dp_size) + 1.01 * delta_loss) + weights_ * std::abs(ds);
            for (std::size_t d = 0; d < size; ++d) {
              g.dq[q_at(b, i, h) + d] += ds * k[k_at(b, j, h) + d];
              g.dk[k_at(b, j, h) + d] += ds * q[q_at(b, i, h) + d];
              g.dq_bound[q_at(b, i, h) + d] += ds_loss * std::abs(k[k_at(b, j, h) + d]);
              g.dk_bound[k_at(b, j, h) + d] += ds_loss * std::abs(q[q_at(b, i, h) + d]);
            }
          }
        }
      }
    }
    return g;
  }

 private:
  AttentionCase p_;
  double scale_, weights_;
  Doubles samples_;
};

void add_storage(Doubles& bound, const Doubles& expected, DType dtype) {
  for (std::size_t i = 0; i < bound.size(); ++i) bound[i] += 1.01 * unit_of(dtype) * std::abs(expected[i]);
}

void check_attention(const AttentionCase& p) {
  CAPTURE(p.samples, p.queries, p.keys, p.heads, p.key_heads, p.size, p.value_size, name_of(p.dtype), p.offset,
          p.dropout, p.gap);
  const auto check_run = [&](OpCase& t) {
    t.settings.attention = p.choice;
    t.settings.deterministic = p.deterministic;
    const Shape of_q{p.samples, p.queries, p.heads, p.size}, of_k{p.samples, p.keys, p.key_heads, p.size},
        of_v{p.samples, p.keys, p.key_heads, p.value_size}, of_o{p.samples, p.queries, p.heads, p.value_size};
    const Tensor q = t.normal(of_q, p.dtype, 1, p.gap), k = t.normal(of_k, p.dtype, 1, p.gap),
                 v = t.normal(of_v, p.dtype, 1, p.gap);
    const Tensor o = t.unset(of_o, p.dtype, p.gap), lse = t.unset({p.samples, p.heads, p.queries}, DType::f32);
    const Tensor dout = t.normal(of_o, p.dtype, 1, p.gap), dq = t.unset(of_q, p.dtype, p.gap),
                 dk = t.unset(of_k, p.dtype, p.gap), dv = t.unset(of_v, p.dtype, p.gap);
    const Tensor ids = p.dropout > 0 ? t.integers({p.samples}, DType::i64, 0, Index{1} << 40) : Tensor{};
    const Tensor first_keys =
        p.first_keys.empty() ? Tensor{} : t.values({p.samples, p.queries}, DType::i32, p.first_keys);
    const float scale = 1 / std::sqrt(static_cast<float>(p.size));
    const AttentionDropout dropout{.p = p.dropout, .key = kKey, .sample_ids = ids, .first_head = 5};
    const AttentionForward forward{.o = o,
                                   .lse = lse,
                                   .q = q,
                                   .k = k,
                                   .v = v,
                                   .scale = scale,
                                   .mask = p.mask,
                                   .query_offset = p.offset,
                                   .first_keys = first_keys,
                                   .dropout = dropout};
    t.launch(forward);
    t.launch(AttentionBackward{.dq = dq,
                               .dk = dk,
                               .dv = dv,
                               .dout = dout,
                               .o = o,
                               .lse = lse,
                               .q = q,
                               .k = k,
                               .v = v,
                               .scale = scale,
                               .mask = p.mask,
                               .query_offset = p.offset,
                               .first_keys = first_keys,
                               .dropout = dropout});
    if (!t.compare()) return;
    // Tensor cores multiply bf16: what they are given is rounded; by cuDNN, with shared keys, each head's sum too.
    const bool rounds =
        q.device == Device::cuda && (cuda::may_use_cudnn(forward) || cuda::attention_on_tensor_cores(q, v));
    const Reference reference(p, ids, rounds ? 2 * unit_of(DType::bf16) : 0.0);
    const Doubles vq = to_doubles(q), vk = to_doubles(k), vv = to_doubles(v), vd = to_doubles(dout);
    Doubles expected, bound, expected_lse, lse_bound;
    reference.forward(vq, vk, vv, expected, &expected_lse, &bound, &lse_bound);
    add_storage(bound, expected, p.dtype);
    t.expect("o", o, expected, bound);
    t.expect("lse", lse, expected_lse, lse_bound);
    Reference::Gradient g = reference.backward(vq, vk, vv, vd, expected);
    if (vq.size() + vk.size() < 300) {  // the formula itself, against central differences of the forward loop
      const auto differences = [&](const Doubles& at, auto&& f) {
        return central_differences(
            [&](const Doubles& x) {
              Doubles out;
              f(x, out);
              return out;
            },
            at, vd);
      };
      double size = 0;
      for (const double d : vd) size += std::abs(d);
      const auto near = [&](const Doubles& a, const Doubles& b) {
        for (std::size_t i = 0; i < a.size(); ++i) CHECK(std::abs(a[i] - b[i]) <= kDifference * size);
      };
      near(g.dq, differences(vq, [&](const Doubles& x, Doubles& out) { reference.forward(x, vk, vv, out); }));
      near(g.dk, differences(vk, [&](const Doubles& x, Doubles& out) { reference.forward(vq, x, vv, out); }));
      near(g.dv, differences(vv, [&](const Doubles& x, Doubles& out) { reference.forward(vq, vk, x, out); }));
    }
    add_storage(g.dq_bound, g.dq, p.dtype);
    add_storage(g.dk_bound, g.dk, p.dtype);
    add_storage(g.dv_bound, g.dv, p.dtype);
    t.expect("dq", dq, g.dq, g.dq_bound);
    t.expect("dk", dk, g.dk, g.dk_bound);
    t.expect("dv", dv, g.dv, g.dv_bound);
  };
  if (p.same_bits)
    for_each_run(check_run);
  else
    for_each_device_once(check_run);
}

}  // namespace

TEST_CASE("attention and its gradient") {
  constexpr auto kFull = AttentionMask::full;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const Index length : {1, 3, 7, 65, 127, 129}) {
      check_attention({1, length, length, 2, 2, 4, 3, dtype});
      check_attention({1, length, length + 2, 2, 1, 5, 5, dtype, kFull});
    }
    check_attention({.samples = 2,
                     .queries = 5,
                     .keys = 5,
                     .heads = 4,
                     .key_heads = 2,
                     .size = 3,
                     .value_size = 4,
                     .dtype = dtype,
                     .gap = 6});
    check_attention({.samples = 2,
                     .queries = 5,
                     .keys = 5,
                     .heads = 4,
                     .key_heads = 2,
                     .size = 3,
                     .value_size = 4,
                     .dtype = dtype,
                     .dropout = 0.3f});
    check_attention({1, 70, 200, 1, 1, 8, 8, dtype, AttentionMask::causal, 130, 0.2f, 3});
    check_attention({1, 3, 9, 3, 1, 4, 4, dtype, AttentionMask::causal, 6});   // decoding with a cache
    check_attention({1, 9, 9, 1, 1, 4, 4, dtype, AttentionMask::causal, -4});  // queries that see nothing
    check_attention({1, 7, 130, 1, 1, 256, 256, dtype, kFull});
  }
  check_attention({0, 3, 3, 2, 1, 4, 4});
  check_attention({1, 0, 3, 2, 1, 4, 4});
  check_attention({1, 3, 0, 2, 1, 4, 4, DType::f32, kFull});
}

// Packed documents, left padding, and a window of full attention; borders in, at and across the blocks of each kernel.
TEST_CASE("attention: the first key a query sees") {
  constexpr auto kFull = AttentionMask::full, kCausal = AttentionMask::causal;
  const auto check_size = [](DType dtype, Index size, AttentionChoice choice) {
    const auto one = [&](Doubles first_keys, Index samples, Index queries, Index keys, AttentionMask mask,
                         Index offset = 0, float dropout = 0) {
      check_attention({samples, queries, keys, 2, 1, size, size, dtype, mask, offset, dropout, 0, choice, first_keys});
    };
    one(documents({1, 2, 4}), 1, 7, 7, kCausal);
    one(documents({63, 1, 65, 1}), 1, 130, 130, kCausal);
    one(documents({200}), 1, 200, 200, kCausal);
    one(documents({128, 70}), 1, 198, 198, kCausal, 0, 0.3f);
    Doubles two = documents({5, 30, 35});
    const Doubles other = documents({64, 6});
    two.insert(two.end(), other.begin(), other.end());
    one(two, 2, 70, 70, kCausal);
    one(Doubles(40, 17.0), 1, 40, 40, kCausal);            // padded rows see nothing
    one({3, 3, 0, 0, 150, 150}, 3, 2, 160, kCausal, 158);  // decoding three sequences of different padding
    one({0, 3, 3, 9, 9, 9, 11}, 1, 7, 9, kFull);           // the last query sees no key
  };
  check_size(DType::f32, 8, AttentionChoice::automatic);
  check_size(DType::bf16, 8, AttentionChoice::automatic);
  check_size(DType::bf16, 32, AttentionChoice::native);
  check_attention({1, 128, 128, 2, 2, 64, 64, DType::bf16, kCausal, 0, 0, 0, AttentionChoice::automatic,
                   documents({60, 68})});  // a length that cuDNN would take
}

// Sizes that cuDNN takes.
TEST_CASE("attention: lengths that are multiples of 128") {
  constexpr DType kHalf = DType::bf16;
  constexpr auto kFull = AttentionMask::full, kCausal = AttentionMask::causal;
  check_attention({1, 128, 128, 2, 2, 64, 64, kHalf});
  check_attention({1, 128, 128, 2, 2, 64, 64, kHalf, kCausal, 0, 0, 64});
  check_attention({2, 128, 128, 2, 1, 128, 128, kHalf, kCausal, 0, 0, 8});
  check_attention({1, 256, 256, 4, 2, 32, 32, kHalf});
  check_attention({1, 128, 128, 1, 1, 64, 64, kHalf, kFull});
  check_attention({1, 128, 256, 2, 2, 64, 64, kHalf, kFull});
  check_attention({1, 128, 128, 1, 1, 192, 128, kHalf});
  check_attention({1, 128, 128, 2, 2, 40, 24, kHalf});                    // not powers of two
  check_attention({1, 128, 128, 1, 1, 64, 64, kHalf, kCausal, 0, 0, 4});  // rows that no 16-byte access can read
  check_attention({1, 128, 128, 1, 1, 64, 64, DType::f32});
}

// Sizes that our own kernels multiply on tensor cores: tiles of 64 queries or keys, and of 32, whole and cut.
TEST_CASE("attention: our own kernels on tensor cores") {
  constexpr DType kHalf = DType::bf16;
  constexpr auto kFull = AttentionMask::full, kCausal = AttentionMask::causal;
  constexpr auto kNative = AttentionChoice::native;
  for (const Index length : {1, 31, 63, 65, 130})
    check_attention({1, length, length, 2, 2, 16, 32, kHalf, kCausal, 0, 0, 0, kNative});
  check_attention({1, 128, 128, 2, 1, 64, 64, kHalf, kCausal, 0, 0, 8, kNative});
  check_attention({1, 70, 200, 1, 1, 48, 16, kHalf, kFull, 0, 0, 0, kNative});
  check_attention({2, 33, 33, 4, 2, 128, 128, kHalf, kCausal, 0, 0, 0, kNative});
  check_attention({1, 40, 40, 2, 1, 112, 80, kHalf, kCausal, 0, 0, 3, kNative});    // rows at odd addresses
  check_attention({2, 70, 70, 4, 2, 32, 32, kHalf, kCausal, 0, 0.3f, 0, kNative});  // dropout
  check_attention({1, 70, 200, 2, 1, 64, 64, kHalf, kCausal, 130, 0.2f, 8, kNative});
  check_attention({1, 3, 90, 3, 1, 16, 16, kHalf, kCausal, 87, 0, 0, kNative});    // decoding with a cache
  check_attention({1, 90, 90, 1, 1, 16, 16, kHalf, kCausal, -70, 0, 0, kNative});  // queries that see nothing
  check_attention({1, 5, 0, 1, 1, 16, 16, kHalf, kFull, 0, 0, 0, kNative});
}

// Not in deterministic mode, heads of 64 and 128: on a Hopper our own kernel's tiles of 128 keys. Two tiles' parts of
// dq give the same sum in any order.
TEST_CASE("attention: the gradient on warpgroup products") {
  constexpr DType kHalf = DType::bf16;
  constexpr auto kFull = AttentionMask::full, kCausal = AttentionMask::causal;
  const auto check_size = [](Index samples, Index length, Index heads, Index key_heads, Index size, AttentionMask mask,
                             Index gap = 0) {
    AttentionCase p{samples, length, length, heads, key_heads, size, size, kHalf, mask, 0, 0, gap};
    p.deterministic = false;
    p.same_bits = length <= 256;
    check_attention(p);
  };
  for (const Index size : {64, 128}) {
    check_size(1, 128, 1, 1, size, kCausal);
    check_size(1, 128, 1, 1, size, kFull);
    check_size(2, 256, 3, 3, size, kCausal);
    check_size(2, 256, 4, 2, size, kCausal, 8);
    check_size(1, 256, 3, 1, size, kFull);
    check_size(1, 640, 2, 1, size, kCausal);
  }
}

// Views of one matrix and of its gradient, as the layer makes them.
TEST_CASE("attention: queries, keys and values merged in one matrix") {
  constexpr Index kSamples = 2, kLength = 128, kHeads = 4, kKeyHeads = 2, kSize = 32;
  constexpr Index kWidth = (kHeads + 2 * kKeyHeads) * kSize, kRows = kSamples * kLength;
  const auto by_sample = [](const Tensor& t, Index begin, Index heads) {
    Tensor out = t.slice(1, begin * kSize, (begin + heads) * kSize).split_last(heads);
    out.shape = {kSamples, kLength, heads, kSize};
    out.strides = {kLength * t.stride(0), t.stride(0), kSize, 1};
    return out;
  };
  for_each_run([&](OpCase& t) {
    const auto apart = [&](Index heads) { return t.unset({kSamples, kLength, heads, kSize}, DType::bf16); };
    const Tensor merged = t.normal({kRows, kWidth}, DType::bf16), gradient = t.unset({kRows, kWidth}, DType::bf16);
    const Tensor dout = t.normal({kSamples, kLength, kHeads, kSize}, DType::bf16);
    const Tensor o = apart(kHeads), lse = t.unset({kSamples, kHeads, kLength}, DType::f32);
    const Tensor q = by_sample(merged, 0, kHeads), k = by_sample(merged, kHeads, kKeyHeads),
                 v = by_sample(merged, kHeads + kKeyHeads, kKeyHeads);
    const auto forward = [&](const Tensor& to, const Tensor& sums, const Tensor& queries, const Tensor& keys,
                             const Tensor& values) {
      t.launch(AttentionForward{.o = to, .lse = sums, .q = queries, .k = keys, .v = values, .scale = 0.2f});
    };
    const auto backward = [&](const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& queries,
                              const Tensor& keys, const Tensor& values) {
      t.launch(AttentionBackward{.dq = dq,
                                 .dk = dk,
                                 .dv = dv,
                                 .dout = dout,
                                 .o = o,
                                 .lse = lse,
                                 .q = queries,
                                 .k = keys,
                                 .v = values,
                                 .scale = 0.2f});
    };
    forward(o, lse, q, k, v);
    backward(by_sample(gradient, 0, kHeads), by_sample(gradient, kHeads, kKeyHeads),
             by_sample(gradient, kHeads + kKeyHeads, kKeyHeads), q, k, v);
    // the same with every tensor on its own: equal bits
    const auto copy = [&](const Tensor& x) { return t.values(x.shape, DType::bf16, to_doubles(x)); };
    const Tensor q2 = copy(q), k2 = copy(k), v2 = copy(v), o2 = apart(kHeads);
    const Tensor lse2 = t.unset(lse.shape, DType::f32);
    forward(o2, lse2, q2, k2, v2);
    t.expect_equal("o", o, to_doubles(o2));
    t.expect_equal("lse", lse, to_doubles(lse2));
    const Tensor dq = apart(kHeads), dk = apart(kKeyHeads), dv = apart(kKeyHeads);
    backward(dq, dk, dv, q2, k2, v2);
    t.expect_equal("dq", by_sample(gradient, 0, kHeads), to_doubles(dq));
    t.expect_equal("dk", by_sample(gradient, kHeads, kKeyHeads), to_doubles(dk));
    t.expect_equal("dv", by_sample(gradient, kHeads + kKeyHeads, kKeyHeads), to_doubles(dv));
  });
}

TEST_CASE("attention: large scores neither overflow nor lose the largest") {
  OpCase t(1, true);
  const Tensor q = t.values({1, 1, 1, 1}, DType::f32, {1e4}), k = t.values({1, 3, 1, 1}, DType::f32, {-1, 1, 0.5});
  const Tensor v = t.values({1, 3, 1, 1}, DType::f32, {1, 2, 3}), o = t.unset({1, 1, 1, 1}, DType::f32);
  const Tensor lse = t.unset({1, 1, 1}, DType::f32);
  t.launch(AttentionForward{.o = o, .lse = lse, .q = q, .k = k, .v = v, .scale = 1, .mask = AttentionMask::full});
  t.expect_equal("o", o, {2});
  t.expect_equal("lse", lse, {1e4});
}

// Its probability is 1 whatever the score. What rounding would leave, Adam turns into whole updates. On the CPU.
TEST_CASE("attention: where one key is seen the score's gradient is exactly zero") {
  OpCase t(1, true);
  constexpr Index kRows = 5, kSize = 37;
  const auto make = [&] { return t.normal({1, kRows, 2, kSize}, DType::f32); };
  const auto unset = [&] { return t.unset({1, kRows, 2, kSize}, DType::f32); };
  const Tensor q = make(), k = make(), v = make(), dout = make(), o = unset(), lse = t.unset({1, 2, kRows}, DType::f32);
  const Tensor first_keys = t.values({1, kRows}, DType::i32, documents({1, 1, 1, 1, 1}));
  t.launch(AttentionForward{.o = o, .lse = lse, .q = q, .k = k, .v = v, .scale = 0.3f, .first_keys = first_keys});
  const Tensor dq = unset(), dk = unset(), dv = unset();
  t.launch(AttentionBackward{.dq = dq,
                             .dk = dk,
                             .dv = dv,
                             .dout = dout,
                             .o = o,
                             .lse = lse,
                             .q = q,
                             .k = k,
                             .v = v,
                             .scale = 0.3f,
                             .first_keys = first_keys});
  const Doubles zeros(static_cast<std::size_t>(kRows * 2 * kSize), 0.0);
  t.expect_equal("dq", dq, zeros);
  t.expect_equal("dk", dk, zeros);
}

TEST_CASE("attention: what it rejects, and its cost") {
  OpCase t(1, true);
  const Tensor q = t.normal({1, 4, 3, 8}, DType::f32), k = t.normal({1, 4, 2, 8}, DType::f32),
               lse = t.unset({1, 3, 4}, DType::f32);
  check_rejects([&] { t.launch(AttentionForward{.o = q, .lse = lse, .q = q, .k = k, .v = k}); },
                "3 query heads over 2 key-value heads");
  check_rejects(
      [&] {
        t.launch(AttentionBackward{.dq = q, .dk = q, .dv = k, .dout = q, .o = q, .lse = lse, .q = q, .k = q, .v = q});
      },
      "attention_backward: dv has shape (1, 4, 2, 8), expected (1, 4, 3, 8)");
  const Cost cost = AttentionForward{.o = q, .lse = lse, .q = q, .k = q, .v = q}.cost();
  CHECK(cost.flops_full == 2 * 2 * 3 * 4 * 4 * 8);
  CHECK(cost.flops == cost.flops_full / 2);
}
