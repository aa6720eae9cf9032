#include "lib/model/file_tensors.h"

#include <set>

#include "lib/model/build.h"

namespace dstrain {

namespace {
// What each module of multi-token prediction has a copy of in files: embedding and head.
constexpr const char* kMtpCopies[] = {".embed_tokens.weight", ".shared_head.head.weight"};
}  // namespace

std::string weight_name(const ModelConfig& model, const std::string& name) {
  const std::string embedding = "model.embed_tokens.weight";
  if (name.starts_with("model.layers.") && name.ends_with(kMtpCopies[0])) return embedding;
  if (name.starts_with("model.layers.") && name.ends_with(kMtpCopies[1]))
    return model.tie_word_embeddings ? embedding : "lm_head.weight";
  return name;
}

bool stored_as_fp8(const std::string& name) {
  if (!name.ends_with("_proj.weight") && !name.ends_with("_proj_with_mqa.weight")) return false;
  return !name.ends_with(".eh_proj.weight");
}

std::vector<FileTensor> file_tensors(const ModelConfig& model, const FileForm& form) {
  std::vector<FileTensor> tensors;
  std::set<std::string> seen;
  const auto add = [&](const std::string& name, const Shape& shape, UpdateRule rule = UpdateRule::adamw) {
    if (!seen.insert(name).second) return;
    if (form.fp8 && stored_as_fp8(name)) {
      tensors.push_back({name, "F8_E4M3", shape});
      tensors.push_back({name + kScaleSuffix, "F32", scale_shape(shape)});
    } else {
      tensors.push_back({name, rule == UpdateRule::balance ? "F32" : form.dtype, shape});
    }
  };
  const Index layers = model.num_hidden_layers, depths = model.num_nextn_predict_layers;
  build_stage(model, {.layers = {0, layers}, .mtp_depths = depths}).visit([&](Param& param) {
    for (const Piece& piece : param.pieces) add(piece.name, piece.global, param.rule);
  });
  for (Index i = layers; i < layers + depths; ++i)
    for (const char* copy : kMtpCopies)
      add(format("model.layers.{}{}", i, copy), {model.vocab_size, model.hidden_size});
  return tensors;
}

Index elements(const std::vector<FileTensor>& tensors, const std::string& suffix) {
  Index n = 0;
  for (const FileTensor& t : tensors)
    if (suffix.empty() || !t.name.ends_with(suffix)) n += t.shape.numel();
  return n;
}

Index bytes(const std::vector<FileTensor>& tensors) {
  Index n = 0;
  for (const FileTensor& t : tensors) n += t.shape.numel() * static_cast<Index>(file_dtype_bytes(t.dtype));
  return n;
}

}  // namespace dstrain
