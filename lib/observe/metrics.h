#pragma once
// metrics.jsonl: one line a step, an evaluation, a checkpoint. Keys are documented in docs/metrics.md.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lib/core/files.h"

namespace dstrain {

struct StepRecord {
  std::int64_t step = 0;          // updates done, this one included
  std::int64_t tokens = 0;        // trained on since the run began
  std::int64_t first_sample = 0;  // of the step
  std::int64_t samples = 0;       // one past the step's last: read or passed over since the run began
  double loss = 0;                // mean over the step's valid tokens, nats
  double grad_norm = 0;           // before clipping
  double lr = 0;
  double seconds = 0;            // of this step
  double tokens_per_second = 0;  // all ranks
  double mfu = 0;                // causal attention at half
  double mfu_full = 0;
  double loader_wait_seconds = 0;
  double checkpoint_stall_seconds = 0;
  std::int64_t skipped = 0;             // updates left out so far: not finite, or a spike
  std::int64_t rollbacks = 0;           // of the run so far
  std::optional<double> mtp_loss = {};  // of multi-token prediction
  // Mixtures of experts in the model's order: the most tokens of an expert over the mean; every expert's, or nothing.
  std::vector<double> expert_load = {};
  std::vector<std::vector<std::int64_t>> expert_tokens = {};
};

struct EvalRecord {
  std::int64_t step = 0;
  double eval_loss = 0;  // mean over the held-out tokens, nats
  std::int64_t eval_tokens = 0;
  double seconds = 0;
};

// A checkpoint that is durable.
struct SaveRecord {
  std::int64_t step = 0;  // the last recorded one when it became so: training went on meanwhile
  std::int64_t checkpoint_step = 0;
  double seconds = 0;  // of writing
  double bytes = 0;
  std::int64_t failed = 0;  // saves that failed since the program started
};

// A number of a record and its key in metrics.jsonl.
struct Scalar {
  const char* name;
  double value;
  bool integer = false;  // written without a fraction
};
// The single numbers but the step, in the order of the line.
std::vector<Scalar> scalars(const StepRecord& record);
std::vector<Scalar> scalars(const EvalRecord& record);
std::vector<Scalar> scalars(const SaveRecord& record);

// Appends to a metrics file. A line that cannot be written is dropped and counted.
class MetricsFile {
 public:
  // Keeps the lines of steps up to `last_step` (a resume), removes later ones by temp + rename. Throws FileError when
  // the file cannot be created.
  MetricsFile(const Files& files, const std::string& path, std::int64_t last_step);

  void write(const StepRecord& record);
  void write(const EvalRecord& record);
  void write(const SaveRecord& record);
  std::int64_t dropped() const { return dropped_; }
  // Whether the lines that were kept have an evaluation at `last_step`.
  bool evaluated() const { return evaluated_; }

 private:
  void append(const std::string& line);

  std::unique_ptr<File> file_;
  std::uint64_t end_ = 0;
  std::int64_t dropped_ = 0;
  bool evaluated_ = false;
};

}  // namespace dstrain
