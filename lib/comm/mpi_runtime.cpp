#include "lib/comm/mpi_runtime.h"

#include <mpi.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "lib/comm/launcher.h"
#include "lib/core/errors.h"

namespace dstrain {

namespace {

using SteadyClock = std::chrono::steady_clock;
constexpr auto kPolling = std::chrono::microseconds(50);  // polled with sched_yield for so long, then with sleeps
constexpr auto kShortestSleep = std::chrono::microseconds(5);
constexpr auto kLongestSleep = std::chrono::microseconds(500);
constexpr auto kNotes = std::chrono::milliseconds(20);  // between looks for notes

std::string message_of(int error) {
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(error, text, &length);
  return std::string(text, static_cast<std::size_t>(length));
}

}  // namespace

// Lives on the stack of the thread that waits for it.
struct MpiRuntime::Operation {
  int communicator;
  int tag;
  std::span<const Part> sends, receives;
  std::size_t open = 0;  // requests not complete; the communication thread's
  std::string error;     // written before done
  ExitCode code = ExitCode::lost;
  std::mutex mutex;
  std::condition_variable finished;
  bool done = false;

  void finish() {
    const std::scoped_lock lock(mutex);
    done = true;
    finished.notify_one();
  }
};

struct MpiRuntime::State {
  int rank = 0, size = 1, local_rank = 0, local_size = 1;
  std::string host_name;
  std::vector<int> host_ranks;
  const int exceptions_at_start = std::uncaught_exceptions();

  std::mutex mutex;
  std::condition_variable posted;
  std::vector<Operation*> queue;
  std::atomic<int> waiting{0};  // size of queue, or stop: read without the lock
  bool started = false;
  bool stop = false;
  bool finalize = false;
  std::string failure;      // start-up
  std::string interrupted;  // interrupt(), or MPI's own failure
  bool listening = false;
  std::vector<Note> received;
  std::map<int, std::vector<std::byte>> outgoing;  // by receiver
  std::thread thread;

  // The communication thread's own.
  std::vector<MPI_Comm> communicators;
  std::vector<MPI_Request> requests;
  struct Tracked {
    Operation* operation;
    const Part* part;
    bool receive;
  };
  std::vector<Tracked> tracked;
  std::vector<int> indices;
  std::vector<MPI_Status> statuses;
  MPI_Comm notes = MPI_COMM_NULL;
  struct Sent {
    MPI_Request request = MPI_REQUEST_NULL;
    std::vector<std::byte> bytes;
  };
  std::map<int, Sent> sent;
  SteadyClock::time_point looked{};  // for notes

  void start(int count);
  void loop();
  void post(Operation& operation);
  bool progress();  // whether something completed
  void complete(std::size_t index, const MPI_Status& status, bool failed);
  void drop(const std::string& why);
  void exchange_notes();
  void end();
  void run(int count);
};

void MpiRuntime::State::start(int count) {
  int provided = 0;
  if (const int e = MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided); e != MPI_SUCCESS)
    fail(ExitCode::lost, "MPI does not start: {}", message_of(e));
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  MPI_Comm local;
  int e = MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &local);
  if (e == MPI_SUCCESS) {
    MPI_Comm_rank(local, &local_rank);
    MPI_Comm_size(local, &local_size);
    host_ranks.resize(static_cast<std::size_t>(local_size));
    MPI_Comm_set_errhandler(local, MPI_ERRORS_RETURN);
    e = MPI_Allgather(&rank, 1, MPI_INT, host_ranks.data(), 1, MPI_INT, local);
    MPI_Comm_free(&local);
  }
  if (e == MPI_SUCCESS) e = MPI_Comm_dup(MPI_COMM_WORLD, &notes);
  if (e == MPI_SUCCESS) e = MPI_Comm_set_errhandler(notes, MPI_ERRORS_RETURN);
  communicators.resize(static_cast<std::size_t>(count), MPI_COMM_NULL);
  for (MPI_Comm& c : communicators) {
    if (e == MPI_SUCCESS) e = MPI_Comm_dup(MPI_COMM_WORLD, &c);
    if (e == MPI_SUCCESS) e = MPI_Comm_set_errhandler(c, MPI_ERRORS_RETURN);
  }
  require(e == MPI_SUCCESS, ExitCode::lost, "rank {} of {}: MPI cannot make communicators: {}", rank, size,
          message_of(e));
  char name[256] = {};
  gethostname(name, sizeof name - 1);
  host_name = name;
}

void MpiRuntime::State::post(Operation& operation) {
  const MPI_Comm c = communicators[static_cast<std::size_t>(operation.communicator)];
  operation.open = operation.sends.size() + operation.receives.size();
  const auto add = [&](const Part& part, bool receive) {
    MPI_Request request = MPI_REQUEST_NULL;
    const int bytes = static_cast<int>(part.bytes);
    const int e = receive ? MPI_Irecv(part.data, bytes, MPI_BYTE, part.peer, operation.tag, c, &request)
                          : MPI_Isend(part.data, bytes, MPI_BYTE, part.peer, operation.tag, c, &request);
    if (e != MPI_SUCCESS) {
      operation.error = format("rank {}: cannot post a message of {} bytes {} rank {}: {}", rank, bytes,
                               receive ? "from" : "to", part.peer, message_of(e));
      --operation.open;
      return;
    }
    requests.push_back(request);
    tracked.push_back({&operation, &part, receive});
  };
  for (const Part& p : operation.receives) add(p, true);
  for (const Part& p : operation.sends) add(p, false);
  if (operation.open == 0) operation.finish();
}

void MpiRuntime::State::complete(std::size_t index, const MPI_Status& status, bool failed) {
  const Tracked& t = tracked[index];
  Operation& operation = *t.operation;
  if (failed && status.MPI_ERROR != MPI_SUCCESS && operation.error.empty()) {
    operation.error = format("rank {}: a message of {} bytes {} rank {} failed: {}", rank, t.part->bytes,
                             t.receive ? "from" : "to", t.part->peer, message_of(status.MPI_ERROR));
  } else if (t.receive && operation.error.empty()) {
    int bytes = 0;
    MPI_Get_count(&status, MPI_BYTE, &bytes);
    if (static_cast<std::size_t>(bytes) != t.part->bytes) {
      operation.code = ExitCode::bug;
      operation.error =
          format("internal error: rank {} sent {} bytes, rank {} expects {}", t.part->peer, bytes, rank, t.part->bytes);
    }
  }
  if (--operation.open == 0) operation.finish();
}

bool MpiRuntime::State::progress() {
  const auto n = requests.size();
  if (indices.size() < n) {
    indices.resize(n);
    statuses.resize(n);
  }
  int completed = 0;
  const int e = MPI_Testsome(static_cast<int>(n), requests.data(), &completed, indices.data(), statuses.data());
  if (e != MPI_SUCCESS && e != MPI_ERR_IN_STATUS) {
    const std::scoped_lock lock(mutex);
    if (interrupted.empty()) interrupted = format("rank {}: MPI cannot make progress: {}", rank, message_of(e));
    waiting.store(1, std::memory_order_relaxed);
    return true;
  }
  if (completed == MPI_UNDEFINED || completed == 0) return false;
  for (int i = 0; i < completed; ++i) {
    const auto at = static_cast<std::size_t>(i);
    complete(static_cast<std::size_t>(indices[at]), statuses[at], e == MPI_ERR_IN_STATUS);
    requests[static_cast<std::size_t>(indices[at])] = MPI_REQUEST_NULL;
  }
  std::size_t kept = 0;
  for (std::size_t i = 0; i < n; ++i) {
    if (requests[i] == MPI_REQUEST_NULL) continue;
    requests[kept] = requests[i];
    tracked[kept++] = tracked[i];
  }
  requests.resize(kept);
  tracked.resize(kept);
  return true;
}

// Ends all open operations, and the use of MPI: their requests stay with it, and it must get no further chance to write
// into their memory.
void MpiRuntime::State::drop(const std::string& why) {
  std::vector<Operation*> ended;
  for (const Tracked& t : tracked)
    if (std::find(ended.begin(), ended.end(), t.operation) == ended.end()) ended.push_back(t.operation);
  requests.clear();
  tracked.clear();
  for (Operation* operation : ended) {
    operation->error = why;
    operation->finish();
  }
}

// Receives what has come, sends what is to go. Requests of notes have their own places: `sent` is never freed while MPI
// may read it.
void MpiRuntime::State::exchange_notes() {
  looked = SteadyClock::now();
  while (true) {
    int there = 0;
    MPI_Message message;
    MPI_Status status;
    if (MPI_Improbe(MPI_ANY_SOURCE, 0, notes, &there, &message, &status) != MPI_SUCCESS || !there) break;
    int bytes = 0;
    MPI_Get_count(&status, MPI_BYTE, &bytes);
    Note note{status.MPI_SOURCE, std::vector<std::byte>(static_cast<std::size_t>(bytes))};
    if (MPI_Mrecv(note.bytes.data(), bytes, MPI_BYTE, &message, MPI_STATUS_IGNORE) != MPI_SUCCESS) break;
    const std::scoped_lock lock(mutex);
    received.push_back(std::move(note));
  }
  std::map<int, std::vector<std::byte>> taken;
  {
    const std::scoped_lock lock(mutex);
    for (auto it = outgoing.begin(); it != outgoing.end();) {
      Sent& s = sent[it->first];
      int done = 1;
      if (s.request != MPI_REQUEST_NULL) MPI_Test(&s.request, &done, MPI_STATUS_IGNORE);
      if (!done) {
        ++it;
        continue;
      }
      taken[it->first] = std::move(it->second);
      it = outgoing.erase(it);
    }
  }
  for (auto& [to, bytes] : taken) {
    Sent& s = sent[to];
    s.bytes = std::move(bytes);
    if (MPI_Isend(s.bytes.data(), static_cast<int>(s.bytes.size()), MPI_BYTE, to, 0, notes, &s.request) != MPI_SUCCESS)
      s.request = MPI_REQUEST_NULL;
  }
}

void MpiRuntime::State::loop() {
  bool notes_wanted = false;
  std::vector<Operation*> taken;
  auto since = SteadyClock::now();  // of the last progress
  while (true) {
    if (waiting.load(std::memory_order_acquire) == 0) {
      const auto waited = SteadyClock::now() - since;
      if (waited < kPolling) {
        sched_yield();
      } else {
        std::unique_lock lock(mutex);
        const auto ready = [this] { return waiting.load(std::memory_order_relaxed) != 0; };
        notes_wanted = listening && interrupted.empty();
        if (requests.empty() && notes_wanted) {
          posted.wait_until(lock, looked + kNotes, ready);
        } else if (requests.empty()) {
          posted.wait(lock, ready);
        } else {
          posted.wait_for(lock, std::clamp<SteadyClock::duration>(waited / 32, kShortestSleep, kLongestSleep), ready);
        }
      }
    }
    if (waiting.load(std::memory_order_acquire) != 0) {
      std::string why;
      bool last = false;
      {
        const std::scoped_lock lock(mutex);
        taken.swap(queue);
        waiting.store(stop ? 1 : 0, std::memory_order_relaxed);
        why = interrupted;
        last = stop;
        notes_wanted = listening && interrupted.empty();
      }
      if (!why.empty()) {
        drop(why);
        for (Operation* operation : taken) {
          operation->error = why;
          operation->finish();
        }
      } else {
        for (Operation* operation : taken) post(*operation);
      }
      taken.clear();
      since = SteadyClock::now();
      if (last) break;
    }
    if (!requests.empty() && progress()) since = SteadyClock::now();
    if (notes_wanted && SteadyClock::now() - looked >= kNotes) exchange_notes();
  }
}

void MpiRuntime::State::end() {
  // Peers may have long work left: wait for them asleep, then leave together.
  MPI_Request barrier;
  int done = MPI_Ibarrier(communicators[0], &barrier) != MPI_SUCCESS;
  while (!done) {
    if (MPI_Test(&barrier, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) break;
    if (!done) std::this_thread::sleep_for(kLongestSleep);
  }
  for (auto& [to, s] : sent)
    if (s.request != MPI_REQUEST_NULL) MPI_Request_free(&s.request);
  for (MPI_Comm& c : communicators) MPI_Comm_free(&c);
  MPI_Comm_free(&notes);
  MPI_Finalize();
}

void MpiRuntime::State::run(int count) {
  prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);  // this thread's short sleeps are short
  std::string why;
  try {
    start(count);
  } catch (const std::exception& e) {
    why = e.what();
  }
  {
    const std::scoped_lock lock(mutex);
    started = true;
    failure = why;
  }
  posted.notify_all();
  if (!why.empty()) return;
  loop();
  if (finalize) end();
}

MpiRuntime::MpiRuntime(int communicators, double limit) : state_(std::make_unique<State>()) {
  // Signals are for the threads of the program.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  state_->thread = std::thread([this, communicators] { state_->run(communicators); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  const Launcher launcher;
  const auto begin = SteadyClock::now();
  std::unique_lock lock(state_->mutex);
  while (!state_->posted.wait_for(lock, std::chrono::milliseconds(100), [this] { return state_->started; })) {
    const bool late = SteadyClock::now() - begin > std::chrono::duration<double>(limit);
    if (!late && launcher.alive()) continue;
    lock.unlock();
    state_->thread.detach();
    (void)state_.release();  // the thread's, for good
    require(!late, ExitCode::lost, "rank {}: MPI has not started after {} s: not every rank of the job has come",
            launched_rank(), limit);
    fail(ExitCode::lost, "rank {}: its launcher, {}, has ended", launched_rank(), launcher.to_string());
  }
  if (state_->failure.empty()) return;
  lock.unlock();
  state_->thread.join();
  fail(ExitCode::lost, "{}", state_->failure);
}

MpiRuntime::~MpiRuntime() {
  {
    const std::scoped_lock lock(state_->mutex);
    state_->stop = true;
    state_->finalize = state_->interrupted.empty() && std::uncaught_exceptions() <= state_->exceptions_at_start;
    state_->waiting.store(1, std::memory_order_release);
  }
  state_->posted.notify_all();
  state_->thread.join();
}

int MpiRuntime::rank() const { return state_->rank; }
int MpiRuntime::size() const { return state_->size; }
int MpiRuntime::local_rank() const { return state_->local_rank; }
int MpiRuntime::local_size() const { return state_->local_size; }
const std::string& MpiRuntime::host_name() const { return state_->host_name; }
const std::vector<int>& MpiRuntime::host_ranks() const { return state_->host_ranks; }

void MpiRuntime::exchange(int communicator, int tag, std::span<const Part> sends, std::span<const Part> receives) {
  Operation operation{communicator, tag, sends, receives};
  {
    const std::scoped_lock lock(state_->mutex);
    require(state_->interrupted.empty(), ExitCode::lost, "{}", state_->interrupted);
    state_->queue.push_back(&operation);
    state_->waiting.store(1, std::memory_order_release);
  }
  state_->posted.notify_one();
  std::unique_lock lock(operation.mutex);
  operation.finished.wait(lock, [&] { return operation.done; });
  if (!operation.error.empty()) throw Error(operation.code, operation.error);
}

void MpiRuntime::listen() {
  {
    const std::scoped_lock lock(state_->mutex);
    state_->listening = true;
    state_->waiting.store(1, std::memory_order_release);
  }
  state_->posted.notify_one();
}

void MpiRuntime::send_note(int to, std::span<const std::byte> bytes) {
  const std::scoped_lock lock(state_->mutex);
  state_->outgoing[to].assign(bytes.begin(), bytes.end());
}

std::vector<MpiRuntime::Note> MpiRuntime::take_notes() {
  const std::scoped_lock lock(state_->mutex);
  return std::exchange(state_->received, {});
}

void MpiRuntime::interrupt(const std::string& why) {
  {
    const std::scoped_lock lock(state_->mutex);
    if (!state_->interrupted.empty()) return;
    state_->interrupted = why.empty() ? "interrupted" : why;
    state_->waiting.store(1, std::memory_order_release);
  }
  state_->posted.notify_one();
}

}  // namespace dstrain
