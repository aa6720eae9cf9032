#include "lib/pipeline/executor.h"

#include <utility>
#include <vector>

namespace dstrain {

void execute(const Program& program, Stage& stage, ProcessGroup& pipeline, Stream& stream,
             std::span<const Batch> micro_batches, PassOptions options) {
  check(static_cast<int>(micro_batches.size()) == program.micro_batches, "{} micro-batches for a program of {}",
        micro_batches.size(), program.micro_batches);
  std::vector<Send> sends;
  std::vector<Receive> receives;
  options.write = Write::overwrite;
  const std::function<void(std::size_t)> layer_done = std::exchange(options.layer_done, {});
  const auto at = [&](int micro_batch, const char* phase) {
    stream.set_place({.micro_batch = micro_batch, .phase = phase});
    return micro_batches[static_cast<std::size_t>(micro_batch)];
  };
  for (const Action& a : program.ranks.at(static_cast<std::size_t>(pipeline.rank()))) {
    switch (a.kind) {
      case Action::Kind::forward:
        if (options.sample_losses.defined()) {
          const Index samples = micro_batches[static_cast<std::size_t>(a.micro_batch)].batch;
          options.loss = options.sample_losses.slice(0, a.micro_batch * samples, (a.micro_batch + 1) * samples);
        }
        stage.forward(stream, a.slot, at(a.micro_batch, "forward"), options);
        if (options.forward_done) options.forward_done();
        break;
      case Action::Kind::backward:
        at(a.micro_batch, "backward");
        if (a.micro_batch == program.micro_batches - 1) options.layer_done = layer_done;
        stage.backward(stream, a.slot, options);
        if (options.backward_done) options.backward_done();
        options.write = Write::accumulate;
        break;
      case Action::Kind::exchange:
        sends.clear();
        receives.clear();
        for (const Transfer& t : a.transfers) {
          const Index rows = micro_batches[static_cast<std::size_t>(t.micro_batch)].rows();
          const int peer = program.peer(t);
          switch (t.kind) {
            case Transfer::Kind::send_act:
              sends.push_back({stage.output(), peer});
              break;
            case Transfer::Kind::recv_act:
              receives.push_back({stage.input(t.slot, rows), peer});
              break;
            case Transfer::Kind::send_grad:
              sends.push_back({stage.gradient(rows), peer});
              break;
            case Transfer::Kind::recv_grad:
              receives.push_back({stage.gradient(rows), peer});
              break;
          }
        }
        pipeline.exchange(stream, sends, receives);
        break;
    }
  }
  if (!program.backward)
    for (int slot = 0; slot < stage.slots(); ++slot) stage.release(slot);
}

}  // namespace dstrain
