#include "lib/checkpoint/manifest.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "lib/checkpoint/names.h"
#include "lib/core/errors.h"
#include "lib/core/hash.h"

namespace dstrain {

namespace {

using Json = nlohmann::ordered_json;

Json json_of(const Shape& shape) { return shape.to_vector(); }

Json json_of(const ShardRecord& shard) {
  Json blocks = Json::array();
  for (const std::uint64_t b : shard.blocks) blocks.push_back(hex(b));
  return {{"file", shard.file}, {"size", shard.size}, {"blocks", std::move(blocks)}};
}

Json json_of(const TensorRecord& tensor) {
  Json entries = Json::array();
  for (const EntryRecord& e : tensor.entries)
    entries.push_back({{"shard", e.shard},
                       {"dataset", e.dataset},
                       {"offset", json_of(e.offset)},
                       {"extent", json_of(e.extent)},
                       {"order", e.transposed ? "F" : "C"},
                       {"flat", nullptr}});
  return {{"name", tensor.name},
          {"role", tensor.role},
          {"dtype", "f32"},
          {"shape", json_of(tensor.shape)},
          {"entries", std::move(entries)}};
}

Shape shape_of(const Json& json) {
  const auto dims = json.get<std::vector<Index>>();
  require(!dims.empty() && dims.size() <= 2, ExitCode::checkpoint, "a tensor of {} dimensions", dims.size());
  Index elements = 1;
  for (const Index d : dims) {
    require(d >= 0 && d <= (Index{1} << 40), ExitCode::checkpoint, "a dimension of {}", d);
    require(d == 0 || elements <= (Index{1} << 60) / d, ExitCode::checkpoint, "a tensor of more elements than can be");
    elements *= d;
  }
  return Shape(dims);
}

// A value as a message shows it: in ASCII, without control characters, and no longer than a line.
std::string shown(const Json& json) {
  std::string text = json.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > 80) text = text.substr(0, 80) + "...";
  return text;
}

// A name as it goes into paths of datasets, messages and tables.
std::string name_in(const Json& json) {
  const auto name = json.get<std::string>();
  if (name.empty() || name.size() > kLongestName)
    fail(ExitCode::checkpoint, "a name of {} bytes, {}; 1 to {} are read", name.size(), shown(json), kLongestName);
  for (const char c : name)
    if (static_cast<unsigned char>(c) <= ' ' || c == 127 || c == '\\')
      fail(ExitCode::checkpoint, "the name {} has a character that names must not have", shown(json));
  for (std::size_t at = 0; at <= name.size();) {
    const std::size_t end = std::min(name.find('/', at), name.size());
    const std::string_view part(name.data() + at, end - at);
    if (part.empty() || part == "." || part == "..")
      fail(ExitCode::checkpoint, "the name {} has a part that names must not have", shown(json));
    at = end + 1;
  }
  return name;
}

std::uint64_t hash_of(const std::string& digits) {
  std::uint64_t value = 0;
  for (const char c : digits) {
    const bool digit = c >= '0' && c <= '9', letter = c >= 'a' && c <= 'f';
    if (!digit && !letter) fail(ExitCode::checkpoint, "{} is not a hash", shown(digits));
    value = value << 4 | static_cast<std::uint64_t>(digit ? c - '0' : c - 'a' + 10);
  }
  if (digits.size() != 16) fail(ExitCode::checkpoint, "{} is not a hash", shown(digits));
  return value;
}

ShardRecord shard_of(const Json& json) {
  ShardRecord shard{name_in(json.at("file")), json.at("size").get<std::uint64_t>(), {}};
  for (const Json& b : json.at("blocks")) shard.blocks.push_back(hash_of(b.get<std::string>()));
  require(shard.size < (1ull << 60) && shard.blocks.size() == (shard.size + kHashBlock - 1) / kHashBlock,
          ExitCode::checkpoint, "{}: {} hashes for {} bytes", shard.file, shard.blocks.size(), shard.size);
  return shard;
}

TensorRecord tensor_of(const Json& json) {
  TensorRecord tensor{name_in(json.at("name")), name_in(json.at("role")), shape_of(json.at("shape")), {}};
  if (json.at("dtype") != "f32") fail(ExitCode::checkpoint, "{}: dtype {}", tensor.name, shown(json.at("dtype")));
  for (const Json& e : json.at("entries")) {
    const std::string order = e.at("order").get<std::string>();
    if ((order != "C" && order != "F") || !e.at("flat").is_null())
      fail(ExitCode::checkpoint, "{}: an entry of order {}, flat {}", tensor.name, shown(e.at("order")),
           shown(e.at("flat")));
    tensor.entries.push_back({e.at("shard").get<int>(), name_in(e.at("dataset")), shape_of(e.at("offset")),
                              shape_of(e.at("extent")), order == "F"});
  }
  return tensor;
}

bool overlap(const EntryRecord& a, const EntryRecord& b) {
  for (int i = 0; i < a.extent.rank(); ++i)
    if (a.offset[i] + a.extent[i] <= b.offset[i] || b.offset[i] + b.extent[i] <= a.offset[i]) return false;
  return true;
}

// "" when the entries partition the tensor.
std::string geometry_error(const TensorRecord& tensor, std::size_t shards) {
  constexpr std::size_t kPairwise = 512;  // entries compared each with each; beyond, the count of elements must do
  Index covered = 0;
  for (std::size_t i = 0; i < tensor.entries.size(); ++i) {
    const EntryRecord& e = tensor.entries[i];
    if (e.shard < 0 || static_cast<std::size_t>(e.shard) >= shards) return format("shard {} of {}", e.shard, shards);
    if (e.offset.rank() != tensor.shape.rank() || e.extent.rank() != tensor.shape.rank() ||
        (e.transposed && tensor.shape.rank() != 2))
      return "an entry has other dimensions";
    for (int d = 0; d < tensor.shape.rank(); ++d)
      if (e.extent[d] <= 0 || e.offset[d] + e.extent[d] > tensor.shape[d])
        return format("an entry of {} at {}", e.extent.to_string(), e.offset.to_string());
    covered += e.extent.numel();
    for (std::size_t j = 0; i < kPairwise && j < i; ++j)
      if (overlap(e, tensor.entries[j])) return format("entries {} and {} overlap", j, i);
  }
  if (covered != tensor.shape.numel()) return format("entries cover {} of {} elements", covered, tensor.shape.numel());
  return "";
}

auto key_of(const TensorRecord& t) { return std::tie(t.role, t.name); }

std::string last_line(std::string_view before) { return Json{{"xxh3", hex(xxh3(before))}}.dump() + "\n"; }

// The lines of a manifest whose checksum is right.
Manifest read_lines(std::string_view text) {
  std::vector<Json> lines;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = text.find('\n', at);
    require(end != text.npos, ExitCode::checkpoint, "the last line is not ended");
    lines.push_back(Json::parse(text.substr(at, end - at)));
    at = end + 1;
  }
  require(lines.size() >= 2, ExitCode::checkpoint, "{} lines", lines.size());
  const Json& header = lines[0];
  require(header.at("format") == "dstrain checkpoint", ExitCode::checkpoint, "not a checkpoint of dstrain");
  const auto version = header.at("version").get<std::int64_t>();
  require(version <= kCheckpointVersion, ExitCode::checkpoint,
          "format version {}, this build reads versions {} to {}: a newer build wrote it", version, kOldestVersion,
          kCheckpointVersion);
  require(version >= kOldestVersion, ExitCode::checkpoint, "format version {}, this build reads versions {} to {}",
          version, kOldestVersion, kCheckpointVersion);
  Manifest manifest;
  const auto world = header.at("world").get<std::size_t>();
  const Json& mesh = header.at("mesh");
  manifest.state.mesh = {mesh.at("tensor").get<int>(), mesh.at("context").get<int>(), mesh.at("data").get<int>(),
                         mesh.at("pipeline").get<int>(), mesh.at("expert").get<int>()};
  manifest.state.config_hash = name_in(header.at("config_hash"));
  const Json& state = lines[1].at("state");
  manifest.state.step = state.at("step").get<Index>();
  manifest.state.optimizer_step = state.at("optimizer_step").get<Index>();
  manifest.state.seed = state.at("seed").get<std::uint64_t>();
  manifest.state.next_sample = state.at("next_sample").get<Index>();
  manifest.state.tokens = state.at("tokens").get<Index>();
  manifest.state.data_hash = state.value("data_hash", "");
  if (state.contains("guard")) manifest.state.guard = parse_guard_state(state.at("guard").dump());
  if (!manifest.state.data_hash.empty()) name_in(state.at("data_hash"));
  require(world >= 1 && world <= lines.size() && lines.size() >= 2 + world, ExitCode::checkpoint,
          "{} shards in {} lines", world, lines.size());
  for (std::size_t i = 0; i < world; ++i) {
    manifest.shards.push_back(shard_of(lines[2 + i]));
    require(lines[2 + i].at("shard").get<std::size_t>() == i &&
                manifest.shards.back().file == shard_name(static_cast<int>(i)),
            ExitCode::checkpoint, "shard {} is called '{}'", i, manifest.shards.back().file);
  }
  for (std::size_t i = 2 + world; i < lines.size(); ++i) {
    manifest.tensors.push_back(tensor_of(lines[i]));
    const TensorRecord& t = manifest.tensors.back();
    const std::string wrong = geometry_error(t, world);
    require(wrong.empty(), ExitCode::checkpoint, "{} of {}: {}", t.role, t.name, wrong);
    const std::size_t n = manifest.tensors.size();
    require(n < 2 || key_of(manifest.tensors[n - 2]) < key_of(t), ExitCode::checkpoint, "{} of {} is out of order",
            t.role, t.name);
  }
  return manifest;
}

}  // namespace

const TensorRecord* Manifest::find(std::string_view name, std::string_view role) const {
  const auto key = std::tie(role, name);
  const auto at = std::lower_bound(tensors.begin(), tensors.end(), key, [](const TensorRecord& t, const auto& k) {
    return std::tuple<std::string_view, std::string_view>(t.role, t.name) < k;
  });
  return at != tensors.end() && at->name == name && at->role == role ? &*at : nullptr;
}

std::string to_text(const Manifest& manifest) {
  const CheckpointState& s = manifest.state;
  std::string text;
  const auto line = [&](const Json& json) { text.append(json.dump()).append("\n"); };
  line({{"format", "dstrain checkpoint"},
        {"version", kCheckpointVersion},
        {"world", manifest.shards.size()},
        {"mesh",
         {{"tensor", s.mesh.tensor},
          {"context", s.mesh.context},
          {"data", s.mesh.data},
          {"pipeline", s.mesh.pipeline},
          {"expert", s.mesh.expert}}},
        {"config_hash", s.config_hash}});
  line({{"state",
         {{"step", s.step},
          {"optimizer_step", s.optimizer_step},
          {"seed", s.seed},
          {"next_sample", s.next_sample},
          {"tokens", s.tokens},
          {"data_hash", s.data_hash},
          {"guard", Json::parse(to_text(s.guard))}}}});
  for (std::size_t i = 0; i < manifest.shards.size(); ++i) {
    Json json = {{"shard", i}};
    json.update(json_of(manifest.shards[i]));
    line(json);
  }
  for (const TensorRecord& t : manifest.tensors) {
    const std::string wrong = geometry_error(t, manifest.shards.size());
    check(wrong.empty(), "checkpoint: {} of {}: {}", t.role, t.name, wrong);
    line(json_of(t));
  }
  return text + last_line(text);
}

namespace {

// All lines but the last, whose checksum is right. The last line is compared as bytes, so no byte of the file is
// without protection.
std::string_view body_of(const std::string& text) {
  require(text.ends_with('\n') && text.size() > 1, ExitCode::checkpoint, "the file is cut off");
  const std::size_t before = text.rfind('\n', text.size() - 2);
  require(before != text.npos, ExitCode::checkpoint, "the file is cut off");
  const std::string_view body(text.data(), before + 1);
  require(text.substr(before + 1) == last_line(body), ExitCode::checkpoint,
          "the checksum in the last line is not that of the file");
  return body;
}

}  // namespace

std::optional<std::int64_t> format_version(const std::string& text) {
  try {
    const std::string_view body = body_of(text);
    const Json header = Json::parse(body.substr(0, body.find('\n')));
    if (header.at("format") == "dstrain checkpoint") return header.at("version").get<std::int64_t>();
  } catch (const Json::exception&) {
  } catch (const Error&) {
  }
  return std::nullopt;
}

Manifest parse_manifest(const std::string& text, const std::string& where) {
  try {
    return read_lines(body_of(text));
  } catch (const Json::exception& e) {
    fail(ExitCode::checkpoint, "{}: {}", where, e.what());
  } catch (const Error& e) {
    fail(ExitCode::checkpoint, "{}: {}", where, e.what());
  }
}

std::string to_text(const ShardRecord& shard, const std::vector<TensorRecord>& tensors) {
  Json json = {{"shard", json_of(shard)}, {"tensors", Json::array()}};
  for (const TensorRecord& t : tensors) json["tensors"].push_back(json_of(t));
  return json.dump();
}

void add_shard(Manifest& manifest, const std::string& text) {
  const Json json = Json::parse(text);
  manifest.shards.push_back(shard_of(json.at("shard")));
  for (const Json& t : json.at("tensors")) manifest.tensors.push_back(tensor_of(t));
}

void merge_tensors(Manifest& manifest) {
  auto& tensors = manifest.tensors;
  std::stable_sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) { return key_of(a) < key_of(b); });
  std::vector<TensorRecord> merged;
  for (TensorRecord& t : tensors) {
    if (merged.empty() || key_of(merged.back()) != key_of(t)) {
      merged.push_back(std::move(t));
      continue;
    }
    check(merged.back().shape == t.shape, "checkpoint: {} of {} is {} on one rank and {} on another", t.role, t.name,
          merged.back().shape.to_string(), t.shape.to_string());
    for (EntryRecord& e : t.entries) merged.back().entries.push_back(std::move(e));
  }
  tensors = std::move(merged);
}

}  // namespace dstrain
