#include "tests/comm/conformance.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <exception>
#include <future>
#include <memory>
#include <numeric>
#include <optional>
#include <thread>

namespace dstrain::test {

namespace {

constexpr std::size_t kCut = 1u << 20;

// Splitmix64: any value from (member, index), the same everywhere.
std::uint64_t mix(int member, Index i) {
  std::uint64_t z = static_cast<std::uint64_t>(i) * 0x9E3779B97F4A7C15ull +
                    static_cast<std::uint64_t>(member) * 0xD1B54A32D192ED03ull + 1;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

// Values of very different size, so that the order of a sum shows in its bits.
template <class T>
T value(int member, Index i) {
  const std::uint64_t z = mix(member, i);
  if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(z);
  } else {
    const double sign = (z & 1) != 0 ? -1 : 1;
    const double magnitude =
        std::ldexp(1.0 + static_cast<double>(z >> 40) / (1 << 24), static_cast<int>(z >> 1 & 15) - 8);
    return static_cast<T>(static_cast<float>(sign * magnitude));
  }
}

// The reduction of element i over members 0 .. size-1, in that order.
template <class T>
T reduced(int size, Index i, ReduceOp op) {
  if constexpr (std::is_same_v<T, bfloat16> || std::is_same_v<T, float>) {
    float sum = static_cast<float>(value<T>(0, i));
    for (int m = 1; m < size; ++m) {
      const float next = static_cast<float>(value<T>(m, i));
      sum = op == ReduceOp::max ? std::max(sum, next) : sum + next;
    }
    return static_cast<T>(sum);
  } else if constexpr (std::is_same_v<T, double>) {
    double sum = value<T>(0, i);
    for (int m = 1; m < size; ++m) sum = op == ReduceOp::max ? std::max(sum, value<T>(m, i)) : sum + value<T>(m, i);
    return sum;
  } else {
    using U = std::make_unsigned_t<T>;
    T best = value<T>(0, i);
    U sum = static_cast<U>(best);
    for (int m = 1; m < size; ++m) {
      best = std::max(best, value<T>(m, i));
      sum += static_cast<U>(value<T>(m, i));
    }
    return op == ReduceOp::max ? best : static_cast<T>(sum);
  }
}

// Where the values of this rank lie while a group is tested: on a GPU in memory that the host reaches too.
thread_local Device values_on = Device::cpu;

template <class T>
class Values {
 public:
  explicit Values(Index n) : size_(n), device_(values_on) {
    const std::size_t bytes = static_cast<std::size_t>(std::max<Index>(n, 1)) * sizeof(T);
    if (device_ == Device::cuda)
      data_ = {static_cast<T*>(gpu::allocate_managed(bytes)), [](T* p) { gpu::release(p); }};
    else
      data_ = {new T[static_cast<std::size_t>(std::max<Index>(n, 1))](), [](T* p) { delete[] p; }};
    std::fill(data_.get(), data_.get() + n, T{});
  }
  Values(int member, Index n) : Values(n) {
    for (Index i = 0; i < n; ++i) (*this)[i] = value<T>(member, i);
  }
  T& operator[](Index i) { return data_.get()[i]; }
  Index size() const { return size_; }
  T* begin() { return data_.get(); }
  T* end() { return data_.get() + size_; }
  Tensor tensor() { return tensor(0, size_); }
  Tensor tensor(Index begin, Index end) { return Tensor(data_.get() + begin, dtype_of<T>(), device_, {end - begin}); }

 private:
  Index size_;
  Device device_;
  std::shared_ptr<T> data_;
};

struct Case {
  ProcessGroup& group;
  Stream& stream;
  std::string what;  // op, dtype, sizes

  void fail_at(Index i) const {
    throw std::runtime_error(format("{} on member {} of {}: element {} is wrong", what, group.rank(), group.size(), i));
  }
  template <class T>
  void equal(const T& found, const T& expected, Index i) const {
    if (std::memcmp(&found, &expected, sizeof(T)) != 0) fail_at(i);
  }
  // `found` is the reduction of element i. NCCL adds in an order of its own, and rounds bf16 each time.
  template <class T>
  void equal_reduction(const T& found, Index i, ReduceOp op) const {
    const int size = group.size();
    const bool any_order = std::string(group.transport()) == "NCCL" && stream.device() == Device::cuda;
    if constexpr (!std::is_integral_v<T>) {
      if (any_order && size > 2 && op == ReduceOp::sum) {
        double sum = 0, bound = 0;
        for (int m = 0; m < size; ++m) {
          const auto v = static_cast<double>(static_cast<float>(value<T>(m, i)));
          sum += v;
          bound += std::abs(v);
        }
        const double unit = sizeof(T) == 2 ? 0x1p-8 : sizeof(T) == 4 ? 0x1p-24 : 0x1p-53;
        using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;
        const double result = static_cast<Wide>(found);
        if (!(std::abs(result - sum) <= size * unit * bound)) fail_at(i);
        return;
      }
    }
    equal(found, reduced<T>(size, i, op), i);
  }
};

template <class T>
void reductions(ProcessGroup& group, Stream& stream, Index n) {
  const int size = group.size(), rank = group.rank();
  for (const ReduceOp op : {ReduceOp::sum, ReduceOp::max}) {
    const Case c{group, stream, format("all_reduce of {} {}, op {}", n, name_of(dtype_of<T>()), static_cast<int>(op))};
    Values<T> x(rank, n), again(rank, n);
    group.all_reduce(stream, x.tensor(), op);
    group.all_reduce(stream, again.tensor(), op);
    stream.synchronize();
    for (Index i = 0; i < n; ++i) {
      c.equal_reduction(x[i], i, op);
      c.equal(again[i], x[i], i);
    }
  }
  for (const bool in_place : {false, true}) {
    const Case c{group, stream, format("reduce_scatter of {} {}, in place {}", n, name_of(dtype_of<T>()), in_place)};
    Values<T> in(rank, n * size), apart(n);
    const Tensor out = in_place ? in.tensor(n * rank, n * (rank + 1)) : apart.tensor();
    group.reduce_scatter(stream, out, in.tensor());
    stream.synchronize();
    for (Index i = 0; i < n; ++i) c.equal_reduction(out.as<T>()[i], n * rank + i, ReduceOp::sum);
  }
}

template <class T>
void movements(ProcessGroup& group, Stream& stream, Index n) {
  const int size = group.size(), rank = group.rank();
  const char* type = name_of(dtype_of<T>());
  for (const bool in_place : {false, true}) {
    const Case c{group, stream, format("all_gather of {} {}, in place {}", n, type, in_place)};
    Values<T> in(rank, n), out(n * size);
    if (in_place) std::copy(in.begin(), in.end(), out.begin() + n * rank);
    group.all_gather(stream, out.tensor(), in_place ? out.tensor(n * rank, n * (rank + 1)) : in.tensor());
    stream.synchronize();
    for (Index i = 0; i < n * size; ++i)
      c.equal(out[i], value<T>(static_cast<int>(i / std::max<Index>(n, 1)), i % n), i);
  }
  for (int root = 0; root < size; ++root) {
    const Case c{group, stream, format("broadcast of {} {} from {}", n, type, root)};
    Values<T> x(rank, n);
    group.broadcast(stream, x.tensor(), root);
    stream.synchronize();
    for (Index i = 0; i < n; ++i) c.equal(x[i], value<T>(root, i), i);
  }
  {  // member a sends n * (a + b) % 3 elements to member b, those that start at 1000 * b of its values
    const Case c{group, stream, format("all_to_all of {} {}", n, type)};
    const auto count = [&](int a, int b) { return n * ((a + b) % 3); };
    std::vector<Index> sent, taken;
    for (int m = 0; m < size; ++m) {
      sent.push_back(count(rank, m));
      taken.push_back(count(m, rank));
    }
    Values<T> in(std::accumulate(sent.begin(), sent.end(), Index{0}));
    Values<T> out(std::accumulate(taken.begin(), taken.end(), Index{0}));
    Index at = 0;
    for (int m = 0; m < size; ++m)
      for (Index i = 0; i < count(rank, m); ++i) in[at++] = value<T>(rank, 1000 * m + i);
    group.all_to_all(stream, out.tensor(), in.tensor(), taken, sent);
    stream.synchronize();
    at = 0;
    for (int m = 0; m < size; ++m)
      for (Index i = 0; i < count(m, rank); ++i, ++at) c.equal(out[at], value<T>(m, 1000 * rank + i), at);
  }
  {  // Two messages to each member, itself included; the second one is shorter: matching is by order.
    const Case c{group, stream, format("exchange of {} {}", n, type)};
    const Index half = n / 2;
    std::vector<Values<T>> outs, ins;
    for (int m = 0; m < size; ++m) {
      outs.emplace_back(rank * 16 + m, n);
      ins.emplace_back(n + half);
    }
    std::vector<Send> sends;
    std::vector<Receive> receives;
    for (int m = 0; m < size; ++m) {
      const auto s = static_cast<std::size_t>(m);
      sends.push_back({outs[s].tensor(), m});
      sends.push_back({outs[s].tensor(0, half), m});
      receives.push_back({ins[s].tensor(0, n), m});
      receives.push_back({ins[s].tensor(n, n + half), m});
    }
    group.exchange(stream, sends, receives);
    stream.synchronize();
    for (int m = 0; m < size; ++m)
      for (Index i = 0; i < n + half; ++i)
        c.equal(ins[static_cast<std::size_t>(m)][i], value<T>(m * 16 + rank, i < n ? i : i - n), i);
  }
}

template <class T>
void all_collectives(ProcessGroup& group, Stream& stream) {
  // Nothing, one, odd, more than a thread's tile and than one round, more than a cut.
  std::vector<Index> sizes = {0, 1, 17, 1001};
  if (std::is_same_v<T, float> || std::is_same_v<T, bfloat16>) {
    sizes.push_back(70'001);
    sizes.push_back(static_cast<Index>(kCut / sizeof(T)) + 3);
  }
  for (const Index n : sizes) {
    reductions<T>(group, stream, n);
    movements<T>(group, stream, n);
  }
}

void check_group(ProcessGroup& group, Device device) {
  Host host(2);
  std::optional<gpu::Queue> queue;
  if (device == Device::cuda) queue.emplace();
  Stream stream(device, device, &host.pool, nullptr, &host.ledger, queue ? &*queue : nullptr);
  values_on = device;
  all_collectives<float>(group, stream);
  all_collectives<bfloat16>(group, stream);
  all_collectives<double>(group, stream);
  all_collectives<std::int32_t>(group, stream);
  all_collectives<std::int64_t>(group, stream);
  movements<std::uint8_t>(group, stream, 1001);
  movements<std::uint16_t>(group, stream, static_cast<Index>(kCut));
  for (int i = 0; i < 100; ++i) group.barrier(stream);
  values_on = Device::cpu;
}

// Compute and gradients on queues of their own, enqueued in turn without a wait.
void two_queues(World& world) {
  std::vector<int> all(static_cast<std::size_t>(world.size()));
  std::iota(all.begin(), all.end(), 0);
  Host host;
  gpu::Queue queues[2];
  Stream streams[2] = {{Device::cuda, Device::cuda, &host.pool, nullptr, &host.ledger, &queues[0]},
                       {Device::cuda, Device::cuda, &host.pool, nullptr, &host.ledger, &queues[1]}};
  const std::unique_ptr<ProcessGroup> groups[2] = {world.group(Poster::compute, GroupKind::replica, all),
                                                   world.group(Poster::gradients, GroupKind::replica, all)};
  constexpr Index kElements = 300'001;
  values_on = Device::cuda;
  std::vector<Values<std::int32_t>> values;
  for (int i = 0; i < 20; ++i) values.emplace_back(world.rank() + i, kElements);
  for (std::size_t i = 0; i < values.size(); ++i) groups[i % 2]->all_reduce(streams[i % 2], values[i].tensor());
  for (const Stream& s : streams) s.synchronize();
  values_on = Device::cpu;
  for (std::size_t k = 0; k < values.size(); ++k)
    for (Index i = 0; i < kElements; ++i) {
      std::uint32_t sum = 0;
      for (int m = 0; m < world.size(); ++m)
        sum += static_cast<std::uint32_t>(value<std::int32_t>(m + static_cast<int>(k), i));
      if (static_cast<std::uint32_t>(values[k][i]) != sum)
        throw std::runtime_error(format("all_reduce {} on two queues: element {} is wrong", k, i));
    }
}

}  // namespace

void conformance(World& world, Device device) {
  if (device == Device::cuda) world.use_gpus({});
  std::vector<int> members;
  for (int n = 1; n <= std::min(4, world.size()); ++n) {
    members.push_back(n - 1);
    if (world.rank() < n) check_group(*world.group(Poster::compute, GroupKind::tensor, members, kCut), device);
  }
  if (world.size() >= 3) {
    const std::vector<int> shuffled = {2, 0};
    if (world.rank() == 0 || world.rank() == 2) {
      const auto group = world.group(Poster::compute, GroupKind::pipeline, shuffled, kCut);
      if (group->rank() != (world.rank() == 2 ? 0 : 1)) throw std::runtime_error("ranks of a group follow its list");
      check_group(*group, device);
    }
  }
  if (device == Device::cuda) two_queues(world);
}

void posters_are_independent(World& world) {
  std::vector<int> all(static_cast<std::size_t>(world.size()));
  std::iota(all.begin(), all.end(), 0);
  const auto compute = world.group(Poster::compute, GroupKind::replica, all);
  const auto loader = world.group(Poster::loader, GroupKind::replica, all);
  const bool even = world.rank() % 2 == 0;
  // Even ranks wait in the loader's call first and let compute start later; odd ranks finish compute, then start the
  // loader.
  for (int round = 0; round < 20; ++round) {
    const auto reduce = [&](ProcessGroup& group) {
      Host host;
      Values<float> x(world.rank(), 100);
      group.all_reduce(host.stream, x.tensor());
      for (Index i = 0; i < 100; ++i)
        if (x[i] != reduced<float>(world.size(), i, ReduceOp::sum)) throw std::runtime_error("posters mixed messages");
    };
    if (even) {
      auto pending = std::async(std::launch::async, [&] { reduce(*loader); });
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
      reduce(*compute);
      pending.get();
    } else {
      reduce(*compute);
      reduce(*loader);
    }
  }
}

void huge_messages(World& world) {
  Host host(2);
  const int size = world.size(), rank = world.rank();
  std::vector<int> all(static_cast<std::size_t>(size));
  std::iota(all.begin(), all.end(), 0);
  const auto group = world.group(Poster::compute, GroupKind::replica, all);
  const Index n = (Index{1} << 31) + 4098;  // bytes
  Buffer a("test", Device::cpu, static_cast<std::size_t>(n)), b("test", Device::cpu, static_cast<std::size_t>(n));
  const auto bytes = [&](Buffer& x, Index count) { return Tensor(x.data(), DType::u8, Device::cpu, {count}); };
  const auto halves = [&](Buffer& x, Index count) { return Tensor(x.data(), DType::bf16, Device::cpu, {count}); };
  const auto mark = [](Index i, int member) { return static_cast<std::uint8_t>(i % 251 + 17 * member); };
  const auto fill = [&](Buffer& x, int member) {
    for (Index i = 0; i < n; ++i) x.data()[i] = std::byte{mark(i, member)};
  };
  const auto expect = [&](const char* op, Index begin, Index end, auto of) {
    for (Index i = begin; i < end; ++i)
      if (static_cast<std::uint8_t>(b.data()[i]) != of(i)) throw std::runtime_error(format("{}: byte {}", op, i));
  };
  fill(a, rank);
  const int next = (rank + 1) % size, last = (rank + size - 1) % size;
  const std::vector<Send> sends = {{bytes(a, n), next}};
  const std::vector<Receive> receives = {{bytes(b, n), last}};
  group->exchange(host.stream, sends, receives);
  expect("exchange", 0, n, [&](Index i) { return mark(i, last); });
  std::vector<Index> sent(all.size(), 0), taken(all.size(), 0);
  sent[static_cast<std::size_t>(next)] = taken[static_cast<std::size_t>(last)] = n;
  std::memset(b.data(), 0, b.bytes());
  group->all_to_all(host.stream, bytes(b, n), bytes(a, n), taken, sent);
  expect("all_to_all", 0, n, [&](Index i) { return mark(i, last); });
  if (rank == 0) std::memcpy(b.data(), a.data(), b.bytes());
  group->broadcast(host.stream, bytes(b, n), 0);
  expect("broadcast", 0, n, [&](Index i) { return mark(i, 0); });
  const Index share = n / size;
  group->all_gather(host.stream, bytes(b, share * size), bytes(a, share));
  expect("all_gather", 0, share * size, [&](Index i) { return mark(i % share, static_cast<int>(i / share)); });
  const Index count = n / 2;  // of bf16, small integers: sums are exact
  const auto small = [](Index i, int member) { return static_cast<float>(i % 63 + member); };
  const auto fill_halves = [&](Buffer& x) {
    for (Index i = 0; i < count; ++i) halves(x, count).as<bfloat16>()[i] = bfloat16(small(i, rank));
  };
  const auto expect_sum = [&](const char* op, const bfloat16* x, Index from, Index numel) {
    for (Index i = 0; i < numel; ++i) {
      float sum = 0;
      for (int m = 0; m < size; ++m) sum += small(from + i, m);
      if (static_cast<float>(x[i]) != sum) throw std::runtime_error(format("{}: element {}", op, i));
    }
  };
  fill_halves(b);
  group->all_reduce(host.stream, halves(b, count));
  expect_sum("all_reduce", halves(b, count).as<bfloat16>(), 0, count);
  const Index part = count / size;
  fill_halves(a);
  group->reduce_scatter(host.stream, halves(b, part), halves(a, part * size));
  expect_sum("reduce_scatter", halves(b, part).as<bfloat16>(), part * rank, part);
}

}  // namespace dstrain::test
