#include "lib/train/snapshot.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/split_master.h"
#include "lib/core/stream_copy.h"

namespace dstrain {

namespace {
constexpr std::size_t kTile = 4 << 20;              // bytes that one thread copies at a time
constexpr Index kStagingElements = Index{1} << 24;  // of a split master on its way to the host
constexpr Index kLine = 64;                         // elements; parts are cut between lines
}  // namespace

TensorSlab slab_of(const ParamArena::Entry& entry, Role role, float* data) {
  const Piece& piece = *entry.piece;
  return {.name = piece.name,
          .role = kRoles[static_cast<std::size_t>(role)],
          .global = piece.global,
          .offset = piece.offset,
          .extent = piece.extent,
          .transposed = piece.transposed,
          .data = data,
          .row_stride = piece.global.rank() == 1 ? piece.extent[0] : piece.columns()};
}

Snapshot::Snapshot(const ParamArena& params, const Groups& groups, std::size_t device_buffer) : params_(params) {
  struct Item {
    const ParamArena::Entry* entry;
    Role role;
    Index bytes;
    bool here = false;
  };
  std::vector<Item> saved;  // role by role, so that neighbours in memory are neighbours in the list
  for (const Role role : {Role::weight, Role::exp_avg, Role::exp_avg_sq})
    for (const ParamArena::Entry& e : params.entries())
      if (e.piece->owned && e.range.size() > 0)
        saved.push_back({&e, role, e.range.size() * static_cast<Index>(sizeof(float))});
  for (const bool spread : {false, true}) {
    const ProcessGroup& holders = spread ? *groups.expert_replica : *groups.replica;
    std::vector<Item*> alike;
    std::vector<Index> bytes;
    for (Item& s : saved)
      if (s.entry->param->spread == spread) {
        alike.push_back(&s);
        bytes.push_back(s.bytes);
      }
    const std::vector<int> writers = assign_writers(bytes, holders.size());
    for (std::size_t i = 0; i < alike.size(); ++i) alike[i]->here = writers[i] == holders.rank();
  }
  std::erase_if(saved, [](const Item& s) { return !s.here; });

  std::size_t total = 0;
  for (const Item& s : saved) total += static_cast<std::size_t>(s.bytes);
  const Device device = params.compute().device;
  const char* const purpose = "checkpoint snapshot";
  memory_ = device == Device::cuda ? Buffer::pinned(purpose, total) : Buffer(purpose, device, total);
  if (params.low().defined()) staging_bytes_ = kStagingElements * sizeof(float);

  std::size_t at = 0;
  for (const Item& s : saved) {
    const ParamArena::Entry& entry = *s.entry;
    const Role role = s.role;
    std::byte* const to = memory_.data() + at;
    slabs_.push_back(slab_of(entry, role, reinterpret_cast<float*>(to)));
    at += static_cast<std::size_t>(s.bytes);
    if (!parts_.empty() && parts_.back().role == role && parts_.back().range.end == entry.range.begin &&
        entry.param->rule == UpdateRule::adamw)
      parts_.back().range.end = entry.range.end;
    else
      parts_.push_back({role, entry.range, to});
  }
  hold_begin(device_buffer);
  if (device != Device::cuda) return;
  gpu_.emplace();
  gpu_->staging = Buffer("snapshot staging", device, staging_bytes_);
  gpu_->held = Buffer("checkpoint.device_buffer_bytes", device, held_bytes_);
  for (Part& part : parts_)
    if (part.held) part.on_device = gpu_->held.data() + (part.to - memory_.data());
}

// At most so many bytes at the beginning of the copy, whole parts and the whole lines of one more, are held: masters
// first, whose halves are then joined one after another and not in the pauses of a copy to the host.
void Snapshot::hold_begin(std::size_t bytes) {
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    const auto fits = static_cast<Index>((bytes - held_bytes_) / sizeof(float));
    const Part part = parts_[i];
    const Index size = part.range.size(), held = size <= fits ? size : fits / kLine * kLine;
    if (held == 0) return;
    held_bytes_ += static_cast<std::size_t>(held) * sizeof(float);
    parts_[i].held = true;
    if (held == size) continue;
    parts_[i].range.end = part.range.begin + held;
    parts_.insert(
        parts_.begin() + static_cast<std::ptrdiff_t>(i) + 1,
        {part.role, {part.range.begin + held, part.range.end}, part.to + held * static_cast<Index>(sizeof(float))});
    return;
  }
}

void Snapshot::take(Stream& stream) {
  if (!gpu_) return copy_parts(stream);
  gpu_->ready.record(stream.queue());
  gpu_->queue.wait(gpu_->ready);
  Stream own(Device::cuda, Device::cuda, nullptr, nullptr, nullptr, &gpu_->queue);
  copy_parts(own);
  gpu_->copied.record(gpu_->queue);
  gpu_->queue.copy(memory_.data(), gpu_->held.data(), held_bytes_);
  gpu_->complete.record(gpu_->queue);
}

void Snapshot::copy_parts(Stream& stream) {
  struct Tile {
    std::byte* to;
    const std::byte* from;
    std::size_t bytes;
  };
  std::vector<Tile> tiles;
  for (const Part& part : parts_) {
    const auto bytes = static_cast<std::size_t>(part.range.size()) * sizeof(float);
    const FlatRange& biases = params_.flat_biases();
    const bool bias = part.role == Role::weight && biases.size() > 0 && part.range.begin >= biases.begin;
    if (part.role == Role::weight && params_.low().defined() && !bias) {
      for (Index begin = part.range.begin; begin < part.range.end; begin += kStagingElements) {
        const Index end = std::min(part.range.end, begin + kStagingElements), n = end - begin;
        float* const to = reinterpret_cast<float*>(part.to) + (begin - part.range.begin);
        std::byte* const held =
            part.on_device ? part.on_device + (reinterpret_cast<std::byte*>(to) - part.to) : nullptr;
        std::byte* const made = held ? held : gpu_ ? gpu_->staging.data() : reinterpret_cast<std::byte*>(to);
        const Tensor joined(made, DType::f32, stream.device(), {n});
        launch(stream, JoinMaster{.master = joined,
                                  .hi = params_.compute().slice(0, begin, end),
                                  .low = params_.low().slice(0, begin, end)});
        if (gpu_ && !held) stream.queue().copy(to, joined.data, joined.bytes());
      }
      continue;
    }
    const Tensor& flat = bias                         ? params_.biases()
                         : part.role == Role::weight  ? params_.master()
                         : part.role == Role::exp_avg ? params_.exp_avg()
                                                      : params_.exp_avg_sq();
    const Index first = part.range.begin - (bias ? biases.begin : 0);
    const std::byte* const from = flat.data + first * static_cast<Index>(sizeof(float));
    if (gpu_) {
      stream.queue().copy(part.on_device ? part.on_device : part.to, from, bytes);
      continue;
    }
    for (std::size_t begin = 0; begin < bytes; begin += kTile)
      tiles.push_back({part.to + begin, from + begin, std::min(kTile, bytes - begin)});
  }
  if (tiles.empty()) return;
  stream.pool().parallel_for(static_cast<std::int64_t>(tiles.size()), [&](std::int64_t i) {
    const Tile& t = tiles[static_cast<std::size_t>(i)];
    stream_copy(t.to, t.from, t.bytes);
  });
}

void Snapshot::require_finite() const {
  for (const TensorSlab& slab : slabs_) {
    const Index n = slab.extent.numel();
    int bad = 0;
    for (Index i = 0; i < n; ++i) bad |= std::fabs(slab.data[i]) <= std::numeric_limits<float>::max() ? 0 : 1;
    require(bad == 0, ExitCode::nonfinite, "{} of {} holds a value that is not finite", slab.role, slab.name);
  }
}

void Snapshot::wait() const {
  if (gpu_) gpu_->complete.synchronize();
}

}  // namespace dstrain
