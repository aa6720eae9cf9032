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
  // Modules of multi-token prediction behind the last layer: each is a whole layer with its own copies of the embedding
  // and the head.
  Index mtp_modules = 0;
};

// Layer by layer as the model computes them; each name once. A tied head is no tensor of its own.
// REQUIRES: a resolved model.
std::vector<FileTensor> file_tensors(const ModelConfig& model, const FileForm& form);

// Whether an FP8 file stores this weight as F8_E4M3.
bool stored_as_fp8(const std::string& name);

// Elements and bytes of a list, names that end in `suffix` left out when it is not "".
Index elements(const std::vector<FileTensor>& tensors, const std::string& suffix = "");
Index bytes(const std::vector<FileTensor>& tensors);

}  // namespace dstrain
