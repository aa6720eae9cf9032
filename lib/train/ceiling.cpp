#include "lib/train/ceiling.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/matmul.h"
#include "lib/core/clock.h"
#include "lib/core/rng.h"
#include "lib/core/stream_copy.h"

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

double measure_matmul_rate(Stream& stream) {
  constexpr Index n = 1024;
  const Buffer memory("ceiling", Device::cpu, 3 * n * n * sizeof(float));
  const auto matrix = [&](int i) {
    return Tensor(memory.data() + static_cast<std::size_t>(i) * n * n * sizeof(float), DType::f32, Device::cpu, {n, n});
  };
  const Matmul op{.c = matrix(0), .a = matrix(1), .b = matrix(2)};
  float* values = matrix(1).as<float>();
  const Philox generator = philox(1, "ceiling");
  for (Index i = 0; i < 2 * n * n; ++i)
    values[i] = uniform(generator(0, static_cast<std::uint64_t>(i / 4))[static_cast<std::size_t>(i % 4)]) - 0.5f;
  // A stream of its own: the run's workspace is sized for the run.
  Arena workspace("ceiling workspace", Device::cpu, op.workspace(Device::cpu) + Arena::kAlign);
  Stream own(Device::cpu, Device::cpu, &stream.pool(), &workspace, nullptr);
  return op.cost().flops / median_seconds(7, [&] { launch(own, op); });
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

double measure_stream_copy_rate(Stream& stream, std::size_t bytes) { return copy_rate(stream, bytes, stream_copy); }

}  // namespace dstrain
