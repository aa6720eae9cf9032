#include "lib/comm/watchdog.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <numeric>
#include <utility>

#include "lib/comm/agree.h"
#include "lib/comm/mpi_runtime.h"

namespace dstrain {

namespace {

constexpr int kTick = 50;              // milliseconds between looks
constexpr double kTalk = 0.1;          // seconds between notes
constexpr double kLate = 1.0;          // a tick so late says that this process itself was stopped
constexpr double kArrive = 0.05;       // seconds that peers get to come to where they wait for the lost rank
constexpr double kPrecedence = 0.02;   // seconds that a rank leaves to each one below it
constexpr double kOwnEnd = 0.5;        // seconds for this rank to end by itself after a peer's announced error
constexpr double kMissingHost = 0.35;  // after SIGTERM: a launcher that has lost a rank kills the others in a second
constexpr double kDelivery = 1.5;      // seconds for a verdict to get to other hosts
constexpr double kTelling = 1.0;       // seconds to wait for the message of another

enum class NoteKind : std::uint32_t { beat, rows, verdict, heard };

struct NoteHead {
  NoteKind kind = NoteKind::beat;
  std::int32_t code = 0;
  std::uint32_t rows = 0;
};

std::string text_of(double seconds) { return format("{:.1f}", seconds); }

std::string name_of_rank(const RankView& v) {
  return format("rank {} on host {} (process {})", v.rank, v.host, v.here->process.load());
}

bool runs(const RankView& v) { return v.here->ended == Whereabouts::kRunning; }

bool waits_for_its_own(const RankView& v) {
  const std::string what = v.here->waits.get();
  return what == "device" || what == "loader" || what == "writer";
}

}  // namespace

std::string describe(const Whereabouts& here) {
  const std::string activity = here.activity.get(), phase = here.phase.get(), op = here.op.get();
  std::string text = activity.empty() ? "before the start" : activity;
  if (activity == "step" || activity == "save" || activity == "evaluation") text += format(" {}", here.step.load());
  if (!phase.empty() && activity != "start") text += ", " + phase;
  if (here.micro_batch >= 0) text += format(", micro-batch {}", here.micro_batch.load());
  if (here.layer >= 0) text += format(", layer {}", here.layer.load());
  if (!op.empty()) text += format(", last op '{}'", op);
  if (!here.waits.empty()) text += format(", waiting for {}", here.waits.get());
  if (here.saving >= 0) text += format(", writing the checkpoint of step {}", here.saving.load());
  return text;
}

std::optional<Finding> find_lost(std::span<const RankView> ranks, bool all, double silence) {
  const RankView* worst = nullptr;
  for (const RankView& v : ranks)
    if (v.gone && runs(v)) return Finding{v.rank, name_of_rank(v) + " was killed or died"};
  for (const RankView& v : ranks)
    if (runs(v) && v.silent > silence && (!worst || v.silent > worst->silent)) worst = &v;
  if (worst)
    return Finding{worst->rank, format("{} has given no sign of life for {} s: stopped, or its host hangs",
                                       name_of_rank(*worst), text_of(worst->silent))};
  const auto late = [](const RankView& v) { return v.here->limit > 0 && v.stalled > v.here->limit; };
  const auto stuck = [&](const RankView& v) {
    return Finding{v.rank, format("{} makes no progress for {} s (limit {} s)", name_of_rank(v), text_of(v.stalled),
                                  text_of(v.here->limit))};
  };
  bool others = false;  // somebody does not wait and is within its limit
  for (const RankView& v : ranks) {
    if (!runs(v) || !v.here->waits.empty()) continue;
    if (late(v) && (!worst || v.stalled > worst->stalled)) worst = &v;
    others = true;
  }
  if (worst) return stuck(*worst);
  if (others || !all) return {};
  bool every = false;
  for (const RankView& v : ranks) {
    if (!runs(v)) continue;
    if (waits_for_its_own(v) && late(v) && (!worst || v.stalled > worst->stalled)) worst = &v;
    if (!late(v)) return {};
    every = true;
  }
  if (worst) return stuck(*worst);
  if (!every) return {};
  return Finding{-1, format("all ranks wait for each other for {} s", text_of(ranks.front().stalled))};
}

// Ends this rank's wait for the others when one does not come: it may be stopped, or its host may hang, where the
// launcher does not see it.
class Watchdog::Meeting {
 public:
  Meeting(World& world, double limit) {
    sigset_t every, before;
    sigfillset(&every);
    pthread_sigmask(SIG_SETMASK, &every, &before);
    thread_ = std::thread([this, &world, limit] { wait(world, limit); });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }
  ~Meeting() {
    {
      const std::scoped_lock lock(mutex_);
      all_here_ = true;
    }
    changed_.notify_one();
    thread_.join();
  }
  Meeting(const Meeting&) = delete;
  Meeting& operator=(const Meeting&) = delete;

 private:
  void wait(World& world, double limit) {
    using Time = std::chrono::steady_clock;
    const Launcher launcher;
    const auto end = Time::now() + std::chrono::duration_cast<Time::duration>(std::chrono::duration<double>(limit));
    std::unique_lock lock(mutex_);
    while (!changed_.wait_for(lock, kGlance, [&] { return all_here_; })) {
      const bool orphan = world.runtime() && !launcher.alive();
      if (!orphan && Time::now() < end) continue;
      lock.unlock();
      world.interrupt(orphan ? format("rank {}: its launcher, {}, has ended", world.rank(), launcher.to_string())
                             : format("rank {}: not every rank of the job has come to the start within {} s of this "
                                      "one: a rank is stopped, or its host hangs",
                                      world.rank(), limit));
      return;
    }
  }

  static constexpr auto kGlance = std::chrono::milliseconds(100);
  std::mutex mutex_;
  std::condition_variable changed_;
  bool all_here_ = false;
  std::thread thread_;
};

Watchdog::Watchdog(World& world, const Clock& clock, const StopSignal* signal, Options options)
    : world_(world),
      clock_(clock),
      signal_(signal),
      options_(std::move(options)),
      meeting_(options_.start > 0 && world.size() > 1 ? std::make_unique<Meeting>(world, options_.start) : nullptr),
      table_(world) {
  std::vector<int> all(static_cast<std::size_t>(world.size()));
  std::iota(all.begin(), all.end(), 0);
  everyone_ = world.group(Poster::watchdog, GroupKind::control, all);
  Agreement agreement(*everyone_);
  const std::vector<Index> leader_of = agreement.all_gather(table_.ranks().front());
  // Names by leader, for messages.
  std::string names;
  for (const std::string& name : agreement.gather(world.host_name())) names += name + "\n";
  names = agreement.broadcast(names);
  std::vector<std::string> host_of;
  for (std::size_t at = 0, end; (end = names.find('\n', at)) != std::string::npos; at = end + 1)
    host_of.push_back(names.substr(at, end - at));
  for (int r = 0; r < world.size(); ++r)
    if (world.runtime() && leader_of[static_cast<std::size_t>(r)] == r) leaders_.push_back(r);
  root_host_ = host_of.front();
  meeting_.reset();

  const double now = clock_.now();
  const bool leads = table_.index() == 0;
  for (const int leader : leaders_)
    if (leads && leader != world.rank() && (world.rank() == 0 || leader == 0))
      hosts_[leader] = Host{host_of[static_cast<std::size_t>(leader)], now, {}};
  if (world.runtime()) {
    launcher_.emplace();
    if (!single_host()) world.runtime()->listen();
  }
  peers_.resize(table_.size());
  for (std::size_t i = 0; i < peers_.size(); ++i) {
    if (i != table_.index()) peers_[i].descriptor = process_descriptor(table_.at(i).process);
    peers_[i].beat_at = peers_[i].change_at = now;
  }
  last_tick_ = now;
  stop_ = eventfd(0, EFD_CLOEXEC);
  require(stop_ >= 0, ExitCode::device, "cannot open an event for the watchdog: {}; see ulimit -n",
          std::strerror(errno));
  sigset_t every, before;
  sigfillset(&every);
  pthread_sigmask(SIG_SETMASK, &every, &before);
  thread_ = std::thread([this] { loop(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Watchdog::~Watchdog() {
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written = write(stop_, &one, sizeof one);
  thread_.join();
  close(stop_);
  for (const Peer& p : peers_)
    if (p.descriptor >= 0) close(p.descriptor);
}

void Watchdog::finish() {
  here().enter(PackedText("end"), 0);
  Agreement(*everyone_, &here()).sum(Index{0});
  announce(ExitCode::ok);
  // Nobody leaves before all have said so.
  Agreement(*everyone_, &here()).sum(Index{0});
}

void Watchdog::settle(double seconds) { clock_.sleep(seconds); }

void Watchdog::loop() {
  std::vector<pollfd> polled;
  while (true) {
    polled.clear();
    polled.push_back({stop_, POLLIN, 0});
    if (launcher_ && launcher_->descriptor() >= 0) polled.push_back({launcher_->descriptor(), POLLIN, 0});
    for (const Peer& p : peers_)
      if (p.descriptor >= 0 && p.gone_at < 0) polled.push_back({p.descriptor, POLLIN, 0});
    poll(polled.data(), polled.size(), kTick);
    if (polled.front().revents != 0) return;
    const double now = clock_.now();
    here().beats.store(here().beats + 1, std::memory_order_relaxed);
    observe(now);
    talk(now);
    if (judge(now)) return;
    last_tick_ = now;
  }
}

void Watchdog::observe(double now) {
  // Who was stopped for a while, with all its threads, knows nothing of what the others did meanwhile.
  const double late = now - last_tick_;
  const bool reset = late > kLate;
  for (std::size_t i = 0; i < peers_.size(); ++i) {
    Peer& p = peers_[i];
    const Whereabouts& w = table_.at(i);
    const std::uint64_t beats = w.beats.load(std::memory_order_relaxed),
                        changes = w.changes.load(std::memory_order_relaxed);
    if (reset || beats != p.beats) p.beat_at = now;
    if (reset || changes != p.changes) p.change_at = now;
    p.beats = beats;
    p.changes = changes;
    if (p.gone_at >= 0 || i == table_.index()) continue;
    bool gone = false;
    if (p.descriptor >= 0) {
      pollfd one{p.descriptor, POLLIN, 0};
      gone = poll(&one, 1, 0) > 0;
    } else {
      gone = kill(w.process, 0) != 0 && errno == ESRCH;
    }
    if (gone) p.gone_at = now;
  }
  if (reset)
    for (auto& [leader, host] : hosts_) host.heard_at = now;
}

void Watchdog::talk(double now) {
  if (single_host() || table_.verdict().state != Verdict::none) return;
  MpiRuntime& runtime = *world_.runtime();
  for (const MpiRuntime::Note& note : runtime.take_notes()) {
    NoteHead head;
    if (note.bytes.size() < sizeof head) continue;
    std::memcpy(&head, note.bytes.data(), sizeof head);
    const std::byte* const body = note.bytes.data() + sizeof head;
    if (head.kind == NoteKind::verdict) {
      Verdict& v = table_.verdict();
      if (!v.claim()) continue;
      const std::size_t n = std::min(note.bytes.size() - sizeof head, Verdict::kText - 1);
      std::memcpy(v.text, body, n);
      v.code = head.code;
      v.state = Verdict::told;
      const NoteHead heard{NoteKind::heard, 0, 0};
      runtime.send_note(note.from, std::as_bytes(std::span(&heard, 1)));
      clock_.sleep(kTalk);  // for it to leave
      return;
    }
    const auto known = hosts_.find(note.from);
    if (known == hosts_.end()) continue;
    known->second.heard_at = now;
    if (head.kind != NoteKind::rows) continue;
    known->second.rows.resize(head.rows);
    if (note.bytes.size() == sizeof head + head.rows * sizeof(Host::Row))
      std::memcpy(static_cast<void*>(known->second.rows.data()), body, head.rows * sizeof(Host::Row));
  }
  if (table_.index() != 0 || now - last_talk_ < kTalk) return;
  last_talk_ = now;
  if (world_.rank() == 0) {
    const NoteHead beat;
    for (const auto& [leader, host] : hosts_) runtime.send_note(leader, std::as_bytes(std::span(&beat, 1)));
    return;
  }
  const std::vector<RankView> mine = views(now, false);
  const NoteHead head{NoteKind::rows, 0, static_cast<std::uint32_t>(mine.size())};
  std::vector<std::byte> bytes(sizeof head + mine.size() * sizeof(Host::Row));
  std::memcpy(bytes.data(), &head, sizeof head);
  for (std::size_t i = 0; i < mine.size(); ++i) {
    Host::Row row{mine[i].rank, mine[i].silent, mine[i].stalled, mine[i].gone, {}};
    std::memcpy(row.here, static_cast<const void*>(mine[i].here), sizeof row.here);
    std::memcpy(bytes.data() + sizeof head + i * sizeof row, static_cast<const void*>(&row), sizeof row);
  }
  runtime.send_note(0, bytes);
}

std::vector<RankView> Watchdog::views(double now, bool all) const {
  std::vector<RankView> list;
  auto& table = const_cast<RankTable&>(table_);
  for (std::size_t i = 0; i < peers_.size(); ++i) {
    const Peer& p = peers_[i];
    list.push_back({.rank = table_.ranks()[i],
                    .host = world_.host_name(),
                    .here = &table.at(i),
                    .silent = now - p.beat_at,
                    .stalled = now - p.change_at,
                    .gone = p.gone_at >= 0});
  }
  if (!all) return list;
  for (const auto& [leader, host] : hosts_)
    for (const Host::Row& row : host.rows)
      list.push_back({.rank = row.rank,
                      .host = host.name,
                      .here = reinterpret_cast<const Whereabouts*>(row.here),
                      .silent = row.silent + (now - host.heard_at),
                      .stalled = row.stalled + (now - host.heard_at),
                      .gone = row.gone});
  return list;
}

std::string Watchdog::waiting_for(int lost, std::span<const RankView> ranks) const {
  std::map<std::string, std::string> by_group;
  for (const RankView& v : ranks) {
    const std::string group = v.here->waits.get();
    if (v.rank == lost || group.empty() || !runs(v)) continue;
    const std::vector<int> members = options_.members ? options_.members(group, v.rank) : std::vector<int>();
    const int peer = v.here->peer;
    const bool direct = peer >= 0 && peer < static_cast<int>(members.size())
                            ? members[static_cast<std::size_t>(peer)] == lost
                            : std::count(members.begin(), members.end(), lost) > 0;
    if (!direct) continue;
    std::string& list = by_group[group];
    list += format("{}{}", list.empty() ? "" : ", ", v.rank);
  }
  std::string text;
  for (const auto& [group, list] : by_group)
    text += format("{}{} (in group {})", text.empty() ? "" : "; ", list, group);
  return text.empty() ? "no rank waits for it yet" : "waiting for it: " + text;
}

bool Watchdog::judge(double now) {
  if (table_.verdict().state != Verdict::none) return follow();
  if (signal_ && signal_->again())
    return decide(ExitCode::stopped, [&] {
      return std::string(
          "a second signal: the run ends at once, and the last complete checkpoint is what it goes on from");
    });
  const bool launcher_gone = launcher_ && [&] {
    if (launcher_->descriptor() < 0) return !launcher_->alive();
    pollfd one{launcher_->descriptor(), POLLIN, 0};
    return poll(&one, 1, 0) > 0;
  }();
  if (launcher_gone)
    return decide(ExitCode::lost,
                  [&] { return format("the launcher, {}, has ended: so do its ranks", launcher_->to_string()); });

  const bool ending = here().ended != Whereabouts::kRunning;
  for (std::size_t i = 0; i < peers_.size(); ++i) {
    const Peer& p = peers_[i];
    const int code = table_.at(i).ended;
    if (p.gone_at < 0 || code == Whereabouts::kRunning || ending || now - p.gone_at < kOwnEnd) continue;
    // It has told its reason, and what it returns is the job's code.
    if (table_.verdict().claim()) {
      table_.verdict().code = static_cast<int>(ExitCode::lost);
      table_.verdict().state = Verdict::told;
    }
    return follow();
  }

  const std::vector<RankView> known = views(now, true);
  auto found = find_lost(known, static_cast<int>(known.size()) == world_.size(), options_.silence);
  // Every limit is for one rank; a host's silence is that of all its ranks.
  const bool looking = signal_ && signal_->terminated() && signal_->since_first() < 5;
  for (const auto& [leader, host] : hosts_) {
    const double silent = now - host.heard_at;
    if (found || silent <= (looking ? std::min(kMissingHost, options_.silence) : options_.silence)) continue;
    found = Finding{leader,
                    format("rank {} on host {} has not been heard of for {} s", leader, host.name, text_of(silent))};
  }
  if (!found) return false;
  if (!looking) clock_.sleep(kArrive);
  const Finding finding = *found;
  return decide(ExitCode::lost, [&] {
    const std::vector<RankView> all = views(now, true);
    std::string text = finding.what;
    if (finding.lost < 0) {
      for (const RankView& v : all) text += format("; rank {}: {}", v.rank, describe(*v.here));
      return text;
    }
    for (const RankView& v : all)
      if (v.rank == finding.lost) text += "; last seen in " + describe(*v.here);
    return text + "; " + waiting_for(finding.lost, all);
  });
}

bool Watchdog::decide(ExitCode code, const std::function<std::string()>& text) {
  std::size_t below = 0;  // ranks of the table that should tell rather than this one
  for (std::size_t i = 0; i < table_.index(); ++i)
    below += peers_[i].gone_at < 0 && clock_.now() - peers_[i].beat_at < options_.silence / 2;
  if (below > 0) clock_.sleep(kPrecedence * static_cast<double>(below));
  Verdict& verdict = table_.verdict();
  if (!verdict.claim()) return follow();
  const std::string words = text().substr(0, Verdict::kText - 1);
  std::memcpy(verdict.text, words.data(), words.size());
  verdict.code = static_cast<int>(code);
  std::vector<int> others;  // leaders of hosts that have not heard
  if (!single_host()) {
    const NoteHead head{NoteKind::verdict, static_cast<std::int32_t>(code), 0};
    std::vector<std::byte> bytes(sizeof head + words.size());
    std::memcpy(bytes.data(), &head, sizeof head);
    std::memcpy(bytes.data() + sizeof head, words.data(), words.size());
    for (const int leader : leaders_)
      if (leader != table_.ranks().front()) others.push_back(leader);
    for (const int leader : others) world_.runtime()->send_note(leader, bytes);
  }
  if (options_.tell) options_.tell({code, words, here().step.load(), here().directory.load() != 0});
  verdict.state = Verdict::told;
  std::erase_if(others, [&](int leader) {  // it will not answer
    const auto known = hosts_.find(leader);
    return known != hosts_.end() && clock_.now() - known->second.heard_at > kMissingHost;
  });
  // A first note to a rank makes a connection, and waits for it in the sender's memory.
  for (const double begin = clock_.now(); !others.empty() && clock_.now() - begin < kDelivery; clock_.sleep(0.01))
    for (const MpiRuntime::Note& note : world_.runtime()->take_notes()) {
      NoteHead head;
      if (note.bytes.size() != sizeof head) continue;
      std::memcpy(&head, note.bytes.data(), sizeof head);
      if (head.kind == NoteKind::heard) std::erase(others, note.from);
    }
  if (options_.leave) options_.leave(code);
  return true;
}

bool Watchdog::follow() {
  Verdict& verdict = table_.verdict();
  const double begin = clock_.now();
  while (verdict.state != Verdict::told && clock_.now() - begin < kTelling) clock_.sleep(0.01);
  const int code = verdict.code;
  if (options_.leave) options_.leave(code == 0 ? ExitCode::lost : static_cast<ExitCode>(code));
  return true;
}

}  // namespace dstrain
