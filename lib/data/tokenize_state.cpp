#include "lib/data/tokenize_state.h"

#include <algorithm>
#include <bit>
#include <new>
#include <nlohmann/json.hpp>

#include "lib/config/yaml.h"

namespace dstrain {

namespace {

using Json = nlohmann::ordered_json;

std::string file_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

Json to_json(const TokenizeOptions& o, const TokenFileInfo& info) {
  Json inputs = Json::array();
  for (const TextFile& t : o.texts) inputs.push_back({t.path, t.bytes});
  return {{"format", 1},
          {"tokenizer_hash", hex(info.tokenizer_hash)},
          {"documents", name_of(o.rule)},
          {"key", o.key},
          {"eval_out", o.eval_out},
          {"eval_fraction", o.eval_fraction},
          {"tokens_per_file", o.tokens_per_file},
          {"inputs", inputs}};
}

std::string text_of(const Json& json, int indent = -1) {
  return json.dump(indent, ' ', false, nlohmann::json::error_handler_t::replace);
}

Json side_json(const SideStatistics& s) {
  Json files = Json::array(), lengths = Json::array();
  for (const std::string& f : s.files) files.push_back(file_name(f));
  for (std::size_t i = 0; i < s.lengths.size(); ++i)
    if (s.lengths[i] > 0)
      lengths.push_back({{"from", Index{1} << i}, {"to", (Index{2} << i) - 1}, {"documents", s.lengths[i]}});
  return {{"documents", s.documents},
          {"tokens", s.tokens},
          {"bytes", s.bytes},
          {"bytes_per_token", s.tokens > 0 ? static_cast<double>(s.bytes) / static_cast<double>(s.tokens) : 0.0},
          {"files", files},
          {"lengths", lengths}};
}

SideStatistics side_of(const Json& json, const std::string& directory) {
  SideStatistics s{.documents = json.at("documents"), .tokens = json.at("tokens"), .bytes = json.at("bytes")};
  for (const Json& f : json.at("files")) s.files.push_back(join_path(directory, f.get<std::string>()));
  for (const Json& l : json.at("lengths"))
    s.lengths.at(static_cast<std::size_t>(std::bit_width(l.at("from").get<std::uint64_t>()) - 1)) = l.at("documents");
  return s;
}

// Whether finished files were made under this state. Without any it can be replaced.
bool depended_on(const Files& files, const std::string& prefix, const Json& theirs) {
  const std::string eval = theirs.is_object() && theirs.contains("eval_out") && theirs["eval_out"].is_string()
                               ? theirs["eval_out"].get<std::string>()
                               : std::string();
  return !token_files(files, prefix).empty() || (!eval.empty() && !token_files(files, eval).empty());
}

}  // namespace

void SideStatistics::count(Index tokens_of_document) {
  ++documents;
  tokens += tokens_of_document;
  ++lengths.at(static_cast<std::size_t>(std::bit_width(static_cast<std::uint64_t>(tokens_of_document)) - 1));
}

TokenizeState::TokenizeState(const Files& files, const TokenizeOptions& options, const TokenFileInfo& info)
    : files_(files), prefix_(options.out), info_(info) {
  const std::string path = prefix_ + ".state.json", wanted = text_of(to_json(options, info), 1) + "\n";
  const bool had = files.exists(path);
  // Token files without a state are not ours to go on with.
  if (!had) {
    TokenWriter(files, prefix_, info);
    if (!options.eval_out.empty()) TokenWriter(files, options.eval_out, info);
  }
  files.make_directory(parent_path(path));
  lock_ = files.open(path, OpenMode::append);
  require(lock_->try_lock() != FileLock::held, ExitCode::write, "{}: another tokenize is writing here", path);
  std::string text(static_cast<std::size_t>(std::min<std::uint64_t>(lock_->size(), 1ull << 32)), '\0');
  lock_->pread(std::as_writable_bytes(std::span(text)), 0);
  if (Json::accept(text) && depended_on(files, prefix_, Json::parse(text))) {
    check_same(text, wanted);
  } else {
    require(text.empty() || Json::accept(text) || token_files(files, prefix_).empty(), ExitCode::data,
            "{}: damaged, and token files depend on it; remove them and it", path);
    lock_->truncate(0);
    lock_->pwrite(std::as_bytes(std::span(wanted)), 0);
    lock_->sync();
    files.sync_directory(parent_path(path));
  }
  if (!files.exists(statistics_path())) return;
  const TokenizeStatistics s = read_statistics();
  complete_ = true;
  for (const SideStatistics* side : {&s.train, &s.eval})
    for (const std::string& file : side->files) complete_ = complete_ && files.exists(file);
}

void TokenizeState::check_same(const std::string& text, const std::string& wanted) const {
  const std::string path = prefix_ + ".state.json";
  const Json theirs = Json::parse(text), ours = Json::parse(wanted);
  require(theirs.is_object(), ExitCode::data, "{}: not the state of a tokenize", path);
  const auto differs = [&](const std::string& what, const std::string& a, const std::string& b) {
    fail(ExitCode::usage,
         "{}: {} is {} here and {} in this command; give the same, or remove the state and its token files, or choose "
         "another prefix",
         path, what, shown(a), shown(b));
  };
  for (const auto& [key, value] : ours.items()) {
    if (key == "inputs" || !theirs.contains(key)) continue;
    if (theirs[key] != value) differs(key, text_of(theirs[key]), text_of(value));
  }
  const Json &a = theirs.value("inputs", Json::array()), &b = ours["inputs"];
  if (!a.is_array()) differs("inputs", text_of(a), text_of(b));
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    if (a[i] != b[i]) differs(format("input {}", i), text_of(a[i]), text_of(b[i]));
  if (a.size() != b.size()) differs("the number of inputs", format("{}", a.size()), format("{}", b.size()));
}

SideStatistics TokenizeState::finished(const std::string& prefix) const {
  SideStatistics s;
  s.files = token_files(files_, prefix);
  std::vector<Index> starts;
  for (const std::string& path : s.files) {
    TokenFile file(files_, path);
    require(file.info().tokenizer_hash == info_.tokenizer_hash && file.info().vocab_size == info_.vocab_size,
            ExitCode::data, "{}: made with tokenizer {}, this one is {}", path, hex(file.info().tokenizer_hash),
            hex(info_.tokenizer_hash));
    starts = {0};
    file.document_starts(0, file.tokens(), starts);
    starts.push_back(file.tokens());
    for (std::size_t i = 0; i + 1 < starts.size(); ++i) s.count(starts[i + 1] - starts[i]);
  }
  return s;
}

void TokenizeState::write_statistics(const TokenizeStatistics& s) const {
  Json json{{"format", 1}, {"tokenizer_hash", hex(info_.tokenizer_hash)}, {"empty", s.empty}};
  json["train"] = side_json(s.train);
  if (!s.eval.files.empty()) json["eval"] = side_json(s.eval);
  write_file_atomically(files_, statistics_path(), text_of(json, 1) + "\n");
}

TokenizeStatistics TokenizeState::read_statistics() const {
  const std::string text = read_file(files_, statistics_path());
  try {
    const Json json = Json::parse(text);
    const std::string directory = parent_path(prefix_);
    TokenizeStatistics s{.train = side_of(json.at("train"), directory), .empty = json.at("empty")};
    if (json.contains("eval")) s.eval = side_of(json.at("eval"), directory);
    return s;
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& e) {
    fail(ExitCode::data, "{}: not the statistics of a tokenize: {}", statistics_path(), shown(e.what()));
  }
}

}  // namespace dstrain
