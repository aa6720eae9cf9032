#include "lib/comm/thread_hub.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "lib/core/errors.h"

namespace dstrain {

class ThreadTransport final : public Transport {
 public:
  using Message = ThreadHub::Message;
  ThreadTransport(std::shared_ptr<ThreadHub> hub, std::shared_ptr<ThreadHub::Channel> channel, int rank)
      : hub_(std::move(hub)), channel_(std::move(channel)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(channel_->members.size()); }

  void exchange(std::span<const Part> sends, std::span<const Part> receives) override {
    std::unique_lock lock(hub_->mutex_);
    messages_.clear();
    for (const Part& p : sends) messages_.push_back({p.data, p.bytes, rank_, p.peer, Message::State::posted});
    try {
      for (Message& m : messages_) {
        endpoint(m.to).inbox.push_back(&m);
        endpoint(m.to).changed.notify_one();
      }
      for (const Part& p : receives) take(lock, p);
      for (Message& m : messages_) wait(lock, m.to, [&] { return m.state == Message::State::done; });
    } catch (...) {
      withdraw(lock);
      throw;
    }
  }

 private:
  ThreadHub::Endpoint& endpoint(int member) { return channel_->endpoints[static_cast<std::size_t>(member)]; }
  int world_rank(int member) const { return channel_->members[static_cast<std::size_t>(member)]; }

  template <class Ready>
  void wait(std::unique_lock<std::mutex>& lock, int peer, Ready ready) {
    while (!ready()) {
      const std::string why = hub_->trouble(world_rank(rank_), world_rank(peer));
      require(why.empty(), ExitCode::lost, "{}", why);
      endpoint(rank_).changed.wait(lock);
    }
  }

  void take(std::unique_lock<std::mutex>& lock, const Part& part) {
    auto& inbox = endpoint(rank_).inbox;
    const auto next = [&] {
      return std::find_if(inbox.begin(), inbox.end(), [&](const Message* m) { return m->from == part.peer; });
    };
    wait(lock, part.peer, [&] { return next() != inbox.end(); });
    Message& m = **next();
    check(m.bytes == part.bytes, "rank {} sent {} bytes, rank {} expects {}", world_rank(part.peer), m.bytes,
          world_rank(rank_), part.bytes);
    inbox.erase(next());
    m.state = Message::State::claimed;
    lock.unlock();
    std::memcpy(part.data, m.data, m.bytes);
    lock.lock();
    m.state = Message::State::done;
    endpoint(part.peer).changed.notify_one();
  }

  // No peer may touch this rank's memory after exchange() has thrown.
  void withdraw(std::unique_lock<std::mutex>& lock) {
    for (Message& m : messages_) {
      std::erase(endpoint(m.to).inbox, &m);
      while (m.state == Message::State::claimed) endpoint(rank_).changed.wait(lock);
    }
  }

  std::shared_ptr<ThreadHub> hub_;
  std::shared_ptr<ThreadHub::Channel> channel_;
  int rank_;
  std::vector<Message> messages_;
};

ThreadHub::ThreadHub(int ranks)
    : interrupted_(static_cast<std::size_t>(ranks)), ended_(static_cast<std::size_t>(ranks), End::none) {}

std::unique_ptr<Transport> ThreadHub::connect(int rank, int traffic, const std::vector<int>& members) {
  const auto at = std::find(members.begin(), members.end(), rank);
  check(at != members.end(), "rank {} is not a member of its group", rank);
  const std::scoped_lock lock(mutex_);
  const int call = calls_[{traffic, members, rank}]++;
  auto& channel = channels_[{traffic, members, call}];
  if (!channel) channel = std::make_shared<Channel>(members);
  return std::make_unique<ThreadTransport>(shared_from_this(), channel, static_cast<int>(at - members.begin()));
}

void ThreadHub::notify_all() {
  for (auto& [key, channel] : channels_)
    for (Endpoint& e : channel->endpoints) e.changed.notify_all();
}

std::string ThreadHub::trouble(int rank, int peer) const {
  if (!aborted_.empty()) return aborted_;
  if (const auto& why = interrupted_[static_cast<std::size_t>(rank)]; !why.empty()) return why;
  switch (ended_[static_cast<std::size_t>(peer)]) {
    case End::none:
      return {};
    case End::finished:
      return format("rank {} has ended, while rank {} waits for it", peer, rank);
    case End::failed:
      return failure_;
  }
  return {};
}

void ThreadHub::abort(const std::string& why) {
  const std::scoped_lock lock(mutex_);
  if (aborted_.empty()) aborted_ = why.empty() ? "aborted" : why;
  notify_all();
}

void ThreadHub::interrupt(int rank, const std::string& why) {
  const std::scoped_lock lock(mutex_);
  interrupted_[static_cast<std::size_t>(rank)] = why.empty() ? "interrupted" : why;
  notify_all();
}

void ThreadHub::finish(int rank) {
  const std::scoped_lock lock(mutex_);
  ended_[static_cast<std::size_t>(rank)] = End::finished;
  notify_all();
}

void ThreadHub::fail(int rank, const std::string& why) {
  const std::scoped_lock lock(mutex_);
  if (failure_.empty()) failure_ = why.empty() ? "failed" : why;
  ended_[static_cast<std::size_t>(rank)] = End::failed;
  notify_all();
}

}  // namespace dstrain
