// What the CUDA kernels choose: measured matmul algorithms keep the bits and travel as text; attention refuses what it
// cannot do, and who runs it. What needs a card passes untouched where DSTRAIN_TEST_DEVICES has no cuda.
#include <cmath>
#include <cstring>
#include <sstream>

#include "kernels/attention.h"
#include "kernels/cuda/attention_rule.h"
#include "kernels/matmul.h"
#include "tests/kernels/op_case.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

bool on_cuda() {
  for (const std::string& d : devices()) {
    if (d != "cuda") continue;
    if (gpu::count() == 0) FAIL("DSTRAIN_TEST_DEVICES asks for cuda: " << gpu::why_none());
    gpu::use(0);
    return true;
  }
  return false;
}

// One queue with its workspace, and memory for tensors.
struct Card {
  explicit Card(ComputeSettings settings, std::size_t bytes = std::size_t{64} << 20)
      : memory("test", Device::cuda, bytes),
        workspace("workspace", Device::cuda, std::size_t{64} << 20),
        stream(Device::cuda, Device::cuda, nullptr, &workspace, nullptr, &queue) {
    stream.set_settings(std::move(settings));
  }
  Tensor bf16(const Shape& shape, std::uint64_t seed, double scale) {
    const Tensor t = memory.allocate(shape, DType::bf16);
    std::mt19937_64 random(seed);
    std::normal_distribution<double> distribution(0, scale);
    std::vector<bfloat16> values(static_cast<std::size_t>(t.numel()));
    for (bfloat16& v : values) v = bfloat16(static_cast<float>(distribution(random)));
    gpu::copy_now(t.data, values.data(), t.bytes());
    return t;
  }
  std::vector<std::byte> bits(const Tensor& t) const {
    stream.synchronize();
    std::vector<std::byte> out(t.bytes());
    gpu::copy_now(out.data(), t.data, t.bytes());
    return out;
  }

  gpu::Queue queue;
  Arena memory, workspace;
  Stream stream;
};

// Every kind of product of a linear layer, with the bits of all results.
std::vector<std::byte> products(Card& card) {
  constexpr Index kRows = 1024, kIn = 512, kOut = 768;
  const std::size_t mark = card.memory.mark();
  const Tensor x = card.bf16({kRows, kIn}, 1, 1), w = card.bf16({kOut, kIn}, 2, 0.05),
               dy = card.bf16({kRows, kOut}, 3, 1), bias = card.bf16({kOut}, 4, 1);
  const Tensor y = card.memory.allocate({kRows, kOut}, DType::bf16),
               dx = card.memory.allocate({kRows, kIn}, DType::bf16),
               pre = card.memory.allocate({kRows, kOut}, DType::bf16), dw = card.memory.allocate({kOut, kIn});
  std::vector<std::byte> all;
  const auto keep = [&](const Tensor& t) {
    const std::vector<std::byte> b = card.bits(t);
    all.insert(all.end(), b.begin(), b.end());
  };
  launch(card.stream, Matmul{.c = y, .a = x, .b = w, .transpose_b = true, .bias = bias});
  keep(y);
  launch(card.stream, Matmul{.c = dx, .a = dy, .b = w});
  keep(dx);
  launch(card.stream,
         Matmul{.c = y, .a = x, .b = w, .transpose_b = true, .bias = bias, .epilogue = Epilogue::gelu, .pre = pre});
  keep(y);
  keep(pre);
  const Matmul gradient{.c = dw, .a = dy, .b = x, .transpose_a = true};
  launch(card.stream, gradient);
  keep(dw);
  Matmul more = gradient;
  more.write = Write::accumulate;
  launch(card.stream, more);
  if (!card.stream.settings().tune) keep(dw);  // tuning leaves any values in what is added to
  card.memory.release(mark);
  return all;
}

}  // namespace

TEST_CASE("cuda: measured matmuls keep the bits and are taken up by a later run") {
  if (!on_cuda()) return;
  Card plain({});
  const std::vector<std::byte> expected = products(plain);
  CHECK(plain.stream.kernel_state()->tuned().empty());

  Card measuring({.tune = true});
  products(measuring);
  ComputeSettings settled = measuring.stream.settings();
  settled.tune = false;
  measuring.stream.set_settings(settled);
  CHECK(products(measuring) == expected);
  const std::string tuned = measuring.stream.kernel_state()->tuned();
  CHECK(std::count(tuned.begin(), tuned.end(), '\n') == 5);

  Card later({.tuned = tuned + "another card | driver 1 | cuBLASLt 1 | matmul | 00\n"});
  CHECK(products(later) == expected);
  CHECK(later.stream.kernel_state()->tuned() == tuned);
  CHECK_THAT(later.stream.kernel_state()->fast_paths(), Catch::Matchers::Contains("matmul bf16, gelu: cuBLASLt"));
  INFO(later.stream.kernel_state()->fast_paths());

  std::string broken = tuned;
  broken[broken.find('\n') - 1] = 'x';
  Card bad({.tuned = broken});
  CHECK_THROWS_AS(products(bad), Error);
}

TEST_CASE("cuda: attention that is asked of cuDNN and that it cannot run is an error") {
  if (!on_cuda()) return;
  Card card({.attention = AttentionChoice::cudnn});
  const Tensor x = card.bf16({1, 128, 2, 64}, 1, 1), o = card.memory.allocate(x.shape, DType::bf16),
               lse = card.memory.allocate({1, 2, 128}, DType::f32);
  AttentionForward op{.o = o, .lse = lse, .q = x, .k = x, .v = x, .scale = 0.125f};
  launch(card.stream, op);
  CHECK_THAT(card.stream.kernel_state()->fast_paths(), Catch::Matchers::Contains("attention: cuDNN"));
  op.query_offset = 1;
  try {
    launch(card.stream, op);
    FAIL("nothing was thrown");
  } catch (const Error& e) {
    CHECK(e.code() == ExitCode::device);
    CHECK_THAT(e.what(), Catch::Matchers::Contains("asks for cuDNN") && Catch::Matchers::Contains("causal mask"));
  }
}

// Ours against cuDNN's on the same bits: both are within bf16's roundings of the formula, which the other tests check.
TEST_CASE("cuda: tiled attention and cuDNN agree on the log sums") {
  if (!on_cuda()) return;
  std::vector<float> sums[2];
  for (const AttentionChoice choice : {AttentionChoice::cudnn, AttentionChoice::native}) {
    Card card({.attention = choice});
    const Tensor q = card.bf16({2, 512, 4, 64}, 1, 1), k = card.bf16({2, 512, 2, 64}, 2, 1),
                 v = card.bf16({2, 512, 2, 64}, 3, 1), o = card.memory.allocate(q.shape, DType::bf16),
                 lse = card.memory.allocate({2, 4, 512}, DType::f32);
    launch(card.stream, AttentionForward{.o = o, .lse = lse, .q = q, .k = k, .v = v, .scale = 0.125f});
    const std::vector<std::byte> bits = card.bits(lse);
    std::vector<float>& out = sums[choice == AttentionChoice::native];
    out.resize(bits.size() / sizeof(float));
    std::memcpy(out.data(), bits.data(), bits.size());
  }
  // scores: (D + 3) u sum |q k| scale, some tens of u; the sum of 512 terms; see attention_test.cpp
  for (std::size_t i = 0; i < sums[0].size(); ++i)
    CHECK(std::abs(sums[0][i] - sums[1][i]) <= 2 * (512 + 20 + 67 * 10) * kUnit);
}

// Offsets past 2^31 elements; run by name: "[large]".
TEST_CASE("cuda: a product of more than 2^31 elements", "[.large]") {
  if (!on_cuda()) return;
  for (const Index columns : {57344, 57343}) {  // aligned, and not
    constexpr Index kRows = 40000, kInner = 16;
    Card card({}, std::size_t{5} << 30);
    const Tensor a = card.bf16({kRows, kInner}, 1, 1), b = card.bf16({columns, kInner}, 2, 1);
    const Tensor c = card.memory.allocate({kRows, columns}, DType::bf16);
    launch(card.stream, Matmul{.c = c, .a = a, .b = b, .transpose_b = true});
    card.stream.synchronize();
    std::vector<bfloat16> va(static_cast<std::size_t>(a.numel())), vb(static_cast<std::size_t>(b.numel()));
    gpu::copy_now(va.data(), a.data, a.bytes());
    gpu::copy_now(vb.data(), b.data, b.bytes());
    for (const Index i : {Index{0}, Index{20000}, Index{37449}, Index{37450}, kRows - 1}) {
      std::vector<bfloat16> row(static_cast<std::size_t>(columns));
      gpu::copy_now(row.data(), c.data + i * columns * 2, row.size() * 2);
      for (Index j = 0; j < columns; j += 997) {
        double sum = 0, size = 0;
        for (Index l = 0; l < kInner; ++l) {
          const double term = static_cast<double>(static_cast<float>(va[static_cast<std::size_t>(i * kInner + l)])) *
                              static_cast<double>(static_cast<float>(vb[static_cast<std::size_t>(j * kInner + l)]));
          sum += term;
          size += std::abs(term);
        }
        const double found = static_cast<float>(row[static_cast<std::size_t>(j)]);
        if (std::abs(found - sum) > (kInner + 3) * kUnit * size + 1.01 * unit_of(DType::bf16) * std::abs(sum))
          FAIL("row " << i << " column " << j << " is " << found << ", expected " << sum);
      }
    }
  }
}

TEST_CASE("attention: who runs it on CUDA") {
  std::byte memory[16];  // never read
  const auto op_of = [&](DType dtype, Index length, Index size) {
    const Tensor x(memory, dtype, Device::dry, {1, length, 2, size}),
        lse(memory, DType::f32, Device::dry, {1, 2, length});
    return AttentionForward{.o = x, .lse = lse, .q = x, .k = x, .v = x};
  };
  constexpr cuda::CudnnFacts kGood{91400, 9};
  const ComputeSettings automatic, native{.attention = AttentionChoice::native};
  CHECK(cuda::attention_uses_cudnn(op_of(DType::bf16, 128, 64), automatic, kGood));
  CHECK_FALSE(cuda::attention_uses_cudnn(op_of(DType::bf16, 128, 64), native, kGood));
  const auto refused = [&](const AttentionForward& op, cuda::CudnnFacts facts, const std::string& why) {
    const char* const said = cuda::why_not_cudnn(op, true, facts);
    REQUIRE(said != nullptr);
    CHECK_THAT(said, Catch::Matchers::Contains(why));
    CHECK_FALSE(cuda::attention_uses_cudnn(op, automatic, facts));
  };
  refused(op_of(DType::f32, 128, 64), kGood, "not bf16");
  refused(op_of(DType::bf16, 127, 64), kGood, "multiples of 128");
  refused(op_of(DType::bf16, 128, 60), kGood, "size of its heads");
  refused(op_of(DType::bf16, 128, 256), {91400, 8}, "size of its heads");
  refused(op_of(DType::bf16, 128, 64), {91001, 9}, "known to be wrong");
  refused(op_of(DType::bf16, 128, 64), {90500, 9}, "older");
  refused(op_of(DType::bf16, 128, 64), {91400, 10}, "deterministic");
  AttentionForward decoding = op_of(DType::bf16, 128, 64);
  decoding.query_offset = 128;
  refused(decoding, kGood, "causal mask");
  CHECK(op_of(DType::bf16, 128, 64).workspace(Device::cuda) > 0);
  CHECK(op_of(DType::f32, 128, 64).workspace(Device::cuda) == 0);

  // our own gradient
  const auto gradient_of = [&](DType dtype, Index length, Index size, Index value_size) {
    const Tensor q(memory, dtype, Device::dry, {2, length, 2, size}),
        v(memory, dtype, Device::dry, {2, length, 2, value_size}),
        sums(memory, DType::f32, Device::dry, {2, 2, length});
    return AttentionBackward{.dq = q, .dk = q, .dv = v, .dout = v, .o = v, .lse = sums, .q = q, .k = q, .v = v};
  };
  const auto not_ours = [&](const AttentionBackward& op, const std::string& why, bool deterministic = false,
                            int major = 9) {
    const char* const said = cuda::why_not_wgmma(op, deterministic, major);
    REQUIRE(said != nullptr);
    CHECK_THAT(said, Catch::Matchers::Contains(why));
  };
  const AttentionBackward ours = gradient_of(DType::bf16, 256, 64, 64);
  CHECK(cuda::why_not_wgmma(ours, false, 9) == nullptr);
  CHECK(cuda::why_not_wgmma(gradient_of(DType::bf16, 128, 128, 128), false, 9) == nullptr);
  CHECK(ours.workspace(Device::cuda) >= cuda::wgmma_workspace(ours));
  not_ours(ours, "fixed order", true);
  not_ours(ours, "Hopper", false, 10);
  not_ours(gradient_of(DType::f32, 256, 64, 64), "not bf16");
  not_ours(gradient_of(DType::bf16, 255, 64, 64), "multiple of 128");
  not_ours(gradient_of(DType::bf16, 256, 192, 128), "size of its heads");
  AttentionBackward other = ours;
  other.query_offset = 128;
  not_ours(other, "positions");
  other = ours;
  other.dropout.p = 0.1f;
  not_ours(other, "dropout");
  other = ours;
  other.first_keys = Tensor(memory, DType::i32, Device::dry, {2, 256});
  not_ours(other, "start at keys");
  other = ours;
  other.k.strides[1] += 4;
  not_ours(other, "aligned");
  other = ours;
  other.dv.strides[0] += 8;
  not_ours(other, "follow each other");

  // the gradient in parts: groups of heads times samples, each 2 T^2 bytes a head
  const auto parts = [&](Index samples, Index length, Index heads, Index key_heads) {
    const Tensor q(memory, DType::bf16, Device::dry, {samples, length, heads, 64}),
        k(memory, DType::bf16, Device::dry, {samples, length, key_heads, 64}),
        lse(memory, DType::f32, Device::dry, {samples, heads, length});
    const AttentionBackward op{.dq = q, .dk = k, .dv = k, .dout = q, .o = q, .lse = lse, .q = q, .k = k, .v = k};
    const cuda::BackwardParts p = cuda::cudnn_backward_parts(op);
    CHECK(op.workspace(Device::cuda) >= static_cast<std::size_t>(p.samples * p.key_heads * heads / key_heads * 2) *
                                            static_cast<std::size_t>(length * length));
    return std::pair{p.samples, p.key_heads};
  };
  CHECK(parts(8, 4096, 16, 16) == std::pair<Index, Index>{8, 16});  // 4 GiB
  CHECK(parts(9, 4096, 16, 16) == std::pair<Index, Index>{5, 16});
  CHECK(parts(2, 16384, 128, 128) == std::pair<Index, Index>{1, 8});  // 512 MiB a head
  CHECK(parts(1, 65536, 16, 8) == std::pair<Index, Index>{1, 1});     // 16 GiB a group
}
