#include "apps/bench_ops_timer.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

#include "apps/bench.h"
#include "lib/core/rng.h"
#include "lib/core/transfer.h"
#include "lib/train/ceiling.h"

namespace dstrain {

namespace {

// Fills a tensor with make(i) for i up to a few million, then with copies of these.
template <class T, class Make>
void fill(const Tensor& t, Make make) {
  constexpr Index kDistinct = Index{1} << 22;
  const Index n = t.numel(), distinct = std::min(n, kDistinct);
  std::vector<T> values(static_cast<std::size_t>(distinct));
  for (Index i = 0; i < distinct; ++i) values[static_cast<std::size_t>(i)] = make(i);
  if (n == 0) return;
  upload_now(Tensor(t.data, t.dtype, t.device, {distinct}), values.data());
  for (Index done = distinct; done < n; done *= 2) {
    const std::size_t bytes = static_cast<std::size_t>(std::min(done, n - done)) * sizeof(T);
    std::byte* const to = t.data + static_cast<std::size_t>(done) * sizeof(T);
    if (t.device == Device::cuda)
      gpu::copy_now(to, t.data, bytes);
    else
      std::memcpy(to, t.data, bytes);
  }
}

}  // namespace

Tensor Operands::allocate(const Shape& shape, DType dtype) {
  buffers_.emplace_back("bench operands", device_, static_cast<std::size_t>(shape.numel()) * size_of(dtype));
  return Tensor(buffers_.back().data(), dtype, device_, shape);
}

Tensor Operands::uniform(const Shape& shape, DType dtype, float low, float high) {
  const Tensor t = allocate(shape, dtype);
  const Philox generator = philox(seed_ << 16 | buffers_.size(), "bench ops");
  std::array<std::uint32_t, 4> bits{};
  const auto next = [&](Index i) {
    if (i % 4 == 0) bits = generator(0, static_cast<std::uint64_t>(i / 4));
    return low + (high - low) * dstrain::uniform(bits[static_cast<std::size_t>(i % 4)]);
  };
  if (dtype == DType::bf16)
    fill<bfloat16>(t, [&](Index i) { return bfloat16(next(i)); });
  else
    fill<float>(t, next);
  return t;
}

Tensor Operands::integers(Index n, Index bound) {
  const Tensor t = allocate({n}, DType::i32);
  const Philox generator = philox(seed_ << 16 | buffers_.size(), "bench ops");
  fill<std::int32_t>(t, [&](Index i) {
    return static_cast<std::int32_t>(generator(0, static_cast<std::uint64_t>(i))[0] %
                                     static_cast<std::uint32_t>(bound));
  });
  return t;
}

Tensor Operands::counting(Index n, Index each) {
  const Tensor t = allocate({n}, DType::i64);
  fill<std::int64_t>(t, [&](Index i) { return i / each; });
  return t;
}

Tensor Operands::indices(const Shape& shape, const std::vector<std::int32_t>& values) {
  const Tensor t = allocate(shape, DType::i32);
  check(t.numel() == static_cast<Index>(values.size()), "{} indices for {}", values.size(), t.to_string());
  upload_now(t, values.data());
  return t;
}

Tensor Operands::values(const std::vector<float>& values) {
  const Tensor t = allocate({static_cast<Index>(values.size())}, DType::f32);
  upload_now(t, values.data());
  return t;
}

OpBench::OpBench(ThreadPool& pool, const Setup& setup) : pool_(pool), setup_(setup) {
  if (setup_.device == Device::cuda) {
    queue_ = std::make_unique<gpu::Queue>();
    Arena none("bench workspace", Device::cuda, 0);
    Stream stream(Device::cuda, Device::cuda, &pool_, &none, nullptr, queue_.get());
    stream.set_settings(setup_.settings);
    matmul_ceiling_ = measure_matmul_rate(stream, setup_.dtype, 8192);
    copy_ceiling_ = measure_device_copy_rate(stream, std::size_t{1} << 30);
    std::printf("ceilings: %s matmul 8192^3 %.1f TFLOP/s, copy of 1 GiB %.0f GB/s read and written\n\n",
                name_of(setup_.dtype), matmul_ceiling_ / 1e12, copy_ceiling_ / 1e9);
  }
  const bool gpu = queue_ != nullptr;
  std::printf("%-20s %-34s %9s %9s %8s %-7s %8s %6s%s\n", "op", "shape", gpu ? "us" : "ms", "p95", "rate", "",
              "ceiling", "ratio", gpu ? "  best" : "");
}

std::vector<double> OpBench::measure(const Launch& one, std::size_t workspace, const ComputeSettings& settings,
                                     std::shared_ptr<KernelState>& state) {
  Arena memory("bench workspace", setup_.device, workspace + Arena::kAlign);
  Stream stream(setup_.device, setup_.device, &pool_, &memory, nullptr, queue_.get());
  if (setup_.device == Device::cpu) return measure_cpu(one, stream);
  ComputeSettings tuning = settings;
  tuning.tune = true;
  stream.set_settings(tuning);
  stream.set_kernel_state(state);
  const std::vector<double> times = measure_gpu(one, stream);
  state = stream.share_kernel_state();
  return times;
}

std::vector<double> OpBench::measure_cpu(const Launch& one, Stream& stream) const {
  std::vector<double> times;
  one(stream, 0);
  for (double sum = 0; times.size() < 5 || (sum < setup_.seconds && times.size() < 100000);) {
    const double begin = system_clock().now();
    one(stream, 0);
    times.push_back(system_clock().now() - begin);
    sum += times.back();
  }
  return times;
}

// Events lie between launches that follow each other at once, as in a step.
std::vector<double> OpBench::measure_gpu(const Launch& one, Stream& stream) const {
  constexpr double kWarm = 0.2;  // seconds: clocks settle
  constexpr std::size_t kFewest = 50, kMost = 1000, kTogether = 8;
  one(stream, 0);  // choices are made
  stream.synchronize();
  std::size_t i = 0;
  const double begin = system_clock().now();
  double passed = 0;
  do {
    for (std::size_t k = 0; k < kTogether; ++k) one(stream, i++);
    stream.synchronize();
    passed = system_clock().now() - begin;
  } while (passed < kWarm);
  const double each = passed / static_cast<double>(i);
  const std::size_t count = std::clamp(static_cast<std::size_t>(setup_.seconds / each), kFewest, kMost);
  std::vector<gpu::Event> events;
  events.reserve(count + 1);
  for (std::size_t k = 0; k <= count; ++k) events.emplace_back(gpu::Event::Timing::on);
  events[0].record(stream.queue());
  for (std::size_t k = 0; k < count; ++k) {
    one(stream, i++);
    events[k + 1].record(stream.queue());
  }
  stream.synchronize();
  std::vector<double> times;
  for (std::size_t k = 0; k < count; ++k) times.push_back(events[k + 1].seconds_since(events[k]));
  return times;
}

double OpBench::median(const std::vector<double>& times) { return quantile(times, 0.5); }

double OpBench::ceiling_of(const Cost& cost) {
  const bool matrices = cost.flops > 0;
  if (setup_.device == Device::cuda) return matrices ? matmul_ceiling_ : copy_ceiling_;
  Arena none("bench workspace", Device::cpu, 0);
  Stream stream(Device::cpu, Device::cpu, &pool_, &none, nullptr);
  if (matrices) return measure_matmul_rate(stream);
  // Bytes read and written a second by the faster kind of copy that touches as many.
  const auto half = static_cast<std::size_t>(cost.bytes / 2);
  return 2 * std::max(measure_copy_rate(stream, half), measure_stream_copy_rate(stream, half));
}

void OpBench::print(const char* name, const std::string& shape, const Cost& cost, const std::vector<double>& times,
                    double best) {
  const bool gpu = setup_.device == Device::cuda, matrices = cost.flops > 0;
  Row row{.op = name,
          .shape = shape,
          .median = median(times),
          .p95 = quantile(times, 0.95),
          .rate = 0,
          .ceiling = 0,
          .best = best,
          .matrices = matrices};
  const double unit = gpu ? 1e6 : 1e3;
  std::printf("%-20s %-34s %9.*f %9.*f ", name, shape.c_str(), gpu ? 1 : 3, unit * row.median, gpu ? 1 : 3,
              unit * row.p95);
  if (!matrices && cost.bytes < kSmall) {
    std::printf("%8s %-7s %8s %6s\n", "-", "", "-", "-");
  } else {
    row.rate = (matrices ? cost.flops : cost.bytes) / row.median;
    row.ceiling = ceiling_of(cost);
    const double scale = gpu && matrices ? 1e12 : 1e9;
    std::printf("%8.1f %-7s %8.1f %5.0f%%", row.rate / scale,
                !matrices ? "GB/s"
                : gpu     ? "TFLOP/s"
                          : "GFLOP/s",
                row.ceiling / scale, 100 * row.rate / row.ceiling);
    if (best > 0) std::printf(" %5.2f", best / row.median);
    std::printf("\n");
  }
  std::fflush(stdout);
  rows_.push_back(std::move(row));
}

std::string OpBench::json() const {
  nlohmann::ordered_json out;
  out["device"] = setup_.device == Device::cuda ? gpu::info(gpu::current()).name : "cpu";
  out["dtype"] = name_of(setup_.dtype);
  if (setup_.device == Device::cuda) {
    out["matmul_ceiling"] = matmul_ceiling_;
    out["copy_ceiling"] = copy_ceiling_;
  }
  out["rows"] = nlohmann::ordered_json::array();
  for (const Row& row : rows_) {
    nlohmann::ordered_json r;
    r["op"] = row.op;
    r["shape"] = row.shape;
    r["median"] = row.median;
    r["p95"] = row.p95;
    r[row.matrices ? "flops" : "bytes"] = row.rate;
    r["ceiling"] = row.ceiling;
    r["ratio"] = row.ceiling > 0 ? row.rate / row.ceiling : 0;
    if (row.best > 0) r["best_cublaslt"] = row.best;
    out["rows"].push_back(std::move(r));
  }
  return out.dump(2) + "\n";
}

}  // namespace dstrain
