// dstrain report RUN...: one HTML page with the runs' plots, jobs and plans.

#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "apps/commands.h"
#include "apps/plan_text.h"
#include "lib/config/resolve.h"
#include "lib/core/clock.h"
#include "lib/core/files.h"
#include "lib/observe/report.h"
#include "lib/train/machine.h"
#include "lib/train/run_directory.h"

namespace dstrain {

namespace {

struct ReportOptions {
  std::vector<std::string> runs;
  std::string out;
  bool follow = false;
  int every = 5;  // seconds
};

// How the run ended: the text of exit.json, checked. Empty while there is none.
std::string how_it_ended(const Files& files, const RunDirectory& directory) {
  if (!files.exists(directory.exit())) return "";
  const nlohmann::json json = nlohmann::json::parse(read_file(files, directory.exit()), nullptr, false);
  require(json.is_object() && json.contains("code") && json["code"].is_number_integer() && json.contains("reason") &&
              json["reason"].is_string(),
          ExitCode::data, "{}: not {{code, reason, step}}", directory.exit());
  const std::string reason = json["reason"];
  return json["code"] == 0 ? reason : format("exit {}: {}", json["code"].get<int>(), reason);
}

// What follows from a run's job alone, and is not made again for every page.
struct Planned {
  std::string job;
  Config config;
  std::string plan;
  std::vector<ReportRank> ranks;
};

// The plan of the run's own mesh.
Planned plan_of(const Files& files, const std::string& path, std::string job) {
  const Loaded loaded = parse_config(files, path, job, {});
  Planned run{.job = std::move(job), .config = resolve(loaded, mesh_sizes(loaded.config.parallel).ranks())};
  const Plan plan = make_plan(run.config, planned_device(run.config));
  run.plan = plan_text(run.config, plan);
  for (const RankPlan& r : plan.ranks) {
    ReportRank rank{.label = format("stage {}, tensor {}", r.at.pipeline, r.at.tensor)};
    for (const MemoryRow& row : r.memory)
      rank.memory.emplace_back(row.host ? row.purpose + " (host)" : row.purpose, row.bytes);
    run.ranks.push_back(std::move(rank));
  }
  return run;
}

ReportRun read_run(const Files& files, std::string path, std::optional<Planned>& known) {
  while (path.size() > 1 && path.ends_with('/')) path.pop_back();
  const RunDirectory directory(path);
  for (const std::string& needed : {directory.job(), directory.metrics()})
    require(files.exists(needed), ExitCode::usage, "{}: no run here: {} does not exist", path, needed);
  std::string job = read_file(files, directory.job());
  if (!known || known->job != job) known = plan_of(files, directory.job(), std::move(job));
  const Planned& planned = *known;
  ReportRun run{.path = path, .job = planned.job, .plan = planned.plan, .ranks = planned.ranks};
  run.metrics = read_metrics(files, directory.metrics());
  const std::string end = how_it_ended(files, directory);
  run.ended = !end.empty();
  run.name = planned.config.run.name == "run" ? path.substr(path.rfind('/') + 1) : planned.config.run.name;
  const auto loss = run.metrics.find("loss");
  const std::int64_t step = loss == run.metrics.end() ? 0 : loss->second.steps.back();
  run.status = format("step {} of {}, {}", step, planned.config.training.steps, run.ended ? end : "not ended");
  return run;
}

// Writes the page; returns whether every run has ended.
bool write_page(const ReportOptions& o, const std::string& out, std::vector<std::optional<Planned>>& planned) {
  const Files& files = system_files();
  std::vector<ReportRun> runs;
  bool ended = true;
  for (std::size_t i = 0; i < o.runs.size(); ++i) {
    runs.push_back(read_run(files, o.runs[i], planned[i]));
    ended = ended && runs.back().ended;
  }
  write_file_atomically(files, out, report_page(runs, system_clock().wall(), o.follow && !ended ? o.every : 0));
  return ended;
}

ExitCode report(const ReportOptions& o) {
  const std::string out = o.out.empty() ? RunDirectory(o.runs.front()).report() : o.out;
  std::vector<std::optional<Planned>> planned(o.runs.size());
  bool ended = write_page(o, out, planned);
  std::printf("%s\n", out.c_str());
  std::fflush(stdout);
  while (o.follow && !ended) {
    system_clock().sleep(o.every);
    ended = write_page(o, out, planned);
  }
  return ExitCode::ok;
}

}  // namespace

RunCommand add_report(CLI::App& command) {
  auto o = std::make_shared<ReportOptions>();
  command.add_option("runs", o->runs, "Run directories; several are drawn over one another")->required();
  command.add_option("--out", o->out, "The page; report.html in the first run directory when left out");
  command.add_flag("--follow", o->follow,
                   "Write the page again and again until every run has its exit.json; an open page follows by itself");
  command.add_option("--every", o->every, "Seconds between two pages of --follow")
      ->check(CLI::Range(1, 86400))
      ->capture_default_str();
  return [o] { return report(*o); };
}

}  // namespace dstrain
