#include "lib/comm/checked_group.h"

#include <array>
#include <utility>
#include <vector>

namespace dstrain {

namespace {

enum class Call : std::int64_t { all_reduce, reduce_scatter, all_gather, all_to_all, broadcast, exchange, barrier };
constexpr const char* kNames[] = {"all_reduce", "reduce_scatter", "all_gather", "all_to_all",
                                  "broadcast",  "exchange",       "barrier"};

struct Print {
  std::int64_t sequence = 0, call = 0, bytes = 0, dtype = 0, argument = 0;
  friend bool operator==(const Print&, const Print&) = default;

  std::string to_string() const {
    const auto at = static_cast<std::size_t>(call);
    return format("call {}: {} of {} bytes of {}, argument {}", sequence, at < std::size(kNames) ? kNames[at] : "?",
                  bytes, name_of(static_cast<DType>(dtype)), argument);
  }
};
constexpr Index kWords = sizeof(Print) / sizeof(std::int64_t);

Tensor words(Print* first, std::size_t count = 1) {
  return Tensor(first, DType::i64, Device::cpu, {static_cast<Index>(count) * kWords});
}

class CheckedGroup final : public ProcessGroup {
 public:
  explicit CheckedGroup(std::unique_ptr<ProcessGroup> group)
      : group_(std::move(group)),
        sent_(static_cast<std::size_t>(group_->size())),
        received_(static_cast<std::size_t>(group_->size())) {}

  const std::string& name() const override { return group_->name(); }
  int rank() const override { return group_->rank(); }
  int size() const override { return group_->size(); }
  std::size_t scratch_bytes() const override { return group_->scratch_bytes(); }

  void all_reduce(Stream& stream, const Tensor& tensor, ReduceOp op) override {
    compare(stream, Call::all_reduce, tensor, static_cast<std::int64_t>(op));
    group_->all_reduce(stream, tensor, op);
  }
  void reduce_scatter(Stream& stream, const Tensor& out, const Tensor& in) override {
    compare(stream, Call::reduce_scatter, in, 0);
    group_->reduce_scatter(stream, out, in);
  }
  void all_gather(Stream& stream, const Tensor& out, const Tensor& in) override {
    compare(stream, Call::all_gather, in, 0);
    group_->all_gather(stream, out, in);
  }
  void all_to_all(Stream& stream, const Tensor& out, const Tensor& in, std::span<const Index> receive_counts,
                  std::span<const Index> send_counts) override {
    // Members differ in their counts; those of a pair are compared.
    if (checks(stream)) {
      std::vector<Print> mine, theirs;
      const Print common = next(Call::all_to_all, Tensor(in.data, in.dtype, in.device, {0}), 0);
      for (int r = 0; r < size(); ++r) {
        const auto at = static_cast<std::size_t>(r);
        mine.push_back(common);
        mine.back().bytes = send_counts[at];
        theirs.push_back(common);
        theirs.back().bytes = receive_counts[at];
      }
      swap_and_compare(stream, mine, theirs);
    }
    group_->all_to_all(stream, out, in, receive_counts, send_counts);
  }
  void broadcast(Stream& stream, const Tensor& tensor, int root) override {
    compare(stream, Call::broadcast, tensor, root);
    group_->broadcast(stream, tensor, root);
  }
  void exchange(Stream& stream, std::span<const Send> sends, std::span<const Receive> receives) override {
    if (!checks(stream)) return group_->exchange(stream, sends, receives);
    checked_exchange(stream, sends, receives);
  }
  void barrier(Stream& stream) override {
    compare(stream, Call::barrier, Tensor(nullptr, DType::u8, Device::cpu, {0}), 0);
    group_->barrier(stream);
  }

 private:
  bool checks(const Stream& stream) const { return stream.device() == Device::cpu && size() > 1; }

  Print next(Call call, const Tensor& tensor, std::int64_t argument) {
    return {.sequence = ++calls_,
            .call = static_cast<std::int64_t>(call),
            .bytes = static_cast<std::int64_t>(tensor.bytes()),
            .dtype = static_cast<std::int64_t>(tensor.dtype),
            .argument = argument};
  }

  void differ(const Print& mine, int other, const Print& theirs) const {
    fail(ExitCode::bug, "internal error: ranks of group {} do different things: member {} is at {}; member {} is at {}",
         name(), rank(), mine.to_string(), other, theirs.to_string());
  }

  void compare(Stream& stream, Call call, const Tensor& tensor, std::int64_t argument) {
    if (!checks(stream)) return;
    const Print mine = next(call, tensor, argument);
    const std::vector<Print> all(static_cast<std::size_t>(size()), mine);
    swap_and_compare(stream, all, all);
  }

  // Sends mine[r] to member r, and expects theirs[r] from it.
  void swap_and_compare(Stream& stream, const std::vector<Print>& mine, const std::vector<Print>& theirs) {
    std::vector<Print> out = mine, in(out.size());
    std::vector<Send> sends;
    std::vector<Receive> receives;
    for (int r = 0; r < size(); ++r) {
      if (r == rank()) continue;
      sends.push_back({words(&out[static_cast<std::size_t>(r)]), r});
      receives.push_back({words(&in[static_cast<std::size_t>(r)]), r});
    }
    group_->exchange(stream, sends, receives);
    for (int r = 0; r < size(); ++r) {
      const auto at = static_cast<std::size_t>(r);
      if (r != rank() && !(in[at] == theirs[at])) differ(theirs[at], r, in[at]);
    }
  }

  // Pairs count their messages; the rest of the group need not take part. A message's print travels with it, in the
  // same exchange: a pair's sends and receives may meet in different calls of each.
  void checked_exchange(Stream& stream, std::span<const Send> sends, std::span<const Receive> receives) {
    const auto print = [](std::int64_t sequence, const Tensor& t) {
      return Print{sequence, static_cast<std::int64_t>(Call::exchange), static_cast<std::int64_t>(t.bytes()),
                   static_cast<std::int64_t>(t.dtype), 0};
    };
    std::vector<Print> out(sends.size()), in(receives.size());
    std::vector<Send> all_sends;
    std::vector<Receive> all_receives;
    for (std::size_t i = 0; i < sends.size(); ++i) {
      if (sends[i].to != rank()) {
        out[i] = print(++sent_[static_cast<std::size_t>(sends[i].to)], sends[i].tensor);
        all_sends.push_back({words(&out[i]), sends[i].to});
      }
      all_sends.push_back(sends[i]);
    }
    for (std::size_t i = 0; i < receives.size(); ++i) {
      if (receives[i].from != rank()) all_receives.push_back({words(&in[i]), receives[i].from});
      all_receives.push_back(receives[i]);
    }
    const auto compare_prints = [&] {
      for (std::size_t i = 0; i < receives.size(); ++i) {
        if (receives[i].from == rank() || in[i].sequence == 0) continue;  // 0: has not come
        const auto from = static_cast<std::size_t>(receives[i].from);
        const Print mine = print(++received_[from], receives[i].tensor);
        if (!(in[i] == mine)) differ(mine, receives[i].from, in[i]);
      }
    };
    try {
      group_->exchange(stream, all_sends, all_receives);
    } catch (const Error&) {
      compare_prints();  // sizes that differ end the exchange itself
      throw;
    }
    compare_prints();
  }

  std::unique_ptr<ProcessGroup> group_;
  std::int64_t calls_ = 0;
  std::vector<std::int64_t> sent_, received_;  // messages of exchanges by member
};

}  // namespace

std::unique_ptr<ProcessGroup> make_checked_group(std::unique_ptr<ProcessGroup> group) {
  return std::make_unique<CheckedGroup>(std::move(group));
}

}  // namespace dstrain
