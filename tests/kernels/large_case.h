#pragma once
// Every kernel of ours on tensors of more than 2^31 elements, those of bf16 rows more than 2^32: sampled rows, those
// around the powers of two and the last one included, against double maths. On a GPU of 80 GB only, and only when asked
// for: test_kernels "[.large]".
//
// Random tensors repeat a prime number of values, so that no wrapped index finds the right one. Where a result depends
// on all rows the others are zeros.

#include <cmath>

#include "lib/core/transfer.h"
#include "tests/kernels/op_case.h"

namespace dstrain::test {

constexpr DType kHalf = DType::bf16;

// Tensors in the memory of the first GPU, and ops on them.
class Large {
 public:
  Large() {
    if (gpu::count() == 0) FAIL("DSTRAIN_TEST_DEVICES asks for cuda: " << gpu::why_none());
    gpu::use(0);
    queue_ = std::make_unique<gpu::Queue>();
  }

  Tensor zeros(const Shape& shape, DType dtype) {
    buffers_.emplace_back("large test", Device::cuda, static_cast<std::size_t>(shape.numel()) * size_of(dtype));
    return Tensor(buffers_.back().data(), dtype, Device::cuda, shape);
  }
  // Element i is pattern(i + shift) of the dtype.
  Tensor random(const Shape& shape, DType dtype, Index shift = 0) {
    const Tensor t = zeros(shape, dtype);
    const Index n = t.numel(), distinct = std::min(n, kPeriod);
    std::vector<float> values(static_cast<std::size_t>(distinct));
    std::vector<bfloat16> halves(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = value((static_cast<Index>(i) + shift) % kPeriod);
      halves[i] = bfloat16(values[i]);
    }
    const void* const from = dtype == kHalf ? static_cast<const void*>(halves.data()) : values.data();
    const std::size_t size = size_of(dtype);
    gpu::copy_now(t.data, from, static_cast<std::size_t>(distinct) * size);
    for (Index done = distinct; done < n; done *= 2)
      gpu::copy_now(t.data + static_cast<std::size_t>(done) * size, t.data,
                    static_cast<std::size_t>(std::min(done, n - done)) * size);
    return t;
  }
  static double pattern(Index i, DType dtype = kHalf) {
    const float v = value(i % kPeriod);
    return dtype == kHalf ? static_cast<double>(static_cast<float>(bfloat16(v))) : static_cast<double>(v);
  }
  template <class T>
  Tensor values(const std::vector<T>& from, DType dtype) {
    const Tensor t = zeros({static_cast<Index>(from.size())}, dtype);
    upload_now(t, from.data());
    return t;
  }

  template <class Op>
  void launch(const Op& op) {
    std::size_t bytes = 0;
    if constexpr (requires { op.workspace(Device::cuda); }) bytes = op.workspace(Device::cuda);
    Arena workspace("large test workspace", Device::cuda, bytes);
    Stream stream(Device::cuda, Device::cuda, &pool_, &workspace, nullptr, queue_.get());
    stream.set_settings(settings);
    dstrain::launch(stream, op);
    stream.synchronize();
  }
  ComputeSettings settings;

 private:
  static constexpr Index kPeriod = 1048583;  // a prime
  static float value(Index i) {
    const auto bits = Philox{{3u, 5u}}(0, static_cast<std::uint64_t>(i / 4));
    return 4 * uniform(bits[static_cast<std::size_t>(i % 4)]) - 2;
  }
  ThreadPool pool_{1};
  std::unique_ptr<gpu::Queue> queue_;
  std::vector<Buffer> buffers_;
};

inline bool asked() { return tests_cuda(); }

// Elements [begin, begin + n) of a contiguous tensor.
inline Doubles elements(const Tensor& t, Index begin, Index n) {
  std::vector<std::byte> host(static_cast<std::size_t>(n) * size_of(t.dtype));
  gpu::copy_now(host.data(), t.data + static_cast<std::size_t>(begin) * size_of(t.dtype), host.size());
  return to_doubles(Tensor(host.data(), t.dtype, Device::cpu, {n}));
}
inline void put(const Tensor& t, Index begin, const Doubles& values) {
  std::vector<bfloat16> halves;
  std::vector<float> floats;
  for (const double v : values) floats.push_back(static_cast<float>(v)), halves.emplace_back(floats.back());
  const void* const from = t.dtype == kHalf ? static_cast<const void*>(halves.data()) : floats.data();
  gpu::copy_now(t.data + static_cast<std::size_t>(begin) * size_of(t.dtype), from, values.size() * size_of(t.dtype));
}
// Rows of `columns` elements: both ends and around the powers of two.
inline std::vector<Index> sampled(Index rows, Index columns) {
  std::vector<Index> out{0, 1, rows / 3, rows - 2, rows - 1};
  for (const Index power : {Index{1} << 30, Index{1} << 31, Index{1} << 32})
    for (const Index r : {power / columns - 1, power / columns})
      if (r > 1 && r < rows - 2) out.push_back(r);
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

inline void expect(const char* what, Index row, const Doubles& found, const Doubles& expected, const Doubles& bound) {
  REQUIRE(found.size() == expected.size());
  for (std::size_t i = 0; i < found.size(); ++i)
    if (!(std::abs(found[i] - expected[i]) <= bound[i]))
      FAIL(what << ": row " << row << ", element " << i << " is " << found[i] << ", expected " << expected[i]
                << " within " << bound[i]);
}

// Compares sampled rows of y (rows, n) with f(row, column) within bound(row, column, expected).
template <class F, class Bound>
void expect_rows(const char* what, const Tensor& y, F f, Bound bound) {
  const Index rows = y.dim(0), n = y.numel() / rows;
  for (const Index r : sampled(rows, n)) {
    const Doubles expected =
        generate(static_cast<std::size_t>(n), [&](std::size_t c) { return f(r, static_cast<Index>(c)); });
    expect(what, r, elements(y, r * n, n), expected,
           generate(expected.size(), [&](std::size_t c) { return bound(r, static_cast<Index>(c), expected[c]); }));
  }
}

constexpr auto kStored = [](Index, Index, double v) { return 1.01 * unit_of(kHalf) * std::abs(v); };

}  // namespace dstrain::test
