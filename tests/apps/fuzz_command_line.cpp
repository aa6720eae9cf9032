// Command lines: arguments, each behind a zero byte. They are taken, or refused in words; nothing is run.

#include <sstream>
#include <string>
#include <vector>

#include "apps/command_line.h"
#include "tests/support/fuzz.h"

using namespace dstrain;

namespace {

std::string line_of(const std::vector<std::string>& arguments) {
  std::string text;
  for (const std::string& a : arguments) text += '\0' + a;
  return text;
}

void subject(const std::string& input) {
  std::vector<std::string> words{"dstrain"};
  for (const char c : input) {
    if (c == '\0')
      words.emplace_back();
    else
      words.back() += c;
  }
  std::vector<const char*> arguments;
  for (const std::string& w : words) arguments.push_back(w.c_str());
  std::ostringstream out, err;
  const Asked asked = parse_command_line(static_cast<int>(arguments.size()), arguments.data(), out, err);
  check(asked.code == ExitCode::ok || asked.code == ExitCode::usage, "code {}", asked.code);
  check(!asked.command || (asked.code == ExitCode::ok && err.str().empty()), "a command, and an error");
  check(asked.command || !out.str().empty() || asked.code == ExitCode::usage, "neither a command nor help");
  if (asked.code != ExitCode::usage) return;
  check(!err.str().empty(), "refused without a word");
  fail(ExitCode::usage, "{}", err.str());
}

}  // namespace

int main(int argc, char** argv) {
  return fuzz::run(
      argc, argv,
      {line_of({"train", "job.yaml", "training.steps=5", "--ranks", "4"}),
       line_of({"plan", "job.yaml", "--ranks", "8", "parallel.tensor=2"}),
       line_of({"eval", "run", "--data", "a=b.h5,c.h5", "--choices", "q.jsonl", "--batch-size", "4", "--json"}),
       line_of({"generate", "run", "--prompt", "once", "--tokens", "5", "--temperature", "0.5", "--stop", "x",
                "--top-p", "0.9"}),
       line_of({"checkpoint", "diff", "a", "b"}),
       line_of({"data", "tokenize", "--tokenizer", "t.json", "--out", "o", "in"}), line_of({"report", "run"}),
       line_of({"schedule", "--help"}), line_of({"--version"}), line_of({"doctor"})},
      {std::string("\0", 1),
       std::string("\0--", 3),
       std::string("\0-", 2),
       "--help",
       "=",
       "--ranks",
       "--ranks=",
       "1e999",
       "nan",
       "-1",
       "99999999999999999999",
       "0x10",
       "\xff",
       "'",
       "\"",
       "[a,b]",
       "{",
       "%%",
       "..",
       "++",
       "--seed",
       "--no-json",
       "train",
       "data",
       "bench",
       "ops",
       "step",
       "config",
       "parity",
       "@job.yaml",
       "~",
       "1_000"},
      subject);
}
