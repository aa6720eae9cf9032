#include "lib/observe/metrics.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <span>
#include <sstream>

namespace dstrain {

namespace {

using Json = nlohmann::ordered_json;

Json number(double v) { return std::isfinite(v) ? Json(v) : Json(nullptr); }

template <class Record>
Json line_of(const Record& record) {
  Json line = Json::object();
  line["step"] = record.step;
  for (const Scalar& s : scalars(record))
    line[s.name] = s.integer ? Json(static_cast<std::int64_t>(s.value)) : number(s.value);
  return line;
}

// The lines whose step is at most `last_step`; what does not parse (a torn last line) goes too. `evaluated`: whether an
// evaluation at `last_step` is among them.
std::string lines_up_to(const std::string& text, std::int64_t last_step, bool& evaluated) {
  std::string kept, line;
  for (std::istringstream in(text); std::getline(in, line);) {
    const Json json = Json::parse(line, nullptr, false);
    if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer()) continue;
    const auto step = json["step"].get<std::int64_t>();
    if (step > last_step) continue;
    kept += line + "\n";
    evaluated = evaluated || (step == last_step && json.contains("eval_loss"));
  }
  return kept;
}

}  // namespace

MetricsFile::MetricsFile(const Files& files, const std::string& path, std::int64_t last_step) {
  if (files.exists(path)) {
    const std::string text = read_file(files, path);
    const std::string kept = lines_up_to(text, last_step, evaluated_);
    if (kept != text) write_file_atomically(files, path, kept);
  }
  file_ = files.open(path, OpenMode::append);
  end_ = file_->size();
}

void MetricsFile::append(const std::string& line) {
  const std::string text = line + "\n";
  try {
    file_->pwrite(std::as_bytes(std::span(text)), end_);
    end_ += text.size();
  } catch (const std::exception&) {
    ++dropped_;
  }
}

void MetricsFile::write(const StepRecord& r) {
  Json line = line_of(r);
  // To three decimals: the numbers of many layers stay readable.
  if (!r.expert_load.empty())
    for (const double load : r.expert_load) line["expert_load"].push_back(std::round(load * 1000) / 1000);
  if (!r.expert_tokens.empty()) line["expert_tokens"] = r.expert_tokens;
  append(line.dump());
}
void MetricsFile::write(const EvalRecord& r) { append(line_of(r).dump()); }
void MetricsFile::write(const SaveRecord& r) { append(line_of(r).dump()); }

std::vector<Scalar> scalars(const StepRecord& r) {
  std::vector<Scalar> values{{"tokens", static_cast<double>(r.tokens), true},
                             {"first_sample", static_cast<double>(r.first_sample), true},
                             {"samples", static_cast<double>(r.samples), true},
                             {"loss", r.loss},
                             {"grad_norm", r.grad_norm},
                             {"lr", r.lr},
                             {"seconds", r.seconds},
                             {"tokens_per_second", r.tokens_per_second},
                             {"mfu", r.mfu},
                             {"mfu_full", r.mfu_full},
                             {"loader_wait_seconds", r.loader_wait_seconds},
                             {"checkpoint_stall_seconds", r.checkpoint_stall_seconds},
                             {"skipped", static_cast<double>(r.skipped), true},
                             {"rollbacks", static_cast<double>(r.rollbacks), true}};
  if (!r.expert_load.empty())
    values.push_back({"expert_load_max", *std::max_element(r.expert_load.begin(), r.expert_load.end())});
  if (r.mtp_loss) values.push_back({"mtp_loss", *r.mtp_loss});
  return values;
}

std::vector<Scalar> scalars(const EvalRecord& r) {
  return {{"eval_loss", r.eval_loss},
          {"eval_tokens", static_cast<double>(r.eval_tokens), true},
          {"eval_seconds", r.seconds}};
}

std::vector<Scalar> scalars(const SaveRecord& r) {
  return {{"checkpoint_step", static_cast<double>(r.checkpoint_step), true},
          {"checkpoint_write_seconds", r.seconds},
          {"checkpoint_bytes", r.bytes, true},
          {"checkpoints_failed", static_cast<double>(r.failed), true}};
}

}  // namespace dstrain
