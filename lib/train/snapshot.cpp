#include "lib/train/snapshot.h"

#include <algorithm>

#include "lib/core/stream_copy.h"

namespace dstrain {

namespace {
constexpr std::size_t kTile = 4 << 20;  // bytes
}

TensorSlab slab_of(const ParamArena::Entry& entry, const char* role, const Tensor& flat) {
  const Piece& piece = *entry.piece;
  return {.name = piece.name,
          .role = role,
          .global = piece.global,
          .offset = piece.offset,
          .extent = piece.extent,
          .transposed = piece.transposed,
          .data = reinterpret_cast<float*>(flat.data) + entry.range.begin,
          .row_stride = piece.global.rank() == 1 ? piece.extent[0] : piece.columns()};
}

Snapshot::Snapshot(const ParamArena& params, int replica, int replicas) {
  const Tensor* flats[] = {&params.master(), &params.exp_avg(), &params.exp_avg_sq()};
  std::vector<const ParamArena::Entry*> owned;
  for (const ParamArena::Entry& e : params.entries())
    if (e.piece->owned && e.range.size() > 0) owned.push_back(&e);
  std::vector<Index> bytes;  // role by role, so that neighbours in memory are neighbours in the list
  for (int role = 0; role < 3; ++role)
    for (const auto* e : owned) bytes.push_back(e->range.size() * static_cast<Index>(sizeof(float)));
  const std::vector<int> writers = assign_writers(bytes, replicas);

  std::size_t total = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i)
    if (writers[i] == replica) total += static_cast<std::size_t>(bytes[i]);
  memory_ = Buffer("checkpoint snapshot", params.master().device, total);

  std::size_t at = 0;
  std::vector<Copy> runs;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (writers[i] != replica) continue;
    const std::size_t role = i / owned.size();
    TensorSlab slab = slab_of(*owned[i % owned.size()], kRoles[role], *flats[role]);
    const Copy copy{reinterpret_cast<const std::byte*>(slab.data), memory_.data() + at,
                    static_cast<std::size_t>(bytes[i])};
    slab.data = reinterpret_cast<float*>(copy.to);
    slabs_.push_back(slab);
    at += copy.bytes;
    if (!runs.empty() && runs.back().from + runs.back().bytes == copy.from)
      runs.back().bytes += copy.bytes;
    else
      runs.push_back(copy);
  }
  for (const Copy& run : runs)
    for (std::size_t begin = 0; begin < run.bytes; begin += kTile)
      copies_.push_back({run.from + begin, run.to + begin, std::min(kTile, run.bytes - begin)});
}

void Snapshot::take(ThreadPool& pool) {
  pool.parallel_for(static_cast<std::int64_t>(copies_.size()), [&](std::int64_t i) {
    const Copy& c = copies_[static_cast<std::size_t>(i)];
    stream_copy(c.to, c.from, c.bytes);
  });
}

}  // namespace dstrain
