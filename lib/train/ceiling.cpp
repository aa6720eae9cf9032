#include "lib/train/ceiling.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "kernels/matmul.h"
#include "lib/core/clock.h"
#include "lib/core/rng.h"
#include "lib/core/stream_copy.h"
#include "lib/core/transfer.h"

namespace dstrain {

namespace {
template <class F>
double median_seconds(int repeats, F body) {
  std::vector<double> seconds;
  body();  // warm
  for (int i = 0; i < repeats; ++i) {
    const double begin = system_clock().now();
    body();
    seconds.push_back(system_clock().now() - begin);
  }
  std::nth_element(seconds.begin(), seconds.begin() + repeats / 2, seconds.end());
  return seconds[static_cast<std::size_t>(repeats / 2)];
}
}  // namespace

double measure_matmul_rate(Stream& stream, DType dtype, Index n) {
  const Device device = stream.device();
  const auto bytes = static_cast<std::size_t>(n * n) * size_of(dtype);
  const Buffer memory("ceiling", device, 3 * bytes);
  const auto matrix = [&](std::size_t i) { return Tensor(memory.data() + i * bytes, dtype, device, {n, n}); };
  const Matmul op{.c = matrix(0), .a = matrix(1), .b = matrix(2), .transpose_b = device == Device::cuda};
  // Random values: a GPU's clock, and so its rate, depends on them.
  const Philox generator = philox(1, "ceiling");
  std::vector<std::byte> host(bytes);
  for (std::size_t i = 1; i < 3; ++i) {
    std::array<std::uint32_t, 4> bits{};
    for (Index j = 0; j < n * n; ++j) {
      if (j % 4 == 0) bits = generator(i, static_cast<std::uint64_t>(j / 4));
      const float v = uniform(bits[static_cast<std::size_t>(j % 4)]) - 0.5f;
      if (dtype == DType::f32)
        reinterpret_cast<float*>(host.data())[j] = v;
      else
        reinterpret_cast<bfloat16*>(host.data())[j] = bfloat16(v);
    }
    upload_now(matrix(i), host.data());
  }
  // A stream of its own: the run's workspace is sized for the run.
  Arena workspace("ceiling workspace", device, op.workspace(device) + Arena::kAlign);
  Stream own(device, device, &stream.pool(), &workspace, nullptr, device == Device::cuda ? &stream.queue() : nullptr);
  ComputeSettings settings = stream.settings();
  settings.tune = device == Device::cuda;
  own.set_settings(settings);
  constexpr int kBatch = 4;  // products between two looks at the clock
  return op.cost().flops * kBatch / median_seconds(7, [&] {
           for (int i = 0; i < kBatch; ++i) launch(own, op);
           own.synchronize();
         });
}

namespace {
template <class Copy>
double copy_rate(Stream& stream, std::size_t bytes, Copy copy) {
  const Buffer from("copy source", Device::cpu, bytes), to("copy target", Device::cpu, bytes);
  std::memset(from.data(), 1, bytes);
  const std::size_t tile = std::clamp<std::size_t>(bytes / 8, 64 << 10, 4 << 20);
  const auto tiles = static_cast<std::int64_t>((bytes + tile - 1) / tile);
  // Short copies are repeated more often: each is a chance to be interrupted.
  const int repeats = static_cast<int>(std::clamp<std::size_t>((std::size_t{512} << 20) / bytes, 5, 101));
  const double seconds = median_seconds(repeats, [&] {
    stream.pool().parallel_for(tiles, [&](std::int64_t i) {
      const std::size_t begin = static_cast<std::size_t>(i) * tile;
      copy(to.data() + begin, from.data() + begin, std::min(tile, bytes - begin));
    });
  });
  return static_cast<double>(bytes) / seconds;
}
}  // namespace

double measure_copy_rate(Stream& stream, std::size_t bytes) {
  return copy_rate(stream, bytes, [](void* to, const void* from, std::size_t n) { std::memcpy(to, from, n); });
}

double measure_device_copy_rate(Stream& stream, std::size_t bytes) {
  const Buffer from("copy source", Device::cuda, bytes), to("copy target", Device::cuda, bytes);
  constexpr int kBatch = 8;
  return 2.0 * kBatch * static_cast<double>(bytes) / median_seconds(9, [&] {
           for (int i = 0; i < kBatch; ++i) stream.queue().copy(to.data(), from.data(), bytes);
           stream.synchronize();
         });
}

double measure_stream_copy_rate(Stream& stream, std::size_t bytes) { return copy_rate(stream, bytes, stream_copy); }

}  // namespace dstrain
