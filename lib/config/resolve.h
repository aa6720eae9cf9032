#pragma once
// The rules that join keys, and the values that follow from others.

#include "lib/config/reader.h"

namespace dstrain {

// Checks the job for `ranks` ranks and fills in every zero or "" that means "derived" (parallel.data,
// model.num_key_value_heads, head_dim, intermediate_size, hidden_act), so that nothing downstream derives it again;
// run.threads and run.device stay as given, since they depend on the machine. model.from is cleared: the result stands
// by itself. Pure. Throws one Error{usage} with a line for each broken rule, with both places and the legal neighbours:
//   job.yaml:3:20: parallel.tensor: 3 does not divide model.num_attention_heads: 16 (job.yaml:2:80); did you mean 4 or
//   2?
Config resolve(const Loaded& loaded, int ranks);

}  // namespace dstrain
