#include "lib/data/tokenize.h"

#include <cstring>
#include <exception>
#include <mutex>
#include <optional>
#include <utility>

#include "lib/comm/agree.h"
#include "lib/core/hash.h"
#include "lib/core/thread_pool.h"

namespace dstrain {

namespace {

constexpr std::size_t kUnitBytes = 1 << 18;
constexpr std::size_t kWindowBytes = 64 * kUnitBytes;

enum class Side : unsigned char { empty, train, eval };

struct Document {
  Side side = Side::empty;
  bool skip = false;  // it is in a finished file
  Index tokens = 0;   // without the end of document
  std::uint64_t bytes = 0;
};

// What a unit becomes.
struct Encoded {
  std::vector<Document> documents;
  std::vector<std::int32_t> ids;  // of all that are not skipped, one after another
  ExitCode code = ExitCode::ok;   // of the first document that is not valid
  std::string error;
};

struct Unit {
  std::vector<RawDocument> raw;
  bool prepared = false;  // raw holds text, and result.documents their sides
  Encoded result;
};

struct Window {
  std::vector<Unit> units;
  std::exception_ptr error;  // met when reading behind the units
  std::uint64_t consumed = 0;
};

// Encoders keep caches: as many as threads use at a time.
class Encoders {
 public:
  explicit Encoders(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  std::unique_ptr<Encoder> take() {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) return std::make_unique<Encoder>(tokenizer_);
    auto one = std::move(free_.back());
    free_.pop_back();
    return one;
  }
  void give(std::unique_ptr<Encoder> one) {
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(one));
  }

 private:
  const Tokenizer& tokenizer_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Encoder>> free_;
};

// ---- results as bytes, from rank to rank ----

template <class T>
void put(std::string& out, const T* values, std::size_t n) {
  const auto count = static_cast<std::uint64_t>(n);
  out.append(reinterpret_cast<const char*>(&count), sizeof count);
  out.append(reinterpret_cast<const char*>(values), n * sizeof(T));
}

template <class T>
std::vector<T> take(const std::string& from, std::size_t& at) {
  std::uint64_t count = 0;
  std::memcpy(&count, from.data() + at, sizeof count);
  at += sizeof count;
  std::vector<T> out(count);
  if (count > 0) std::memcpy(out.data(), from.data() + at, count * sizeof(T));
  at += count * sizeof(T);
  return out;
}

void pack(const Encoded& e, std::string& out) {
  put(out, e.documents.data(), e.documents.size());
  put(out, e.ids.data(), e.ids.size());
  put(out, &e.code, 1);
  put(out, e.error.data(), e.error.size());
}

Encoded unpack(const std::string& from, std::size_t& at) {
  Encoded e;
  e.documents = take<Document>(from, at);
  e.ids = take<std::int32_t>(from, at);
  e.code = take<ExitCode>(from, at).front();
  const auto error = take<char>(from, at);
  e.error.assign(error.begin(), error.end());
  return e;
}

// ---- the writer's side, on rank 0 ----

class Output {
 public:
  Output(const Files& files, const TokenizeOptions& options, const TokenFileInfo& info) : state_(files, options, info) {
    if (state_.complete()) return;
    train_.statistics = state_.finished(options.out);
    if (!options.eval_out.empty()) eval_.statistics = state_.finished(options.eval_out);
    for (Half* half : {&train_, &eval_}) half->finished = half->statistics.documents;
    train_.writer.emplace(files, options.out, info, options.tokens_per_file, train_.statistics.files.size());
    if (!options.eval_out.empty())
      eval_.writer.emplace(files, options.eval_out, info, options.tokens_per_file, eval_.statistics.files.size());
  }

  const TokenizeState& state() const { return state_; }
  Index finished_train() const { return train_.finished; }
  Index finished_eval() const { return eval_.finished; }
  Index tokens() const { return train_.statistics.tokens + eval_.statistics.tokens; }
  Index documents() const { return train_.statistics.documents + eval_.statistics.documents; }

  // Throws the error of a document that is not valid, with all before it written.
  void write(const Encoded& unit) {
    std::size_t at = 0;
    for (const Document& d : unit.documents) {
      if (d.side == Side::empty) {
        ++empty_;
        continue;
      }
      Half& half = d.side == Side::train ? train_ : eval_;
      half.statistics.bytes += d.bytes;
      ++half.seen;
      if (d.skip) continue;
      half.writer->add(std::span(unit.ids).subspan(at, static_cast<std::size_t>(d.tokens)));
      half.statistics.count(d.tokens + 1);
      at += static_cast<std::size_t>(d.tokens);
    }
    if (unit.code != ExitCode::ok) throw Error(unit.code, unit.error);
  }

  TokenizeStatistics finish(const TokenizeOptions& options) {
    for (const Half* half : {&train_, &eval_})
      require(half->seen >= half->finished, ExitCode::data,
              "the inputs have {} documents, and finished token files hold {}: they have changed since the run began",
              half->seen, half->finished);
    require(documents() > 0, ExitCode::data, "no text: {} document(s) in {} file(s), all empty", empty_,
            options.texts.size());
    require(train_.statistics.documents > 0, ExitCode::data, "every document was held out; lower --eval-fraction");
    require(!eval_.writer || eval_.statistics.documents > 0, ExitCode::data,
            "none of {} documents was held out; raise --eval-fraction: {}", documents(), options.eval_fraction);
    for (Half* half : {&train_, &eval_})
      if (half->writer) half->statistics.files = half->writer->finish();
    TokenizeStatistics all{train_.statistics, eval_.statistics, empty_};
    state_.write_statistics(all);
    return all;
  }

 private:
  struct Half {
    std::optional<TokenWriter> writer;
    SideStatistics statistics;
    Index finished = 0;  // documents in files of an earlier run
    Index seen = 0;
  };
  TokenizeState state_;
  Half train_, eval_;
  Index empty_ = 0;
};

// ---- every rank's side ----

class Worker {
 public:
  Worker(const Files& files, const TokenizeOptions& options, const Tokenizer& tokenizer)
      : options_(options), encoders_(tokenizer), reader_(files, options.texts, options.rule) {}

  Window read() {
    Window window;
    try {
      RawDocument document;
      std::size_t bytes = 0, of_unit = kUnitBytes;  // of the window, and of its last unit
      while (bytes < kWindowBytes && reader_.next(document)) {
        if (of_unit >= kUnitBytes) {
          window.units.emplace_back();
          of_unit = 0;
        }
        const std::size_t n = document.bytes.size() + sizeof document;
        bytes += n;
        of_unit += n;
        window.units.back().raw.push_back(std::move(document));
        document = {};
      }
    } catch (...) {
      window.error = std::current_exception();
    }
    window.consumed = reader_.consumed();
    return window;
  }

  // Texts and sides, up to the first document that is not valid.
  void prepare(Unit& unit) const {
    if (std::exchange(unit.prepared, true)) return;
    Encoded& result = unit.result;
    try {
      for (RawDocument& raw : unit.raw) {
        raw.bytes = text_of(std::move(raw), options_.texts, options_.key);
        const bool eval = options_.eval_fraction > 0 && held_out(raw.bytes, options_.eval_fraction);
        result.documents.push_back({.side = is_blank(raw.bytes) ? Side::empty
                                            : eval              ? Side::eval
                                                                : Side::train,
                                    .bytes = raw.bytes.size()});
      }
    } catch (const Error& e) {
      result.code = e.code();
      result.error = e.what();
    }
  }

  void encode(Unit& unit) {
    prepare(unit);
    Encoded& result = unit.result;
    auto encoder = encoders_.take();
    try {
      encode(unit, *encoder);
    } catch (const Error& e) {
      result.code = e.code();
      result.error = e.what();
    }
    encoders_.give(std::move(encoder));
    unit.raw.clear();
    unit.raw.shrink_to_fit();
  }

 private:
  void encode(Unit& unit, Encoder& encoder) const {
    Encoded& result = unit.result;
    for (std::size_t i = 0; i < result.documents.size(); ++i) {
      Document& d = result.documents[i];
      if (d.side == Side::empty || d.skip) continue;
      const std::size_t before = result.ids.size();
      const RawDocument& raw = unit.raw[i];
      try {
        encoder.encode(raw.bytes, result.ids);
      } catch (const Error& e) {
        result.documents.resize(i);
        fail(e.code(), "{}: line {}: {}", options_.texts[raw.file].path, raw.line, e.what());
      }
      d.tokens = static_cast<Index>(result.ids.size() - before);
    }
  }

  const TokenizeOptions& options_;
  Encoders encoders_;
  DocumentReader reader_;
};

// Marks the first `train` and `eval` documents of each side and counts down.
void mark_finished(Window& window, Index& train, Index& eval) {
  for (Unit& unit : window.units)
    for (Document& d : unit.result.documents) {
      Index& left = d.side == Side::train ? train : eval;
      if (d.side == Side::empty || left == 0) continue;
      d.skip = true;
      --left;
    }
}

// Afterwards rank 0's window holds all results.
void collect(Window& window, Agreement& ranks) {
  if (ranks.size() == 1) return;
  const auto of = [&](std::size_t unit) { return static_cast<int>(unit % static_cast<std::size_t>(ranks.size())); };
  std::string mine;
  if (ranks.rank() != 0)
    for (std::size_t u = 0; u < window.units.size(); ++u)
      if (of(u) == ranks.rank()) pack(window.units[u].result, mine);
  const auto all = ranks.gather(mine);
  if (ranks.rank() != 0) return;
  std::vector<std::size_t> at(all.size(), 0);
  for (std::size_t u = 0; u < window.units.size(); ++u)
    if (const auto r = static_cast<std::size_t>(of(u)); r != 0) window.units[u].result = unpack(all[r], at[r]);
}

}  // namespace

bool held_out(std::string_view text, double fraction) {
  constexpr std::uint64_t kSeed = 0x68656c646f757421ull;  // apart from other uses of the hash
  return static_cast<double>(xxh3(text, kSeed) >> 11) * 0x1p-53 < fraction;
}

TokenizeResult tokenize(const Files& files, const Tokenizer& tokenizer, const TokenizeOptions& options, int threads,
                        ProcessGroup& group, const std::function<void(const TokenizeProgress&)>& report) {
  Agreement ranks(group);
  const bool first = ranks.rank() == 0;
  TokenizeProgress progress;
  for (const TextFile& t : options.texts) progress.total += t.bytes;
  std::optional<Output> output;
  ranks.together([&] {
    if (first)
      output.emplace(files, options,
                     TokenFileInfo{tokenizer.hash(), tokenizer.vocab_size(), tokenizer.end_of_document()});
  });
  // Only rank 0 adds to these sums.
  Index train = ranks.sum(first ? output->finished_train() : 0), eval = ranks.sum(first ? output->finished_eval() : 0);
  if (ranks.sum(Index{first && output->state().complete()}) > 0) {
    TokenizeResult result{.complete = true};
    if (first) result.statistics = output->state().read_statistics();
    result.resumed = result.statistics.train.documents + result.statistics.eval.documents;
    return result;
  }
  TokenizeResult result{.resumed = train + eval};

  ThreadPool pool(threads);
  Worker worker(files, options, tokenizer);
  Window last, current = worker.read();
  while (true) {
    if (train + eval > 0) {
      pool.parallel_for(static_cast<std::int64_t>(current.units.size()),
                        [&](std::int64_t u) { worker.prepare(current.units[static_cast<std::size_t>(u)]); });
      mark_finished(current, train, eval);
    }
    std::vector<Unit*> mine;
    for (std::size_t u = static_cast<std::size_t>(ranks.rank()); u < current.units.size();
         u += static_cast<std::size_t>(ranks.size()))
      mine.push_back(&current.units[u]);
    Window next;
    const bool more = !current.error && !current.units.empty();
    // An error in writing must not keep peers waiting.
    std::exception_ptr failed;
    pool.parallel_for(static_cast<std::int64_t>(mine.size()) + 1, [&](std::int64_t tile) {
      if (tile > 0) return worker.encode(*mine[static_cast<std::size_t>(tile - 1)]);
      if (more) next = worker.read();
      try {
        for (const Unit& unit : last.units) output->write(unit.result);
      } catch (...) {
        failed = std::current_exception();
      }
    });
    ranks.together([&] {
      if (failed) std::rethrow_exception(failed);
    });
    if (first) {
      progress.consumed = last.consumed;
      progress.documents = output->documents();
      progress.tokens = output->tokens();
      if (report) report(progress);
    }
    if (current.error && current.units.empty()) {
      ranks.together([&] { std::rethrow_exception(current.error); });
    }
    if (current.units.empty()) break;
    collect(current, ranks);
    next.error = current.error ? current.error : next.error;
    last = first ? std::move(current) : Window{};
    current = std::move(next);
  }
  ranks.together([&] {
    if (first) result.statistics = output->finish(options);
  });
  return result;
}

}  // namespace dstrain
