#include "lib/pipeline/text.h"

#include <charconv>
#include <sstream>

#include "lib/core/errors.h"
#include "lib/pipeline/schedule.h"

namespace dstrain {

namespace {

struct TransferName {
  Transfer::Kind kind;
  std::string_view name;
};
constexpr TransferName kTransfers[] = {{Transfer::Kind::send_act, "SEND_ACT"},
                                       {Transfer::Kind::recv_act, "RECV_ACT"},
                                       {Transfer::Kind::send_grad, "SEND_GRAD"},
                                       {Transfer::Kind::recv_grad, "RECV_GRAD"}};

// One action's text: digits, name, digits.
struct Word {
  int chunk = 0;
  std::string_view name;
  int micro_batch = 0;
};

bool read_number(std::string_view text, int& into) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), into);
  return error == std::errc() && end == text.data() + text.size();
}

Word read_word(std::string_view text, int line) {
  constexpr std::string_view digits = "0123456789";
  Word word;
  const auto begin = text.find_first_not_of(digits), end = text.find_last_not_of(digits);
  const bool good = begin != text.npos && read_number(text.substr(0, begin), word.chunk) &&
                    read_number(text.substr(end + 1), word.micro_batch);
  require(good, ExitCode::usage, "schedule line {}: '{}' is not <chunk><kind><micro-batch>", line, text);
  word.name = text.substr(begin, end + 1 - begin);
  return word;
}

Action read_action(std::string_view text, int line) {
  Action action{Action::Kind::exchange, 0, 0, 0, {}};
  while (true) {
    const auto plus = text.find('+');
    const std::string_view part = text.substr(0, plus);
    const Word word = read_word(part, line);
    if (word.name == "F" || word.name == "B") {
      require(plus == text.npos && action.transfers.empty(), ExitCode::usage,
              "schedule line {}: '{}' joins a compute action", line, text);
      return word.name == "F" ? forward(word.chunk, word.micro_batch) : backward(word.chunk, word.micro_batch);
    }
    const TransferName* found = nullptr;
    for (const TransferName& t : kTransfers)
      if (t.name == word.name) found = &t;
    require(found != nullptr, ExitCode::usage,
            "schedule line {}: '{}': kinds are F, B, SEND_ACT, RECV_ACT, SEND_GRAD, RECV_GRAD", line, part);
    action.transfers.push_back({found->kind, word.chunk, word.micro_batch});
    if (plus == text.npos) return action;
    text.remove_prefix(plus + 1);
  }
}

}  // namespace

std::string to_text(const Transfer& t) {
  for (const TransferName& n : kTransfers)
    if (n.kind == t.kind) return format("{}{}{}", t.chunk, n.name, t.micro_batch);
  return "?";
}

std::string to_text(const Action& a) {
  if (a.kind != Action::Kind::exchange)
    return format("{}{}{}", a.chunk, a.kind == Action::Kind::forward ? "F" : "B", a.micro_batch);
  std::string text;
  for (const Transfer& t : a.transfers) text.append(text.empty() ? "" : "+").append(to_text(t));
  return text;
}

std::string to_text(const Program& program) {
  std::string text = format("schedule {}, {} ranks, {} chunks, {} micro-batches\n", program.name, program.rank_count(),
                            program.chunks(), program.micro_batches);
  for (int r = 0; r < program.rank_count(); ++r) {
    text.append(std::to_string(r)).append(":");
    for (const Action& a : program.ranks[static_cast<std::size_t>(r)]) text.append(" ").append(to_text(a));
    text += "\n";
  }
  return text;
}

Program parse_program(std::string_view text) {
  std::istringstream lines{std::string(text)};
  std::string line;
  require(static_cast<bool>(std::getline(lines, line)), ExitCode::usage, "schedule: the text is empty");
  Program program;
  std::string word, name;
  int ranks = 0, chunks = 0;
  std::istringstream header(line);
  std::string w[4];
  header >> w[0] >> name >> ranks >> w[1] >> chunks >> w[2] >> program.micro_batches >> w[3];
  const bool good = !header.fail() && w[0] == "schedule" && name.ends_with(',') && w[1] == "ranks," &&
                    w[2] == "chunks," && w[3] == "micro-batches" && ranks >= 1 && ranks <= 1 << 16 && chunks >= 1 &&
                    chunks <= 1 << 16 && program.micro_batches >= 1;
  require(good, ExitCode::usage, "schedule line 1: '{}' is not 'schedule NAME, N ranks, N chunks, N micro-batches'",
          line);
  program.name = name.substr(0, name.size() - 1);
  program.backward = false;
  program.owner.assign(static_cast<std::size_t>(chunks), -1);
  for (int r = 0; r < ranks; ++r) {
    const int number = r + 2;
    require(static_cast<bool>(std::getline(lines, line)), ExitCode::usage, "schedule line {}: rank {} is missing",
            number, r);
    std::istringstream words(line);
    words >> word;
    require(word == std::to_string(r) + ":", ExitCode::usage, "schedule line {}: '{}' should be '{}:'", number, word,
            r);
    auto& actions = program.ranks.emplace_back();
    while (words >> word) {
      actions.push_back(read_action(word, number));
      const Action& a = actions.back();
      if (a.kind == Action::Kind::exchange) continue;
      program.backward = program.backward || a.kind == Action::Kind::backward;
      require(a.chunk < chunks, ExitCode::usage, "schedule line {}: '{}': there are {} chunks", number, word, chunks);
      int& owner = program.owner[static_cast<std::size_t>(a.chunk)];
      if (owner < 0) owner = r;
    }
  }
  for (int c = 0; c < chunks; ++c)
    require(program.owner[static_cast<std::size_t>(c)] >= 0, ExitCode::usage, "schedule: nothing computes chunk {}", c);
  assign_slots(program);
  return program;
}

}  // namespace dstrain
