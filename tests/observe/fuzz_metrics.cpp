// Mutated metrics.jsonl files, and the page made of those that are taken.

#include <string>

#include "lib/observe/report.h"
#include "tests/support/fuzz.h"
#include "tests/support/memory_files.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

std::string lines() {
  std::string text = R"({"step":0,"eval_loss":5.5,"eval_tokens":256,"eval_seconds":0.1})"
                     "\n";
  for (int step = 1; step <= 4; ++step)
    text += format(
        "{{\"step\":{},\"tokens\":{},\"loss\":{},\"grad_norm\":1.25,\"lr\":0.001,\"seconds\":0.5,"
        "\"loader_wait_seconds\":0.01,\"checkpoint_stall_seconds\":0,\"skipped\":0}}\n",
        step, step * 256, step == 3 ? std::string("null") : std::to_string(5.0 / step));
  return text;
}

void subject(const std::string& input) {
  MemoryFiles files;
  files.put("metrics.jsonl", input);
  ReportRun run{.name = input.substr(0, 20), .path = "metrics.jsonl", .status = input.substr(0, 9), .job = input};
  run.metrics = read_metrics(files, "metrics.jsonl");
  static const ReportRun other{.name = "other", .metrics = {{"loss", {{1, 2}, {0.5, 0.25}}}}};
  const std::string page = report_page({run, other}, 0, 5);
  // One script of data and one of code: nothing in a run ends them early.
  std::size_t ends = 0;
  for (std::size_t at = 0; (at = page.find("</script", at)) != std::string::npos; ++at) ++ends;
  check(ends == 2, "{} ends of scripts", ends);
}

}  // namespace

int main(int argc, char** argv) {
  return fuzz::run(argc, argv, {lines(), lines().substr(0, 300)},
                   {"{", "}", "[", "]", "\n", ":", ",", "null", "true", "\"x\"", "\"step\":", "\"seconds\":",
                    "\"a_seconds\":1,", "</script>", "\\u0000", "\xff", std::string(1, '\0'), "1e308", "-0.0"},
                   subject);
}
