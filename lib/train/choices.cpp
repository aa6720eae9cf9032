#include "lib/train/choices.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

#include "lib/layers/host_batch.h"

namespace dstrain {

namespace {

using Json = nlohmann::json;

// Context and continuation are encoded together; what is beyond the context's own tokens is the continuation's.
ScoredSequence sequence(const std::string& place, Encoder& encoder, const Tokenizer& tokenizer, std::string context,
                        std::string continuation) {
  const std::size_t end = context.find_last_not_of(" \t\n\r\f\v") + 1;
  continuation.insert(0, context.substr(end));
  context.resize(end);
  ScoredSequence s;
  const auto encode = [&](const std::string& text, std::vector<std::int32_t>& ids) {
    try {
      encoder.encode(text, ids);
    } catch (const Error& e) {
      fail(e.code(), "{}: {}", place, e.what());
    }
  };
  if (context.empty()) {
    s.ids.push_back(tokenizer.end_of_document());
    s.first_target = 1;
  } else {
    std::vector<std::int32_t> alone;
    encode(context, alone);
    s.first_target = alone.size();
  }
  encode(context + continuation, s.ids);
  return s;
}

Question question(const std::string& place, const std::string& line, Encoder& encoder, const Tokenizer& tokenizer,
                  const std::string& delimiter, Index positions) {
  const Json json = Json::parse(line, nullptr, false);
  require(json.is_object(), ExitCode::data, "{}: not a JSON object", place);
  const auto has = [&](const char* key, bool (Json::*is)() const noexcept) {
    return json.contains(key) && (json[key].*is)();
  };
  require(has("context", &Json::is_string), ExitCode::data, "{}: 'context' is no text", place);
  require(has("choices", &Json::is_array) && !json["choices"].empty(), ExitCode::data,
          "{}: 'choices' is no list of texts", place);
  Question q{.place = place};
  for (const Json& choice : json["choices"]) {
    require(choice.is_string() && !choice.get_ref<const std::string&>().empty(), ExitCode::data,
            "{}: choice {} is no text", place, q.choices.size());
    const std::string text = choice;
    q.choices.push_back(sequence(place, encoder, tokenizer, json["context"], delimiter + text));
    q.bytes.push_back(text.size());
    const ScoredSequence& s = q.choices.back();
    require(s.ids.size() > s.first_target, ExitCode::data, "{}: choice {} has no tokens of its own", place,
            q.choices.size() - 1);
    require(static_cast<Index>(s.ids.size()) - 1 <= positions, ExitCode::data,
            "{}: choice {} makes {} tokens, the model has {} positions (max_position_embeddings)", place,
            q.choices.size() - 1, s.ids.size(), positions);
  }
  require(has("answer", &Json::is_number_integer) && json["answer"] >= 0 && json["answer"] < q.choices.size(),
          ExitCode::data, "{}: 'answer' is no index below {}", place, q.choices.size());
  q.answer = json["answer"];
  return q;
}

// The largest score's index, the first of equals.
template <class Score>
std::size_t best(std::size_t n, Score score) {
  std::size_t at = 0;
  for (std::size_t i = 1; i < n; ++i)
    if (score(i) > score(at)) at = i;
  return at;
}

}  // namespace

std::vector<Question> read_questions(const Files& files, const std::string& path, const Tokenizer& tokenizer,
                                     const std::string& delimiter, Index positions) {
  const std::string text = read_file(files, path);
  Encoder encoder(tokenizer);
  std::vector<Question> questions;
  for (std::size_t begin = 0, number = 1; begin < text.size(); ++number) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    questions.push_back(question(format("{}:{}", path, number), text.substr(begin, end - begin), encoder, tokenizer,
                                 delimiter, positions));
    begin = end + 1;
  }
  require(!questions.empty(), ExitCode::data, "{}: no question in it", path);
  return questions;
}

Index longest_input(const std::vector<Question>& questions) {
  std::size_t longest = 0;
  for (const Question& q : questions)
    for (const ScoredSequence& s : q.choices) longest = std::max(longest, s.ids.size() - 1);
  return static_cast<Index>(longest);
}

std::vector<std::vector<double>> log_likelihoods(Engine& engine, const std::vector<Question>& questions) {
  std::vector<const ScoredSequence*> all;
  for (const Question& q : questions)
    for (const ScoredSequence& s : q.choices) all.push_back(&s);
  // Of like length together: what is padded is computed.
  std::vector<std::size_t> order(all.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return all[a]->ids.size() > all[b]->ids.size(); });

  const auto samples = static_cast<std::size_t>(engine.config().training.micro_batch_size);
  const auto step = samples * static_cast<std::size_t>(engine.config().parallel.data);
  std::vector<double> scores(all.size());
  for (std::size_t begin = 0; begin < order.size(); begin += step) {
    const std::size_t longest = all[order[begin]]->ids.size() - 1;
    const std::size_t first = begin + static_cast<std::size_t>(engine.coordinates().data) * samples;
    HostBatch host(static_cast<Index>(samples), static_cast<Index>(longest));
    for (std::size_t b = 0; b < samples && first + b < order.size(); ++b) {
      const ScoredSequence& s = *all[order[first + b]];
      for (std::size_t i = 0; i + 1 < s.ids.size(); ++i) {
        host.tokens[b * longest + i] = s.ids[i];
        host.targets[b * longest + i] = s.ids[i + 1];
        host.loss_weights[b * longest + i] = i + 1 >= s.first_target ? 1.0f : 0.0f;
      }
    }
    const Batch batch = host.view();
    const std::vector<double> losses = engine.evaluate_samples({&batch, 1});
    for (std::size_t i = 0; i < step && begin + i < order.size(); ++i) scores[order[begin + i]] = -losses[i];
  }

  std::vector<std::vector<double>> of_questions;
  auto at = scores.begin();
  for (const Question& q : questions) {
    of_questions.emplace_back(at, at + static_cast<std::ptrdiff_t>(q.choices.size()));
    at += static_cast<std::ptrdiff_t>(q.choices.size());
  }
  return of_questions;
}

Accuracy accuracy(const std::vector<Question>& questions, const std::vector<std::vector<double>>& scores) {
  Accuracy right;
  for (std::size_t i = 0; i < questions.size(); ++i) {
    const Question& q = questions[i];
    const std::vector<double>& s = scores[i];
    right.sum += best(s.size(), [&](std::size_t c) { return s[c]; }) == q.answer;
    right.normalised +=
        best(s.size(), [&](std::size_t c) { return s[c] / static_cast<double>(q.bytes[c]); }) == q.answer;
  }
  const auto n = static_cast<double>(questions.size());
  return {right.sum / n, right.normalised / n};
}

}  // namespace dstrain
