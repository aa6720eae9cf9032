#pragma once
// The harness of the op tests. A test body makes tensors, launches ops and compares with a double-precision loop:
//
//   for_each_run([&](OpCase& c) {
//     const Tensor x = c.normal({3, 7}, DType::f32), y = c.unset({3, 7}, DType::f32);
//     c.launch(Add{.y = y, .a = x, .b = x});
//     if (c.compare()) c.expect("y", y, reference, bound);
//   });
//
// for_each_run runs it on every device of DSTRAIN_TEST_DEVICES (default cpu), on the CPU with 1, 2 and 3 threads and
// once more, on a GPU twice, and requires the same bits of every tensor each time. Every byte around a tensor and
// between its rows is a guard that must stay. Ops get exactly the workspace that they ask for. A GPU's tensors lie in
// memory that the host reaches too, and launch() waits. No tolerance is tuned: bounds are made of the unit roundoffs
// below and of sums of absolute values.

#include <algorithm>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "kernels/op.h"
#include "tests/support/catch.h"
#include "tests/support/devices.h"

namespace dstrain::test {

using Doubles = std::vector<double>;

constexpr double kUnit = 0x1p-24;  // of f32

constexpr auto kUnset = std::byte{0xff};  // of these, a NaN or -1

inline double unit_of(DType t) { return t == DType::bf16 ? 0x1p-8 : kUnit; }

inline std::vector<std::string> devices() { return test_devices(); }

class OpCase {
 public:
  OpCase(int threads, bool compares, Device device = Device::cpu)
      : device_(device), pool_(threads), compares_(compares) {}

  Device device() const { return device_; }
  // Of the launches that follow.
  ComputeSettings settings;

  // Whether this run compares with the reference (the others compare bits only).
  bool compare() const { return compares_; }

  // Every byte 0xff: NaN, or -1. `gap` elements lie between one row (rank 2), row of heads (3) or position (4) and the
  // next.
  Tensor unset(const Shape& shape, DType dtype, Index gap = 0);
  Tensor normal(const Shape& shape, DType dtype, double scale = 1, Index gap = 0);
  Tensor integers(const Shape& shape, DType dtype, Index begin, Index end);
  Tensor values(const Shape& shape, DType dtype, const Doubles& values);

  template <class Op>
  void launch(const Op& op) {
    std::size_t bytes = 0;
    if constexpr (requires { op.workspace(device_); }) bytes = op.workspace(device_);
    Arena workspace("workspace", device_, bytes);
    const Tensor all = workspace.allocate({static_cast<Index>(bytes)}, DType::u8);
    workspace.release(0);
    Ledger ledger;
    Stream stream = make_stream(workspace, ledger);
    // An op may not rely on what its workspace holds.
    if (device_ == Device::cuda)
      stream.queue().fill(all.data, static_cast<unsigned char>(kUnset), bytes);
    else
      std::fill(all.data, all.data + bytes, kUnset);
    dstrain::launch(stream, op);
    stream.synchronize();
    CHECK(workspace.used() == 0);
    CHECK(ledger.ops.count(Op::name) == 1);
    if (device_ == Device::cuda) return keep_state(stream);
    // An op that used any of its workspace used the last piece of it.
    const auto touched = [&](std::size_t from) {
      return std::any_of(all.data + from, all.data + bytes, [](std::byte b) { return b != kUnset; });
    };
    if (bytes > 0 && touched(0)) CHECK(touched(bytes - Arena::kAlign));
  }

  // |t - expected| <= bound, element by element; infinities must be equal.
  void expect(const char* what, const Tensor& t, const Doubles& expected, const Doubles& bound);
  void expect_equal(const char* what, const Tensor& t, const Doubles& expected) {
    expect(what, t, expected, Doubles(expected.size(), 0.0));
  }
  void check_guards() const;
  std::vector<std::byte> bits() const;

 private:
  struct Memory {
    std::span<std::byte> bytes;
    Tensor tensor;
  };
  struct Chunk {
    std::byte* data = nullptr;
    std::size_t size = 0, used = 0;
    Device device;
    Chunk(Device where, std::size_t bytes);
    ~Chunk();
    Chunk(const Chunk&) = delete;
    Chunk& operator=(const Chunk&) = delete;
  };
  Tensor place(const Shape& shape, DType dtype, Index gap);
  std::span<std::byte> take(std::size_t bytes);
  Stream make_stream(Arena& workspace, Ledger& ledger);
  static void keep_state(const Stream& stream);  // library handles, for the launches to come

  Device device_;
  ThreadPool pool_;
  bool compares_;
  std::mt19937_64 random_{20261125};
  std::vector<Memory> memory_;
  std::vector<std::unique_ptr<Chunk>> chunks_;
};

// The elements, row-major.
Doubles to_doubles(const Tensor& t);
// Element by element: f(i).
Doubles generate(std::size_t n, const std::function<double(std::size_t)>& f);

void for_each_run(const std::function<void(OpCase&)>& body);
// Where bits may differ from run to run: once on every device, compared with the reference.
void for_each_device_once(const std::function<void(OpCase&)>& body);

// The gradient of sum(dy f(x)) by central differences with step 1e-4, error about 1e-8 for values and derivatives near
// one: add kDifference times the sum of |dy| that an element reaches to bounds.
constexpr double kDifference = 1e-7;
Doubles central_differences(const std::function<Doubles(const Doubles&)>& f, Doubles x, const Doubles& dy);

// Runs `f` and requires an Error{bug} whose message contains `text`.
template <class F>
void check_rejects(F&& f, const std::string& text) {
  try {
    f();
    FAIL("nothing was thrown; expected: " << text);
  } catch (const Error& e) {
    CHECK(e.code() == ExitCode::bug);
    CHECK_THAT(e.what(), Catch::Matchers::Contains(text));
  }
}

}  // namespace dstrain::test
