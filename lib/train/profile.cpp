#include "lib/train/profile.h"

namespace dstrain {

class StepTrace::Ops final : public OpObserver {
 public:
  explicit Ops(const Clock& clock) : clock_(clock), first_(clock.now()) {}
  void before(Stream&, const char*, const Cost&) override { begin_ = clock_.now(); }
  void after(Stream& stream, const char* op, std::span<const Tensor>) override {
    const Place& p = stream.place();
    events_.push_back({op, p, begin_ - first_, clock_.now() - begin_});
  }
  std::string text(int pid) const {
    std::string out;
    for (const Event& e : events_)
      out += format(
          "{}{{\"ph\": \"X\", \"pid\": {}, \"tid\": 0, \"cat\": \"{}\", \"name\": \"{}\", \"ts\": {:.3f}, \"dur\": "
          "{:.3f}, \"args\": {{\"layer\": {}, \"micro_batch\": {}}}}}",
          out.empty() ? "" : ",\n", pid, e.place.phase, e.op, 1e6 * e.begin, 1e6 * e.seconds, e.place.layer,
          e.place.micro_batch);
    return out;
  }

 private:
  struct Event {
    const char* op;
    Place place;
    double begin, seconds;
  };
  const Clock& clock_;
  double first_, begin_ = 0;
  std::vector<Event> events_;
};

StepTrace::StepTrace(Stream& stream, const Clock& clock, int rank) : stream_(stream), rank_(rank) {
  if (stream.device() == Device::cuda) {
    trace_.emplace();
    return;
  }
  require(stream.observer() == nullptr, ExitCode::usage, "profile.steps cannot go with debug.check_finite");
  ops_ = std::make_unique<Ops>(clock);
  stream.set_observer(ops_.get());
}

StepTrace::~StepTrace() {
  if (ops_) stream_.set_observer(nullptr);
}

std::string StepTrace::finish() {
  std::string events;
  if (trace_) {
    events = trace_->finish(rank_);
    trace_.reset();
  } else if (ops_) {
    events = ops_->text(rank_);
    stream_.set_observer(nullptr);
    ops_.reset();
  }
  return "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n" + events + "\n]}\n";
}

}  // namespace dstrain
