#include "lib/model/file_tensors.h"

#include <set>

#include "lib/model/build.h"

namespace dstrain {

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
  const auto visit = [&](const ModelConfig& m, const StagePlace& place) {
    build_stage(m, place).visit([&](Param& param) {
      for (const Piece& piece : param.pieces) add(piece.name, piece.global, param.rule);
    });
  };
  const Index layers = model.num_hidden_layers;
  visit(model, {.layers = {0, layers}});
  // A module's layer is the one that would follow the last.
  ModelConfig longer = model;
  longer.num_hidden_layers += form.mtp_modules;
  for (Index i = layers; i < longer.num_hidden_layers; ++i) {
    const std::string p = format("model.layers.{}.", i);
    const Index hidden = model.hidden_size;
    const Shape vocabulary{model.vocab_size, hidden};
    add(p + "embed_tokens.weight", vocabulary);
    add(p + "enorm.weight", {hidden});
    add(p + "hnorm.weight", {hidden});
    add(p + "eh_proj.weight", {hidden, 2 * hidden});
    visit(longer, {.layers = {i, i + 1}, .first = false, .last = false});
    add(p + "shared_head.norm.weight", {hidden});
    add(p + "shared_head.head.weight", vocabulary);
  }
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
