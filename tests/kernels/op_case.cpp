#include "tests/kernels/op_case.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <sstream>

namespace dstrain::test {

namespace {

constexpr std::size_t kGuard = 256;
constexpr auto kGuardByte = std::byte{0xa5};

// Calls f(pointer to element, index) in row-major order.
void each_element(const Tensor& t, const std::function<void(std::byte*, std::size_t)>& f) {
  const Index n = t.numel();
  for (Index i = 0; i < n; ++i) {
    Index rest = i, offset = 0;
    for (int d = t.rank() - 1; d >= 0; --d) {
      offset += rest % t.dim(d) * t.stride(d);
      rest /= t.dim(d);
    }
    f(t.data + static_cast<std::size_t>(offset) * size_of(t.dtype), static_cast<std::size_t>(i));
  }
}

double load(const std::byte* p, DType dtype) {
  const auto as = [&](auto zero) {
    std::memcpy(&zero, p, sizeof zero);
    return zero;
  };
  switch (dtype) {
    case DType::f32:
      return as(float{});
    case DType::bf16:
      return static_cast<float>(as(bfloat16{}));
    case DType::f64:
      return as(double{});
    case DType::i32:
      return as(std::int32_t{});
    case DType::i64:
      return static_cast<double>(as(std::int64_t{}));
    case DType::u16:
      return as(std::uint16_t{});
    case DType::u8:
      return as(std::uint8_t{});
  }
  return 0;
}

void store(std::byte* p, DType dtype, double value) {
  const auto as = [&](auto v) { std::memcpy(p, &v, sizeof v); };
  switch (dtype) {
    case DType::f32:
      return as(static_cast<float>(value));
    case DType::bf16:
      return as(bfloat16(static_cast<float>(value)));
    case DType::f64:
      return as(value);
    case DType::i32:
      return as(static_cast<std::int32_t>(value));
    case DType::i64:
      return as(static_cast<std::int64_t>(value));
    case DType::u16:
      return as(static_cast<std::uint16_t>(value));
    case DType::u8:
      return as(static_cast<std::uint8_t>(value));
  }
}

}  // namespace

namespace {

constexpr std::size_t kChunk = std::size_t{8} << 20;

// The queue and the library handles of all launches of this program on the first GPU.
struct Card {
  gpu::Queue queue;
  std::shared_ptr<KernelState> state;
};
Card& card() {
  static Card* const the_card = [] {
    if (gpu::count() == 0) FAIL("DSTRAIN_TEST_DEVICES asks for cuda: " << gpu::why_none());
    gpu::use(0);
    return new Card;  // lives as long as the program: CUDA may be gone before its destructor would run
  }();
  return *the_card;
}

}  // namespace

OpCase::Chunk::Chunk(Device where, std::size_t bytes) : size(bytes), device(where) {
  if (where == Device::cuda) card();
  data =
      static_cast<std::byte*>(where == Device::cuda ? gpu::allocate_managed(bytes) : std::aligned_alloc(4096, bytes));
}

OpCase::Chunk::~Chunk() {
  if (device == Device::cuda)
    gpu::release(data);
  else
    std::free(data);
}

std::span<std::byte> OpCase::take(std::size_t bytes) {
  constexpr std::size_t kPage = 4096;
  const std::size_t size = (bytes + 255) / 256 * 256;
  if (chunks_.empty() || chunks_.back()->size - chunks_.back()->used < size)
    chunks_.push_back(std::make_unique<Chunk>(device_, (std::max(size, kChunk) + kPage - 1) / kPage * kPage));
  Chunk& chunk = *chunks_.back();
  const std::span<std::byte> out(chunk.data + chunk.used, bytes);
  chunk.used += size;
  std::fill(out.begin(), out.end(), kGuardByte);
  return out;
}

Stream OpCase::make_stream(Arena& workspace, Ledger& ledger) {
  if (device_ != Device::cuda) return {device_, device_, &pool_, &workspace, &ledger};
  Stream stream(device_, device_, &pool_, &workspace, &ledger, &card().queue);
  stream.set_settings(settings);
  stream.set_kernel_state(card().state);
  return stream;
}

void OpCase::keep_state(const Stream& stream) { card().state = stream.share_kernel_state(); }

Tensor OpCase::place(const Shape& shape, DType dtype, Index gap) {
  Tensor t(nullptr, dtype, device_, shape);
  const int gapped = shape.rank() == 4 ? 1 : 0;
  if (gap > 0) {
    t.strides[gapped] += gap;
    for (int d = gapped - 1; d >= 0; --d) t.strides[d] = t.strides[d + 1] * shape[d + 1];
  }
  const Index span = shape.rank() == 0 ? 1 : std::max<Index>(1, shape[0]) * t.strides[0];
  const std::size_t bytes = static_cast<std::size_t>(span) * size_of(dtype) + 2 * kGuard;
  memory_.push_back({take(bytes), {}});
  t.data = memory_.back().bytes.data() + kGuard;
  memory_.back().tensor = t;
  return t;
}

Tensor OpCase::unset(const Shape& shape, DType dtype, Index gap) {
  const Tensor t = place(shape, dtype, gap);
  each_element(t, [&](std::byte* p, std::size_t) { std::fill(p, p + size_of(dtype), kUnset); });
  return t;
}

Tensor OpCase::normal(const Shape& shape, DType dtype, double scale, Index gap) {
  const Tensor t = place(shape, dtype, gap);
  std::normal_distribution<double> distribution(0, scale);
  each_element(t, [&](std::byte* p, std::size_t) { store(p, dtype, distribution(random_)); });
  return t;
}

Tensor OpCase::integers(const Shape& shape, DType dtype, Index begin, Index end) {
  const Tensor t = place(shape, dtype, 0);
  std::uniform_int_distribution<Index> distribution(begin, end - 1);
  each_element(t, [&](std::byte* p, std::size_t) { store(p, dtype, static_cast<double>(distribution(random_))); });
  return t;
}

Tensor OpCase::values(const Shape& shape, DType dtype, const Doubles& values) {
  REQUIRE(static_cast<std::size_t>(shape.numel()) == values.size());
  const Tensor t = place(shape, dtype, 0);
  each_element(t, [&](std::byte* p, std::size_t i) { store(p, dtype, values[i]); });
  return t;
}

void OpCase::expect(const char* what, const Tensor& t, const Doubles& expected, const Doubles& bound) {
  const Doubles found = to_doubles(t);
  REQUIRE(found.size() == expected.size());
  REQUIRE(bound.size() == expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (found[i] == expected[i] || std::abs(found[i] - expected[i]) <= bound[i]) continue;
    FAIL(what << " " << t.to_string() << ": element " << i << " is " << found[i] << ", expected " << expected[i]
              << " within " << bound[i]);
  }
}

void OpCase::check_guards() const {
  for (std::size_t m = 0; m < memory_.size(); ++m) {
    const std::span<const std::byte> bytes = memory_[m].bytes;
    std::vector<bool> inside(bytes.size(), false);
    const Tensor& t = memory_[m].tensor;
    each_element(t, [&](const std::byte* p, std::size_t) {
      for (std::size_t i = 0; i < size_of(t.dtype); ++i) inside[static_cast<std::size_t>(p - bytes.data()) + i] = true;
    });
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      if (!inside[i] && bytes[i] != kGuardByte)
        FAIL("byte " << i << " outside of tensor " << m << ", " << t.to_string() << ", was overwritten");
    }
  }
}

std::vector<std::byte> OpCase::bits() const {
  std::vector<std::byte> all;
  for (const Memory& m : memory_) all.insert(all.end(), m.bytes.begin(), m.bytes.end());
  return all;
}

Doubles to_doubles(const Tensor& t) {
  Doubles out(static_cast<std::size_t>(t.numel()));
  each_element(t, [&](const std::byte* p, std::size_t i) { out[i] = load(p, t.dtype); });
  return out;
}

Doubles generate(std::size_t n, const std::function<double(std::size_t)>& f) {
  Doubles out(n);
  for (std::size_t i = 0; i < n; ++i) out[i] = f(i);
  return out;
}

namespace {

void for_each_device(const std::function<void(Device)>& body) {
  for (const std::string& name : devices()) {
    if (name != "cpu" && name != "cuda") FAIL("DSTRAIN_TEST_DEVICES asks for '" << name << "'");
    INFO("on " << name);
    body(name == "cuda" ? Device::cuda : Device::cpu);
  }
}

}  // namespace

void for_each_device_once(const std::function<void(OpCase&)>& body) {
  for_each_device([&](Device device) {
    OpCase c(1, true, device);
    body(c);
    c.check_guards();
  });
}

void for_each_run(const std::function<void(OpCase&)>& body) {
  for_each_device([&](Device device) {
    std::vector<std::byte> bits;
    bool first = true;
    for (const int threads : device == Device::cuda ? std::vector<int>{1, 1} : std::vector<int>{1, 1, 2, 3}) {
      OpCase c(threads, first, device);
      body(c);
      c.check_guards();
      if (first) bits = c.bits();
      if (c.bits() != bits) FAIL("run again with " << threads << " threads, the bits differ");
      first = false;
    }
  });
}

Doubles central_differences(const std::function<Doubles(const Doubles&)>& f, Doubles x, const Doubles& dy) {
  constexpr double kStep = 1e-4;
  Doubles gradient(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double at = x[i];
    x[i] = at + kStep;
    const Doubles above = f(x);
    x[i] = at - kStep;
    const Doubles below = f(x);
    x[i] = at;
    REQUIRE(above.size() == dy.size());
    for (std::size_t j = 0; j < dy.size(); ++j) gradient[i] += dy[j] * (above[j] - below[j]) / (2 * kStep);
  }
  return gradient;
}

}  // namespace dstrain::test
