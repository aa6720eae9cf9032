#include "lib/train/weights.h"

#include <charconv>
#include <set>

#include "lib/model/file_tensors.h"
#include "lib/model/params.h"

namespace dstrain {

namespace {

// Tensors that files carry and that hold no weights of their own.
bool harmless(const std::string& name) {
  for (const char* end : {".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq", "lm_head.weight"})
    if (name.ends_with(end)) return true;
  return false;
}

// Of a module of multi-token prediction that is off.
bool unused_mtp(const ModelConfig& config, const std::string& name) {
  const std::string start = "model.layers.";
  if (config.type != "deepseek_v3" || !name.starts_with(start)) return false;
  const char* const digits = name.data() + start.size();
  Index layer = -1;
  const auto [end, error] = std::from_chars(digits, name.data() + name.size(), layer);
  return error == std::errc() && end != name.data() + name.size() && *end == '.' &&
         layer >= config.num_hidden_layers + config.num_nextn_predict_layers;
}

}  // namespace

std::string name_in_files(const SafetensorsModel& weights, const std::string& name) {
  const std::string prefix = "transformer.";
  if (!weights.has(name) && name.starts_with(prefix) && weights.has(name.substr(prefix.size())))
    return name.substr(prefix.size());
  return name;
}

void load_weights(Engine& engine, const SafetensorsModel& weights) {
  engine.stage().model().visit([&](Param& param) {
    std::vector<float> master(static_cast<std::size_t>(param.numel()));  // padding: zeros
    std::vector<float> values;
    for (const Piece& piece : param.pieces) {
      const std::string name = name_in_files(weights, piece.name);
      weights.require_shape(name, piece.global);
      values.resize(static_cast<std::size_t>(piece.extent.numel()));
      weights.read(name, piece.offset, piece.extent, values);
      scatter_piece(param, piece, values.data(), master.data());
    }
    engine.write(param, Role::weight, master);
  });
}

Index check_all_used(const ModelConfig& config, const SafetensorsModel& weights) {
  std::set<std::string> known;
  const Index depths = config.num_nextn_predict_layers;
  const std::string first = format("model.layers.{}.eh_proj.weight", config.num_hidden_layers);
  require(
      depths == 0 || weights.has(first), ExitCode::data,
      "{}: no tensor '{}': the weights have no multi-token prediction; model.num_nextn_predict_layers=0 goes without",
      config.weights, first);
  for (const FileTensor& t : file_tensors(config, {})) known.insert(name_in_files(weights, t.name));
  Index left_out = 0;
  for (const std::string& name : weights.names()) {
    // transformers writes shared experts where there are none: matrices without rows or columns.
    if (known.contains(name) || harmless(name) || weights.file_of(name).entry(name).shape.numel() == 0) continue;
    require(unused_mtp(config, name), ExitCode::data, "{}: tensor '{}' has no place in the model",
            weights.file_of(name).path(), name);
    ++left_out;
  }
  return left_out;
}

std::map<std::string, NamedTensor> gather_tensors(const StageModel& model,
                                                  const std::function<std::vector<float>(const Param&)>& values) {
  std::map<std::string, NamedTensor> tensors;
  model.visit([&](Param& param) {
    const std::vector<float> memory = values(param);
    if (memory.empty()) return;
    for (const Piece& piece : param.pieces) {
      NamedTensor& t = tensors[piece.name];
      if (t.values.empty()) {
        t.shape = piece.global;
        t.values.resize(static_cast<std::size_t>(piece.global.numel()));
      }
      std::vector<float> part(static_cast<std::size_t>(piece.extent.numel()));
      gather_piece(param, piece, memory.data(), part.data());
      const bool matrix = piece.global.rank() == 2;
      const Index width = matrix ? piece.global[1] : piece.global[0],
                  columns = matrix ? piece.extent[1] : piece.extent[0];
      const Index first = matrix ? piece.offset[0] * width + piece.offset[1] : piece.offset[0];
      for (Index i = 0; i < static_cast<Index>(part.size()); ++i)
        t.values[static_cast<std::size_t>(first + i / columns * width + i % columns)] =
            part[static_cast<std::size_t>(i)];
    }
  });
  return tensors;
}

}  // namespace dstrain
