#include "kernels/matmul.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <compare>
#include <cstring>
#include <optional>
#include <vector>

#include "kernels/cuda/matmul_kernels.h"
#include "kernels/cuda/matmul_parts.h"
#include "kernels/cuda/state.h"
#include "kernels/gelu.h"
#include "lib/core/cuda/check.h"

// Row-major c = op(a) op(b) is column-major c^T = op(b)^T op(a)^T: cuBLASLt's A is our b, its B our a, its m our n.

namespace dstrain {

namespace {

using cuda::blas_check;
using cuda::CudaState;

using Algorithm = cublasLtMatmulAlgo_t;

constexpr int kCandidates = 32, kFinalists = 4;
constexpr int kRuns = 6;  // timed, of each candidate
// A finalist runs this long: a card at its power limit takes tens of milliseconds to settle, and a step is as hot.
constexpr double kFinalSeconds = 0.06;
constexpr int kMostFinalRuns = 2000;
constexpr int kMostAlignment = 16;  // bytes; no kernel needs more

// One cuBLASLt call: all that its plan depends on.
struct Call {
  Index m, n, k, lda, ldb, ldc, ldpre;
  DType in, out;
  bool transpose_a, transpose_b, accumulate, bias, tf32, deterministic;
  Epilogue epilogue;
  int align_a, align_b, align_c, align_pre, align_bias;
  int reserved;  // multiprocessors left free
  auto operator<=>(const Call&) const = default;
};

int alignment(const Tensor& t) {
  if (!t.defined()) return kMostAlignment;
  const auto address = reinterpret_cast<std::uintptr_t>(t.data);
  return static_cast<int>(std::min<std::uintptr_t>(address & (~address + 1), kMostAlignment));
}

// cuBLASLt wants a row stride of at least a row, also where one row makes the stride meaningless.
Index row_stride(const Tensor& t) { return t.defined() ? std::max<Index>({t.stride(0), t.dim(1), 1}) : 0; }

Call call_of(const Matmul& op, const Stream& stream) {
  const ComputeSettings& settings = stream.settings();
  return {.m = op.m(),
          .n = op.n(),
          .k = op.k(),
          .lda = row_stride(op.a),
          .ldb = row_stride(op.b),
          .ldc = row_stride(op.c),
          .ldpre = row_stride(op.pre),
          .in = op.a.dtype,
          .out = op.c.dtype,
          .transpose_a = op.transpose_a,
          .transpose_b = op.transpose_b,
          .accumulate = op.write == Write::accumulate,
          .bias = op.bias.defined(),
          .tf32 = settings.tf32 && op.a.dtype == DType::f32,
          .deterministic = settings.deterministic,
          .epilogue = op.epilogue,
          .align_a = alignment(op.a),
          .align_b = alignment(op.b),
          .align_c = alignment(op.c),
          .align_pre = alignment(op.pre),
          .align_bias = alignment(op.bias),
          .reserved = stream.reserved_multiprocessors()};
}

const char* name_of_epilogue(Epilogue e) {
  return e == Epilogue::none ? "" : e == Epilogue::gelu ? ", gelu" : ", gelu gradient";
}

// Names the call in tuned choices.
std::string text_of(const Call& c) {
  return format("matmul {} to {}{}, {}{}, m {} n {} k {}, rows of {} {} {} {}, aligned {} {} {} {} {}{}{}{}{}{}",
                name_of(c.in), name_of(c.out), c.tf32 ? " tf32" : "", c.transpose_a ? "t" : "n",
                c.transpose_b ? "t" : "n", c.m, c.n, c.k, c.lda, c.ldb, c.ldc, c.ldpre, c.align_a, c.align_b, c.align_c,
                c.align_pre, c.align_bias, c.accumulate ? ", added" : "", c.bias ? ", bias" : "",
                name_of_epilogue(c.epilogue), c.deterministic ? ", deterministic" : "",
                c.reserved > 0 ? format(", {} multiprocessors free", c.reserved) : std::string());
}

struct Destroy {
  void operator()(cublasLtMatmulDesc_t d) const { cublasLtMatmulDescDestroy(d); }
  void operator()(cublasLtMatrixLayout_t l) const { cublasLtMatrixLayoutDestroy(l); }
  void operator()(cublasLtMatmulPreference_t p) const { cublasLtMatmulPreferenceDestroy(p); }
};
template <class Handle>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Destroy>;

struct Plan {
  Owned<cublasLtMatmulDesc_t> operation;
  Owned<cublasLtMatrixLayout_t> a, b, c;  // ours
  std::optional<Algorithm> algorithm;     // none: the library has none
  bool measured = false;                  // here or in an earlier run
};

struct MatmulPlans final : cuda::PlanCache {
  std::map<Call, Plan> plans;
};

cudaDataType_t data_type(DType t) { return t == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F; }

template <class T>
void set(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute, const T& value) {
  blas_check(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof value),
             "cublasLtMatmulDescSetAttribute");
}

cublasLtEpilogue_t library_epilogue(const Call& call) {
  switch (call.epilogue) {
    case Epilogue::none:
      return call.bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    case Epilogue::gelu:
      return call.bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
    case Epilogue::gelu_gradient:
      return CUBLASLT_EPILOGUE_DGELU;
  }
  return CUBLASLT_EPILOGUE_DEFAULT;
}

// The addresses that the descriptor holds; the others are arguments of the call.
void set_addresses(const Plan& plan, const Matmul& op) {
  const void* const bias = op.bias.data;
  const void* const pre = op.pre.data;
  if (bias != nullptr) set(plan.operation.get(), CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  if (pre != nullptr) set(plan.operation.get(), CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, pre);
}

Owned<cublasLtMatrixLayout_t> layout(const Tensor& t) {
  cublasLtMatrixLayout_t made = nullptr;
  blas_check(cublasLtMatrixLayoutCreate(&made, data_type(t.dtype), static_cast<std::uint64_t>(t.dim(1)),
                                        static_cast<std::uint64_t>(t.dim(0)), row_stride(t)),
             "cublasLtMatrixLayoutCreate");
  return Owned<cublasLtMatrixLayout_t>(made);
}

Plan describe(const Call& call, const Matmul& op) {
  Plan plan;
  cublasLtMatmulDesc_t operation = nullptr;
  blas_check(
      cublasLtMatmulDescCreate(&operation, call.tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUDA_R_32F),
      "cublasLtMatmulDescCreate");
  plan.operation.reset(operation);
  set(operation, CUBLASLT_MATMUL_DESC_TRANSA, call.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(operation, CUBLASLT_MATMUL_DESC_TRANSB, call.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(operation, CUBLASLT_MATMUL_DESC_EPILOGUE, library_epilogue(call));
  if (call.epilogue != Epilogue::none) set(operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, std::int64_t{call.ldpre});
  if (call.reserved > 0) {
    int device = 0, all = 0;
    cuda_check(cudaGetDevice(&device), "cudaGetDevice");
    cuda_check(cudaDeviceGetAttribute(&all, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
    set(operation, CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET, std::int32_t{std::max(1, all - call.reserved)});
  }
  set_addresses(plan, op);
  plan.a = layout(op.a);
  plan.b = layout(op.b);
  plan.c = layout(op.c);
  return plan;
}

// The library's answers in its order, for reductions of the given schemes.
std::vector<Algorithm> candidates(const CudaState& state, const Plan& plan, const Call& call, std::uint32_t schemes) {
  cublasLtMatmulPreference_t made = nullptr;
  blas_check(cublasLtMatmulPreferenceCreate(&made), "cublasLtMatmulPreferenceCreate");
  const Owned<cublasLtMatmulPreference_t> preference(made);
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    blas_check(cublasLtMatmulPreferenceSetAttribute(made, attribute, &value, sizeof value),
               "cublasLtMatmulPreferenceSetAttribute");
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{cuda::kMatmulWorkspace});
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, schemes);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<std::uint32_t>(call.align_b));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<std::uint32_t>(call.align_a));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<std::uint32_t>(call.align_c));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<std::uint32_t>(call.align_c));
  std::vector<cublasLtMatmulHeuristicResult_t> results(kCandidates);
  int count = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(state.blas(), plan.operation.get(), plan.b.get(), plan.a.get(), plan.c.get(),
                                     plan.c.get(), made, kCandidates, results.data(), &count);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return {};
  blas_check(status, "cublasLtMatmulAlgoGetHeuristic");
  std::vector<Algorithm> found;
  for (int i = 0; i < count; ++i) {
    const cublasLtMatmulHeuristicResult_t& r = results[static_cast<std::size_t>(i)];
    if (r.state == CUBLAS_STATUS_SUCCESS && r.workspaceSize <= cuda::kMatmulWorkspace) found.push_back(r.algo);
  }
  return found;
}

template <class T>
T attribute(const Algorithm& algorithm, cublasLtMatmulAlgoConfigAttributes_t which) {
  T value{};
  std::size_t written = 0;
  blas_check(cublasLtMatmulAlgoConfigGetAttribute(&algorithm, which, &value, sizeof value, &written),
             "cublasLtMatmulAlgoConfigGetAttribute");
  return value;
}

// The library's answers that cut no sum into parts; their order of summation is that of k.
std::vector<Algorithm> whole_sums(const CudaState& state, const Plan& plan, const Call& call) {
  std::vector<Algorithm> found = candidates(state, plan, call, CUBLASLT_REDUCTION_SCHEME_NONE);
  std::erase_if(found, [](const Algorithm& a) {
    return attribute<std::int32_t>(a, CUBLASLT_ALGO_CONFIG_SPLITK_NUM) > 1 ||
           attribute<std::uint32_t>(a, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME) != CUBLASLT_REDUCTION_SCHEME_NONE;
  });
  return found;
}

cublasStatus_t start(Stream& stream, const CudaState& state, const Plan& plan, const Algorithm& algorithm,
                     const Matmul& op, const Tensor& workspace) {
  const float one = 1, beta = op.write == Write::accumulate ? 1.0f : 0.0f;
  return cublasLtMatmul(state.blas(), plan.operation.get(), &one, op.b.data, plan.b.get(), op.a.data, plan.a.get(),
                        &beta, op.c.data, plan.c.get(), op.c.data, plan.c.get(), &algorithm, workspace.data,
                        workspace.bytes(), static_cast<cudaStream_t>(stream.queue().handle()));
}

constexpr std::size_t kWords = sizeof(Algorithm::data) / sizeof(std::uint64_t);

std::string hex(const Algorithm& algorithm) {
  std::string text;
  for (std::size_t i = 0; i < kWords; ++i) text += format("{:016x}", std::uint64_t{algorithm.data[i]});
  return text;
}

// A choice of an earlier run on this GPU model and library.
Algorithm parse(const CudaState& state, const Plan& plan, const std::string& operation, const std::string& text) {
  const auto refuse = [&](const char* why) {
    fail(ExitCode::device, "tuned choice of '{}': '{}' {}; leave the tuned choices out to choose anew", operation, text,
         why);
  };
  if (text.size() != 16 * kWords || text.find_first_not_of("0123456789abcdef") != std::string::npos)
    refuse("is not an algorithm");
  Algorithm algorithm{};
  for (std::size_t i = 0; i < kWords; ++i) algorithm.data[i] = std::stoull(text.substr(16 * i, 16), nullptr, 16);
  cublasLtMatmulHeuristicResult_t result{};
  const cublasStatus_t status = cublasLtMatmulAlgoCheck(state.blas(), plan.operation.get(), plan.b.get(), plan.a.get(),
                                                        plan.c.get(), plan.c.get(), &algorithm, &result);
  if (status != CUBLAS_STATUS_SUCCESS || result.workspaceSize > cuda::kMatmulWorkspace)
    refuse("is refused by cuBLASLt");
  return algorithm;
}

// Times the library's answers on the op's own tensors, whose outputs it leaves with any values, and keeps the best. In
// deterministic mode only those count whose bits are the reference's, so that timing never changes bits; on values that
// tell nothing (most of the result zero) nothing is chosen.
class Tuner {
 public:
  Tuner(Stream& stream, const CudaState& state, const Plan& plan, const Call& call, const Matmul& op,
        const Tensor& workspace)
      : stream_(stream), state_(state), plan_(plan), call_(call), op_(op), workspace_(workspace) {
    for (int i = 0; i <= kRuns; ++i) events_.emplace_back(gpu::Event::Timing::on);
  }

  std::optional<Algorithm> best(const Algorithm& reference) {
    const std::optional<Sums> expected = result_of(reference);
    check(expected.has_value(), "the reference algorithm of '{}' does not run", text_of(call_));
    if (2 * expected->live < static_cast<unsigned long long>(call_.m * call_.n)) return {};
    std::vector<Timed> timed;
    for (const Algorithm& a : all(reference)) {
      const std::optional<Sums> found = result_of(a);
      if (found && (!call_.deterministic || found->hash == expected->hash)) timed.push_back({seconds(a, kRuns), a});
    }
    const auto faster = [](const Timed& x, const Timed& y) { return x.seconds < y.seconds; };
    std::stable_sort(timed.begin(), timed.end(), faster);
    if (timed.size() > kFinalists) timed.resize(kFinalists);
    if (timed.size() > 1) {
      for (Timed& t : timed) t.seconds = hot_seconds(t);
    }
    return std::min_element(timed.begin(), timed.end(), faster)->algorithm;
  }

 private:
  struct Sums {
    unsigned long long hash, live;
  };
  struct Timed {
    double seconds;
    Algorithm algorithm;
  };

  std::vector<Algorithm> all(const Algorithm& reference) const {
    std::vector<Algorithm> found{reference};
    const auto add = [&](const std::vector<Algorithm>& more) {
      for (const Algorithm& a : more) {
        const bool known = std::any_of(found.begin(), found.end(),
                                       [&](const Algorithm& b) { return std::memcmp(&a, &b, sizeof a) == 0; });
        if (!known) found.push_back(a);
      }
    };
    add(candidates(state_, plan_, call_, CUBLASLT_REDUCTION_SCHEME_MASK));
    add(candidates(state_, plan_, call_, CUBLASLT_REDUCTION_SCHEME_NONE));
    return found;
  }

  bool runs(const Algorithm& a) { return start(stream_, state_, plan_, a, op_, workspace_) == CUBLAS_STATUS_SUCCESS; }

  // None: the library refuses to run it.
  std::optional<Sums> result_of(const Algorithm& a) {
    const auto queue = static_cast<cudaStream_t>(stream_.queue().handle());
    if (call_.accumulate) {
      const std::size_t size = size_of(op_.c.dtype);
      cuda_check(cudaMemset2DAsync(op_.c.data, static_cast<std::size_t>(call_.ldc) * size, 0,
                                   static_cast<std::size_t>(call_.n) * size, static_cast<std::size_t>(call_.m), queue),
                 "cudaMemset2DAsync");
    }
    if (!runs(a)) return {};
    auto* const sums = reinterpret_cast<unsigned long long*>(workspace_.data);
    cuda_check(cudaMemsetAsync(sums, 0, sizeof(Sums), queue), "cudaMemsetAsync");
    cuda::add_checksum(stream_, op_.c, sums);
    if (call_.epilogue == Epilogue::gelu) cuda::add_checksum(stream_, op_.pre, sums);
    Sums found{};
    gpu::copy_now(&found, sums, sizeof found);
    return found;
  }

  // Median of `count` runs one after another.
  double seconds(const Algorithm& a, int count) {
    runs(a);
    for (int i = 0; i <= count; ++i) {
      if (i > 0) runs(a);
      events_[static_cast<std::size_t>(i)].record(stream_.queue());
    }
    events_[static_cast<std::size_t>(count)].synchronize();
    std::vector<double> times;
    for (int i = 0; i < count; ++i) {
      const auto at = static_cast<std::size_t>(i);
      times.push_back(events_[at + 1].seconds_since(events_[at]));
    }
    std::nth_element(times.begin(), times.begin() + count / 2, times.end());
    return times[static_cast<std::size_t>(count / 2)];
  }

  // Mean of the second half of kFinalSeconds of runs.
  double hot_seconds(const Timed& t) {
    const int half = std::clamp(static_cast<int>(kFinalSeconds / 2 / t.seconds), kRuns, kMostFinalRuns);
    for (int i = 0; i < 2 * half; ++i) {
      if (i == half) events_[0].record(stream_.queue());
      runs(t.algorithm);
    }
    events_[1].record(stream_.queue());
    events_[1].synchronize();
    return events_[1].seconds_since(events_[0]) / half;
  }

  Stream& stream_;
  const CudaState& state_;
  const Plan& plan_;
  const Call& call_;
  const Matmul& op_;
  const Tensor& workspace_;
  std::vector<gpu::Event> events_;
};

// What the settings allow without measuring.
std::optional<Algorithm> first_answer(const CudaState& state, const Plan& plan, const Call& call) {
  const std::vector<Algorithm> found = call.deterministic
                                           ? whole_sums(state, plan, call)
                                           : candidates(state, plan, call, CUBLASLT_REDUCTION_SCHEME_MASK);
  if (found.empty()) return {};
  return found.front();
}

void note(CudaState& state, const Call& call, bool found) {
  const std::string library = found ? format("cuBLASLt {}", cublasLtGetVersion()) : "our plain kernel";
  state.note(format("matmul {}{}{}: {}", name_of(call.in), call.tf32 ? " as TF32" : "", name_of_epilogue(call.epilogue),
                    library));
}

// c = op(a) op(b) with bias and epilogue in one call of cuBLASLt. False: it has no algorithm for that.
bool library_matmul(Stream& stream, const Matmul& op, const Tensor& workspace) {
  CudaState& state = cuda::state_of(stream);
  if (!state.matmul_plans) state.matmul_plans = std::make_unique<MatmulPlans>();
  std::map<Call, Plan>& plans = static_cast<MatmulPlans&>(*state.matmul_plans).plans;
  const Call call = call_of(op, stream);
  auto at = plans.find(call);
  const bool made = at == plans.end();
  if (made) {
    Plan plan = describe(call, op);
    const std::string operation = text_of(call), choice = state.choice(operation, stream.settings());
    plan.measured = !choice.empty();
    plan.algorithm = plan.measured ? parse(state, plan, operation, choice) : first_answer(state, plan, call);
    note(state, call, plan.algorithm.has_value());
    at = plans.emplace(call, std::move(plan)).first;
  }
  Plan& plan = at->second;
  if (!plan.algorithm) return false;
  if (!made) set_addresses(plan, op);
  if (stream.settings().tune && !plan.measured) {
    if (const auto best = Tuner(stream, state, plan, call, op, workspace).best(*plan.algorithm)) {
      plan.algorithm = best;
      plan.measured = true;
      state.choose(text_of(call), hex(*best));
    }
  }
  blas_check(start(stream, state, plan, *plan.algorithm, op, workspace), "cublasLtMatmul");
  return true;
}

Tensor cuda_workspace(Stream& stream) {
  return stream.workspace().allocate({static_cast<Index>(cuda::kMatmulWorkspace)}, DType::u8);
}

Tensor widened(Stream& stream, const Tensor& bias) {
  const Tensor copy = stream.workspace().allocate(bias.shape, DType::f32);
  cuda::widen(stream, copy, bias);
  return copy;
}

// An operand's terms, or itself as often.
Tensor stacked(Stream& stream, const Matmul& op, bool of_a, const cuda::MatmulParts& parts) {
  const Tensor& t = of_a ? op.a : op.b;
  const cuda::Stacked s = cuda::stacked(op, of_a, parts);
  const Tensor all = stream.workspace().allocate({s.rows, s.stride}, DType::bf16).slice(1, 0, s.columns);
  cuda::stack_terms(stream, all, t, s.below);
  return all;
}

// c = op(a) op(b) + bias, or c += op(a) op(b), whatever the dtypes. REQUIRES: no epilogue.
void product(Stream& stream, const Matmul& op) {
  if (op.k() == 0) {
    cuda::plain_matmul(stream, op);
    return;
  }
  const ArenaScope scope(stream.workspace());
  const Tensor workspace = cuda_workspace(stream);
  const cuda::MatmulParts parts = cuda::matmul_parts(op);
  Matmul call = op;
  if (cuda::stacks(parts, true)) call.a = stacked(stream, op, true, parts);
  if (cuda::stacks(parts, false)) call.b = stacked(stream, op, false, parts);
  if (parts.widen_bias) call.bias = widened(stream, op.bias);
  if (parts.apart) {
    call.c = stream.workspace().allocate(cuda::product_shape(op, parts));
    call.bias = {};
    call.write = Write::overwrite;
  }
  if (!library_matmul(stream, call, workspace)) cuda::plain_matmul(stream, call);
  if (parts.apart) cuda::finish_product(stream, op.c, call.c, op.bias, op.write);
}

// Whether cuBLASLt's GELU epilogues may take the op: they are approximate to bf16's precision, and want rows of `pre`
// that start at multiples of 8 elements.
bool fusable(const Matmul& op) {
  const auto whole = [](const Tensor& t) {
    return t.dtype == DType::bf16 && t.stride(0) % 8 == 0 && alignment(t) == kMostAlignment;
  };
  return op.k() > 0 && op.n() % 8 == 0 && whole(op.c) && whole(op.pre) && op.a.dtype == DType::bf16 &&
         op.b.dtype == DType::bf16 && (!op.bias.defined() || op.bias.dtype == DType::bf16);
}

}  // namespace

void run(Cuda, Stream& stream, const Matmul& op) {
  if (op.m() == 0 || op.n() == 0) return;
  if (op.epilogue == Epilogue::none) {
    product(stream, op);
    return;
  }
  if (fusable(op)) {
    const ArenaScope scope(stream.workspace());
    if (library_matmul(stream, op, cuda_workspace(stream))) return;
  }
  Matmul bare = op;
  bare.epilogue = Epilogue::none;
  bare.pre = {};
  if (op.epilogue == Epilogue::gelu) bare.c = op.pre;
  product(stream, bare);
  if (op.epilogue == Epilogue::gelu)
    run(Cuda{}, stream, GeluForward{.y = op.c, .x = op.pre});
  else
    run(Cuda{}, stream, GeluBackward{.dx = op.c, .dy = op.c, .x = op.pre});
}

}  // namespace dstrain
