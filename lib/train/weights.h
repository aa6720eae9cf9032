#pragma once
// Weights between a stage's parameters and Hugging Face's tensors.

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "lib/checkpoint/safetensors.h"
#include "lib/train/engine.h"

namespace dstrain {

// Fills every master weight from the files. GPT-2 files may leave out the "transformer." prefix. Throws Error{data}
// naming the tensor when one is missing or has another shape.
void load_weights(Engine& engine, const SafetensorsModel& weights);

// Throws Error{data} when a tensor of the files has no place in the model and is none of the harmless ones (attention
// masks, rotary tables, a tied head, modules of multi-token prediction that are off and the copies of embedding and
// head in those that are on).
void check_all_used(const ModelConfig& config, const SafetensorsModel& weights);

// A whole tensor of this rank in the file's shape, assembled from the pieces that the stage holds; elements that other
// ranks hold are 0. `values` gives what is read of a parameter: Engine::read() or Engine::gradient().
struct NamedTensor {
  Shape shape;
  std::vector<float> values;
};
std::map<std::string, NamedTensor> gather_tensors(const StageModel& model,
                                                  const std::function<std::vector<float>(const Param&)>& values);

}  // namespace dstrain
