#pragma once
// Weights between a stage's parameters and Hugging Face's tensors.

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "lib/checkpoint/safetensors_model.h"
#include "lib/train/engine.h"

namespace dstrain {

// Fills every master weight from the files. Throws Error{data} naming the tensor when one is missing, has another shape
// or holds a number that is not finite.
void load_weights(Engine& engine, const SafetensorsModel& weights);

// The name that a tensor of the model has in the files: GPT-2 files may leave out the "transformer." prefix.
std::string name_in_files(const SafetensorsModel& weights, const std::string& name);

// Throws Error{data} when a tensor of the files has no place in the model and is none of the harmless ones (attention
// masks, rotary tables, a tied head), and naming the first when modules of multi-token prediction are on and the files
// have none. Returns how many tensors belong to modules that are off.
Index check_all_used(const ModelConfig& config, const SafetensorsModel& weights);

// A whole tensor of this rank in the file's shape, assembled from the pieces that the stage holds; elements that other
// ranks hold are 0. `values` gives what is read of a parameter: Engine::read() or Engine::gradient().
struct NamedTensor {
  Shape shape;
  std::vector<float> values;
};
std::map<std::string, NamedTensor> gather_tensors(const StageModel& model,
                                                  const std::function<std::vector<float>(const Param&)>& values);

}  // namespace dstrain
