#include "lib/comm/host_group.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "lib/comm/reduce.h"
#include "lib/core/clock.h"

namespace dstrain {

namespace {

// A slice of a reduction travels in pieces of this size: what is summed is still in cache.
constexpr std::size_t kPiece = 4u << 20;
// Up to this much received, all members send everything to all and sum it themselves: one round instead of two. The
// sums are the same, and so are the bits.
constexpr std::size_t kOneRound = 64u << 10;

class SilentTransport final : public Transport {
 public:
  SilentTransport(int rank, int size) : rank_(rank), size_(size) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void exchange(std::span<const Part>, std::span<const Part>) override {
    check(false, "rank {} of {} has no peers: a dry world works on dry streams", rank_, size_);
  }

 private:
  int rank_;
  int size_;
};

}  // namespace

std::unique_ptr<Transport> make_silent_transport(int rank, int size) {
  return std::make_unique<SilentTransport>(rank, size);
}

HostGroup::HostGroup(std::string name, std::unique_ptr<Transport> transport, std::size_t cut)
    : name_(std::move(name)),
      transport_(std::move(transport)),
      rank_(transport_->rank()),
      size_(transport_->size()),
      cut_(cut) {
  check(cut > 0 && cut < (1ull << 31), "messages cut at {} bytes", cut);
}

void HostGroup::check_tensor(const Stream& stream, const Tensor& tensor, const char* what) const {
  check(tensor.contiguous(), "{} {}: {} is not contiguous", name_, what, tensor.to_string());
  check(tensor.device == stream.device() || tensor.device == Device::dry || stream.device() == Device::dry,
        "{} {}: {} on a stream of {}", name_, what, tensor.to_string(), name_of(stream.device()));
}

std::byte* HostGroup::scratch(Stream& stream, std::size_t bytes) {
  // A plan for GPUs counts on NCCL, whose memory is its own.
  if (stream.device() == Device::dry && stream.target() == Device::cuda) return nullptr;
  if (scratch_.bytes() < bytes) scratch_ = Buffer("communication", stream.device(), bytes);
  return scratch_.data();
}

void HostGroup::copy(Stream& stream, std::byte* to, const std::byte* from, std::size_t bytes) {
  if (stream.device() != Device::dry && to != from && bytes > 0) std::memcpy(to, from, bytes);
}

void HostGroup::transfer(Stream& stream) {
  if (Ledger* ledger = stream.ledger()) {
    double bytes = 0;
    for (const Part& p : sends_) bytes += static_cast<double>(p.bytes);
    if (size_ > 1) ledger->communication[name_] += bytes;
  }
  const auto cut = [this](std::vector<Part>& parts, std::vector<Part>& pieces) {
    pieces.clear();
    for (const Part& p : parts)
      for (std::size_t at = 0; at < p.bytes; at += cut_)
        pieces.push_back({p.data + at, std::min(cut_, p.bytes - at), p.peer});
    parts.clear();
  };
  if (stream.device() == Device::dry) {
    sends_.clear();
    receives_.clear();
    return;
  }
  cut(sends_, send_pieces_);
  cut(receives_, receive_pieces_);
  if (send_pieces_.empty() && receive_pieces_.empty()) return;
  Ledger* timed = stream.ledger() && stream.ledger()->timed ? stream.ledger() : nullptr;
  const double begin = timed ? system_clock().now() : 0;
  {
    Whereabouts* const here = stream.whereabouts();
    const bool one =
        !receive_pieces_.empty() && std::all_of(receive_pieces_.begin(), receive_pieces_.end(),
                                                [&](const Part& p) { return p.peer == receive_pieces_.front().peer; });
    const Waiting waiting(here, here ? PackedText(name_) : PackedText(), one ? receive_pieces_.front().peer : -1);
    transport_->exchange(send_pieces_, receive_pieces_);
  }
  if (timed) timed->communication_seconds += system_clock().now() - begin;
}

template <class SliceOf>
void HostGroup::reduce_slices(Stream& stream, std::byte* out, std::byte* in, DType dtype, ReduceOp op,
                              SliceOf slice_of) {
  const std::size_t width = size_of(dtype);
  const auto step = static_cast<Index>(std::max<std::size_t>(1, std::min(kPiece, cut_) / width));
  const Slice own = slice_of(rank_);
  Index longest = 0;
  for (int r = 0; r < size_; ++r) longest = std::max(longest, slice_of(r).end - slice_of(r).begin);
  const auto peers = static_cast<std::size_t>(size_ - 1);
  const std::size_t room = static_cast<std::size_t>(std::min(step, own.end - own.begin)) * width;
  std::byte* received = scratch(stream, peers * room);
  for (Index at = 0; at < longest; at += step) {
    const Index count = std::clamp<Index>(own.end - own.begin - at, 0, step);
    std::byte* own_piece = in + static_cast<std::size_t>(own.begin + at) * width;
    contributions_.clear();
    std::size_t slot = 0;
    for (int r = 0; r < size_; ++r) {
      if (r == rank_) {
        contributions_.push_back(own_piece);
        continue;
      }
      const Slice theirs = slice_of(r);
      const Index n = std::clamp<Index>(theirs.end - theirs.begin - at, 0, step);
      if (n > 0) send(in + static_cast<std::size_t>(theirs.begin + at) * width, static_cast<std::size_t>(n) * width, r);
      std::byte* into = stream.device() == Device::dry ? received : received + slot++ * room;
      if (count > 0) receive(into, static_cast<std::size_t>(count) * width, r);
      contributions_.push_back(into);
    }
    transfer(stream);
    if (count > 0 && stream.device() != Device::dry)
      reduce_in_order(&stream.pool(), out + static_cast<std::size_t>(at) * width, contributions_, count, dtype, op);
  }
}

void HostGroup::all_reduce(Stream& stream, const Tensor& tensor, ReduceOp op) {
  check_tensor(stream, tensor, "all_reduce");
  const Index n = tensor.numel();
  if (size_ == 1 || n == 0) return;
  const std::size_t width = size_of(tensor.dtype);
  if (tensor.bytes() * static_cast<std::size_t>(size_ - 1) <= kOneRound && tensor.bytes() <= cut_) {
    std::byte* received = scratch(stream, tensor.bytes() * static_cast<std::size_t>(size_ - 1));
    contributions_.clear();
    for (int r = 0; r < size_; ++r) {
      if (r == rank_) {
        contributions_.push_back(tensor.data);
        continue;
      }
      send(tensor.data, tensor.bytes(), r);
      receive(received, tensor.bytes(), r);
      contributions_.push_back(received);
      if (stream.device() != Device::dry) received += tensor.bytes();
    }
    transfer(stream);
    if (stream.device() != Device::dry)
      reduce_in_order(&stream.pool(), tensor.data, contributions_, n, tensor.dtype, op);
    return;
  }
  const auto slice_of = [&](int r) {
    return Slice{n / size_ * r + n % size_ * r / size_, n / size_ * (r + 1) + n % size_ * (r + 1) / size_};
  };
  const auto place = [&](Slice s) { return tensor.data + static_cast<std::size_t>(s.begin) * width; };
  const auto bytes = [&](Slice s) { return static_cast<std::size_t>(s.end - s.begin) * width; };
  const Slice own = slice_of(rank_);
  reduce_slices(stream, place(own), tensor.data, tensor.dtype, op, slice_of);
  for (int r = 0; r < size_; ++r) {
    if (r == rank_) continue;
    send(place(own), bytes(own), r);
    receive(place(slice_of(r)), bytes(slice_of(r)), r);
  }
  transfer(stream);
}

void HostGroup::reduce_scatter(Stream& stream, const Tensor& out, const Tensor& in) {
  check_tensor(stream, out, "reduce_scatter");
  check_tensor(stream, in, "reduce_scatter");
  const Index n = out.numel();
  check(in.numel() == n * size_ && in.dtype == out.dtype, "{} reduce_scatter: {} into {}, {} members", name_,
        in.to_string(), out.to_string(), size_);
  if (size_ == 1) return copy(stream, out.data, in.data, out.bytes());
  reduce_slices(stream, out.data, in.data, in.dtype, ReduceOp::sum, [n](int r) { return Slice{n * r, n * (r + 1)}; });
}

void HostGroup::all_gather(Stream& stream, const Tensor& out, const Tensor& in) {
  check_tensor(stream, out, "all_gather");
  check_tensor(stream, in, "all_gather");
  check(out.numel() == in.numel() * size_ && in.dtype == out.dtype, "{} all_gather: {} into {}, {} members", name_,
        in.to_string(), out.to_string(), size_);
  const std::size_t bytes = in.bytes();
  for (int r = 0; r < size_; ++r) {
    if (r == rank_) continue;
    send(in.data, bytes, r);
    receive(out.data + static_cast<std::size_t>(r) * bytes, bytes, r);
  }
  transfer(stream);
  copy(stream, out.data + static_cast<std::size_t>(rank_) * bytes, in.data, bytes);
}

void HostGroup::all_to_all(Stream& stream, const Tensor& out, const Tensor& in, std::span<const Index> receive_counts,
                           std::span<const Index> send_counts) {
  check_tensor(stream, out, "all_to_all");
  check_tensor(stream, in, "all_to_all");
  const auto members = static_cast<std::size_t>(size_);
  check(receive_counts.size() == members && send_counts.size() == members && in.dtype == out.dtype,
        "{} all_to_all: {} send and {} receive counts for {} members, {} to {}", name_, send_counts.size(),
        receive_counts.size(), size_, in.to_string(), out.to_string());
  const std::size_t width = size_of(in.dtype);
  std::size_t from = 0, to = 0;
  const std::byte* own_from = nullptr;
  std::byte* own_to = nullptr;
  for (std::size_t r = 0; r < members; ++r) {
    check(send_counts[r] >= 0 && receive_counts[r] >= 0, "{} all_to_all: negative count for member {}", name_, r);
    const std::size_t sent = static_cast<std::size_t>(send_counts[r]) * width;
    const std::size_t taken = static_cast<std::size_t>(receive_counts[r]) * width;
    if (static_cast<int>(r) == rank_) {
      check(sent == taken, "{} all_to_all: member {} sends {} bytes to itself and receives {}", name_, r, sent, taken);
      own_from = in.data + from;
      own_to = out.data + to;
    } else {
      send(in.data + from, sent, static_cast<int>(r));
      receive(out.data + to, taken, static_cast<int>(r));
    }
    from += sent;
    to += taken;
  }
  check(from <= in.bytes() && to <= out.bytes(), "{} all_to_all: counts of {} and {} bytes, tensors {} and {}", name_,
        from, to, in.to_string(), out.to_string());
  transfer(stream);
  copy(stream, own_to, own_from, static_cast<std::size_t>(send_counts[static_cast<std::size_t>(rank_)]) * width);
}

void HostGroup::broadcast(Stream& stream, const Tensor& tensor, int root) {
  check_tensor(stream, tensor, "broadcast");
  check(root >= 0 && root < size_, "{} broadcast: root {} of {}", name_, root, size_);
  // A binomial tree over places counted from the root.
  const int place = (rank_ - root + size_) % size_;
  const auto member = [&](int at) { return (at + root) % size_; };
  int step = 1;
  while (step < size_ && (place & step) == 0) step <<= 1;
  if (place != 0) {
    receive(tensor.data, tensor.bytes(), member(place - step));
    transfer(stream);
  }
  for (step >>= 1; step > 0; step >>= 1)
    if (place + step < size_) send(tensor.data, tensor.bytes(), member(place + step));
  transfer(stream);
}

void HostGroup::exchange(Stream& stream, std::span<const Send> sends, std::span<const Receive> receives) {
  std::size_t next_own = 0;
  for (const Receive& r : receives) {
    check_tensor(stream, r.tensor, "exchange");
    check(r.from >= 0 && r.from < size_, "{} exchange: receive from {} of {}", name_, r.from, size_);
    if (r.from != rank_) {
      receive(r.tensor.data, r.tensor.bytes(), r.from);
      continue;
    }
    while (next_own < sends.size() && sends[next_own].to != rank_) ++next_own;
    check(next_own < sends.size() && sends[next_own].tensor.bytes() == r.tensor.bytes(),
          "{} exchange: a receive from itself without its send", name_);
    copy(stream, r.tensor.data, sends[next_own++].tensor.data, r.tensor.bytes());
  }
  for (const Send& s : sends) {
    check_tensor(stream, s.tensor, "exchange");
    check(s.to >= 0 && s.to < size_, "{} exchange: send to {} of {}", name_, s.to, size_);
    if (s.to != rank_) send(s.tensor.data, s.tensor.bytes(), s.to);
  }
  transfer(stream);
}

void HostGroup::barrier(Stream& stream) {
  // Dissemination: after round k a member has heard, directly or not, of 2^k before it.
  std::byte out{}, in{};
  for (int step = 1; step < size_; step <<= 1) {
    send(&out, 1, (rank_ + step) % size_);
    receive(&in, 1, (rank_ - step + size_) % size_);
    transfer(stream);
  }
}

}  // namespace dstrain
