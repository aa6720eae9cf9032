#include "lib/train/diagnose.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "kernels/finite.h"
#include "lib/comm/agree.h"
#include "lib/core/transfer.h"

namespace dstrain {

namespace {

class Scanner {
 public:
  explicit Scanner(Engine& engine)
      : engine_(engine),
        memory_("finite flag", engine.stream().device(), Arena::kAlign),
        flag_(memory_.data(), DType::i32, engine.stream().device(), {1}) {}

  std::string first_bad(const char* what, const Tensor& flat) {
    if (!flat.defined()) return "";
    return first_bad(what, [&](const FlatRange& r) { return flat.slice(0, r.begin, r.end); });
  }
  std::string first_bad_gradient() {
    return first_bad("gradient", [&](const FlatRange& r) { return engine_.params().gradient(r); });
  }

 private:
  // What the first piece with a bad value is; "" when there is none.
  template <class F>
  std::string first_bad(const char* what, F&& part_of) {
    for (const ParamArena::Entry& e : engine_.params().entries()) {
      if (e.range.size() == 0) continue;
      const Tensor part = part_of(e.range);
      if (!bad(part)) continue;
      const Index at = position(part);
      return format("{} {} of rank {} holds {} at row {}, column {} of its part", what, e.piece->name,
                    engine_.mesh().rank_of(engine_.coordinates()), value(part, at), at / e.piece->columns(),
                    at % e.piece->columns());
    }
    return "";
  }
  bool bad(const Tensor& x) {
    Stream& stream = engine_.stream();
    std::int32_t flag = 0;
    upload(stream, flag_, &flag);
    launch(stream, FiniteCheck{.flag = flag_, .x = x, .most = kMostValue});
    download(stream, &flag, flag_);
    stream.synchronize();
    return flag != 0;
  }
  // By halves: the host copies nothing large.
  Index position(const Tensor& x) {
    Index begin = 0, end = x.dim(0);
    while (end - begin > 1) {
      const Index middle = (begin + end) / 2;
      (bad(x.slice(0, begin, middle)) ? end : begin) = middle;
    }
    return begin;
  }
  static double value(const Tensor& x, Index at) {
    const Tensor one = x.slice(0, at, at + 1);
    if (one.dtype == DType::bf16) {
      bfloat16 v;
      download_now(&v, one);
      return static_cast<double>(static_cast<float>(v));
    }
    float v = 0;
    download_now(&v, one);
    return static_cast<double>(v);
  }

  Engine& engine_;
  Buffer memory_;
  Tensor flag_;
};

// An op observer for the length of a scope.
class Observed {
 public:
  Observed(Stream& stream, OpObserver& observer) : stream_(stream), before_(stream.observer()) {
    stream_.set_observer(&observer);
  }
  ~Observed() { stream_.set_observer(before_); }
  Observed(const Observed&) = delete;
  Observed& operator=(const Observed&) = delete;

 private:
  Stream& stream_;
  OpObserver* before_;
};

// Evidence of one rank: a line that sorts before weaker evidence, fields of fixed width first.
std::string line_of(int kind, Index micro_batch, Index phase, Index layer, std::int64_t op, int rank, int data_rank,
                    const std::string& text) {
  return format("{} {:06} {} {:06} {:012} {:06} {:06} {}", kind, micro_batch + 1, phase, layer, op, rank, data_rank,
                text);
}

}  // namespace

Culprit find_culprit(Engine& engine, ProcessGroup& everyone, std::span<const Batch> micro_batches,
                     const ValidTokens& valid_tokens, bool gradients_kept) {
  constexpr Index kLayers = 100000;
  const int rank = engine.mesh().rank_of(engine.coordinates()), data = engine.coordinates().data;
  Stream& stream = engine.stream();
  stream.synchronize();
  Scanner scanner(engine);
  const ParamArena& params = engine.params();
  std::string line;
  const auto evidence = [&](int kind, const std::string& text) {
    if (line.empty() && !text.empty()) line = line_of(kind, -1, 0, 0, 0, rank, data, text);
  };
  evidence(1, scanner.first_bad("weight", params.compute()));
  if (params.master().data != params.compute().data) evidence(1, scanner.first_bad("master weight", params.master()));
  const std::string kept = gradients_kept ? scanner.first_bad_gradient() : "";
  // Every rank takes part in the pass, whatever it has found.
  DebugObserver observer({.check_finite = true, .rank = rank, .record = true, .inner = stream.observer()},
                         stream.device());
  {
    const Observed scope(stream, observer);
    engine.local_gradients(micro_batches, valid_tokens);
  }
  if (const auto& first = observer.first(); first && line.empty()) {
    const bool forward = std::string(first->place.phase) == "forward";
    const Index layer = first->place.layer + 1;
    line = line_of(2, first->place.micro_batch, forward ? 0 : 1, forward ? layer : kLayers - layer, first->op, rank,
                   data, first->text);
  }
  evidence(3, scanner.first_bad_gradient());
  if (!kept.empty()) evidence(4, kept + "; a second pass over the batch is finite, so it did not come from the data");

  Agreement agreement(everyone);
  std::vector<std::string> lines = agreement.gather(line);
  std::erase(lines, "");
  const std::string best =
      agreement.broadcast(lines.empty() ? std::string() : *std::min_element(lines.begin(), lines.end()));
  if (best.empty())
    return {.text = "a second pass over the batch is finite on every rank: it did not come from the data"};
  constexpr std::size_t kFields = 2 + 7 + 2 + 7 + 13 + 7 + 7;
  Culprit culprit{.text = best.substr(kFields)};
  if (best[0] == '2') {
    culprit.micro_batch = std::stoi(best.substr(2, 6)) - 1;
    culprit.data_rank = std::stoi(best.substr(kFields - 7, 6));
  }
  return culprit;
}

}  // namespace dstrain
