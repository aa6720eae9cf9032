#include "lib/pipeline/schedule.h"

namespace dstrain {

namespace {

Program empty_program(const char* name, int stages, int micro_batches, bool with_backward) {
  Program program{name, micro_batches, with_backward, {}, {}};
  program.ranks.resize(static_cast<std::size_t>(stages));
  for (int s = 0; s < stages; ++s) program.owner.push_back(s);
  return program;
}

}  // namespace

// Huang et al., "GPipe: efficient training of giant neural networks using pipeline parallelism", 2019. Bubble
// (p - 1) / (m + p - 1); every micro-batch is alive at once. Backwards ascend, so that gradients add up in the same
// order under every schedule. A single stage waits for nobody: it alternates, and one micro-batch is alive at a time.
Program gpipe(int stages, int micro_batches) {
  Program program = empty_program("gpipe", stages, micro_batches, true);
  for (int s = 0; s < stages; ++s) {
    auto& actions = program.ranks[static_cast<std::size_t>(s)];
    for (int m = 0; m < micro_batches; ++m) {
      actions.push_back(forward(s, m));
      if (stages == 1) actions.push_back(backward(s, m));
    }
    if (stages == 1) break;
    for (int m = 0; m < micro_batches; ++m) actions.push_back(backward(s, m));
  }
  return program;
}

Program forward_only(int stages, int micro_batches) {
  Program program = empty_program("forward_only", stages, micro_batches, false);
  for (int s = 0; s < stages; ++s)
    for (int m = 0; m < micro_batches; ++m) program.ranks[static_cast<std::size_t>(s)].push_back(forward(s, m));
  return program;
}

}  // namespace dstrain
