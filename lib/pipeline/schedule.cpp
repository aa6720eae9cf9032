#include "lib/pipeline/schedule.h"

#include "lib/core/errors.h"

namespace dstrain {

namespace {

constexpr ScheduleEntry kSchedules[] = {
    {"gpipe", "all forwards, then all backwards", gpipe},
    {"forward_only", "forwards alone, for evaluation", forward_only},
};

}  // namespace

std::span<const ScheduleEntry> schedules() { return kSchedules; }

Program make_schedule(std::string_view name, int stages, int micro_batches) {
  const ScheduleEntry* entry = nullptr;
  std::string known;
  for (const ScheduleEntry& e : kSchedules) {
    if (name == e.name) entry = &e;
    known.append(known.empty() ? "" : ", ").append(e.name);
  }
  require(entry != nullptr, ExitCode::usage, "schedule '{}' is not known; there are: {}", name, known);
  require(stages >= 1 && micro_batches >= 1, ExitCode::usage,
          "schedule {}: {} stages and {} micro-batches; both must be at least 1", name, stages, micro_batches);
  require(static_cast<long long>(stages) * micro_batches <= (1 << 24), ExitCode::usage,
          "schedule {}: {} stages times {} micro-batches is more than {}", name, stages, micro_batches, 1 << 24);
  Program program = lower(entry->compute(stages, micro_batches));
  const std::vector<std::string> wrong = violations(program);
  check(wrong.empty(), "schedule {}: {}", name, wrong.empty() ? "" : wrong.front());
  return program;
}

}  // namespace dstrain
