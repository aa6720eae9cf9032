#include "lib/checkpoint/guard_state.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "lib/core/errors.h"

namespace dstrain {

namespace {

using Json = nlohmann::ordered_json;
using Ranges = std::vector<std::pair<Index, Index>>;

Ranges ranges_of(const Json& json) {
  Ranges ranges;
  for (const Json& r : json) {
    require(r.is_array() && r.size() == 2, ExitCode::checkpoint, "guard: {} is no range of samples", r.dump());
    ranges.emplace_back(r[0].get<Index>(), r[1].get<Index>());
    require(ranges.back().first >= 0 && ranges.back().first < ranges.back().second, ExitCode::checkpoint,
            "guard: {} is no range of samples", r.dump());
  }
  return ranges;
}

Index count_of(const Json& json, const char* key) {
  const auto n = json.at(key).get<Index>();
  require(n >= 0, ExitCode::checkpoint, "guard: {} is {}", key, n);
  return n;
}

}  // namespace

std::string to_text(const GuardState& state) {
  Json window = Json::array();
  for (const GuardState::Point& p : state.window) window.push_back({p.step, p.loss, p.grad_norm});
  return Json{{"window", std::move(window)},  {"skips", state.skips},
              {"rollbacks", state.rollbacks}, {"all_rollbacks", state.all_rollbacks},
              {"last_bad", state.last_bad},   {"suspects", state.suspects},
              {"passed", state.passed}}
      .dump();
}

GuardState parse_guard_state(const std::string& text) {
  try {
    const Json json = Json::parse(text);
    GuardState state{.skips = count_of(json, "skips"),
                     .rollbacks = count_of(json, "rollbacks"),
                     .all_rollbacks = count_of(json, "all_rollbacks"),
                     .last_bad = count_of(json, "last_bad"),
                     .suspects = ranges_of(json.at("suspects")),
                     .passed = ranges_of(json.at("passed"))};
    for (const Json& p : json.at("window")) {
      require(p.is_array() && p.size() == 3, ExitCode::checkpoint, "guard: {} is no point of the window", p.dump());
      state.window.push_back({p[0].get<Index>(), p[1].get<double>(), p[2].get<double>()});
    }
    return state;
  } catch (const Json::exception& e) {
    fail(ExitCode::checkpoint, "guard: {}", e.what());
  }
}

}  // namespace dstrain
