#pragma once
// The tensors of a model's Hugging Face checkpoint: names, element types and shapes, in closed form. Pure.

#include <string>
#include <vector>

#include "lib/config/config.h"
#include "lib/core/file_tensor.h"

namespace dstrain {

struct FileForm {
  std::string dtype = "BF16";  // of all tensors but balancing biases, which are F32 in every file
  // DeepSeek's FP8 files (file_tensor.h): the weights of linears are F8_E4M3, each with its scales. Embedding, head,
  // norms, routers and eh_proj keep `dtype`.
  bool fp8 = false;
};

// Layer by layer as the model computes them; each name once. A tied head is no tensor of its own. Each module of
// multi-token prediction is the layer that would follow those before, with copies of the embedding and the head, which
// come last. REQUIRES: a resolved model.
std::vector<FileTensor> file_tensors(const ModelConfig& model, const FileForm& form);

// The weight that a tensor holds: for the copies of a module of multi-token prediction the embedding's or the head's
// name, for all others their own.
std::string weight_name(const ModelConfig& model, const std::string& name);

// Whether an FP8 file stores this weight as F8_E4M3.
bool stored_as_fp8(const std::string& name);

// Elements and bytes of a list, names that end in `suffix` left out when it is not "".
Index elements(const std::vector<FileTensor>& tensors, const std::string& suffix = "");
Index bytes(const std::vector<FileTensor>& tensors);

}  // namespace dstrain
