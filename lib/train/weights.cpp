#include "lib/train/weights.h"

#include <charconv>
#include <set>
#include <string_view>

#include "lib/model/params.h"

namespace dstrain {

namespace {

// Tensors that files carry and that hold no weights of their own.
bool harmless(const std::string& name) {
  for (const char* end : {".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq", "lm_head.weight"})
    if (name.ends_with(end)) return true;
  return false;
}

// Of a module of multi-token prediction that is off, or its copies of embedding and head.
bool unused_mtp(const ModelConfig& config, const std::string& name) {
  const std::string start = "model.layers.";
  if (config.type != "deepseek_v3" || !name.starts_with(start)) return false;
  const char* const digits = name.data() + start.size();
  Index layer = -1;
  const auto [end, error] = std::from_chars(digits, name.data() + name.size(), layer);
  const std::string_view rest(end, name.data() + name.size());
  if (error != std::errc() || layer < config.num_hidden_layers) return false;
  return layer >= config.num_hidden_layers + config.num_nextn_predict_layers || rest == ".embed_tokens.weight" ||
         rest == ".shared_head.head.weight";
}

std::string name_in_files(const SafetensorsModel& weights, const std::string& name) {
  const std::string prefix = "transformer.";
  if (!weights.has(name) && name.starts_with(prefix) && weights.has(name.substr(prefix.size())))
    return name.substr(prefix.size());
  return name;
}

}  // namespace

void load_weights(Engine& engine, const SafetensorsModel& weights) {
  engine.stage().model().visit([&](Param& param) {
    std::vector<float> master(static_cast<std::size_t>(param.numel()));  // padding: zeros
    for (const Piece& piece : param.pieces) {
      const std::string name = name_in_files(weights, piece.name);
      const SafetensorsFile& file = weights.file_of(name);
      const Shape& shape = file.entry(name).shape;
      require(shape == piece.global, ExitCode::data, "{}: tensor '{}' has shape {}, the model's is {}", file.path(),
              name, shape.to_string(), piece.global.to_string());
      const std::vector<float> values = file.read_f32(name, piece.offset, piece.extent);
      scatter_piece(param, piece, values.data(), master.data());
    }
    engine.write(param, Role::weight, master);
  });
}

void check_all_used(const ModelConfig& config, const SafetensorsModel& weights) {
  std::set<std::string> known;
  const Index depths = config.num_nextn_predict_layers;
  const std::string first = format("model.layers.{}.eh_proj.weight", config.num_hidden_layers);
  require(
      depths == 0 || weights.has(first), ExitCode::data,
      "{}: no tensor '{}': the weights have no multi-token prediction; model.num_nextn_predict_layers=0 goes without",
      config.weights, first);
  build_stage(config, {.layers = {0, config.num_hidden_layers}, .mtp_depths = depths}).visit([&](Param& param) {
    for (const Piece& piece : param.pieces) known.insert(name_in_files(weights, piece.name));
  });
  for (const std::string& name : weights.names())
    require(known.contains(name) || harmless(name) || unused_mtp(config, name), ExitCode::data,
            "{}: tensor '{}' has no place in the model", weights.file_of(name).path(), name);
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
