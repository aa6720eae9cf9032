#include "lib/observe/metrics.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <span>
#include <sstream>

namespace dstrain {

namespace {

using Json = nlohmann::ordered_json;

Json number(double v) { return std::isfinite(v) ? Json(v) : Json(nullptr); }

// The lines whose step is at most `last_step`; what does not parse (a torn last line) goes too.
std::string lines_up_to(const std::string& text, std::int64_t last_step) {
  std::string kept, line;
  for (std::istringstream in(text); std::getline(in, line);) {
    const Json json = Json::parse(line, nullptr, false);
    if (json.is_object() && json.contains("step") && json["step"].is_number_integer() &&
        json["step"].get<std::int64_t>() <= last_step)
      kept += line + "\n";
  }
  return kept;
}

}  // namespace

MetricsFile::MetricsFile(const Files& files, const std::string& path, std::int64_t last_step) {
  if (files.exists(path)) {
    const std::string text = read_file(files, path);
    const std::string kept = lines_up_to(text, last_step);
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
  } catch (const FileError&) {
    ++dropped_;
  }
}

void MetricsFile::write(const StepRecord& r) {
  append(Json{{"step", r.step},
              {"tokens", r.tokens},
              {"loss", number(r.loss)},
              {"grad_norm", number(r.grad_norm)},
              {"lr", number(r.lr)},
              {"seconds", number(r.seconds)},
              {"tokens_per_second", number(r.tokens_per_second)},
              {"mfu", number(r.mfu)},
              {"mfu_full", number(r.mfu_full)},
              {"loader_wait_seconds", number(r.loader_wait_seconds)},
              {"checkpoint_stall_seconds", number(r.checkpoint_stall_seconds)},
              {"skipped", r.skipped}}
             .dump());
}

void MetricsFile::write(const EvalRecord& r) {
  append(Json{{"step", r.step},
              {"eval_loss", number(r.eval_loss)},
              {"eval_tokens", r.eval_tokens},
              {"eval_seconds", number(r.seconds)}}
             .dump());
}

}  // namespace dstrain
