// Mutated metrics.jsonl files, and the page made of those that are taken.

#include <unistd.h>

#include <cstdio>
#include <span>
#include <string>

#include "lib/core/files.h"
#include "lib/observe/report.h"
#include "tests/support/fuzz.h"

using namespace dstrain;

namespace {

std::string lines() {
  std::string text = R"({"step":0,"eval_loss":5.5,"eval_tokens":256,"eval_seconds":0.1})"
                     "\n";
  for (int step = 1; step <= 6; ++step)
    text += format(
        "{{\"step\":{},\"tokens\":{},\"loss\":{},\"grad_norm\":1.25,\"lr\":0.001,\"seconds\":0.5,"
        "\"loader_wait_seconds\":0.01,\"checkpoint_stall_seconds\":0,\"skipped\":0}}\n",
        step, step * 256, step == 4 ? std::string("null") : std::to_string(5.0 / step));
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string path = "fuzz_metrics.jsonl";
  const int code = fuzz::run(
      argc, argv, {lines(), lines().substr(0, 300)},
      {"{", "}", "[", "]", "\n", ":", ",", "null", "true", "\"x\"", "\"step\":", "\"seconds\":", "\"a_seconds\":1,",
       "</script>", "\\u0000", "\xff", std::string(1, '\0'), "1e308", "-0.0"},
      [&](const std::string& input) {
        system_files().open(path, OpenMode::replace)->pwrite(std::as_bytes(std::span(input)), 0);
        ReportRun run{.name = input.substr(0, 20), .path = path, .status = input.substr(0, 9), .job = input};
        run.metrics = read_metrics(system_files(), path);
        const std::string page = report_page({run, run}, 0, 5);
        // One script of data and one of code: nothing in a run ends them early.
        std::size_t ends = 0;
        for (std::size_t at = 0; (at = page.find("</script", at)) != std::string::npos; ++at) ++ends;
        check(ends == 2, "{} ends of scripts", ends);
      });
  std::remove(path.c_str());
  return code;
}
