#include "lib/train/convert.h"

#include <algorithm>
#include <exception>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "lib/checkpoint/names.h"
#include "lib/checkpoint/new_directory.h"
#include "lib/checkpoint/safetensors_model.h"
#include "lib/checkpoint/untrusted_json.h"
#include "lib/checkpoint/writer.h"
#include "lib/comm/world.h"
#include "lib/config/hugging_face.h"
#include "lib/config/resolve.h"
#include "lib/model/file_tensors.h"
#include "lib/tokenizer/tokenizer.h"
#include "lib/train/checkpointer.h"
#include "lib/train/inference.h"
#include "lib/train/run_directory.h"
#include "lib/train/weights.h"

namespace dstrain {

namespace {

constexpr std::uint64_t kShardBytes = 4ull << 30;  // of a thread's part of an imported checkpoint, or less
constexpr Index kPiece = 1 << 20;                  // elements read at a time
constexpr Index kJobLength = 2048;                 // training.sequence_length of an imported run, or less
constexpr std::uint64_t kLargestCopy = 256ull << 20;
// Beside the weights: taken over as they are.
constexpr const char* kCopied[] = {"generation_config.json", "tokenizer.json", "tokenizer_config.json",
                                   "special_tokens_map.json"};
constexpr const char* kDtypes = "dtypes.json";

std::string this_host() { return World::dry(0, 1)->host_name(); }
std::string copies_of(const std::string& run) { return join_path(run, "hugging_face"); }

void write_durably(const Files& files, const std::string& path, const std::string& text) {
  const auto file = files.open(path, OpenMode::create);
  file->pwrite(std::as_bytes(std::span(text)), 0);
  file->sync();
  file->close();
}

void copy_files(const Files& files, const std::string& from, const std::string& to) {
  for (const char* name : kCopied)
    if (files.exists(join_path(from, name)))
      write_durably(files, join_path(to, name), read_file(files, join_path(from, name), kLargestCopy));
}

std::string quoted_yaml(std::string text) {
  for (std::size_t at = 0; (at = text.find('\'', at)) != std::string::npos; at += 2) text.insert(at, "'");
  return "'" + text + "'";
}

// A job that evaluates and writes; to train, people write their own. Without modules of multi-token prediction when the
// files have none: transformers names them in config.json all the same.
Config job_of(const Files& files, const std::string& directory, const std::string& run, const std::string& tokenizer,
              const std::function<bool(Index layer)>& has_module, std::vector<std::string>& notes) {
  const std::string config = join_path(directory, "config.json");
  require(files.exists(config), ExitCode::usage, "{}: there is no config.json", directory);
  std::string yaml = format("run: {{ dir: {} }}\nmodel: {{ from: {} }}\n", quoted_yaml(run), quoted_yaml(config));
  if (!tokenizer.empty()) yaml += format("data: {{ tokenizer: {} }}\n", quoted_yaml(tokenizer));
  const ModelConfig model = model_from_hugging_face(files, config);
  yaml += format("training: {{ steps: 1, sequence_length: {}, global_batch_size: 1, micro_batch_size: 1 }}\n",
                 std::min(model.max_position_embeddings, kJobLength));
  std::vector<std::string> overrides;
  if (model.num_nextn_predict_layers > 0 && !has_module(model.num_hidden_layers)) {
    notes.push_back(format("{}: num_nextn_predict_layers {}: multi-token prediction is off, the files have no layer {}",
                           config, model.num_nextn_predict_layers, model.num_hidden_layers));
    overrides.emplace_back("model.num_nextn_predict_layers=0");
  }
  return resolve(parse_config(files, config, yaml, overrides), 1);
}

const char* dtype_name(const std::string& word) {
  return word == "float32" ? "F32" : word == "float16" ? "F16" : "BF16";
}
const char* dtype_word(const std::string& name) {
  return name == "F32" ? "float32" : name == "F16" ? "float16" : "bfloat16";
}

// dtypes.json: {"dtype": "BF16", "others": {NAME: "F32"}}.
struct FileDtypes {
  std::string common = "F32";
  std::map<std::string, std::string> others;  // by the model's names

  std::string to_text() const {
    return nlohmann::json{{"dtype", common}, {"others", nlohmann::json(others)}}.dump(2) + "\n";
  }
};

class DtypesReader final : public JsonReader {
 public:
  explicit DtypesReader(const std::string& file) : file_(file) {}
  FileDtypes dtypes;

  void text(const std::string& value) override {
    const bool known = value == "F32" || value == "F16" || value == "BF16";
    require(known && !path().empty(), ExitCode::data, "{}: {} is no dtype of weights", file_, quote(value));
    if (path().size() == 1)
      dtypes.common = value;
    else
      dtypes.others[path().back()] = value;
  }
  void number(std::uint64_t) override { other(); }
  void other() override { fail(ExitCode::data, "{}: a value that is no dtype", file_); }
  void opened(bool list) override { require(!list, ExitCode::data, "{}: a list", file_); }

 private:
  const std::string& file_;
};

// The dtype that most of the elements have; balancing biases do not count, since they have their own.
FileDtypes dtypes_of(const SafetensorsModel& weights, std::vector<FileTensor> tensors) {
  std::map<std::string, Index> elements;
  const auto dtype_of = [&](const FileTensor& t) { return weights.dtype(name_in_files(weights, t.name)); };
  std::erase_if(tensors, [&](const FileTensor& t) { return !weights.has(name_in_files(weights, t.name)); });
  for (const FileTensor& t : tensors)
    if (t.dtype != "F32") elements[dtype_of(t)] += t.shape.numel();
  FileDtypes dtypes;
  Index most = -1;
  for (const auto& [dtype, n] : elements)
    if (n > most) std::tie(dtypes.common, most) = std::tie(dtype, n);
  for (const FileTensor& t : tensors)
    if (dtype_of(t) != (t.dtype == "F32" ? "F32" : dtypes.common)) dtypes.others[t.name] = dtype_of(t);
  return dtypes;
}

Index rows_of(const FileTensor& t) { return t.shape.rank() == 1 ? 1 : t.shape[0]; }
Index columns_of(const FileTensor& t) { return t.shape[t.shape.rank() - 1]; }
Shape part_offset(const FileTensor& t, Index row) { return t.shape.rank() == 1 ? Shape{0} : Shape{row, 0}; }
Shape part_extent(const FileTensor& t, Index rows) { return t.shape.rank() == 1 ? t.shape : Shape{rows, t.shape[1]}; }

// Calls part(first row, rows) for the whole tensor, some MiB at a time.
void by_parts(const FileTensor& t, const std::function<void(Index row, Index rows)>& part) {
  const Index rows = rows_of(t), step = std::max<Index>(1, kPiece / std::max<Index>(1, columns_of(t)));
  for (Index row = 0; row < rows; row += step) part(row, std::min(step, rows - row));
}

// Whether a tensor of the files holds what another one of the same shape does.
bool same_values(const SafetensorsModel& weights, const FileTensor& t, const std::string& other) {
  std::vector<float> a, b;
  bool same = true;
  by_parts(t, [&](Index row, Index rows) {
    const Shape offset = part_offset(t, row), extent = part_extent(t, rows);
    a.resize(static_cast<std::size_t>(extent.numel()));
    b.resize(a.size());
    weights.read(t.name, offset, extent, a);
    weights.read(other, offset, extent, b);
    same = same && a == b;
  });
  return same;
}

}  // namespace

bool is_run(const Files& files, const std::string& path) {
  return files.exists(RunDirectory(run_path(files, path).run).job());
}

Converted import_model(const Files& files, const Clock& clock, const std::string& directory, const std::string& run,
                       int threads) {
  require(files.is_directory(directory), ExitCode::usage, "{}: there is no such directory", directory);
  Converted result;
  std::string tokenizer;
  if (const std::string name = join_path(directory, "tokenizer.json"); files.exists(name)) {
    try {
      Tokenizer::load(files, name);
      tokenizer = join_path(copies_of(run), "tokenizer.json");
    } catch (const Error& e) {
      result.notes.push_back(format("{}; it is copied, and data.tokenizer left out", e.what()));
    }
  }
  const std::string config_path = join_path(directory, "config.json");
  require(files.exists(config_path), ExitCode::usage, "{}: there is no config.json", directory);
  model_from_hugging_face(files, config_path);
  const SafetensorsModel weights(files, directory);
  if (weights.fp8())
    result.notes.push_back(format("{}: FP8 weights are read as the bfloat16 that they stand for", directory));
  const auto has_module = [&](Index layer) { return weights.has(format("model.layers.{}.eh_proj.weight", layer)); };
  const Config config = job_of(files, directory, run, tokenizer, has_module, result.notes);
  if (const Index off = check_all_used(config.model, weights); off > 0)
    result.notes.push_back(
        format("{}: {} tensors of modules of multi-token prediction that config.json does not name "
               "are left out",
               directory, off));
  std::vector<FileTensor> listed = file_tensors(config.model, {}), tensors;
  for (const FileTensor& t : listed) {
    const std::string name = name_in_files(weights, t.name), own = weight_name(config.model, t.name);
    if (own != t.name && !weights.has(name)) continue;
    weights.require_shape(name, t.shape);
    const std::string dtype = weights.dtype(name);
    require(dtype == "F32" || dtype == "F16" || dtype == "BF16", ExitCode::data,
            "{}: tensor '{}' is {}; F32, F16, BF16 and F8_E4M3 are read", weights.file_of(name).path(), name, dtype);
    if (own != t.name) {
      if (!same_values(weights, t, own))
        result.notes.push_back(format("{}: tensor '{}' differs from {}, which is taken in its place",
                                      weights.file_of(name).path(), name, own));
      continue;
    }
    tensors.push_back(t);
    result.bytes += static_cast<std::uint64_t>(t.shape.numel()) * sizeof(float);
  }
  result.tensors = tensors.size();

  const auto least = static_cast<int>(result.bytes / kShardBytes + 1);
  const int shards = std::clamp(threads, 1, least);
  result.files = shards;
  std::vector<Index> sizes;
  for (const FileTensor& t : tensors) sizes.push_back(t.shape.numel());
  const std::vector<int> writers = assign_writers(sizes, shards);

  NewDirectory made(files, run, this_host(), clock);
  const std::string copies = copies_of(made.partial());
  files.make_directory(copies);
  RunDirectory(made.partial()).write_job(files, config);
  write_durably(files, join_path(copies, "config.json"), read_file(files, config_path, kLargestConfigJson));
  write_durably(files, join_path(copies, kDtypes), dtypes_of(weights, listed).to_text());
  copy_files(files, directory, copies);
  files.sync_directory(copies);
  // The writer's errors are about writing; what is wrong with the files is told as it is.
  std::mutex mutex;
  std::exception_ptr refused;
  const auto read = [&](const FileTensor& t, Index first, Index rows, float* to) {
    const Shape extent = part_extent(t, rows);
    try {
      weights.read(name_in_files(weights, t.name), part_offset(t, first), extent,
                   {to, static_cast<std::size_t>(extent.numel())});
    } catch (const Error&) {
      const std::lock_guard lock(mutex);
      if (!refused) refused = std::current_exception();
      throw;
    }
  };
  const auto save = [&](World& world) {
    std::vector<TensorSlab> slabs;
    for (std::size_t i = 0; i < tensors.size(); ++i)
      if (const FileTensor& t = tensors[i]; writers[i] == world.rank())
        slabs.push_back({.name = t.name,
                         .role = "weight",
                         .global = t.shape,
                         .offset = part_offset(t, 0),
                         .extent = t.shape,
                         .make = [&read, &t](Index first, Index rows, float* to) { read(t, first, rows, to); }});
    const MeshSizes mesh{.data = shards};
    const auto group = std::move(make_groups(world, Mesh(mesh), Poster::checkpoint).control);
    CheckpointWriter writer(files, checkpoints_directory(made.partial()), *group, 1);
    writer.save({.seed = config.run.seed, .config_hash = job_identity(config), .mesh = mesh}, slabs);
  };
  try {
    run_threads(shards, save);
  } catch (const Error&) {
    if (refused) std::rethrow_exception(refused);
    throw;
  }
  made.publish();
  return result;
}

namespace {

// The tensors of each file: one after another as the model computes them, no file larger than `most` but for one
// tensor that is.
std::vector<std::vector<FileTensor>> share_out(const std::vector<FileTensor>& tensors, std::uint64_t most) {
  std::vector<std::vector<FileTensor>> files(1);
  std::uint64_t bytes = 0;
  for (const FileTensor& t : tensors) {
    const std::uint64_t size = static_cast<std::uint64_t>(t.shape.numel()) * file_dtype_bytes(t.dtype);
    if (bytes + size > most && !files.back().empty()) {
      files.emplace_back();
      bytes = 0;
    }
    files.back().push_back(t);
    bytes += size;
  }
  return files;
}

// All tensors of one file.
void write_file(const Files& files, const std::string& path, const ModelConfig& model,
                const std::vector<FileTensor>& tensors, Checkpoint& checkpoint) {
  SafetensorsWriter writer(files, path, tensors);
  std::vector<float> values;
  for (const FileTensor& t : writer.tensors())
    by_parts(t, [&](Index row, Index rows) {
      const Shape extent = part_extent(t, rows);
      values.resize(static_cast<std::size_t>(extent.numel()));
      checkpoint.read({.name = weight_name(model, t.name),
                       .role = "weight",
                       .global = t.shape,
                       .offset = part_offset(t, row),
                       .extent = extent,
                       .data = values.data(),
                       .row_stride = columns_of(t)});
      writer.append(values);
    });
  writer.finish();
}

// The checkpoint has the model's tensors, in its shapes, and no others.
void require_same_tensors(const Checkpoint& checkpoint, const ModelConfig& model,
                          const std::vector<FileTensor>& tensors) {
  std::map<std::string, Shape> expected;
  for (const FileTensor& t : tensors) expected[weight_name(model, t.name)] = t.shape;
  for (const TensorRecord& t : checkpoint.manifest().tensors) {
    if (t.role != "weight") continue;
    const auto at = expected.find(t.name);
    require(at != expected.end(), ExitCode::checkpoint, "{}: weight '{}' is no tensor of the job's model",
            checkpoint.path(), t.name);
    require(at->second == t.shape, ExitCode::checkpoint, "{}: weight '{}' has shape {}, that of the job's model {}",
            checkpoint.path(), t.name, t.shape.to_string(), at->second.to_string());
    expected.erase(at);
  }
  require(expected.empty(), ExitCode::checkpoint, "{}: there is no weight '{}'", checkpoint.path(),
          expected.empty() ? "" : expected.begin()->first);
}

}  // namespace

Converted export_model(const Files& files, const Clock& clock, const std::string& path, const std::string& directory,
                       const ExportOptions& options, const std::function<void(const std::string&)>& report) {
  const Config config = config_of_run(files, path, {}, 1);
  const std::string copies = copies_of(run_path(files, path).run);
  FileSettings settings;
  FileDtypes dtypes;
  dtypes.common = config.precision.compute == "bfloat16" ? "BF16" : "F32";
  if (const std::string name = join_path(copies, "config.json"); files.exists(name)) {
    const std::string text = read_file(files, name, kLargestConfigJson);
    model_from_json(text, name);
    settings = file_settings(text);
  }
  if (!options.dtype.empty()) {
    dtypes.common = dtype_name(options.dtype);
  } else if (const std::string name = join_path(copies, kDtypes); files.exists(name)) {
    DtypesReader reader(name);
    read_json(read_file(files, name, kLargestCopy), name, reader);
    dtypes = std::move(reader.dtypes);
  }
  settings.dtype = dtype_word(dtypes.common);

  std::vector<FileTensor> tensors = file_tensors(config.model, {.dtype = dtypes.common});
  Converted result{.tensors = tensors.size()};
  for (FileTensor& t : tensors)
    if (const auto other = dtypes.others.find(t.name); other != dtypes.others.end()) t.dtype = other->second;
  result.bytes = static_cast<std::uint64_t>(bytes(tensors));
  const std::vector<std::vector<FileTensor>> parts = share_out(tensors, options.max_file);
  result.files = static_cast<int>(parts.size());
  const auto name_of_part = [&](std::size_t i) {
    return parts.size() == 1 ? std::string("model.safetensors")
                             : format("model-{:05d}-of-{:05d}.safetensors", i + 1, parts.size());
  };

  NewDirectory made(files, directory, this_host(), clock);
  require_free_space(files, made.partial(), result.bytes);
  const int threads = std::clamp(options.threads, 1, result.files);
  run_threads(threads, [&](World& world) {
    const auto group = std::move(make_groups(world, Mesh({.data = threads}), Poster::checkpoint).control);
    Checkpoint checkpoint = open_run(files, path, *group, [&](const std::string& line) {
      if (world.rank() == 0) report(line);
    });
    Agreement(*group).together([&] {
      require_same_tensors(checkpoint, config.model, tensors);
      for (auto i = static_cast<std::size_t>(world.rank()); i < parts.size(); i += static_cast<std::size_t>(threads))
        write_file(files, join_path(made.partial(), name_of_part(i)), config.model, parts[i], checkpoint);
    });
  });
  if (parts.size() > 1) {
    nlohmann::json index{{"metadata", {{"total_size", result.bytes}}}, {"weight_map", nlohmann::json::object()}};
    for (std::size_t i = 0; i < parts.size(); ++i)
      for (const FileTensor& t : parts[i]) index["weight_map"][t.name] = name_of_part(i);
    write_durably(files, join_path(made.partial(), "model.safetensors.index.json"), index.dump(2) + "\n");
  }
  if (files.is_directory(copies)) {
    copy_files(files, copies, made.partial());
  } else if (const std::string& own = config.data.tokenizer; !own.empty() && files.exists(own)) {
    write_durably(files, join_path(made.partial(), "tokenizer.json"), read_file(files, own, kLargestCopy));
    const std::int32_t end = Tokenizer::load(files, own).end_of_document();
    settings.eos_token_id = format("{}", end);
  }
  write_durably(files, join_path(made.partial(), "config.json"), to_hugging_face(config.model, settings));
  made.publish();
  return result;
}

}  // namespace dstrain
