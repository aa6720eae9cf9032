#include "lib/data/loader.h"

#include <algorithm>
#include <utility>

namespace dstrain {

// ---- reader ----

namespace {

Index padded(Index bytes) { return (bytes + 63) / 64 * 64; }

// Of one step of one data rank.
std::size_t step_bytes(const BatchPlan& plan, Index length) {
  const Index rows = plan.micro_batch * length;
  const Index one = (plan.document_mask ? 5 : 4) * padded(rows * 4) + padded(plan.micro_batch * 8) + padded(rows * 8) +
                    2 * padded(plan.mtp_depths * rows * 4);
  return static_cast<std::size_t>(one * plan.micro_batches());
}

}  // namespace

std::size_t loader_bytes(const BatchPlan& plan, Index length) { return Loader::kSlots * step_bytes(plan, length); }

Index predicted_tokens(TokenSources& sources, const Sampler& sampler, Index begin, Index end, bool document_mask) {
  Index n = 0;
  std::vector<Index> starts;
  for (Index i = begin; i < end; ++i) {
    const Sample s = sampler.locate(i);
    starts.clear();
    if (document_mask) sources[s.source].document_starts(s.begin, s.begin + s.tokens, starts);
    n += s.tokens - 1 - static_cast<Index>(starts.size());
  }
  return n;
}

BatchReader::BatchReader(TokenSources& sources, const Sampler& sampler, const BatchPlan& plan)
    : sources_(sources),
      sampler_(sampler),
      plan_(plan),
      tokens_(static_cast<std::size_t>(sampler.sequence_length()) + 1) {
  check(plan.data_ranks >= 1 && plan.data_rank >= 0 && plan.data_rank < plan.data_ranks && plan.micro_batch >= 1 &&
            plan.global_batch % (plan.data_ranks * plan.micro_batch) == 0,
        "batch {} over {} ranks in micro-batches of {}", plan.global_batch, plan.data_ranks, plan.micro_batch);
}

void BatchReader::prepare(StepData& step, Buffer& memory) const {
  if (!step.batches.empty()) return;
  const Index t = sampler_.sequence_length(), b = plan_.micro_batch, rows = b * t;
  memory = plan_.pinned ? Buffer::pinned("batches", step_bytes(plan_, t))
                        : Buffer("batches", Device::cpu, step_bytes(plan_, t));
  std::byte* at = memory.data();
  const auto take = [&](DType type, Index n) {
    Tensor tensor(at, type, Device::cpu, {n});
    at += padded(n * static_cast<Index>(size_of(type)));
    return tensor;
  };
  for (Index m = 0; m < plan_.micro_batches(); ++m) {
    Batch batch;
    batch.batch = b;
    batch.length = t;
    batch.tokens = take(DType::i32, rows);
    batch.targets = take(DType::i32, rows);
    batch.positions = take(DType::i32, rows);
    batch.sample_ids = take(DType::i64, b);
    batch.row_sample_ids = take(DType::i64, rows);
    batch.loss_weights = take(DType::f32, rows);
    if (plan_.document_mask) batch.first_keys = take(DType::i32, rows);
    if (const Index depths = plan_.mtp_depths; depths > 0) {
      batch.mtp_targets = take(DType::i32, depths * rows).view({depths, rows});
      batch.mtp_weights = take(DType::f32, depths * rows).view({depths, rows});
    }
    step.batches.push_back(batch);
  }
}

void BatchReader::read(Index cursor, StepData& step, Buffer& memory) {
  const Index b = plan_.micro_batch;
  prepare(step, memory);
  step.cursor = cursor;
  valid_ = 0;
  Index sample = cursor + plan_.data_rank * (plan_.global_batch / plan_.data_ranks);
  for (const Batch& batch : step.batches) {
    for (Index row = 0; row < b; ++row) read_sample(sample++, row, batch);
    fill_mtp(batch);
  }
  step.valid_tokens = valid_;
  step.mtp_tokens = mtp_tokens(step.batches);
}

void BatchReader::read_sample(Index global_sample, Index row, const Batch& batch) {
  const Index t = batch.length;
  Index held = 0;  // tokens of the sample
  starts_.clear();
  if (plan_.end < 0 || global_sample < plan_.end) {
    const Sample s = sampler_.locate(global_sample);
    held = s.tokens;
    TokenSource& source = sources_[s.source];
    source.read(s.begin, std::span(tokens_).first(static_cast<std::size_t>(held)));
    if (plan_.document_mask) source.document_starts(s.begin, s.begin + held, starts_);
    for (Index& start : starts_) {
      start -= s.begin;
      source.check_document_end(s.begin + start - 1, tokens_[static_cast<std::size_t>(start) - 1]);
    }
  }
  const std::int32_t pad = sources_.info().end_of_document;
  batch.sample_ids.as<std::int64_t>()[row] = global_sample;
  std::int32_t* tokens = batch.tokens.as<std::int32_t>() + row * t;
  std::int32_t* targets = batch.targets.as<std::int32_t>() + row * t;
  std::int32_t* positions = batch.positions.as<std::int32_t>() + row * t;
  std::int64_t* ids = batch.row_sample_ids.as<std::int64_t>() + row * t;
  float* weights = batch.loss_weights.as<float>() + row * t;
  for (Index i = 0; i < t; ++i) {
    tokens[i] = i < held ? tokens_[static_cast<std::size_t>(i)] : pad;
    targets[i] = i + 1 < held ? tokens_[static_cast<std::size_t>(i) + 1] : pad;
    weights[i] = i + 1 < held ? 1.0f : 0.0f;
    positions[i] = static_cast<std::int32_t>(i);
    ids[i] = global_sample;
  }
  valid_ += held > 0 ? held - 1 : 0;
  if (!plan_.document_mask) return;

  std::int32_t* first = batch.first_keys.as<std::int32_t>() + row * t;
  std::fill(first, first + t, 0);
  // Padding is a document of its own.
  if (held < t) starts_.push_back(held);
  for (std::size_t d = 0; d < starts_.size(); ++d) {
    const Index begin = starts_[d], end = d + 1 < starts_.size() ? std::min(t, starts_[d + 1]) : t;
    if (begin > 0 && begin < held) {
      weights[begin - 1] = 0;
      --valid_;
    }
    for (Index i = begin; i < end; ++i) {
      first[i] = static_cast<std::int32_t>(begin);
      positions[i] = static_cast<std::int32_t>(i - begin);
    }
  }
}

// ---- loader ----

Loader::Loader(TokenSources& sources, const Sampler& sampler, const BatchPlan& plan, ProcessGroup* group,
               const Clock& clock)
    : reader_(sources, sampler, plan), plan_(plan), group_(group), clock_(clock) {
  check((group ? group->size() : 1) == plan.data_ranks, "a loader group of {} for {} data ranks",
        group ? group->size() : 1, plan.data_ranks);
  // Here, not in the thread: page-locked memory belongs to the GPU of the thread that asks for it.
  for (Slot& slot : slots_) reader_.prepare(slot.step, slot.memory);
  thread_ = std::thread([this] { work(); });
}

Loader::~Loader() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

const StepData& Loader::next(Index cursor) {
  const double begin = clock_.now();
  std::unique_lock lock(mutex_);
  previous_ = std::exchange(current_, -1);
  wanted_ = cursor;
  changed_.notify_all();
  changed_.wait(lock, [&] { return error_ || (ready_ >= 0 && wanted_ < 0); });
  if (error_) std::rethrow_exception(error_);
  current_ = std::exchange(ready_, -1);
  prefetch_ = cursor + plan_.global_batch;
  changed_.notify_all();
  StepData& step = slots_[current_].step;
  step.wait_seconds = clock_.now() - begin;
  return step;
}

// Every request is answered by the same reads on every data rank: a prefetched step is kept or thrown away by its
// cursor alone, never by how fast anything was. So the counts meet.
void Loader::work() {
  std::unique_lock lock(mutex_);
  try {
    ThreadPool pool(1);
    Stream stream(Device::cpu, Device::cpu, &pool, nullptr, nullptr);
    while (true) {
      changed_.wait(lock, [&] { return stop_ || wanted_ >= 0 || prefetch_ >= 0; });
      // A prefetch that was asked for is always carried out: peers count on its sum.
      const bool ahead = prefetch_ >= 0;
      if (!ahead && stop_) return;
      if (!ahead && ready_ >= 0 && slots_[ready_].step.cursor == wanted_) {
        wanted_ = -1;
        changed_.notify_all();
        continue;
      }
      const Index cursor = ahead ? std::exchange(prefetch_, -1) : wanted_;
      int slot = 0;
      while (slot == current_ || slot == previous_) ++slot;
      ready_ = -1;
      lock.unlock();
      std::exception_ptr failure;
      try {
        reader_.read(cursor, slots_[slot].step, slots_[slot].memory);
      } catch (...) {
        failure = std::current_exception();
      }
      if (group_) {
        // A rank that could not read joins all the same, so that no peer waits for it.
        StepData& step = slots_[slot].step;
        std::vector<std::int64_t> sums{failure ? 0 : step.valid_tokens, failure ? 1 : 0};
        sums.resize(2 + static_cast<std::size_t>(plan_.mtp_depths));
        for (std::size_t i = 2; i < sums.size() && !failure; ++i)
          sums[i] = static_cast<std::int64_t>(step.mtp_tokens[i - 2]);
        group_->all_reduce(stream, Tensor(sums.data(), DType::i64, Device::cpu, {static_cast<Index>(sums.size())}));
        step.valid_tokens = sums[0];
        step.mtp_tokens.assign(sums.begin() + 2, sums.end());
        if (sums[1] > 0 && !failure)
          throw Error(ExitCode::data,
                      format("{} other data rank(s) could not read the step at sample {}", sums[1], cursor));
      }
      if (failure) std::rethrow_exception(failure);
      require(slots_[slot].step.valid_tokens > 0, ExitCode::data,
              "the step at sample {} has no token to predict: its documents have one token each", cursor);
      lock.lock();
      ready_ = slot;
    }
  } catch (...) {
    if (!lock.owns_lock()) lock.lock();
    error_ = std::current_exception();
    changed_.notify_all();
  }
}

}  // namespace dstrain
