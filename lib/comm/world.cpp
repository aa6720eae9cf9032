#include "lib/comm/world.h"

#include <unistd.h>

#include <algorithm>
#include <exception>
#include <new>
#include <numeric>
#include <set>
#include <thread>
#include <utility>

#include "lib/comm/checked_group.h"
#include "lib/comm/launcher.h"
#include "lib/comm/mpi_runtime.h"
#include "lib/comm/staged_group.h"
#include "lib/comm/thread_hub.h"
#include "lib/core/build.h"
#include "lib/core/gpu.h"

namespace dstrain {

const char* name_of(Poster poster) {
  switch (poster) {
    case Poster::compute:
      return "compute";
    case Poster::gradients:
      return "gradients";
    case Poster::loader:
      return "loader";
    case Poster::checkpoint:
      return "checkpoint";
    case Poster::watchdog:
      return "watchdog";
    case Poster::guard:
      return "guard";
    case Poster::trainer:
      return "trainer";
  }
  return "?";
}

namespace {

std::string this_host() {
  char name[256] = {};
  gethostname(name, sizeof name - 1);
  return name;
}

class SelfWorld final : public World {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  int local_rank() const override { return 0; }
  int local_size() const override { return 1; }
  const std::string& host_name() const override { return host_name_; }
  const char* kind() const override { return "self"; }
  void interrupt(const std::string&) override {}  // a group of one waits for nobody

 protected:
  std::unique_ptr<Transport> transport(Poster, GroupKind, std::span<const int>) override {
    return make_silent_transport(0, 1);
  }

 private:
  std::string host_name_ = this_host();
};

class DryWorld final : public World {
 public:
  DryWorld(int rank, int size) : rank_(rank), size_(size) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int local_rank() const override { return 0; }
  int local_size() const override { return 1; }
  const std::string& host_name() const override { return host_name_; }
  const char* kind() const override { return "dry"; }
  void interrupt(const std::string&) override {}

 protected:
  std::unique_ptr<Transport> transport(Poster, GroupKind, std::span<const int> members) override {
    const auto at = std::find(members.begin(), members.end(), rank_);
    return make_silent_transport(static_cast<int>(at - members.begin()), static_cast<int>(members.size()));
  }

 private:
  int rank_;
  int size_;
  std::string host_name_ = this_host();
};

class ThreadWorld final : public World {
 public:
  ThreadWorld(std::shared_ptr<ThreadHub> hub, int rank) : hub_(std::move(hub)), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return hub_->ranks(); }
  int local_rank() const override { return rank_; }
  int local_size() const override { return hub_->ranks(); }
  const std::string& host_name() const override { return host_name_; }
  const char* kind() const override { return "threads"; }
  void interrupt(const std::string& why) override { hub_->interrupt(rank_, why); }

 protected:
  std::unique_ptr<Transport> transport(Poster poster, GroupKind kind, std::span<const int> members) override {
    const int traffic = static_cast<int>(poster) * kGroupKinds + static_cast<int>(kind);
    return hub_->connect(rank_, traffic, {members.begin(), members.end()});
  }

 private:
  std::shared_ptr<ThreadHub> hub_;
  int rank_;
  std::string host_name_ = this_host();
};

// One communicator a poster, one tag a kind of group: messages of different posters and kinds never meet.
class MpiTransport final : public Transport {
 public:
  MpiTransport(MpiRuntime& runtime, Poster poster, GroupKind kind, std::span<const int> members)
      : runtime_(runtime),
        communicator_(static_cast<int>(poster)),
        tag_(static_cast<int>(kind)),
        members_(members.begin(), members.end()),
        rank_(static_cast<int>(std::find(members_.begin(), members_.end(), runtime.rank()) - members_.begin())) {}
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(members_.size()); }
  void exchange(std::span<const Part> sends, std::span<const Part> receives) override {
    const auto to_world = [this](std::span<const Part> parts, std::vector<Part>& translated) {
      translated.assign(parts.begin(), parts.end());
      for (Part& p : translated) p.peer = members_[static_cast<std::size_t>(p.peer)];
    };
    to_world(sends, sends_);
    to_world(receives, receives_);
    runtime_.exchange(communicator_, tag_, sends_, receives_);
  }

 private:
  MpiRuntime& runtime_;
  int communicator_;
  int tag_;
  std::vector<int> members_;
  int rank_;
  std::vector<Part> sends_, receives_;
};

class MpiWorld final : public World {
 public:
  explicit MpiWorld(double limit) : runtime_(kPosters, limit) {}
  int rank() const override { return runtime_.rank(); }
  int size() const override { return runtime_.size(); }
  int local_rank() const override { return runtime_.local_rank(); }
  int local_size() const override { return runtime_.local_size(); }
  const std::string& host_name() const override { return runtime_.host_name(); }
  const char* kind() const override { return "mpi"; }
  std::vector<int> host_ranks() const override { return runtime_.host_ranks(); }
  MpiRuntime* runtime() override { return &runtime_; }
  void interrupt(const std::string& why) override {
    runtime_.interrupt(why);
    interrupt_communicators(why);
  }

 protected:
  std::unique_ptr<Transport> transport(Poster poster, GroupKind kind, std::span<const int> members) override {
    return std::make_unique<MpiTransport>(runtime_, poster, kind, members);
  }

 private:
  MpiRuntime runtime_;
};

}  // namespace

std::unique_ptr<World> World::make(double limit) {
  if (launched_by_mpi()) return std::make_unique<MpiWorld>(limit);
  return std::make_unique<SelfWorld>();
}

std::unique_ptr<World> World::dry(int rank, int size) {
  check(rank >= 0 && rank < size, "dry rank {} of {}", rank, size);
  return std::make_unique<DryWorld>(rank, size);
}

std::unique_ptr<ProcessGroup> World::group(Poster poster, GroupKind kind, std::span<const int> members,
                                           std::size_t message_cut) {
  check(std::count(members.begin(), members.end(), rank()) == 1, "rank {} makes a {} group of {} without itself",
        rank(), name_of(kind), members.size());
  for (const int m : members) check(m >= 0 && m < size(), "{} group: rank {} of {}", name_of(kind), m, size());
  auto link = members.size() == 1 ? make_silent_transport(0, 1) : transport(poster, kind, members);
  std::unique_ptr<ProcessGroup> host = std::make_unique<HostGroup>(name_of(kind), std::move(link), message_cut);
  if (checked_ && members.size() > 1) host = make_checked_group(std::move(host));
  const bool on_gpu = poster == Poster::compute || poster == Poster::gradients;
  if (gpus_ == Gpus::none || !on_gpu || members.size() == 1) return host;
  if constexpr (build::cuda) {
    if (gpus_ == Gpus::own) {
      const std::pair key(poster, std::vector<int>(members.begin(), members.end()));
      const auto known = communicators_.find(key);
      const auto communicator =
          known != communicators_.end()
              ? known->second
              : make_nccl_communicator(*host, gpu_options_.nvls, poster == Poster::gradients ? kGradientBlocks : 0);
      {
        const std::scoped_lock lock(mutex_);
        communicators_.emplace(key, communicator);
      }
      // A pipeline's stages talk to the next and the one before, in programs of their own.
      std::vector<int> neighbours;
      if (kind == GroupKind::pipeline)
        for (const int n : {host->rank() - 1, host->rank() + 1})
          if (n >= 0 && n < host->size()) neighbours.push_back(n);
      return make_nccl_group(communicator, std::move(host), neighbours);
    }
  }
  return std::make_unique<StagedGroup>(std::move(host));
}

void World::interrupt_communicators(const std::string& why) {
  const std::scoped_lock lock(mutex_);
  for (const auto& [key, communicator] : communicators_) communicator->interrupt(why);
}

void World::use_gpus(const GpuOptions& options) {
  const int cards = gpu::count();
  require(cards > 0, ExitCode::device, "rank {} has no GPU: {}", rank(), gpu::why_none());
  gpu::use(local_rank() % cards);
  gpu_options_ = options;
  gpus_ = Gpus::shared;
  if (std::string(kind()) != "mpi" || size() == 1) return;
  // A card is known by its host and its number there.
  std::string mine = host_name() + " " + gpu::info(gpu::current()).uuid;
  constexpr std::size_t kName = 320;
  mine.resize(kName);
  std::string all(kName * static_cast<std::size_t>(size()), '\0');
  std::vector<int> everyone(static_cast<std::size_t>(size()));
  std::iota(everyone.begin(), everyone.end(), 0);
  ThreadPool pool(1);
  Stream stream(Device::cpu, Device::cpu, &pool, nullptr, nullptr);
  const auto names = [](std::string& s) {
    return Tensor(s.data(), DType::u8, Device::cpu, {static_cast<Index>(s.size())});
  };
  group(Poster::watchdog, GroupKind::control, everyone)->all_gather(stream, names(all), names(mine));
  std::set<std::string> cards_in_use;
  for (int r = 0; r < size(); ++r) cards_in_use.insert(all.substr(static_cast<std::size_t>(r) * kName, kName));
  if (static_cast<int>(cards_in_use.size()) == size()) gpus_ = Gpus::own;
}

namespace {

// In a handler. A text so short that it takes no memory when there is none.
std::string why_failed(int rank) {
  try {
    try {
      throw;
    } catch (const std::exception& e) {
      return format("rank {} failed: {}", rank, e.what());
    } catch (...) {
      return format("rank {} failed: unknown exception", rank);
    }
  } catch (const std::bad_alloc&) {
    return "a rank failed";
  }
}

}  // namespace

void run_threads(int ranks, const std::function<void(World&)>& body) {
  check(ranks >= 1, "{} thread ranks", ranks);
  const auto hub = std::make_shared<ThreadHub>(ranks);
  std::mutex mutex;
  std::exception_ptr first;
  const auto run = [&](int rank) {
    try {
      ThreadWorld world(hub, rank);
      body(world);
      hub->finish(rank);
    } catch (...) {
      {
        const std::scoped_lock lock(mutex);
        if (!first) first = std::current_exception();
      }
      hub->fail(rank, why_failed(rank));
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(ranks));
  try {
    for (int r = 1; r < ranks; ++r) threads.emplace_back(run, r);
  } catch (...) {
    hub->abort("a rank's thread could not be started");
    for (std::thread& t : threads) t.join();
    throw;
  }
  run(0);
  for (std::thread& t : threads) t.join();
  if (first) std::rethrow_exception(first);
}

Groups make_groups(World& world, const Mesh& mesh, Poster poster, Index kv_heads) {
  check(mesh.ranks() == world.size(), "a mesh of {} in a world of {}", mesh.ranks(), world.size());
  const auto make = [&](GroupKind kind) {
    const std::vector<int> members = mesh.members(kind, world.rank());
    return members.empty() ? nullptr : world.group(poster, kind, members);
  };
  Groups groups;
  groups.tensor = make(GroupKind::tensor);
  groups.pipeline = make(GroupKind::pipeline);
  groups.replica = make(GroupKind::replica);
  groups.expert = make(GroupKind::expert);
  groups.expert_replica = make(GroupKind::expert_replica);
  groups.embedding = make(GroupKind::embedding);
  groups.model = make(GroupKind::model);
  groups.control = make(GroupKind::control);
  const std::vector<int> sharing =
      kv_heads == 0 ? std::vector<int>{world.rank()} : mesh.kv_replica(world.rank(), kv_heads);
  groups.kv_replica = world.group(poster, GroupKind::kv_replica, sharing);
  return groups;
}

}  // namespace dstrain
