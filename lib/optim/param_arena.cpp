#include "lib/optim/param_arena.h"

#include <algorithm>

namespace dstrain {

namespace {
constexpr Index kAlign = 64;  // elements
Index aligned(Index n) { return (n + kAlign - 1) / kAlign * kAlign; }
}  // namespace

ParamArena::ParamArena(const StageModel& model, Device device, Index bucket_bytes) {
  std::vector<Param*> params;
  model.visit([&](Param& p) { params.push_back(&p); });
  std::reverse(params.begin(), params.end());
  std::stable_partition(params.begin(), params.end(), [](const Param* p) { return p->decay; });
  place(params, bucket_bytes / static_cast<Index>(sizeof(float)));

  const std::size_t bytes = static_cast<std::size_t>(numel_) * sizeof(float);
  weights_ = Buffer("weights", device, bytes);
  gradients_ = Buffer("gradients", device, bytes);
  optimizer_ = Buffer("optimizer", device, 2 * bytes);
  master_ = Tensor(weights_.data(), DType::f32, device, {numel_});
  gradient_ = Tensor(gradients_.data(), DType::f32, device, {numel_});
  exp_avg_ = Tensor(optimizer_.data(), DType::f32, device, {numel_});
  exp_avg_sq_ = Tensor(optimizer_.data() + bytes, DType::f32, device, {numel_});
  Index at = 0;
  for (Param* p : params) {
    if (!p->decay && at < plain_.begin) at = plain_.begin;
    const auto part = [&](const Tensor& flat) { return flat.slice(0, at, at + p->numel()).view(p->shape); };
    p->master = p->compute = part(master_);
    p->gradient = part(gradient_);
    p->exp_avg = part(exp_avg_);
    p->exp_avg_sq = part(exp_avg_sq_);
    at = aligned(at + p->numel());
  }
}

void ParamArena::place(const std::vector<Param*>& params, Index bucket_elements) {
  bool run_open = false;
  Index bucket_begin = 0;
  const auto close_bucket = [&](Index end) {
    if (end > bucket_begin) buckets_.push_back({bucket_begin, end});
    bucket_begin = end;
  };
  for (const Param* p : params) {
    if (!p->decay && plain_.end == 0 && decayed_.end == 0) {
      decayed_ = {0, numel_};
      plain_.begin = numel_;
      close_bucket(numel_);
    }
    const Index end = aligned(numel_ + p->numel());
    if (end - bucket_begin > bucket_elements) close_bucket(numel_);
    for (const Piece& piece : p->pieces) {
      const Index begin = numel_ + piece.row * p->row_width();
      const FlatRange range{begin, begin + piece.rows() * piece.columns()};
      entries_.push_back({p, &piece, range});
      if (piece.owned) {
        count_ += range.size();
        if (run_open)
          owned_.back().end = range.end;  // what lies between is padding: zeros
        else
          owned_.push_back(range);
      }
      run_open = piece.owned || (run_open && range.size() == 0);
    }
    numel_ = end;
  }
  if (plain_.begin == 0 && plain_.end == 0 && decayed_.end == 0) decayed_ = {0, numel_}, plain_.begin = numel_;
  plain_.end = numel_;
  close_bucket(numel_);
}

void ParamArena::reduce(Stream& stream, const Groups& groups) const {
  for (const Entry& e : entries_) {
    if (e.piece->reduce == PreReduce::none || e.range.size() == 0) continue;
    ProcessGroup& group = e.piece->reduce == PreReduce::kv_replica ? *groups.kv_replica : *groups.embedding;
    if (group.size() > 1) group.all_reduce(stream, gradient_.slice(0, e.range.begin, e.range.end));
  }
  if (groups.replica->size() == 1) return;
  for (const FlatRange& b : buckets_) groups.replica->all_reduce(stream, gradient_.slice(0, b.begin, b.end));
}

}  // namespace dstrain
