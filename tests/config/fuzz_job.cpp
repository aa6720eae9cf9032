// Job files, and overrides behind a zero byte: each is taken or refused, with a place for every error; what is taken
// reads back from its own text.

#include <cctype>
#include <set>
#include <sstream>

#include "lib/config/resolve.h"
#include "lib/config/writer.h"
#include "tests/support/fuzz.h"

using namespace dstrain;

namespace {

// Whether a line begins with "job.yaml:3:14: " or tells of an override.
bool has_place(const std::string& line) {
  if (line.starts_with("override '")) return true;
  // What is not there has no line: the file and the key are its place.
  if (line.starts_with("job.yaml: ") && line.find(": missing; ") != line.npos) return true;
  if (!line.starts_with("job.yaml:")) return false;
  std::size_t at = 9;
  for (int numbers = 0; numbers < 2; ++numbers) {
    const std::size_t begin = at;
    while (at < line.size() && std::isdigit(static_cast<unsigned char>(line[at]))) ++at;
    if (at == begin || at >= line.size() || line[at] != ':') return false;
    ++at;
  }
  return true;
}

// A change to a comment would change nothing.
std::string without_comments(const std::string& text) {
  std::istringstream lines(text);
  std::string out;
  for (std::string line; std::getline(lines, line);)
    if (!line.starts_with('#')) out += line + "\n";
  return out;
}

void subject(const std::string& input) {
  const std::size_t zero = std::min(input.find('\0'), input.size());
  std::vector<std::string> overrides;
  if (zero + 1 < input.size()) overrides.push_back(input.substr(zero + 1));
  try {
    const Loaded loaded = parse_config(system_files(), "job.yaml", input.substr(0, zero), overrides);
    const std::string written = to_yaml(loaded.config);
    // Most jobs that are taken are those of the good inputs, which are the first to come here.
    static std::set<std::string> read_back;
    if (!read_back.contains(written)) {
      check(to_yaml(parse_config(system_files(), "again.yaml", written, {}).config) == written,
            "an accepted job does not read back");
      if (read_back.size() < 32) read_back.insert(written);
    }
    const ParallelConfig& p = loaded.config.parallel;
    const double ranks = static_cast<double>(std::max<std::int64_t>(1, p.data)) * static_cast<double>(p.tensor) *
                         static_cast<double>(p.pipeline);
    resolve(loaded, ranks < 1e6 ? static_cast<int>(ranks) : 8);
  } catch (const Error& e) {
    if (e.code() != ExitCode::usage) throw;
    const std::string text = e.what();
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = std::min(text.find('\n', begin), text.size());
      check(has_place(text.substr(begin, end - begin)), "an error without its place: {}",
            text.substr(begin, end - begin));
      begin = end + 1;
    }
    throw;
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> inputs;
  // One of each kind: the others have the same keys, with other numbers.
  for (const char* name : {"bench_cpu", "deepseek_v3_671b", "gpipe_8x4", "gpt2_tiny", "llama_1b", "quickstart"})
    inputs.push_back(
        without_comments(read_file(system_files(), format("{}/configs/{}.yaml", DSTRAIN_SOURCE_DIR, name))));
  const std::string least =
      "run: {dir: d}\nmodel: {vocab_size: 8, hidden_size: 8, num_hidden_layers: 2, num_attention_heads: 2,"
      " intermediate_size: 8}\n"
      "data: {train: [t]}\ntraining: {steps: 1, sequence_length: 1, global_batch_size: 2, micro_batch_size: 1}\n";
  for (const char* override : {"optimizer.lr=1.0e-3", "optimizer.betas=[0.9, 0.95]", "model.type=gpt2",
                               "model.rope_theta=5e5", "parallel.tensor=2", "parallel.data=2", "run.name=\"a b\"",
                               "run.seed=18446744073709551615", "data.train=[{path: 'b', weight: 0.5}]",
                               "lr_schedule.type=cosine", "guard.on_spike=skip", "model.tie_word_embeddings=true"})
    inputs.push_back(least + '\0' + override);
  return fuzz::run(argc, argv, inputs, {"~",        "null",
                                        "yes",      "off",
                                        "0x1F",     "010",
                                        "1_000",    ".nan",
                                        "-.inf",    "1e999",
                                        "-1",       "\"",
                                        "'",        "[",
                                        "]",        "{",
                                        "}",        ",",
                                        ":",        ": ",
                                        "- ",       "? ",
                                        "&a ",      "*a",
                                        "!!int ",   "!x ",
                                        "<<: ",     "---\n",
                                        "...\n",    "%YAML 1.1\n",
                                        "|\n",      ">-\n",
                                        "#",        "\n",
                                        "\t",       "\r\n",
                                        "\x04",     "\xef\xbb\xbf",
                                        "\xff\xfe", "99999999999999999999",
                                        "true",     "0",
                                        "model:\n", "guard: {",
                                        "=",        "parallel.data=3"},
                   subject);
}
