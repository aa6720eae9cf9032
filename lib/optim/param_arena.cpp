#include "lib/optim/param_arena.h"

#include <algorithm>
#include <array>

#include "kernels/elementwise.h"
#include "kernels/split_master.h"
#include "lib/core/transfer.h"

namespace dstrain {

namespace {
constexpr Index kAlign = 64;  // elements
Index aligned(Index n) { return (n + kAlign - 1) / kAlign * kAlign; }

// Decayed with a bf16 gradient, of them those that are spread; decayed, of them those that are spread; not decayed;
// balancing biases.
constexpr int kNarrowSegments = 2, kSegments = 6;
int segment_of(const Param& p, bool bf16_gradients) {
  check(!p.spread || (p.decay && p.rule == UpdateRule::adamw), "only matrices are spread over expert ranks");
  if (p.rule != UpdateRule::adamw) return 5;
  if (!p.decay) return 4;
  return (bf16_gradients && p.one_product ? 0 : kNarrowSegments) + (p.spread ? 1 : 0);
}
}  // namespace

ParamArena::ParamArena(const StageModel& model, Device device, Index bucket_bytes, const WeightFormat& format) {
  std::vector<Param*> params;
  model.visit([&](Param& p) { params.push_back(&p); });
  std::reverse(params.begin(), params.end());
  const bool bf16_gradients = format.bf16_gradients;
  check(!bf16_gradients || format.compute == DType::bf16, "bf16 gradients of f32 weights");
  std::stable_sort(params.begin(), params.end(), [&](const Param* a, const Param* b) {
    return segment_of(*a, bf16_gradients) < segment_of(*b, bf16_gradients);
  });
  place(params, bucket_bytes, bf16_gradients);

  const std::size_t bytes = static_cast<std::size_t>(numel_) * sizeof(float);
  const auto n = static_cast<std::size_t>(numel_);
  weights_ = Buffer("weights", device, n * size_of(format.compute));
  compute_ = Tensor(weights_.data(), format.compute, device, {numel_});
  training_ = format.training;
  split_ = format.split;
  if (!training_) {
    if (format.compute == DType::f32) master_ = compute_;
  } else if (format.compute == DType::f32) {
    master_ = compute_;
  } else if (format.split) {
    masters_ = Buffer("master weights, low bits", device, n * size_of(DType::u16));
    low_ = Tensor(masters_.data(), DType::u16, device, {numel_});
  } else {
    masters_ = Buffer("master weights", device, bytes);
    master_ = Tensor(masters_.data(), DType::f32, device, {numel_});
  }
  if (training_) {
    const std::size_t narrow_bytes = static_cast<std::size_t>(narrow_) * size_of(DType::bf16);
    const std::size_t wide_bytes = static_cast<std::size_t>(numel_ - narrow_) * sizeof(float);
    gradients_ = Buffer("gradients", device, narrow_bytes + wide_bytes);
    optimizer_ = Buffer("optimizer", device, 2 * bytes);
    if (narrow_ > 0) narrow_gradient_ = Tensor(gradients_.data(), DType::bf16, device, {narrow_});
    gradient_ = Tensor(gradients_.data() + narrow_bytes, DType::f32, device, {numel_ - narrow_});
    exp_avg_ = Tensor(optimizer_.data(), DType::f32, device, {numel_});
    exp_avg_sq_ = Tensor(optimizer_.data() + bytes, DType::f32, device, {numel_});
  }
  if (flat_biases_.size() > 0 && master_.defined()) {
    biases_ = master_.slice(0, flat_biases_.begin, flat_biases_.end);
  } else if (flat_biases_.size() > 0) {
    bias_memory_ = Buffer("balancing biases", device, static_cast<std::size_t>(flat_biases_.size()) * sizeof(float));
    biases_ = Tensor(bias_memory_.data(), DType::f32, device, {flat_biases_.size()});
  }
  Index at = 0;
  for (Param* p : params) {
    p->flat = at;
    const auto part = [&](const Tensor& flat) { return flat.slice(0, at, at + p->numel()).view(p->shape); };
    p->compute = part(compute_);
    if (master_.defined()) p->master = part(master_);
    if (low_.defined()) p->low = part(low_);
    if (training_) {
      p->gradient = gradient({at, at + p->numel()}).view(p->shape);
      p->exp_avg = part(exp_avg_);
      p->exp_avg_sq = part(exp_avg_sq_);
    }
    if (p->rule != UpdateRule::adamw) {
      const Index first = at - flat_biases_.begin;
      p->compute = p->master = biases_.slice(0, first, first + p->numel());
      p->low = {};
      counted_.push_back(p);
    }
    at = aligned(at + p->numel());
  }
  find_ready(model);
}

void ParamArena::find_ready(const StageModel& model) {
  for (Bucket& b : buckets_) {
    const auto meets = [&](const FlatRange& r) { return r.begin < b.range.end && b.range.begin < r.end; };
    b.ready_layer = model.layers.size() - 1;
    for (std::size_t i = model.layers.size(); i-- > 0;)
      model.layers[i]->visit([&](Param& p) {
        if (meets(range_of(p))) b.ready_layer = i;
      });
    for (const Entry& e : entries_) b.pre_reduced |= e.piece->reduce != PreReduce::none && meets(e.range);
  }
}

void ParamArena::place(const std::vector<Param*>& params, Index bucket_bytes, bool bf16_gradients) {
  bool run_open = false;
  Index bucket_begin = 0;
  int open = 0;
  const auto close_bucket = [&](Index end) {
    if (end > bucket_begin)
      buckets_.push_back({.range = {bucket_begin, end}, .spread = open < 2 * kNarrowSegments && open % 2 == 1});
    bucket_begin = end;
  };
  std::array<Index, kSegments> ends{};
  const auto open_segment = [&](int next) {
    for (; open < next; ++open) {
      close_bucket(numel_);
      ends[static_cast<std::size_t>(open)] = numel_;
      run_open &= open + 1 != kNarrowSegments;
    }
  };
  for (const Param* p : params) {
    open_segment(segment_of(*p, bf16_gradients));
    const std::size_t element = size_of(open < kNarrowSegments ? DType::bf16 : DType::f32);
    const Index bucket_elements = bucket_bytes / static_cast<Index>(element);
    const Index end = aligned(numel_ + p->numel());
    if (end - bucket_begin > bucket_elements) close_bucket(numel_);
    if (!owned_.empty() && owned_.back().spread != p->spread) run_open = false;
    for (const Piece& piece : p->pieces) {
      const Index begin = numel_ + piece.row * p->row_width();
      const FlatRange range{begin, begin + piece.rows() * piece.columns()};
      entries_.push_back({p, &piece, range});
      if (piece.owned && p->rule == UpdateRule::adamw) {
        count_ += range.size();
        if (p->spread) spread_count_ += range.size();
        if (run_open)
          owned_.back().range.end = range.end;  // what lies between is padding: zeros
        else
          owned_.push_back({range, p->spread});
      }
      run_open = piece.owned || (run_open && range.size() == 0);
    }
    numel_ = end;
  }
  open_segment(kSegments);
  narrow_ = ends[1];
  for (const Segment& s : {Segment{{0, ends[1]}, true}, {{ends[1], ends[3]}, true}, {{ends[3], ends[4]}, false}})
    if (s.range.size() > 0) segments_.push_back(s);
  // Parameters that are spread have one format: all are one product.
  spread_ = ends[1] > ends[0] ? FlatRange{ends[0], ends[1]} : FlatRange{ends[2], ends[3]};
  flat_biases_ = {ends[4], ends[5]};
}

std::array<Tensor, 2> ParamArena::gradients(const FlatRange& range) const {
  std::array<Tensor, 2> parts;
  if (range.begin < narrow_) parts[0] = narrow_gradient_.slice(0, range.begin, std::min(range.end, narrow_));
  if (range.end > narrow_) parts[1] = gradient_.slice(0, std::max(range.begin, narrow_) - narrow_, range.end - narrow_);
  return parts;
}

Tensor ParamArena::gradient(const FlatRange& range) const {
  check(range.end <= narrow_ || range.begin >= narrow_, "gradients [{}, {}) of two formats: those from {} on are f32",
        range.begin, range.end, narrow_);
  return range.begin < narrow_ ? narrow_gradient_.slice(0, range.begin, range.end)
                               : gradient_.slice(0, range.begin - narrow_, range.end - narrow_);
}

Tensor ParamArena::flat(Role role, const FlatRange& range) const {
  if (role == Role::weight && biases_.defined() && range.begin >= flat_biases_.begin)
    return biases_.slice(0, range.begin - flat_biases_.begin, range.end - flat_biases_.begin);
  const Tensor& whole = role == Role::weight ? master_ : role == Role::exp_avg ? exp_avg_ : exp_avg_sq_;
  return whole.defined() ? whole.slice(0, range.begin, range.end) : Tensor{};
}

// As the same weights are rounded in training.
void ParamArena::write_rounded(Stream& stream, const Tensor& to, const float* from) const {
  const auto n = static_cast<std::size_t>(to.numel());
  const Buffer memory("weights on their way", to.device, n * (sizeof(float) + size_of(DType::u16)));
  const Tensor full(memory.data(), DType::f32, to.device, {to.numel()});
  const Tensor low(memory.data() + n * sizeof(float), DType::u16, to.device, {to.numel()});
  upload(stream, full, from);
  if (split_)
    launch(stream, SplitMaster{.hi = to, .low = low, .master = full});
  else
    launch(stream, Cast{.y = to, .x = full});
  stream.synchronize();
}

// The memory is zeros again: gaps between gradients count in norms.
void ParamArena::pass(Stream& stream, const FlatRange& range,
                      const std::function<void(const FlatRange&, const Tensor&)>& use) const {
  const Index most = std::min(range.size(), static_cast<Index>(gradients_.bytes() / sizeof(float)));
  const Tensor memory(gradients_.data(), DType::f32, compute_.device, {most});
  for (Index at = range.begin; at < range.end; at += most) {
    const FlatRange piece{at, std::min(range.end, at + most)};
    use(piece, memory.slice(0, 0, piece.size()));
  }
  if (most > 0) launch(stream, Fill{.y = memory});
}

void ParamArena::write(Stream& stream, Role role, const FlatRange& range, const float* from) const {
  check(training_ || role == Role::weight, "optimizer state of weights that are not trained");
  const auto part = [&](const Tensor& t) { return t.slice(0, range.begin, range.end); };
  const Tensor there = flat(role, range);
  if (!there.defined() && !training_) {
    write_rounded(stream, part(compute_), from);
    return;
  }
  if (!there.defined()) {
    pass(stream, range, [&](const FlatRange& piece, const Tensor& master) {
      upload(stream, master, from + (piece.begin - range.begin));
      launch(stream, SplitMaster{.hi = compute_.slice(0, piece.begin, piece.end),
                                 .low = low_.slice(0, piece.begin, piece.end),
                                 .master = master});
    });
  } else {
    upload(stream, there, from);
    if (role == Role::weight && compute_.dtype != DType::f32) launch(stream, Cast{.y = part(compute_), .x = there});
  }
  stream.synchronize();
}

void ParamArena::read(Stream& stream, Role role, const FlatRange& range, float* to) const {
  check(training_, "the state of weights that are not trained");
  if (const Tensor there = flat(role, range); there.defined())
    download(stream, to, there);
  else
    pass(stream, range, [&](const FlatRange& piece, const Tensor& master) {
      launch(stream, JoinMaster{.master = master,
                                .hi = compute_.slice(0, piece.begin, piece.end),
                                .low = low_.slice(0, piece.begin, piece.end)});
      download(stream, to + (piece.begin - range.begin), master);
    });
  stream.synchronize();
}

void ParamArena::reduce(Stream& stream, const Groups& groups, bool overlapped) const {
  for (const Entry& e : entries_) {
    if (e.piece->reduce == PreReduce::none || e.range.size() == 0) continue;
    ProcessGroup& group = e.piece->reduce == PreReduce::kv_replica ? *groups.kv_replica : *groups.embedding;
    if (group.size() > 1) group.all_reduce(stream, gradient(e.range));
  }
  for (const Bucket& b : buckets_) {
    ProcessGroup& group = b.spread ? *groups.expert_replica : *groups.replica;
    if (group.size() > 1 && (!overlapped || !b.overlaps())) group.all_reduce(stream, gradient(b.range));
  }
}

}  // namespace dstrain
