#pragma once
// How `bench ops` times one op: operands of random numbers on the job's device, rows of a table, the same rows as JSON.

#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/matmul.h"
#include "lib/core/clock.h"

namespace dstrain {

// Tensors of one op, alive as long as this is.
class Operands {
 public:
  Operands(Device device, DType dtype, DType gradient, std::uint64_t seed)
      : device_(device), dtype_(dtype), gradient_(gradient), seed_(seed) {}

  DType dtype() const { return dtype_; }              // the job's
  DType gradient_dtype() const { return gradient_; }  // of the weights of layers

  // Random numbers in [low, high), of the job's dtype unless another is named. Those of long tensors repeat.
  Tensor uniform(const Shape& shape, float low = -1, float high = 1) { return uniform(shape, dtype_, low, high); }
  Tensor uniform(const Shape& shape, DType dtype, float low = -1, float high = 1);
  // (n) i32, random, below `bound`.
  Tensor integers(Index n, Index bound);
  // i32, as given.
  Tensor indices(const Shape& shape, const std::vector<std::int32_t>& values);
  // (n) i64: i / each.
  Tensor counting(Index n, Index each);
  // (n) f32
  Tensor values(const std::vector<float>& values);
  // Zeros.
  Tensor allocate(const Shape& shape, DType dtype);

 private:
  Device device_;
  DType dtype_, gradient_;
  std::uint64_t seed_;
  std::vector<Buffer> buffers_;
};

class OpBench {
 public:
  struct Setup {
    Device device = Device::cpu;
    DType dtype = DType::f32;     // of what the layers compute
    DType gradient = DType::f32;  // of the weights of layers
    ComputeSettings settings;
    double seconds = 0.3;  // for each op
  };
  // Prints the head of the table. On a GPU measures the ceilings of the whole table first.
  OpBench(ThreadPool& pool, const Setup& setup);

  Device device() const { return setup_.device; }
  const ComputeSettings& settings() const { return setup_.settings; }

  // Times what make(Operands&) returns and prints its row. Ops that multiply matrices are held against the matmul rate,
  // the others against copies: on the CPU ceilings are measured beside the op, copies of as many bytes as it touches;
  // on a GPU memory-bound ops take turns on so many sets of operands that its caches do not help. A GPU's matmuls are
  // held against the fastest of cuBLASLt's answers too.
  template <class Make>
  void run(const std::string& shape, const Make& make) {
    time(shape, make, setup_.settings, state_);
  }
  // The same with what is fastest whatever its bits.
  template <class Make>
  void run_fastest(const std::string& shape, const Make& make) {
    time(shape, make, fastest(), fast_state_);
  }

  // The last row's median.
  double last_seconds() const { return rows_.back().median; }
  // The rows so far: one object with the ceilings and an array of rows; seconds, FLOP/s, bytes/s.
  std::string json() const;
  // The libraries and kernels that ran.
  std::string fast_paths() const { return state_ ? state_->fast_paths() : ""; }

 private:
  using Launch = std::function<void(Stream&, std::size_t)>;
  static constexpr double kSmall = 65536;           // bytes: a copy of fewer measures what starts it
  static constexpr double kBeyondCaches = 1 << 28;  // bytes

  ComputeSettings fastest() const {
    ComputeSettings settings = setup_.settings;
    settings.deterministic = false;
    return settings;
  }

  template <class Make>
  void time(const std::string& shape, const Make& make, const ComputeSettings& settings,
            std::shared_ptr<KernelState>& state) {
    using Op = std::invoke_result_t<Make, Operands&>;
    std::vector<std::unique_ptr<Operands>> memory;
    std::vector<Op> ops;
    Cost cost;
    do {
      memory.push_back(std::make_unique<Operands>(setup_.device, setup_.dtype, setup_.gradient, memory.size()));
      ops.push_back(make(*memory.back()));
      cost = ops.back().cost();
    } while (setup_.device == Device::cuda && cost.flops == 0 && cost.bytes >= kSmall &&
             cost.bytes * static_cast<double>(ops.size()) < kBeyondCaches);
    std::size_t bytes = 0;
    if constexpr (requires { ops[0].workspace(setup_.device); }) bytes = ops[0].workspace(setup_.device);
    const Launch one = [&](Stream& stream, std::size_t i) { launch(stream, ops[i % ops.size()]); };
    const std::vector<double> times = measure(one, bytes, settings, state);
    double best = 0;
    if constexpr (std::is_same_v<Op, Matmul>)
      if (setup_.device == Device::cuda) best = median(measure(one, bytes, fastest(), fast_state_));
    print(Op::name, shape, cost, times, best);
  }

  static double median(const std::vector<double>& times);
  std::vector<double> measure(const Launch& one, std::size_t workspace, const ComputeSettings& settings,
                              std::shared_ptr<KernelState>& state);
  std::vector<double> measure_cpu(const Launch& one, Stream& stream) const;
  std::vector<double> measure_gpu(const Launch& one, Stream& stream) const;
  double ceiling_of(const Cost& cost);
  void print(const char* name, const std::string& shape, const Cost& cost, const std::vector<double>& times,
             double best);

  struct Row {
    std::string op, shape;
    double median, p95, rate, ceiling, best;
    bool matrices;
  };

  ThreadPool& pool_;
  Setup setup_;
  std::unique_ptr<gpu::Queue> queue_;
  std::shared_ptr<KernelState> state_, fast_state_;
  double matmul_ceiling_ = 0, copy_ceiling_ = 0;  // of a GPU
  std::vector<Row> rows_;
};

}  // namespace dstrain
