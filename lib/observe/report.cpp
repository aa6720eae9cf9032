#include "lib/observe/report.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "lib/observe/report_page.h"

namespace dstrain {

namespace {

using Json = nlohmann::ordered_json;

Json value_or_null(double v) { return std::isfinite(v) ? Json(v) : Json(nullptr); }

Json line_of(const Series& s, const std::vector<std::size_t>& points) {
  Json steps = Json::array(), values = Json::array();
  for (const std::size_t i : points) {
    steps.push_back(s.steps[i]);
    values.push_back(value_or_null(s.values[i]));
  }
  return {{"of", s.values.size()}, {"x", std::move(steps)}, {"y", std::move(values)}};
}

// Where a step's time goes: parts of `seconds`, then what came on top of it. Drawn at the steps at which `seconds` is.
Json step_time(const std::map<std::string, Series>& metrics) {
  const auto seconds = metrics.find("seconds");
  if (seconds == metrics.end()) return nullptr;
  const Series& whole = seconds->second;
  const std::string suffix = "_seconds", on_top = "checkpoint_stall_seconds";
  std::vector<std::string> names;
  std::vector<std::vector<double>> parts;
  std::vector<double> rest = whole.values, total = whole.values;
  for (const auto& [key, series] : metrics) {
    // What is not measured at every step, such as an evaluation's time, is no part of a step.
    if (!key.ends_with(suffix) || series.steps != whole.steps) continue;
    std::string name = key.substr(0, key.size() - suffix.size());
    std::replace(name.begin(), name.end(), '_', ' ');
    names.push_back(name);
    parts.push_back(series.values);
    for (std::size_t i = 0; i < rest.size(); ++i)
      if (key == on_top)
        total[i] += series.values[i];
      else
        rest[i] = std::max(0.0, rest[i] - series.values[i]);
  }
  names.insert(names.begin(), "compute and the rest");
  parts.insert(parts.begin(), rest);
  const std::vector<std::size_t> points = points_to_draw(total, kReportBuckets);
  Json lines = Json::array();
  for (const std::vector<double>& part : parts) lines.push_back(line_of({whole.steps, part}, points)["y"]);
  Json steps = line_of(whole, points)["x"];
  return {{"of", whole.values.size()}, {"x", std::move(steps)}, {"names", names}, {"y", std::move(lines)}};
}

Json run_of(const ReportRun& run) {
  Json ranks = Json::array(), series = Json::object();
  for (const ReportRank& rank : run.ranks) {
    Json memory = Json::array();
    for (const auto& [purpose, bytes] : rank.memory) memory.push_back({purpose, bytes});
    ranks.push_back({{"label", rank.label}, {"memory", std::move(memory)}});
  }
  for (const auto& [key, s] : run.metrics) series[key] = line_of(s, points_to_draw(s.values, kReportBuckets));
  return {{"name", run.name},
          {"path", run.path},
          {"status", run.status},
          {"ended", run.ended},
          {"job", run.job},
          {"plan", run.plan},
          {"ranks", std::move(ranks)},
          {"series", std::move(series)},
          {"time", step_time(run.metrics)}};
}

// Inside a script element only "<" could end it.
std::string script_safe(const std::string& json) {
  std::string out;
  out.reserve(json.size());
  for (const char c : json)
    if (c == '<')
      out += "\\u003c";
    else
      out += c;
  return out;
}

}  // namespace

std::string report_page(const std::vector<ReportRun>& runs, std::int64_t written, int reload_seconds) {
  Json all = Json::array();
  for (const ReportRun& run : runs) all.push_back(run_of(run));
  const Json data{
      {"written", written}, {"reload", reload_seconds}, {"buckets", kReportBuckets}, {"runs", std::move(all)}};
  std::string page = "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n";
  page += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>dstrain report</title>\n";
  page += "<link rel=\"icon\" href=\"data:,\">\n<style>\n";
  page += report_css;
  page += "</style>\n</head>\n<body>\n<noscript>The plots are drawn by a script in this page.</noscript>\n";
  page += "<script type=\"application/json\" id=\"data\">";
  page += script_safe(data.dump(-1, ' ', false, Json::error_handler_t::replace));
  page += "</script>\n<script>\n";
  page += report_plot_js;
  page += report_page_js;
  page += "</script>\n</body>\n</html>\n";
  return page;
}

}  // namespace dstrain
