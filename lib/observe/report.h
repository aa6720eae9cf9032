#pragma once
// A run, or several, as one HTML page that needs no network: data, style and script are inside it.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "lib/observe/series.h"

namespace dstrain {

// Memory of one rank by purpose, in bytes.
struct ReportRank {
  std::string label;
  std::vector<std::pair<std::string, std::size_t>> memory;
};

struct ReportRun {
  std::string name, path;
  std::string status;  // how far it is and how it ended, in words
  bool ended = false;
  std::string job;   // job.yaml
  std::string plan;  // as `dstrain plan` prints it
  std::vector<ReportRank> ranks;
  std::map<std::string, Series> metrics;
};

// Of a plot's line: ranges of which the extremes are drawn. A plot is about that many pixels wide.
inline constexpr std::size_t kReportBuckets = 1000;

// The page. `written` is seconds since 1970; `reload_seconds` > 0 makes the page load itself again that often, keeping
// what the reader looks at. Lines of more than 2 * kReportBuckets points are thinned by points_to_draw; the page says
// of how many points it draws how many. Invalid UTF-8 becomes U+FFFD.
std::string report_page(const std::vector<ReportRun>& runs, std::int64_t written, int reload_seconds);

}  // namespace dstrain
