#include "lib/layers/expert_exchange.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/elementwise.h"
#include "kernels/experts.h"
#include "kernels/router.h"
#include "lib/core/transfer.h"

namespace dstrain {

namespace {

// Where the offsets by expert begin in a member's numbers.
Index experts_at(Index members) { return (members + 64) / 64 * 64; }
Index width_of(Index members, Index experts) { return experts_at(members) + (experts + 64) / 64 * 64; }

Index sum(const std::vector<Index>& v) { return std::accumulate(v.begin(), v.end(), Index{0}); }

}  // namespace

ExpertExchange::ExpertExchange(ProcessGroup& group, Device device, const Sizes& sizes, Stream* lane)
    : group_(group), device_(device), sizes_(sizes), lane_(lane) {
  const Index members = group.size();
  check(sizes.experts % members == 0, "{} experts on {} ranks", sizes.experts, members);
  const auto bytes = static_cast<std::size_t>(members * width_of(members, sizes.experts)) * sizeof(std::int32_t);
  numbers_ = device == Device::cuda ? Buffer::pinned("experts' numbers", bytes)
                                    : Buffer("experts' numbers", Device::cpu, bytes);
  if (device == Device::cuda) event_.emplace();
}

Index ExpertExchange::part_rows() const {
  const auto parts = static_cast<Index>(std::ceil(static_cast<double>(group_.size()) / sizes_.receive_factor));
  return (sizes_.max_rows + parts - 1) / parts;
}

Index ExpertExchange::most_choices() const {
  const auto share = static_cast<Index>(std::ceil(sizes_.receive_factor * static_cast<double>(sizes_.max_rows)));
  const Index all = sizes_.max_rows * group_.size();
  return std::min(all, std::max(share, part_rows() * group_.size())) * sizes_.chosen;
}

Stream& ExpertExchange::lane(Stream& stream) {
  if (lane_ == nullptr) return stream;
  lane_->set_ledger(stream.ledger());
  return *lane_;
}

void ExpertExchange::follow(Stream& later, Stream& earlier) {
  if (&later == &earlier) return;
  event_->record(earlier.queue());
  later.queue().wait(*event_);
}

// Returns this rank's numbers.
Tensor ExpertExchange::sort(Stream& stream, Arena& memory, Arena& scratch, const Tensor& experts, const Tensor& offsets,
                            Part& part) {
  const Index members = group_.size(), rows = part.end - part.begin, k = sizes_.chosen;
  const Tensor chosen = experts.slice(0, part.begin, part.end);
  const Tensor own = scratch.allocate({width_of(members, sizes_.experts)}, DType::i32);
  part.place = memory.allocate({rows, k}, DType::i32);
  part.row_at = memory.allocate({rows * std::min<Index>(k, members)}, DType::i32);
  launch(stream, ExpertOrder{.offsets = own.slice(0, 0, members + 1),
                             .place = part.place,
                             .choice_at = scratch.allocate(part.row_at.shape, DType::i32),
                             .row_at = part.row_at,
                             .experts = chosen,
                             .width = own_experts(),
                             .distinct = true});
  const Tensor by_expert = own.slice(0, experts_at(members), experts_at(members) + sizes_.experts + 1);
  launch(stream, ExpertOrder{.offsets = by_expert,
                             .place = scratch.allocate({rows, k}, DType::i32),
                             .choice_at = scratch.allocate({rows * k}, DType::i32),
                             .row_at = scratch.allocate({rows * k}, DType::i32),
                             .experts = chosen});
  if (offsets.defined()) launch(stream, Copy{.y = offsets, .x = by_expert});
  return own;
}

void ExpertExchange::gather(Stream& stream, Arena& scratch, const Tensor& own) {
  const Tensor all = scratch.allocate({own.numel() * group_.size()}, DType::i32);
  ready(stream);
  Stream& road = lane(stream);
  group_.all_gather(road, all, own);
  download(road, numbers_.data(), all);
  if (event_) event_->record(road.queue());
}

void ExpertExchange::start(Stream& stream, Arena& memory, Arena& scratch, const Tensor& experts,
                           const Tensor& offsets) {
  started_ = {.begin = 0, .end = experts.dim(0)};
  gather(stream, scratch, sort(stream, memory, scratch, experts, offsets, started_));
}

void ExpertExchange::read(Part& part) const {
  const auto* const numbers = reinterpret_cast<const std::int32_t*>(numbers_.data());
  const Index members = group_.size(), width = width_of(members, sizes_.experts), own = group_.rank();
  const auto rows_for = [&](Index from, Index to) {
    const std::int32_t* const by_member = numbers + from * width;
    return Index{by_member[to + 1]} - by_member[to];
  };
  part.sent.clear();
  part.received.clear();
  part.choices = 0;
  for (Index m = 0; m < members; ++m) {
    part.sent.push_back(rows_for(own, m));
    part.received.push_back(rows_for(m, own));
    const std::int32_t* const by_expert = numbers + m * width + experts_at(members);
    part.choices += by_expert[first_expert() + own_experts()] - by_expert[first_expert()];
  }
  part.rows = sum(part.received);
  part.row_at = part.row_at.slice(0, 0, sum(part.sent));
}

// Of a plan: what may come at most, or what comes of an equal load.
ExpertExchange::Part ExpertExchange::planned(bool bound) const {
  const Index members = group_.size(), rows = started_.end, k = sizes_.chosen;
  // A row goes to each member with the probability that one of its choices does.
  const double chance = 1 - std::pow(1 - 1 / static_cast<double>(members), static_cast<double>(k));
  const auto each = static_cast<Index>(std::ceil(static_cast<double>(rows) * chance));
  const Index own = bound ? rows : each, room = std::min(sizes_.max_rows * members, most_choices());
  // What the others get is one member's: a plan of many ranks need not list them.
  const auto split = [&](Index total) {
    std::vector<Index> counts(static_cast<std::size_t>(members));
    counts[static_cast<std::size_t>(group_.rank())] = own;
    counts[group_.rank() == 0 ? 1 : 0] = total - own;
    return counts;
  };
  Part part = started_;
  part.bound = bound;
  part.choices = bound ? most_choices() : rows * k;
  part.sent = split(bound ? part.row_at.dim(0) : std::min(part.row_at.dim(0), each * members));
  part.received = split(bound ? room : std::min(room, each * members));
  part.rows = sum(part.received);
  part.row_at = part.row_at.slice(0, 0, sum(part.sent));
  return part;
}

std::vector<ExpertExchange::Part> ExpertExchange::parts() {
  if (device_ == Device::dry) return {planned(true), planned(false)};
  if (event_) event_->synchronize();
  const auto* const numbers = reinterpret_cast<const std::int32_t*>(numbers_.data());
  const Index members = group_.size(), width = width_of(members, sizes_.experts);
  Index most = 0;
  for (Index to = 0; to < members; ++to) {
    Index choices = 0;
    for (Index from = 0; from < members; ++from) {
      const std::int32_t* const by_expert = numbers + from * width + experts_at(members) + to * own_experts();
      choices += by_expert[own_experts()] - by_expert[0];
    }
    most = std::max(most, choices);
  }
  if (most <= most_choices()) {
    Part part = started_;
    read(part);
    return {part};
  }
  std::vector<Part> parts;
  const Index rows = started_.end, step = part_rows();
  for (Index begin = 0; begin < sizes_.max_rows; begin += step)
    parts.push_back({.begin = std::min(begin, rows), .end = std::min(begin + step, rows)});
  return parts;
}

void ExpertExchange::count(Stream& stream, Arena& scratch, const Tensor& experts, Part& part) {
  gather(stream, scratch, sort(stream, scratch, scratch, experts, {}, part));
  if (event_) event_->synchronize();
  read(part);
}

std::vector<Tensor> ExpertExchange::exchange(Stream& stream, Arena& scratch, std::span<const Tensor> tensors,
                                             const std::vector<Index>& sent, const std::vector<Index>& received) {
  std::vector<Tensor> arrived;
  std::vector<Send> sends;
  std::vector<Receive> receives;
  for (const Tensor& t : tensors) {
    arrived.push_back(scratch.allocate({sum(received), t.dim(1)}, t.dtype));
    Index from = 0, to = 0;
    for (std::size_t m = 0; m < sent.size(); ++m) {
      const int member = static_cast<int>(m);
      if (sent[m] > 0) sends.push_back({t.slice(0, from, from + sent[m]), member});
      if (received[m] > 0) receives.push_back({arrived.back().slice(0, to, to + received[m]), member});
      from += sent[m];
      to += received[m];
    }
  }
  group_.exchange(lane(stream), sends, receives);
  return arrived;
}

std::vector<Tensor> ExpertExchange::send(Stream& stream, Arena& scratch, const Part& part,
                                         std::span<const Tensor> tensors) {
  std::vector<Tensor> sorted;
  for (const Tensor& t : tensors) {
    sorted.push_back(scratch.allocate({part.row_at.dim(0), t.dim(1)}, t.dtype));
    launch(lane(stream), TakeRows{.y = sorted.back(), .x = t.slice(0, part.begin, part.end), .rows_of = part.row_at});
  }
  return exchange(stream, scratch, sorted, part.sent, part.received);
}

void ExpertExchange::wait(Stream& stream) { follow(stream, lane(stream)); }

std::vector<Tensor> ExpertExchange::answer(Stream& stream, Arena& scratch, const Part& part,
                                           std::span<const Tensor> tensors) {
  ready(stream);
  std::vector<Tensor> answers = exchange(stream, scratch, tensors, part.received, part.sent);
  wait(stream);
  return answers;
}

}  // namespace dstrain
