#include "lib/train/job_shape.h"

#include "lib/model/partition.h"

namespace dstrain {

StepShape step_shape(const Config& c) {
  return {.micro_batches = c.training.global_batch_size / (c.parallel.data * c.training.micro_batch_size),
          .micro_batch_size = c.training.micro_batch_size,
          .length = c.training.sequence_length};
}

Program job_program(const Config& c, const std::string& schedule) {
  return make_schedule(schedule, static_cast<int>(c.parallel.pipeline), static_cast<int>(step_shape(c).micro_batches));
}

Program single_program(const Config& c, const std::string& schedule) {
  return make_schedule(schedule, static_cast<int>(c.parallel.pipeline), 1);
}

Program train_program(const Config& c) { return job_program(c, c.parallel.schedule); }

StagePlace stage_place(const Config& c, const Coordinates& at, Index mtp_depths) {
  const auto stages = static_cast<int>(c.parallel.pipeline);
  return {.layers = partition(c.model, c.training.sequence_length, stages)[static_cast<std::size_t>(at.pipeline)],
          .first = at.pipeline == 0,
          .last = at.pipeline == stages - 1,
          .shard = {at.tensor, static_cast<int>(c.parallel.tensor)},
          .experts = {at.data % static_cast<int>(c.parallel.expert), static_cast<int>(c.parallel.expert)},
          .balance_alpha = c.model.deepseek() ? static_cast<float>(c.moe.balance_loss_alpha) : 0.0f,
          .mtp_depths = mtp_depths,
          .mtp_post_norm = c.mtp.input == "post_norm"};
}

ComputeSettings compute_settings(const Config& c) {
  return {.deterministic = c.run.deterministic,
          .tf32 = c.precision.tf32,
          .attention = c.cuda.attention == "cudnn"    ? AttentionChoice::cudnn
                       : c.cuda.attention == "native" ? AttentionChoice::native
                                                      : AttentionChoice::automatic};
}

}  // namespace dstrain
