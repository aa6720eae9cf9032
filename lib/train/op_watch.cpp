#include "lib/train/op_watch.h"

#include <cstring>

#include "kernels/finite.h"
#include "lib/core/transfer.h"

namespace dstrain {

namespace {

// Outputs in which values that are not finite have a meaning.
bool may_be_infinite(const char* op, std::size_t output) {
  struct Row {
    const char* op;
    std::size_t output;
  };
  constexpr Row kRows[] = {
      {"attention", 1},            // the log of an empty sum
      {"cross_entropy_stats", 0},  // the maximum of no column
      {"update_scalars", 0},       // NaN tells AdamW to do nothing
      {"squared_norm", 0},         // of a gradient that an earlier check has seen
  };
  for (const Row& r : kRows)
    if (std::strcmp(r.op, op) == 0 && r.output == output) return true;
  return false;
}

bool has_fractions(DType t) { return t == DType::f32 || t == DType::bf16 || t == DType::f64; }

}  // namespace

DebugObserver::DebugObserver(const Options& options, Device device)
    : options_(options), memory_("debug flag", device, Arena::kAlign), flag_(memory_.data(), DType::i32, device, {1}) {}

std::string DebugObserver::where(const Stream& stream, const char* op, std::span<const Tensor> outputs) const {
  std::string shapes;
  for (const Tensor& t : outputs)
    if (t.defined()) shapes += (shapes.empty() ? "" : ", ") + t.to_string();
  const Place& p = stream.place();
  return format("rank {}, {}{}{}: op '{}' writing {}", options_.rank, *p.phase ? p.phase : "between passes",
                p.layer >= 0 ? format(", layer {}", p.layer) : std::string(),
                p.micro_batch >= 0 ? format(", micro-batch {}", p.micro_batch) : std::string(), op, shapes);
}

void DebugObserver::before(Stream& stream, const char* op, const Cost& cost) {
  if (!inside_ && options_.inner) options_.inner->before(stream, op, cost);
}

void DebugObserver::after(Stream& stream, const char* op, std::span<const Tensor> outputs) {
  if (inside_) return;
  ++ops_;
  if (options_.inner) options_.inner->after(stream, op, outputs);
  if (first_) return;
  if (options_.blocking) {
    try {
      stream.synchronize();
    } catch (const Error& e) {
      fail(e.code(), "{}: {}", where(stream, op, outputs), e.what());
    }
  }
  if (!options_.check_finite) return;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const Tensor& t = outputs[i];
    if (!t.defined() || !has_fractions(t.dtype) || may_be_infinite(op, i)) continue;
    std::int32_t flag = 0;
    upload(stream, flag_, &flag);
    inside_ = true;
    launch(stream, FiniteCheck{.flag = flag_, .x = t});
    inside_ = false;
    download(stream, &flag, flag_);
    stream.synchronize();
    if (flag != 0 && options_.record) {
      first_ = {stream.place(), ops_, format("{}, output {}", where(stream, op, outputs), i)};
      return;
    }
    require(flag == 0, ExitCode::nonfinite, "{}: output {} holds a value that is not finite",
            where(stream, op, outputs), i);
  }
}

void DeviceTimer::before(Stream& stream, const char* op, const Cost& cost) {
  if (used_ == timed_.size()) timed_.emplace_back();
  Timed& t = timed_[used_];
  t.op = op;
  t.cost = cost;
  t.begin.record(stream.queue());
}

void DeviceTimer::after(Stream& stream, const char*, std::span<const Tensor>) {
  timed_[used_++].end.record(stream.queue());
}

void DeviceTimer::collect(Ledger& ledger) {
  for (std::size_t i = 0; i < used_; ++i)
    ledger.add(timed_[i].op, timed_[i].cost).seconds += timed_[i].end.seconds_since(timed_[i].begin);
  used_ = 0;
}

}  // namespace dstrain
