#include "lib/tokenizer/tokenizer.h"

#include "lib/core/errors.h"
#include "lib/core/hash.h"
#include "lib/tokenizer/byte_alphabet.h"
#include "lib/tokenizer/tokenizer_data.h"

namespace dstrain {

namespace {

constexpr std::uint64_t kMaxJson = 256ull << 20;
// Special tokens that end a document, the first of them that a tokenizer has: GPT-2 and Qwen, Llama 3, DeepSeek, T5 and
// Llama 2, Gemma, BERT.
constexpr const char* kEnds[] = {kEndOfDocument, "<|end_of_text|>", "<\uff5cend\u2581of\u2581sentence\uff5c>",
                                 "</s>",         "<eos>",           "[SEP]"};

}  // namespace

Tokenizer::Data::Data(const JsonNode& root)
    : normalizer(read_normalizer(root["normalizer"])),
      pre_tokenizer(read_pre_tokenizer(root["pre_tokenizer"], root["model"]["type"].value() == "BPE")),
      model(read_model(root["model"], pre_tokenizer.bytes)),
      added(root["added_tokens"], model->vocabulary(), normalizer.get()),
      post_processor(read_post_processor(root["post_processor"], added.size())),
      decoder(read_decoder(root["decoder"])) {
  root.only({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor",
             "decoder", "model"});
  if (root["version"].text() != "1.0") root["version"].refuse("is not supported: expected 1.0");
  for (const char* key : {"truncation", "padding"})
    if (!root[key].is_null()) root[key].refuse("is not supported: expected null");
  for (const char* end : kEnds)
    for (const AddedToken& t : added.tokens())
      if (end_of_document < 0 && t.special && t.content == end) end_of_document = t.id;
  require(end_of_document >= 0, ExitCode::data,
          "{}: added_tokens: no end-of-document token: none of {}, {}, {}, {}, {}, {} is special", root.file(),
          kEnds[0], kEnds[1], kEnds[2], kEnds[3], kEnds[4], kEnds[5]);
  hash = xxh3(to_json());
  if (!decoder.only_bytes) return;
  std::string one;
  for (std::size_t id = 0; id < added.size(); ++id) {
    bytes_at.push_back(bytes.size());
    const std::string& text = shown(static_cast<std::int32_t>(id));
    bytes += unspell_bytes(text, one) ? one : text;
  }
  bytes_at.push_back(bytes.size());
}

const std::string& Tokenizer::Data::shown(std::int32_t id) const {
  if (const AddedToken* t = added.find_id(id)) return added.shown(*t);
  return model->vocabulary().token(id);
}

std::string Tokenizer::Data::to_json() const {
  std::string out = "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\n\"added_tokens\":";
  added.append_json(out);
  out += ",\n\"normalizer\":" + (normalizer ? normalizer->to_json() : OrderedJson()).dump();
  out += ",\n\"pre_tokenizer\":" + pre_tokenizer.json.dump();
  out += ",\n\"post_processor\":" + post_processor.json.dump();
  out += ",\n\"decoder\":" + decoder.json.dump();
  out += ",\n\"model\":";
  model->append_json(out);
  out += "}\n";
  return out;
}

Tokenizer Tokenizer::load(const Files& files, const std::string& path) {
  return parse(read_file(files, path, kMaxJson), path);
}

Tokenizer Tokenizer::parse(const std::string& text, const std::string& path) {
  require(text.size() <= kMaxJson, ExitCode::data, "{}: {} bytes; at most {} are read", path, text.size(), kMaxJson);
  const Json root = parse_json(text, path);
  require(root.is_object(), ExitCode::data, "{}: expected an object", path);
  return Tokenizer(std::make_shared<const Data>(JsonNode(root, path)));
}

Tokenizer Tokenizer::byte_level(Split split, const std::vector<std::string>& tokens, const std::vector<Merge>& merges) {
  check(!tokens.empty() && tokens[0] == kEndOfDocument, "token 0 ends documents");
  const OrderedJson bytes = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  OrderedJson pre = bytes;
  if (split != Split::gpt2) {
    OrderedJson steps = OrderedJson::array();
    for (const std::string& p : patterns_of(split))
      steps.push_back({{"type", "Split"}, {"pattern", {{"Regex", p}}}, {"behavior", "Isolated"}, {"invert", false}});
    pre["use_regex"] = false;
    steps.push_back(pre);
    pre = {{"type", "Sequence"}, {"pretokenizers", steps}};
  }
  std::string out =
      "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[{\"id\":0,\"content\":";
  out += OrderedJson(kEndOfDocument).dump();
  out += ",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":true}],";
  out += "\"normalizer\":null,\"pre_tokenizer\":" + pre.dump() + ",\"post_processor\":null,\"decoder\":" + bytes.dump();
  out += ",\"model\":{\"type\":\"BPE\",\"vocab\":{";
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    out += id > 0 ? "," : "";
    append_quoted(id == 0 ? tokens[0] : spell_bytes(tokens[id]), out);
    out += ":" + std::to_string(id);
  }
  out += "},\"merges\":[";
  for (std::size_t i = 0; i < merges.size(); ++i) {
    out += i > 0 ? ",[" : "[";
    append_quoted(spell_bytes(tokens[static_cast<std::size_t>(merges[i].left)]), out);
    out += ',';
    append_quoted(spell_bytes(tokens[static_cast<std::size_t>(merges[i].right)]), out);
    out += ']';
  }
  out += "]}}";
  return parse(out, "the trained tokenizer");
}

std::string Tokenizer::to_json() const { return data_->to_json(); }
Index Tokenizer::vocab_size() const { return static_cast<Index>(data_->added.size()); }
std::int32_t Tokenizer::end_of_document() const { return data_->end_of_document; }
std::uint64_t Tokenizer::hash() const { return data_->hash; }
const Model& Tokenizer::model() const { return *data_->model; }

const std::string& Tokenizer::token(std::int32_t id) const {
  if (const AddedToken* t = data_->added.find_id(id)) return t->content;
  return data_->model->vocabulary().token(id);
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids) const {
  std::string out;
  std::vector<std::string> texts;
  for (const std::int32_t id : ids) {
    require(id >= 0 && id < vocab_size(), ExitCode::data, "token {} is outside the vocabulary of {}", id, vocab_size());
    if (data_->decoder.only_bytes) {
      const std::size_t begin = data_->bytes_at[static_cast<std::size_t>(id)];
      out.append(data_->bytes, begin, data_->bytes_at[static_cast<std::size_t>(id) + 1] - begin);
    } else {
      texts.push_back(data_->shown(id));
    }
  }
  return data_->decoder.only_bytes ? out : data_->decoder.decode(std::move(texts));
}

}  // namespace dstrain
