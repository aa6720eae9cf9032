// Job files, and overrides behind a zero byte: each is taken or refused, with a place for every error; what is taken
// reads back from its own text.

#include <cctype>
#include <filesystem>

#include "lib/config/resolve.h"
#include "lib/config/writer.h"
#include "tests/support/fuzz.h"

using namespace dstrain;

namespace {

// Whether a line begins with "job.yaml:3:14: " or tells of an override.
bool has_place(const std::string& line) {
  if (line.starts_with("override '")) return true;
  // What is not there has no line: the file and the key are its place.
  if (line.starts_with("job.yaml: model.") && line.find(": missing; ") != line.npos) return true;
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

void subject(const std::string& input) {
  const std::size_t zero = std::min(input.find('\0'), input.size());
  std::vector<std::string> overrides;
  if (zero + 1 < input.size()) overrides.push_back(input.substr(zero + 1));
  try {
    const Loaded loaded = parse_config(system_files(), "job.yaml", input.substr(0, zero), overrides);
    const std::string written = to_yaml(loaded.config);
    check(to_yaml(parse_config(system_files(), "again.yaml", written, {}).config) == written,
          "an accepted job does not read back");
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
  for (const auto& entry : std::filesystem::directory_iterator(DSTRAIN_SOURCE_DIR "/configs"))
    inputs.push_back(read_file(system_files(), entry.path().string()) + '\0' + "optimizer.lr=1.0e-3");
  std::sort(inputs.begin(), inputs.end());
  // Those that need files of their own are not there for every working directory.
  std::erase_if(inputs, [](const std::string& input) {
    try {
      subject(input);
      return false;
    } catch (const Error&) {
      return true;
    }
  });
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
