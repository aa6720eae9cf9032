#include "lib/tokenizer/post_processor.h"

#include <algorithm>

namespace dstrain {

namespace {

class Reader {
 public:
  explicit Reader(std::size_t size) : most_(static_cast<std::int64_t>(size) - 1) {}

  OrderedJson read(const JsonNode& node) {
    const std::string type = node["type"].text();
    if (type == "Sequence") {
      node.only({"type", "processors"});
      node["processors"].array();
      OrderedJson list = OrderedJson::array();
      for (std::size_t i = 0; i < node["processors"].size(); ++i) list.push_back(read(node["processors"][i]));
      return {{"type", "Sequence"}, {"processors", list}};
    }
    if (type == "ByteLevel") {  // concerns offsets, which nobody asks for
      node.only({"type", "add_prefix_space", "trim_offsets", "use_regex"});
      return {{"type", "ByteLevel"},
              {"add_prefix_space", node["add_prefix_space"].flag()},
              {"trim_offsets", node["trim_offsets"].flag()},
              {"use_regex", node["use_regex"].flag(true)}};
    }
    if (type != "BertProcessing" && type != "RobertaProcessing" && type != "TemplateProcessing")
      node["type"].refuse("is not supported");
    if (seen_) node["type"].refuse("is not supported: a second processor that adds tokens");
    seen_ = true;
    return type == "TemplateProcessing" ? read_template(node) : read_bert(node, type);
  }

  std::vector<std::int32_t> before, after;

 private:
  std::int32_t id(const JsonNode& node) const { return static_cast<std::int32_t>(node.integer(0, most_)); }

  OrderedJson read_bert(const JsonNode& node, const std::string& type) {
    const auto pair = [&](const char* key) {
      const JsonNode n = node[key];
      n.array();
      if (n.size() != 2) n.refuse("expected a token and its id");
      return OrderedJson::array({n[std::size_t{0}].text(), id(n[std::size_t{1}])});
    };
    OrderedJson json = {{"type", type}, {"sep", pair("sep")}, {"cls", pair("cls")}};
    if (type == "BertProcessing") {
      node.only({"type", "sep", "cls"});
    } else {
      node.only({"type", "sep", "cls", "trim_offsets", "add_prefix_space"});
      json["trim_offsets"] = node["trim_offsets"].flag();
      json["add_prefix_space"] = node["add_prefix_space"].flag();
    }
    before = {json["cls"][1].get<std::int32_t>()};
    after = {json["sep"][1].get<std::int32_t>()};
    return json;
  }

  // A template's pieces; `single`: fills before and after.
  OrderedJson read_pieces(const JsonNode& list, const JsonNode& tokens, bool single) {
    list.array();
    OrderedJson out = OrderedJson::array();
    int texts = 0;
    for (std::size_t i = 0; i < list.size(); ++i) {
      list[i].only({"Sequence", "SpecialToken"});
      if (list[i].size() != 1) list[i].refuse("expected a Sequence or a SpecialToken");
      const bool is_text = !list[i]["Sequence"].is_null();
      const JsonNode piece = list[i][is_text ? "Sequence" : "SpecialToken"];
      piece.only({"id", "type_id"});
      const std::string name = piece["id"].text();
      out.push_back({{is_text ? "Sequence" : "SpecialToken",
                      {{"id", name}, {"type_id", piece["type_id"].integer(0, UINT32_MAX)}}}});
      if (is_text) {
        if (name != "A" && (name != "B" || single)) piece["id"].refuse(single ? "expected A" : "expected A or B");
        texts += name == "A";
        continue;
      }
      const JsonNode token = tokens[name];
      if (token.is_null()) piece["id"].refuse("is not in special_tokens");
      if (!single) continue;
      for (std::size_t k = 0; k < token["ids"].size(); ++k)
        (texts == 0 ? before : after).push_back(id(token["ids"][k]));
    }
    if (single && texts != 1) list.refuse("is not supported: expected the text once");
    return out;
  }

  OrderedJson read_template(const JsonNode& node) {
    node.only({"type", "single", "pair", "special_tokens"});
    const JsonNode tokens = node["special_tokens"];
    if (!tokens.value().is_object()) tokens.refuse("expected an object");
    OrderedJson special = OrderedJson::object();
    for (const auto& [name, value] : tokens.value().items()) {
      const JsonNode token = tokens[name];
      token.only({"id", "ids", "tokens"});
      token["ids"].array();
      token["tokens"].array();
      if (token["ids"].size() != token["tokens"].size()) token.refuse("expected as many ids as tokens");
      OrderedJson row = {{"id", token["id"].text()}, {"ids", OrderedJson::array()}, {"tokens", OrderedJson::array()}};
      for (std::size_t k = 0; k < token["ids"].size(); ++k) {
        row["ids"].push_back(id(token["ids"][k]));
        row["tokens"].push_back(token["tokens"][k].text());
      }
      special[name] = row;
    }
    OrderedJson single = read_pieces(node["single"], tokens, true);
    OrderedJson pair = read_pieces(node["pair"], tokens, false);
    return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", special}};
  }

  std::int64_t most_;
  bool seen_ = false;
};

}  // namespace

PostProcessor read_post_processor(const JsonNode& node, std::size_t size) {
  if (node.is_null()) return {};
  Reader reader(size);
  PostProcessor out;
  out.json = reader.read(node);
  out.before = std::move(reader.before);
  out.after = std::move(reader.after);
  return out;
}

}  // namespace dstrain
