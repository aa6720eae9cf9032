// Encoding: added tokens, normalizer, pre-tokenizer, model, in this order; a cache of pieces in front of the model.

#include <algorithm>
#include <cstring>
#include <variant>

#include "lib/core/errors.h"
#include "lib/core/hash.h"
#include "lib/tokenizer/tokenizer.h"
#include "lib/tokenizer/tokenizer_data.h"
#include "lib/tokenizer/utf8.h"

namespace dstrain {

namespace {

// Remembers the ids of pieces. It grows to a size that caches of processors hold a good part of, then starts again.
class PieceCache {
 public:
  static constexpr std::size_t kLongest = 64;  // bytes of a piece that is remembered

  PieceCache() : slots_(kFirst) {}

  // The ids of a piece; null when it is not there.
  const std::int32_t* find(std::string_view piece, std::uint64_t hash, std::size_t& count) const {
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t i = hash & mask;; i = (i + 1) & mask) {
      const Slot& s = slots_[i];
      if (s.size == 0) return nullptr;
      if (s.hash == hash && s.size == piece.size() && std::memcmp(text_.data() + s.text, piece.data(), s.size) == 0) {
        count = s.count;
        return ids_.data() + s.ids;
      }
    }
  }
  void add(std::string_view piece, std::uint64_t hash, const std::int32_t* ids, std::size_t count) {
    if (used_ * 2 >= slots_.size()) grow();
    place({.hash = hash,
           .text = static_cast<std::uint32_t>(text_.size()),
           .ids = static_cast<std::uint32_t>(ids_.size()),
           .size = static_cast<std::uint16_t>(piece.size()),
           .count = static_cast<std::uint16_t>(count)});
    text_ += piece;
    ids_.insert(ids_.end(), ids, ids + count);
    ++used_;
  }

 private:
  static constexpr std::size_t kFirst = 1u << 10, kMost = 1u << 18;
  struct Slot {
    std::uint64_t hash = 0;
    std::uint32_t text = 0, ids = 0;
    std::uint16_t size = 0, count = 0;
  };

  void place(const Slot& slot) {
    const std::size_t mask = slots_.size() - 1;
    std::size_t i = slot.hash & mask;
    while (slots_[i].size != 0) i = (i + 1) & mask;
    slots_[i] = slot;
  }
  void grow() {
    std::vector<Slot> old(slots_.size() == kMost ? kFirst : slots_.size() * 2);
    old.swap(slots_);
    if (old.size() == kMost) {
      text_.clear();
      ids_.clear();
      used_ = 0;
      return;
    }
    for (const Slot& s : old)
      if (s.size != 0) place(s);
  }

  std::vector<Slot> slots_;
  std::string text_;
  std::vector<std::int32_t> ids_;
  std::size_t used_ = 0;
};

}  // namespace

struct Encoder::State {
  std::shared_ptr<const Tokenizer::Data> data;
  std::unique_ptr<PieceEncoder> model;
  PieceCache cache;
  Pieces pieces;
  NormalizerScratch scratch;
  NormalText normal;
  std::vector<AddedPart> before, after;
  std::string valid;

  explicit State(std::shared_ptr<const Tokenizer::Data> d) : data(std::move(d)), model(data->model->encoder()) {}

  void encode_piece(std::string_view piece, std::vector<std::int32_t>& ids) {
    if (piece.size() > PieceCache::kLongest) return model->encode(piece, ids);
    const std::uint64_t hash = xxh3(piece);
    std::size_t count = 0;
    if (const std::int32_t* found = cache.find(piece, hash, count)) {
      ids.insert(ids.end(), found, found + count);
      return;
    }
    const std::size_t begin = ids.size();
    model->encode(piece, ids);
    cache.add(piece, hash, ids.data() + begin, ids.size() - begin);
  }

  // Text without added tokens, normalized. `zero`: see NormalText.
  void encode_normal(std::string_view text, std::size_t zero, std::vector<std::int32_t>& ids) {
    if (text.empty()) return;
    pieces.start(text, zero);
    data->pre_tokenizer.apply(pieces);
    for (const Pieces::Span& s : pieces.spans()) encode_piece(pieces.piece(s), ids);
  }

  // Text without the tokens that are matched before normalization.
  void encode_raw(std::string_view text, bool first, bool special, std::vector<std::int32_t>& ids) {
    if (text.empty()) return;
    std::size_t zero = first ? utf8::decode(text, 0).size : 0;
    if (data->normalizer) {
      normal.text.assign(text);
      normal.zero = zero;
      data->normalizer->apply(normal, scratch);
      text = normal.text;
      zero = normal.zero;
    }
    if (!data->added.any(true, special)) return encode_normal(text, zero, ids);
    after.clear();
    data->added.find(text, true, special, after);
    for (const AddedPart& p : after) {
      if (p.id != kNoToken)
        ids.push_back(p.id);
      else
        encode_normal(text.substr(p.begin, p.end - p.begin), zero - std::min(zero, p.begin), ids);
    }
  }

  void encode_valid(std::string_view text, bool first, bool special, std::vector<std::int32_t>& ids) {
    if (!data->added.any(false, special)) return encode_raw(text, first, special, ids);
    before.clear();
    data->added.find(text, false, special, before);
    for (const AddedPart& p : before) {
      if (p.id != kNoToken)
        ids.push_back(p.id);
      else
        encode_raw(text.substr(p.begin, p.end - p.begin), first && p.begin == 0, special, ids);
    }
  }

  void encode(std::string_view text, bool special, std::vector<std::int32_t>& ids) {
    if (!data->byte_level()) return encode_valid(utf8::replace_invalid(text, valid), true, special, ids);
    for (bool first = true; !text.empty(); first = false) {
      const std::size_t good = utf8::valid_prefix(text);
      encode_valid(text.substr(0, good), first, special, ids);
      text.remove_prefix(good);
      std::size_t bad = 0;
      while (bad < text.size() && utf8::valid_prefix(text.substr(bad, 4)) == 0)
        bad += utf8::invalid_prefix(text.substr(bad));
      if (bad > 0) encode_piece(text.substr(0, bad), ids);
      text.remove_prefix(bad);
    }
  }
};

Encoder::Encoder(const Tokenizer& tokenizer) : state_(std::make_unique<State>(tokenizer.data_)) {}
Encoder::~Encoder() = default;
Encoder::Encoder(Encoder&&) noexcept = default;

void Encoder::encode(std::string_view text, std::vector<std::int32_t>& ids, EncodeOptions options) {
  const PostProcessor& around = state_->data->post_processor;
  if (options.template_tokens) ids.insert(ids.end(), around.before.begin(), around.before.end());
  state_->encode(text, options.special_tokens, ids);
  if (options.template_tokens) ids.insert(ids.end(), around.after.begin(), around.after.end());
}

}  // namespace dstrain
