#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "lib/core/errors.h"
#include "lib/pipeline/schedule.h"
#include "lib/pipeline/text.h"

namespace dstrain {

namespace {

class Validator {
 public:
  explicit Validator(const Program& program) : program_(program) {}

  std::vector<std::string> run() {
    for (rank_ = 0; rank_ < program_.rank_count(); ++rank_) {
      output_.clear();
      gradient_.clear();
      for (const Action& a : program_.ranks[static_cast<std::size_t>(rank_)]) {
        if (a.kind == Action::Kind::exchange) {
          exchange(a);
        } else if (in_range(a.chunk, a.micro_batch, to_text(a))) {
          compute(a);
        }
      }
      for (const auto& [chunk, what] : output_) wrong("{}SEND_ACT{} is missing", chunk, what);
      for (const auto& [chunk, what] : gradient_)
        wrong(what.second ? "{}SEND_GRAD{} is missing" : "{}RECV_GRAD{} is never used", chunk, what.first);
    }
    count_compute();
    match();
    return std::move(found_);
  }

 private:
  template <class... A>
  void wrong(std::string_view text, const A&... args) {
    found_.push_back(format("rank {}: ", rank_) + format(text, args...));
  }

  bool in_range(int chunk, int micro_batch, const std::string& text) {
    if (chunk < 0 || chunk >= program_.chunks() || micro_batch < 0 || micro_batch >= program_.micro_batches) {
      wrong("{} is outside {} chunks and {} micro-batches", text, program_.chunks(), program_.micro_batches);
      return false;
    }
    if (program_.owner[static_cast<std::size_t>(chunk)] != rank_) {
      wrong("{} belongs to rank {}", text, program_.owner[static_cast<std::size_t>(chunk)]);
      return false;
    }
    return true;
  }

  void compute(const Action& a) {
    const std::string text = to_text(a);
    const bool first = a.chunk == 0, last = a.chunk == program_.chunks() - 1;
    const std::pair key{a.chunk, a.micro_batch};
    const bool is_forward = a.kind == Action::Kind::forward;
    int& next = (is_forward ? next_forward_ : next_backward_)[a.chunk];
    if (a.micro_batch != next) wrong("{} where micro-batch {} is next", text, next);
    ++next;
    if (is_forward) {
      ++forwards_[key];
      if (!first && !inputs_.erase(key)) wrong("{} without its RECV_ACT", text);
      // One output buffer a stage: what it holds must have been sent.
      if (output_.contains(a.chunk)) wrong("{} overwrites the output of micro-batch {}", text, output_[a.chunk]);
      if (!last) output_[a.chunk] = a.micro_batch;
      return;
    }
    ++backwards_[key];
    if (!program_.backward) wrong("{} in a program without backward", text);
    if (!forwards_.contains(key)) wrong("{} before its forward", text);
    const auto held = gradient_.find(a.chunk);
    const bool received = held != gradient_.end() && held->second == std::pair{a.micro_batch, false};
    if (held != gradient_.end() && held->second.second)
      wrong("{} overwrites the gradient of micro-batch {}", text, held->second.first);
    if (!last && !received) wrong("{} without its RECV_GRAD", text);
    gradient_.erase(a.chunk);
    if (!first) gradient_[a.chunk] = {a.micro_batch, true};
  }

  void exchange(const Action& a) {
    if (a.transfers.empty()) wrong("an exchange of nothing");
    const auto output = output_;
    const auto gradient = gradient_;
    // Receives are judged against the state before the exchange: posted together, none waits for a send of its own.
    for (const Transfer& t : a.transfers) {
      const std::string text = to_text(t);
      if (!in_range(t.chunk, t.micro_batch, text)) continue;
      if (t.peer_chunk() < 0 || t.peer_chunk() >= program_.chunks()) {
        wrong("{} has no chunk at the other end", text);
        continue;
      }
      messages_[{t.sends() ? rank_ : program_.peer(t), t.sends() ? program_.peer(t) : rank_, t.sends()}].push_back(t);
      const std::pair key{t.chunk, t.micro_batch};
      switch (t.kind) {
        case Transfer::Kind::recv_act:
          if (forwards_.contains(key) || !inputs_.emplace(key, 0).second) wrong("{} a second time", text);
          break;
        case Transfer::Kind::send_act:
          if (!output.contains(t.chunk) || output.at(t.chunk) != t.micro_batch) wrong("{} without this output", text);
          output_.erase(t.chunk);
          break;
        case Transfer::Kind::recv_grad:
          if (gradient.contains(t.chunk))
            wrong("{} overwrites the gradient of micro-batch {}", text, gradient.at(t.chunk).first);
          if (!forwards_.contains(key)) wrong("{} before the forward", text);
          gradient_[t.chunk] = {t.micro_batch, false};
          break;
        case Transfer::Kind::send_grad:
          if (!gradient.contains(t.chunk) || gradient.at(t.chunk) != std::pair{t.micro_batch, true})
            wrong("{} without this gradient", text);
          gradient_.erase(t.chunk);
          break;
      }
    }
  }

  void count_compute() {
    for (int c = 0; c < program_.chunks(); ++c) {
      rank_ = program_.owner[static_cast<std::size_t>(c)];
      for (int m = 0; m < program_.micro_batches; ++m) {
        const std::pair key{c, m};
        if (forwards_[key] != 1) wrong("{}F{} happens {} times", c, m, forwards_[key]);
        if (program_.backward && backwards_[key] != 1) wrong("{}B{} happens {} times", c, m, backwards_[key]);
      }
    }
    for (const auto& [key, unused] : inputs_) {
      rank_ = program_.owner[static_cast<std::size_t>(key.first)];
      wrong("{}RECV_ACT{} is never used", key.first, key.second);
    }
  }

  // The k-th send from a to b is what the k-th receive at b from a expects.
  void match() {
    for (int from = 0; from < program_.rank_count(); ++from) {
      for (int to = 0; to < program_.rank_count(); ++to) {
        rank_ = from;
        const auto sends = messages_.find({from, to, true}), receives = messages_.find({from, to, false});
        const std::vector<Transfer> none;
        const auto& sent = sends == messages_.end() ? none : sends->second;
        const auto& taken = receives == messages_.end() ? none : receives->second;
        if (sent.size() != taken.size())
          wrong("sends {} messages to rank {}, which expects {}", sent.size(), to, taken.size());
        for (std::size_t k = 0; k < std::min(sent.size(), taken.size()); ++k) {
          const bool pair = sent[k].activation() == taken[k].activation() && sent[k].peer_chunk() == taken[k].chunk &&
                            sent[k].micro_batch == taken[k].micro_batch;
          if (pair) continue;
          wrong("message {} to rank {} is {}, which expects {}", k, to, to_text(sent[k]), to_text(taken[k]));
          break;
        }
      }
    }
  }

  const Program& program_;
  std::vector<std::string> found_;
  int rank_ = 0;
  using Key = std::pair<int, int>;  // chunk, micro-batch
  std::map<Key, int> forwards_, backwards_;
  std::map<Key, int> inputs_;                        // received, not yet used
  std::map<int, int> next_forward_, next_backward_;  // chunk -> micro-batch
  std::map<int, int> output_;                        // chunk -> micro-batch in the output buffer
  std::map<int, std::pair<int, bool>> gradient_;     // chunk -> micro-batch in the gradient buffer, after its backward
  std::map<std::tuple<int, int, bool>, std::vector<Transfer>> messages_;  // from, to, the sender's list
};

}  // namespace

std::vector<std::string> violations(const Program& program) { return Validator(program).run(); }

}  // namespace dstrain
