#include "lib/pipeline/executor.h"

#include <vector>

namespace dstrain {

void execute(const Program& program, Stage& stage, ProcessGroup& pipeline, Stream& stream,
             std::span<const Batch> micro_batches, PassOptions options) {
  check(static_cast<int>(micro_batches.size()) == program.micro_batches, "{} micro-batches for a program of {}",
        micro_batches.size(), program.micro_batches);
  std::vector<Send> sends;
  std::vector<Receive> receives;
  options.write = Write::overwrite;
  for (const Action& a : program.ranks.at(static_cast<std::size_t>(pipeline.rank()))) {
    switch (a.kind) {
      case Action::Kind::forward:
        stage.forward(stream, a.slot, micro_batches[static_cast<std::size_t>(a.micro_batch)], options);
        break;
      case Action::Kind::backward:
        stage.backward(stream, a.slot, micro_batches[static_cast<std::size_t>(a.micro_batch)], options);
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
