#include "lib/comm/nccl_group.h"

#include <nccl.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <utility>

#include "lib/core/gpu.h"

namespace dstrain {

namespace {

void nccl_check(ncclResult_t r, const char* call) {
  if (r != ncclSuccess) [[unlikely]]
    fail(ExitCode::lost, "{}: {}: {}", call, ncclGetErrorString(r), ncclGetLastError(nullptr));
}

class Communicator final : public NcclCommunicator {
 public:
  Communicator(ProcessGroup& host, bool nvls, int most_blocks) {
    // NCCL's only switch for NVLink multicast, read when its first communicator is made. Nobody else's value is
    // changed.
    if (!nvls) setenv("NCCL_NVLS_ENABLE", "0", 0);
    ThreadPool pool(1);
    Stream stream(Device::cpu, Device::cpu, &pool, nullptr, nullptr);
    ncclUniqueId id{};
    if (host.rank() == 0) nccl_check(ncclGetUniqueId(&id), "ncclGetUniqueId");
    host.broadcast(stream, Tensor(id.internal, DType::u8, Device::cpu, {static_cast<Index>(sizeof id.internal)}), 0);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 1;
    if (most_blocks > 0) {
      config.minCTAs = 1;
      config.maxCTAs = most_blocks;
    }
    nccl_check(ncclCommInitRankConfig(&comm_, host.size(), id, host.rank(), &config), "ncclCommInitRankConfig");
  }
  ~Communicator() override {
    if (!comm_ || !interrupted_.empty()) return;
    // Peers of an unwinding rank may be gone: destroying would wait for them.
    if (std::uncaught_exceptions() > 0)
      ncclCommAbort(comm_);
    else
      ncclCommDestroy(comm_);
  }
  void interrupt(const std::string& why) override {
    const std::scoped_lock lock(mutex_);
    if (!interrupted_.empty()) return;
    interrupted_ = why.empty() ? "interrupted" : why;
    ncclCommAbort(comm_);
  }
  // For the next call; throws what has gone wrong beside the calls.
  ncclComm_t get() {
    const std::scoped_lock lock(mutex_);
    require(interrupted_.empty(), ExitCode::lost, "{}", interrupted_);
    ncclResult_t state = ncclSuccess;
    nccl_check(ncclCommGetAsyncError(comm_, &state), "ncclCommGetAsyncError");
    if (state != ncclInProgress) nccl_check(state, "a collective of NCCL");
    return comm_;
  }

 private:
  ncclComm_t comm_ = nullptr;
  std::mutex mutex_;
  std::string interrupted_;
};

ncclDataType_t type_of(DType t) {
  switch (t) {
    case DType::f32:
      return ncclFloat32;
    case DType::bf16:
      return ncclBfloat16;
    case DType::f64:
      return ncclFloat64;
    case DType::i32:
      return ncclInt32;
    case DType::i64:
      return ncclInt64;
    case DType::u8:
    case DType::u16:
      break;
  }
  fail(ExitCode::bug, "NCCL reduces no {}", name_of(t));
}

class NcclGroup final : public ProcessGroup {
 public:
  NcclGroup(std::shared_ptr<Communicator> communicator, std::unique_ptr<ProcessGroup> host)
      : communicator_(std::move(communicator)), host_(std::move(host)), word_("barrier", Device::cuda, sizeof(int)) {}

  void connect(std::span<const int> neighbours) {
    gpu::Queue queue;
    Stream stream(Device::cuda, Device::cuda, nullptr, nullptr, nullptr, &queue);
    const Buffer words("connections", Device::cuda, 2 * neighbours.size());
    Grouped grouped;
    for (std::size_t i = 0; i < neighbours.size(); ++i) {
      send(stream, words.data() + 2 * i, 1, neighbours[i]);
      receive(stream, words.data() + 2 * i + 1, 1, neighbours[i]);
    }
    grouped.end();
    queue.synchronize();
  }

  const std::string& name() const override { return host_->name(); }
  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  bool on_device() const override { return true; }
  const char* transport() const override { return "NCCL"; }
  std::size_t scratch_bytes() const override { return host_->scratch_bytes(); }

  void all_reduce(Stream& stream, const Tensor& t, ReduceOp op) override {
    if (stream.device() != Device::cuda) return host_->all_reduce(stream, t, op);
    check_flat(t, "all_reduce");
    count(stream, 2.0 * static_cast<double>(t.bytes()) * share());
    nccl_check(ncclAllReduce(t.data, t.data, elements(t), type_of(t.dtype), op == ReduceOp::sum ? ncclSum : ncclMax,
                             comm(), queue(stream)),
               "ncclAllReduce");
  }
  void reduce_scatter(Stream& stream, const Tensor& out, const Tensor& in) override {
    if (stream.device() != Device::cuda) return host_->reduce_scatter(stream, out, in);
    check_flat(out, "reduce_scatter");
    check_flat(in, "reduce_scatter");
    check_counts(in, out, "reduce_scatter");
    count(stream, static_cast<double>(in.bytes()) * share());
    nccl_check(ncclReduceScatter(in.data, out.data, elements(out), type_of(out.dtype), ncclSum, comm(), queue(stream)),
               "ncclReduceScatter");
  }
  void all_gather(Stream& stream, const Tensor& out, const Tensor& in) override {
    if (stream.device() != Device::cuda) return host_->all_gather(stream, out, in);
    check_flat(out, "all_gather");
    check_flat(in, "all_gather");
    check_counts(out, in, "all_gather");
    count(stream, static_cast<double>(out.bytes()) * share());
    nccl_check(ncclAllGather(in.data, out.data, in.bytes(), ncclUint8, comm(), queue(stream)), "ncclAllGather");
  }
  void all_to_all(Stream& stream, const Tensor& out, const Tensor& in, std::span<const Index> receive_counts,
                  std::span<const Index> send_counts) override {
    if (stream.device() != Device::cuda) return host_->all_to_all(stream, out, in, receive_counts, send_counts);
    const auto members = static_cast<std::size_t>(size());
    check_flat(out, "all_to_all");
    check_flat(in, "all_to_all");
    check(receive_counts.size() == members && send_counts.size() == members && in.dtype == out.dtype,
          "{} all_to_all: {} send and {} receive counts for {} members", name(), send_counts.size(),
          receive_counts.size(), size());
    const std::size_t width = size_of(in.dtype);
    std::size_t from = 0, to = 0;
    Grouped grouped;
    for (std::size_t r = 0; r < members; ++r) {
      const std::size_t sent = static_cast<std::size_t>(send_counts[r]) * width;
      const std::size_t taken = static_cast<std::size_t>(receive_counts[r]) * width;
      check(from + sent <= in.bytes() && to + taken <= out.bytes(), "{} all_to_all: counts past {} or {}", name(),
            in.to_string(), out.to_string());
      send(stream, in.data + from, sent, static_cast<int>(r));
      receive(stream, out.data + to, taken, static_cast<int>(r));
      from += sent;
      to += taken;
    }
    grouped.end();
  }
  void broadcast(Stream& stream, const Tensor& t, int root) override {
    if (stream.device() != Device::cuda) return host_->broadcast(stream, t, root);
    check_flat(t, "broadcast");
    if (rank() == root) count(stream, static_cast<double>(t.bytes()));
    nccl_check(ncclBroadcast(t.data, t.data, t.bytes(), ncclUint8, root, comm(), queue(stream)), "ncclBroadcast");
  }
  void exchange(Stream& stream, std::span<const Send> sends, std::span<const Receive> receives) override {
    if (stream.device() != Device::cuda) return host_->exchange(stream, sends, receives);
    Grouped grouped;
    for (const Send& s : sends) {
      check_flat(s.tensor, "exchange");
      send(stream, s.tensor.data, s.tensor.bytes(), s.to);
    }
    for (const Receive& r : receives) {
      check_flat(r.tensor, "exchange");
      receive(stream, r.tensor.data, r.tensor.bytes(), r.from);
    }
    grouped.end();
  }
  void barrier(Stream& stream) override {
    if (stream.device() != Device::cuda) return host_->barrier(stream);
    nccl_check(ncclAllReduce(word_.data(), word_.data(), 1, ncclInt32, ncclSum, comm(), queue(stream)),
               "ncclAllReduce");
    stream.synchronize();
    comm();  // an interrupt ends the wait too
  }

 private:
  // Sends and receives that start together.
  struct Grouped {
    Grouped() { nccl_check(ncclGroupStart(), "ncclGroupStart"); }
    void end() {
      open = false;
      nccl_check(ncclGroupEnd(), "ncclGroupEnd");
    }
    ~Grouped() {
      if (open) ncclGroupEnd();
    }
    bool open = true;
  };
  static cudaStream_t queue(const Stream& stream) { return static_cast<cudaStream_t>(stream.queue().handle()); }
  static std::size_t elements(const Tensor& t) { return static_cast<std::size_t>(t.numel()); }
  ncclComm_t comm() const { return communicator_->get(); }
  double share() const { return static_cast<double>(size() - 1) / size(); }
  void count(Stream& stream, double bytes) {
    if (stream.ledger()) stream.ledger()->communication[name()] += bytes;
  }
  void check_flat(const Tensor& t, const char* what) const {
    check(t.contiguous() && t.device == Device::cuda, "{} {}: {}", name(), what, t.to_string());
  }
  void check_counts(const Tensor& whole, const Tensor& part, const char* what) const {
    check(whole.numel() == part.numel() * size() && whole.dtype == part.dtype, "{} {}: {} and {}, {} members", name(),
          what, whole.to_string(), part.to_string(), size());
  }
  void send(Stream& stream, std::byte* data, std::size_t bytes, int to) {
    if (bytes == 0) return;
    if (to != rank()) count(stream, static_cast<double>(bytes));
    nccl_check(ncclSend(data, bytes, ncclUint8, to, comm(), queue(stream)), "ncclSend");
  }
  void receive(Stream& stream, std::byte* data, std::size_t bytes, int from) {
    if (bytes > 0) nccl_check(ncclRecv(data, bytes, ncclUint8, from, comm(), queue(stream)), "ncclRecv");
  }

  std::shared_ptr<Communicator> communicator_;
  std::unique_ptr<ProcessGroup> host_;
  Buffer word_;
};

}  // namespace

std::shared_ptr<NcclCommunicator> make_nccl_communicator(ProcessGroup& host, bool nvls, int most_blocks) {
  return std::make_shared<Communicator>(host, nvls, most_blocks);
}

std::unique_ptr<ProcessGroup> make_nccl_group(std::shared_ptr<NcclCommunicator> communicator,
                                              std::unique_ptr<ProcessGroup> host, std::span<const int> neighbours) {
  auto group =
      std::make_unique<NcclGroup>(std::static_pointer_cast<Communicator>(std::move(communicator)), std::move(host));
  if (!neighbours.empty()) group->connect(neighbours);
  return group;
}

}  // namespace dstrain
