#include "kernels/router.h"

#include "kernels/cuda/device/dispatch.cuh"

namespace dstrain {

namespace {

constexpr int kWarps = 4;  // rows of a block: a warp takes a row
constexpr unsigned kAll = 0xffffffffu;

// A value and where it stands. Larger comes first, then the lower index; NaN comes last.
struct Candidate {
  float value;
  int index;
};
__device__ bool comes_before(const Candidate& a, const Candidate& b) {
  const bool a_nan = isnan(a.value), b_nan = isnan(b.value);
  if (a_nan || b_nan) return a_nan == b_nan ? a.index < b.index : b_nan;
  return a.value > b.value || (a.value == b.value && a.index < b.index);
}
__device__ Candidate first_of(Candidate a, const Candidate& b) {
  if (b.index >= 0 && (a.index < 0 || comes_before(b, a))) a = b;
  return a;
}

// The first of n values that are open, by a warp; every lane gets it.
__device__ Candidate warp_first(const float* values, const unsigned char* open, int n) {
  Candidate best{0, -1};
  for (int i = static_cast<int>(threadIdx.x) % 32; i < n; i += 32)
    if (open[i]) best = first_of(best, {values[i], i});
  for (int d = 16; d > 0; d /= 2)
    best = first_of(best, {__shfl_xor_sync(kAll, best.value, d), __shfl_xor_sync(kAll, best.index, d)});
  return best;
}

// Opens are closed as they are chosen: chosen[i] becomes 1.
__device__ void warp_choose(const float* values, unsigned char* open, unsigned char* chosen, int n, int top) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int i = lane; i < n; i += 32) chosen[i] = 0;
  __syncwarp();
  for (int k = 0; k < top; ++k) {
    const Candidate best = warp_first(values, open, n);
    if (lane == 0) {
      chosen[best.index] = 1;
      open[best.index] = 0;
    }
    __syncwarp();
  }
}

// The sum of the best `count` of n values, the largest first; by one lane.
__device__ float best_sum(const float* values, int n, int count) {
  float sum = 0;
  Candidate last{0, -1};
  for (int k = 0; k < count && k < n; ++k) {
    Candidate best{0, -1};
    for (int i = 0; i < n; ++i) {
      const Candidate c{values[i], i};
      if (last.index >= 0 && !comes_before(last, c)) continue;
      best = first_of(best, c);
    }
    sum += best.value;
    last = best;
  }
  return sum;
}

struct Routing {
  float *scores, *weights;
  std::int32_t* experts;
  const float *logits, *bias;
  Index rows;
  int all, top;
  RouterRule rule;
};

// Shared memory of a warp: (all) values, (all) group scores, (all) open, (all) chosen.
__global__ void __launch_bounds__(32 * kWarps) route_kernel(Routing r) {
  extern __shared__ float memory[];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const Index row = static_cast<Index>(blockIdx.x) * kWarps + warp;
  if (row >= r.rows) return;
  const int n = r.all, groups = static_cast<int>(r.rule.groups), size = n / groups;
  float* const values = memory + warp * 2 * n;
  float* const group_scores = values + n;
  auto* const open = reinterpret_cast<unsigned char*>(memory + kWarps * 2 * n) + warp * 2 * n;
  unsigned char* const chosen = open + n;
  const float* const logits = r.logits + row * n;
  float* const scores = r.scores + row * n;
  if (r.rule.scoring == RouterScores::sigmoid) {
    for (int e = lane; e < n; e += 32) values[e] = scores[e] = 1.0f / (1.0f + expf(-logits[e]));
  } else {
    float most = -INFINITY, sum = 0;
    for (int e = lane; e < n; e += 32) most = fmaxf(most, logits[e]);
    most = cuda::warp_max(most);
    for (int e = lane; e < n; e += 32) sum += values[e] = expf(logits[e] - most);
    sum = cuda::warp_sum(sum);
    for (int e = lane; e < n; e += 32) values[e] = scores[e] = values[e] / sum;
  }
  for (int e = lane; e < n; e += 32) {
    if (r.bias) values[e] += r.bias[e];
    open[e] = 1;
  }
  __syncwarp();
  if (r.rule.top_groups < groups) {
    for (int g = lane; g < groups; g += 32)
      group_scores[g] = best_sum(values + g * size, size, static_cast<int>(r.rule.group_best));
    __syncwarp();
    warp_choose(group_scores, open, chosen, groups, static_cast<int>(r.rule.top_groups));
    for (int e = lane; e < n; e += 32) open[e] = chosen[e / size];
    __syncwarp();
  }
  warp_choose(values, open, chosen, n, r.top);
  if (lane != 0) return;
  std::int32_t* const experts = r.experts + row * r.top;
  float* const weights = r.weights + row * r.top;
  float sum = 0;
  for (int e = 0, k = 0; e < n; ++e) {
    if (!chosen[e]) continue;
    experts[k] = e;
    sum += weights[k++] = scores[e];
  }
  for (int k = 0; k < r.top; ++k)
    weights[k] = (r.rule.normalize ? weights[k] / (sum + 1e-20f) : weights[k]) * r.rule.scale;
}

struct Gradient {
  float* dlogits;
  const float *dweights, *scores, *balance;
  float coefficient;
  const std::int32_t* experts;
  Index rows, length;
  int all, top;
  RouterRule rule;
};

// Shared memory of a warp: (all) gradients of the scores.
__global__ void __launch_bounds__(32 * kWarps) route_gradient_kernel(Gradient g) {
  extern __shared__ float memory[];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const Index row = static_cast<Index>(blockIdx.x) * kWarps + warp;
  if (row >= g.rows) return;
  float* const dscores = memory + warp * g.all;
  const float* const scores = g.scores + row * g.all;
  if (g.balance) {
    const float* const f = g.balance + row / g.length * g.all;
    float sum = 0, dot = 0;
    for (int e = lane; e < g.all; e += 32) {
      sum += scores[e];
      dot += f[e] * scores[e];
    }
    sum = cuda::warp_sum(sum);
    dot = cuda::warp_sum(dot);
    for (int e = lane; e < g.all; e += 32) dscores[e] = g.coefficient * (f[e] - dot / sum) / sum;
  } else {
    for (int e = lane; e < g.all; e += 32) dscores[e] = 0;
  }
  __syncwarp();
  if (lane == 0) {
    const float* const dweights = g.dweights + row * g.top;
    const std::int32_t* const experts = g.experts + row * g.top;
    float sum = 0, dot = 0;
    for (int k = 0; k < g.top; ++k) {
      sum += scores[experts[k]];
      dot += dweights[k] * scores[experts[k]];
    }
    sum += 1e-20f;
    for (int k = 0; k < g.top; ++k)
      dscores[experts[k]] += g.rule.scale * (g.rule.normalize ? (dweights[k] - dot / sum) / sum : dweights[k]);
  }
  __syncwarp();
  float all = 0;
  if (g.rule.scoring == RouterScores::softmax) {
    for (int e = lane; e < g.all; e += 32) all += dscores[e] * scores[e];
    all = cuda::warp_sum(all);
  }
  for (int e = lane; e < g.all; e += 32)
    g.dlogits[row * g.all + e] = g.rule.scoring == RouterScores::sigmoid ? dscores[e] * scores[e] * (1.0f - scores[e])
                                                                         : scores[e] * (dscores[e] - all);
}

constexpr int kOrderThreads = 1024;  // choices of a block

// What ExpertOrder says of a choice's group.
struct Grouping {
  const std::int32_t* experts;
  Index n;
  int first, width, all, top;
  bool distinct;
  __device__ int group_of(Index c) const {
    const int from = experts[c] - first;
    return from < 0 || from >= all * width ? -1 : from / width;
  }
  __device__ int place_of(Index c) const {
    const int group = group_of(c);
    return distinct && c % top > 0 && group_of(c - 1) == group ? -1 : group;
  }
};

// counts (blocks, groups) of each block's choices.
__global__ void __launch_bounds__(kOrderThreads) order_count_kernel(std::int32_t* counts, Grouping grouping) {
  __shared__ std::int32_t mine[kMostExperts];
  const int all = grouping.all;
  for (int e = static_cast<int>(threadIdx.x); e < all; e += kOrderThreads) mine[e] = 0;
  __syncthreads();
  const Index c = static_cast<Index>(blockIdx.x) * kOrderThreads + threadIdx.x;
  const int g = c < grouping.n ? grouping.place_of(c) : -1;
  if (g >= 0) atomicAdd(&mine[g], 1);
  __syncthreads();
  for (int e = static_cast<int>(threadIdx.x); e < all; e += kOrderThreads)
    counts[static_cast<Index>(blockIdx.x) * all + e] = mine[e];
}

// One block: counts become the first place of each block's choices of an expert; offsets.
__global__ void __launch_bounds__(kOrderThreads)
    order_scan_kernel(std::int32_t* counts, std::int32_t* offsets, Index blocks, int all) {
  __shared__ std::int32_t sums[kMostExperts + 1];
  const int e = static_cast<int>(threadIdx.x);
  std::int32_t total = 0;
  if (e < all) {
#pragma unroll 8
    for (Index b = 0; b < blocks; ++b) total += counts[b * all + e];
    sums[e + 1] = total;
  }
  if (e == 0) sums[0] = 0;
  __syncthreads();
  for (int d = 1; d < all; d *= 2) {
    const std::int32_t add = e < all && e + 1 > d ? sums[e + 1 - d] : 0;
    __syncthreads();
    if (e < all && e + 1 > d) sums[e + 1] += add;
    __syncthreads();
  }
  if (e < all) {
    std::int32_t at = sums[e];
#pragma unroll 8
    for (Index b = 0; b < blocks; ++b) {
      const std::int32_t here = counts[b * all + e];
      counts[b * all + e] = at;
      at += here;
    }
    offsets[e + 1] = sums[e + 1];
  }
  if (e == 0) offsets[0] = 0;
}

__global__ void __launch_bounds__(kOrderThreads)
    order_place_kernel(std::int32_t* place, std::int32_t* choice_at, std::int32_t* row_at, const std::int32_t* counts,
                       Grouping grouping, Index room) {
  __shared__ std::int32_t next[kMostExperts];
  const int all = grouping.all;
  for (int e = static_cast<int>(threadIdx.x); e < all; e += kOrderThreads)
    next[e] = counts[static_cast<Index>(blockIdx.x) * all + e];
  const Index c = static_cast<Index>(blockIdx.x) * kOrderThreads + threadIdx.x;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int e = c < grouping.n ? grouping.place_of(c) : -1;
  const unsigned same = __match_any_sync(kAll, e);
  const int before = __popc(same & ((1u << lane) - 1));
  __syncthreads();
  std::int32_t at = 0;
  for (int w = 0; w < kOrderThreads / 32; ++w) {  // in the order of the choices
    if (w == warp && e >= 0) at = next[e] + before;
    __syncwarp();
    if (w == warp && e >= 0 && before == 0) next[e] += __popc(same);
    __syncthreads();
  }
  if (c >= grouping.n) return;
  place[c] = e < 0 ? -1 : at;
  if (e < 0 || at >= room) return;
  choice_at[at] = static_cast<std::int32_t>(c);
  row_at[at] = static_cast<std::int32_t>(c / grouping.top);
}

__global__ void counts_kernel(float* counts, const std::int32_t* offsets, int all, bool accumulate) {
  const int e = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (e >= all) return;
  const float n = static_cast<float>(offsets[e + 1] - offsets[e]);
  counts[e] = accumulate ? counts[e] + n : n;
}

constexpr int kLoadWarps = 8;

// A block takes a sequence. Shared memory: (all) counts, of a warp (all) open and (all) chosen.
__global__ void __launch_bounds__(32 * kLoadWarps)
    load_kernel(float* load, const float* scores, Index length, int all, int top) {
  extern __shared__ std::int32_t counts[];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  auto* const open = reinterpret_cast<unsigned char*>(counts + all) + warp * 2 * all;
  unsigned char* const chosen = open + all;
  for (int e = static_cast<int>(threadIdx.x); e < all; e += 32 * kLoadWarps) counts[e] = 0;
  __syncthreads();
  for (Index t = warp; t < length; t += kLoadWarps) {
    for (int e = lane; e < all; e += 32) open[e] = 1;
    __syncwarp();
    warp_choose(scores + (static_cast<Index>(blockIdx.x) * length + t) * all, open, chosen, all, top);
    for (int e = lane; e < all; e += 32)
      if (chosen[e]) atomicAdd(&counts[e], 1);
    __syncwarp();
  }
  __syncthreads();
  const float factor = static_cast<float>(all) / static_cast<float>(top * length);
  for (int e = static_cast<int>(threadIdx.x); e < all; e += 32 * kLoadWarps)
    load[static_cast<Index>(blockIdx.x) * all + e] = factor * static_cast<float>(counts[e]);
}

// One block of a thread an expert. Sums of integers below 2^53: exact in any order.
__global__ void __launch_bounds__(kMostExperts)
    balance_kernel(float* bias, const float* counts, const float* scalars, int all, float rate) {
  __shared__ double sums[kMostExperts / 32];
  const int e = static_cast<int>(threadIdx.x);
  const double count = e < all ? static_cast<double>(counts[e]) : 0.0;
  const double warp = cuda::warp_sum(count);
  if (e % 32 == 0) sums[e / 32] = warp;
  __syncthreads();
  if (e >= all || !isfinite(scalars[1])) return;
  double sum = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x) / 32; ++w) sum += sums[w];
  const double mean = sum / all;
  bias[e] += count < mean ? rate : count > mean ? -rate : 0.0f;
}

}  // namespace

void run(Cuda, Stream& stream, const Route& op) {
  const Index rows = op.logits.dim(0), n = op.logits.dim(1);
  if (rows == 0) return;
  const std::size_t shared = static_cast<std::size_t>(kWarps * n) * (2 * sizeof(float) + 2);
  route_kernel<<<cuda::grid(cuda::div_up(rows, kWarps)), 32 * kWarps, shared, cuda::stream_of(stream)>>>(
      {.scores = op.scores.as<float>(),
       .weights = op.weights.as<float>(),
       .experts = op.experts.as<std::int32_t>(),
       .logits = op.logits.as<float>(),
       .bias = op.bias.defined() ? op.bias.as<float>() : nullptr,
       .rows = rows,
       .all = static_cast<int>(n),
       .top = static_cast<int>(op.experts.dim(1)),
       .rule = op.rule});
  cuda::check_launch("route");
}

void run(Cuda, Stream& stream, const RouteGradient& op) {
  const Index rows = op.scores.dim(0), n = op.scores.dim(1);
  if (rows == 0) return;
  const bool balanced = op.balance.defined();
  const std::size_t shared = static_cast<std::size_t>(kWarps * n) * sizeof(float);
  route_gradient_kernel<<<cuda::grid(cuda::div_up(rows, kWarps)), 32 * kWarps, shared, cuda::stream_of(stream)>>>(
      {.dlogits = op.dlogits.as<float>(),
       .dweights = op.dweights.as<float>(),
       .scores = op.scores.as<float>(),
       .balance = balanced ? op.balance.as<float>() : nullptr,
       .coefficient = op.coefficient,
       .experts = op.experts.as<std::int32_t>(),
       .rows = rows,
       .length = balanced ? rows / op.balance.dim(0) : 1,
       .all = static_cast<int>(n),
       .top = static_cast<int>(op.experts.dim(1)),
       .rule = op.rule});
  cuda::check_launch("route_gradient");
}

void run(Cuda, Stream& stream, const ExpertOrder& op) {
  const Index n = op.experts.numel(), blocks = cuda::div_up(n, kOrderThreads);
  const Grouping grouping{.experts = op.experts.as<std::int32_t>(),
                          .n = n,
                          .first = static_cast<int>(op.first),
                          .width = static_cast<int>(op.width),
                          .all = static_cast<int>(op.groups()),
                          .top = static_cast<int>(op.experts.dim(1)),
                          .distinct = op.distinct};
  const ArenaScope scope(stream.workspace());
  const Tensor counts = stream.workspace().allocate({blocks, op.groups()}, DType::i32);
  const cudaStream_t s = cuda::stream_of(stream);
  if (n > 0) {
    order_count_kernel<<<cuda::grid(blocks), kOrderThreads, 0, s>>>(counts.as<std::int32_t>(), grouping);
    cuda::check_launch("expert_order");
  }
  order_scan_kernel<<<1, kOrderThreads, 0, s>>>(counts.as<std::int32_t>(), op.offsets.as<std::int32_t>(), blocks,
                                                grouping.all);
  cuda::check_launch("expert_order");
  if (n == 0) return;
  order_place_kernel<<<cuda::grid(blocks), kOrderThreads, 0, s>>>(
      op.place.as<std::int32_t>(), op.choice_at.as<std::int32_t>(), op.row_at.as<std::int32_t>(),
      counts.as<std::int32_t>(), grouping, op.choice_at.dim(0));
  cuda::check_launch("expert_order");
}

void run(Cuda, Stream& stream, const ExpertCounts& op) {
  const Index n = op.counts.dim(0);
  counts_kernel<<<cuda::grid(cuda::div_up(n, 256)), 256, 0, cuda::stream_of(stream)>>>(
      op.counts.as<float>(), op.offsets.as<std::int32_t>(), static_cast<int>(n), op.write == Write::accumulate);
  cuda::check_launch("expert_counts");
}

void run(Cuda, Stream& stream, const SequenceLoad& op) {
  const Index n = op.scores.dim(1), sequences = op.load.dim(0);
  const std::size_t shared = static_cast<std::size_t>(n) * (sizeof(std::int32_t) + 2 * kLoadWarps);
  load_kernel<<<cuda::grid(sequences), 32 * kLoadWarps, shared, cuda::stream_of(stream)>>>(
      op.load.as<float>(), op.scores.as<float>(), op.scores.dim(0) / sequences, static_cast<int>(n),
      static_cast<int>(op.top));
  cuda::check_launch("sequence_load");
}

void run(Cuda, Stream& stream, const BalanceUpdate& op) {
  const Index n = op.bias.dim(0);
  balance_kernel<<<1, static_cast<unsigned>(cuda::div_up(n, 32) * 32), 0, cuda::stream_of(stream)>>>(
      op.bias.as<float>(), op.counts.as<float>(), op.scalars.as<float>(), static_cast<int>(n), op.rate);
  cuda::check_launch("balance_update");
}

}  // namespace dstrain
