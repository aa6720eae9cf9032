#include "lib/data/token_file.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "lib/data/glob.h"

namespace dstrain {

namespace {

constexpr Index kMaxTokens = Index{1} << 40;
constexpr std::size_t kChunk = 1 << 20;  // bytes
constexpr Index kVerifyOffsets = 1 << 16;
constexpr Index kMark = 1 << 16;  // documents between two marks

std::string base_name(const std::string& path) {
  const auto slash = path.rfind('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

}  // namespace

// ---- writer ----

struct TokenWriter::Open {
  Hdf5File file;
  Hdf5Dataset tokens;
  std::size_t width = 2;
  std::vector<std::byte> buffer;  // tokens as stored, of the current block
  Index count = 0;
  std::vector<std::int64_t> offsets = {0};
  std::vector<std::uint64_t> checksums;
  std::string partial;
};

TokenWriter::TokenWriter(const Files& files, std::string prefix, TokenFileInfo info, Index tokens_per_file,
                         std::size_t finished)
    : files_(files), prefix_(std::move(prefix)), info_(info), tokens_per_file_(tokens_per_file) {
  const std::string directory = parent_path(prefix_);
  require(!base_name(prefix_).empty(), ExitCode::usage, "{}: a prefix of file names, not a directory", prefix_);
  while (paths_.size() < finished) paths_.push_back(path(paths_.size()));
  if (files_.is_directory(directory))
    for (const auto& name : files_.list(directory)) {
      const std::string found = join_path(directory, name);
      const auto is_found = [&](const std::string& p) { return base_name(p) == name; };
      require(
          !glob_matches(base_name(prefix_) + "-?????.h5", name) || std::any_of(paths_.begin(), paths_.end(), is_found),
          ExitCode::write, "{} exists; remove it, or choose another prefix", found);
    }
  files_.make_directory(directory);
}

TokenWriter::~TokenWriter() {
  if (!open_) return;
  const std::string partial = std::move(open_->partial);
  open_.reset();
  try {
    files_.remove(partial);
  } catch (const std::exception&) {
    // An error is already on its way, or nothing can be removed: the .partial stays and is replaced by the next run.
  }
}

std::string TokenWriter::path(std::size_t number) const { return format("{}-{:05}.h5", prefix_, number); }

void TokenWriter::put(std::int32_t token) {
  Open& o = *open_;
  check(token >= 0 && token < info_.vocab_size, "token {} of a vocabulary of {}", token, info_.vocab_size);
  const std::size_t at = o.buffer.size();
  o.buffer.resize(at + o.width);
  std::memcpy(o.buffer.data() + at, &token, o.width);  // little-endian
  ++o.count;
  if (o.count % kTokenBlock == 0) flush();
}

void TokenWriter::flush() {
  Open& o = *open_;
  if (o.buffer.empty()) return;
  o.checksums.push_back(xxh3(o.buffer));
  o.tokens.append(static_cast<Index>(o.buffer.size() / o.width), o.buffer);
  o.buffer.clear();
}

void TokenWriter::add(std::span<const std::int32_t> document) {
  if (!open_) {
    open_ = std::make_unique<Open>();
    Open& o = *open_;
    o.partial = path(paths_.size()) + ".partial";
    o.file = Hdf5File::create(files_, o.partial, OpenMode::replace);
    o.width = info_.vocab_size <= 65536 ? 2 : 4;
    // Files that are to be small have small chunks, as a chunk is stored whole.
    const std::size_t most = static_cast<std::size_t>(std::min(kTokenBlock, tokens_per_file_)) * o.width;
    o.tokens = o.file.create_dataset("tokens", o.width == 2 ? Hdf5Type::u16 : Hdf5Type::u32, {0}, true,
                                     std::min(kChunk, most));
    o.buffer.reserve(most);
  }
  for (const std::int32_t t : document) put(t);
  put(info_.end_of_document);
  open_->offsets.push_back(open_->count);
  total_tokens_ += static_cast<Index>(document.size()) + 1;
  ++total_documents_;
  if (open_->count >= tokens_per_file_) close_file();
}

void TokenWriter::close_file() {
  flush();
  Open& o = *open_;
  const auto write = [&](const char* name, Hdf5Type type, auto& values) {
    o.file.create_dataset(name, type, {static_cast<Index>(values.size())}).write(std::as_bytes(std::span(values)));
  };
  write("document_offsets", Hdf5Type::i64, o.offsets);
  write("block_checksums", Hdf5Type::u64, o.checksums);
  o.file.write_attribute("/", "format_version", kTokenFormat);
  o.file.write_attribute("/", "tokenizer_hash", hex(info_.tokenizer_hash));
  o.file.write_attribute("/", "vocab_size", std::int64_t{info_.vocab_size});
  o.file.write_attribute("/", "end_of_document_id", std::int64_t{info_.end_of_document});
  o.file.write_attribute("/", "token_count", std::int64_t{o.count});
  o.file.write_attribute("/", "document_count", static_cast<std::int64_t>(o.offsets.size()) - 1);
  const auto file = o.file.close();
  file->sync();
  file->close();
  const std::string final_path = path(paths_.size());
  files_.rename(o.partial, final_path);
  open_.reset();
  paths_.push_back(final_path);
  files_.sync_directory(parent_path(final_path));
}

std::vector<std::string> TokenWriter::finish() {
  if (open_) close_file();
  return paths_;
}

std::vector<std::string> token_files(const Files& files, const std::string& prefix) {
  std::vector<std::string> out;
  for (std::size_t i = 0;; ++i) {
    const std::string path = format("{}-{:05}.h5", prefix, i);
    if (!files.exists(path)) return out;
    out.push_back(path);
  }
}

// ---- reader ----

TokenFile::TokenFile(const Files& files, const std::string& path, std::size_t cache_bytes)
    : path_(path), file_(Hdf5File::open(files, path, ExitCode::data, cache_bytes)) {
  const auto version = file_.read_integer("/", "format_version");
  if (version != kTokenFormat) bad(format("format_version {}; this program reads {}", version, kTokenFormat));
  info_.vocab_size = file_.read_integer("/", "vocab_size");
  const auto end = file_.read_integer("/", "end_of_document_id");
  const auto token_count = file_.read_integer("/", "token_count");
  const auto document_count = file_.read_integer("/", "document_count");
  const std::string hash = file_.read_text("/", "tokenizer_hash");
  if (info_.vocab_size < 1 || info_.vocab_size > INT32_MAX) bad(format("vocab_size {}", info_.vocab_size));
  if (end < 0 || end >= info_.vocab_size)
    bad(format("end_of_document_id {} of a vocabulary of {}", end, info_.vocab_size));
  info_.end_of_document = static_cast<std::int32_t>(end);
  if (hash.size() != 16 || hash.find_first_not_of("0123456789abcdef") != std::string::npos)
    bad("tokenizer_hash is not 16 hexadecimal digits");
  info_.tokenizer_hash = std::stoull(hash, nullptr, 16);

  tokens_ = file_.open_dataset("tokens");
  offsets_ = file_.open_dataset("document_offsets");
  const Hdf5Dataset checksums = file_.open_dataset("block_checksums");
  const auto shaped = [&](const Hdf5Dataset& d, bool type, Index count) {
    if (!type || d.shape().rank() != 1 || d.shape()[0] != count)
      bad(format("/{} is {} {}, expected ({})", d.name(), name_of(d.type()), d.shape().to_string(), count));
  };
  if (token_count < 0 || token_count > kMaxTokens) bad(format("token_count {}", token_count));
  if (document_count < 0 || document_count > token_count) bad(format("document_count {}", document_count));
  shaped(tokens_, tokens_.type() == Hdf5Type::u16 || tokens_.type() == Hdf5Type::u32, token_count);
  shaped(offsets_, offsets_.type() == Hdf5Type::i64, document_count + 1);
  const Index blocks = (token_count + kTokenBlock - 1) / kTokenBlock;
  shaped(checksums, checksums.type() == Hdf5Type::u64, blocks);
  checksums_.resize(static_cast<std::size_t>(blocks));
  checksums.read(std::as_writable_bytes(std::span(checksums_)));
  verified_.assign(static_cast<std::size_t>(blocks), 0);
}

void TokenFile::bad(const std::string& message) const { fail(ExitCode::data, "{}: {}", path_, message); }

void TokenFile::verify_block(Index block) {
  const Index begin = block * kTokenBlock, count = std::min(kTokenBlock, tokens() - begin);
  block_.resize(static_cast<std::size_t>(count) * size_of(tokens_.type()));
  tokens_.read({begin}, {count}, block_);
  const std::uint64_t found = xxh3(block_), expected = checksums_[static_cast<std::size_t>(block)];
  if (found != expected)
    bad(format("tokens {} to {}: checksum {}, expected {}; the file is damaged", begin, begin + count, hex(found),
               hex(expected)));
  verified_[static_cast<std::size_t>(block)] = 1;
}

void TokenFile::read(Index begin, std::span<std::int32_t> into) {
  const Index count = static_cast<Index>(into.size());
  check(begin >= 0 && begin + count <= tokens(), "{}: tokens {} + {} of {}", path_, begin, count, tokens());
  if (into.empty()) return;
  for (Index b = begin / kTokenBlock; b <= (begin + count - 1) / kTokenBlock; ++b)
    if (!verified_[static_cast<std::size_t>(b)]) verify_block(b);
  const std::size_t width = size_of(tokens_.type());
  if (scratch_.size() < into.size() * width) scratch_.resize(into.size() * width);
  tokens_.read({begin}, {count}, std::span(scratch_).first(into.size() * width));
  for (std::size_t i = 0; i < into.size(); ++i) {
    std::uint32_t t = 0;
    std::memcpy(&t, scratch_.data() + i * width, width);
    if (t >= static_cast<std::uint32_t>(info_.vocab_size))
      bad(format("token {} at {} is outside the vocabulary of {}", t, begin + static_cast<Index>(i), info_.vocab_size));
    into[i] = static_cast<std::int32_t>(t);
  }
}

std::pair<Index, Index> TokenFile::document(Index i) {
  check(i >= 0 && i < documents(), "{}: document {} of {}", path_, i, documents());
  std::int64_t ends[2];
  offsets_.read({i}, {2}, std::as_writable_bytes(std::span(ends)));
  if (ends[0] < 0 || ends[0] >= ends[1] || ends[1] > tokens())
    bad(format("document_offsets[{}]: {} to {} of {} tokens", i, ends[0], ends[1], tokens()));
  return {ends[0], ends[1]};
}

std::int64_t TokenFile::offset(Index document) {
  std::int64_t value = 0;
  offsets_.read({document}, {1}, std::as_writable_bytes(std::span(&value, 1)));
  return value;
}

Index TokenFile::document_of(Index token) {
  check(token >= 0 && token < tokens(), "{}: token {} of {}", path_, token, tokens());
  if (documents() == 0) bad(format("{} tokens and no document", tokens()));
  if (marks_.empty())
    for (Index d = 0; d < documents(); d += kMark) marks_.push_back(offset(d));
  const auto mark = std::upper_bound(marks_.begin(), marks_.end(), token) - marks_.begin();
  if (mark == 0) bad(format("document_offsets[0] is {}, expected 0", marks_[0]));
  // The last document that begins at or before the token.
  Index low = (mark - 1) * kMark, high = std::min(documents(), low + kMark);
  while (high - low > 1) {
    const Index middle = low + (high - low) / 2;
    (offset(middle) <= token ? low : high) = middle;
  }
  const auto [begin, end] = document(low);
  if (token < begin || token >= end)
    bad(format("document_offsets[{}]: {} to {}, expected around token {}; they do not rise", low, begin, end, token));
  return low;
}

void TokenFile::document_starts(Index begin, Index end, std::vector<Index>& into) {
  constexpr Index kRead = 64;
  std::int64_t offsets[kRead];
  std::int64_t previous = begin;
  for (Index d = document_of(begin) + 1; d <= documents() && previous < end; d += kRead) {
    const Index n = std::min(kRead, documents() + 1 - d);
    offsets_.read({d}, {n}, std::as_writable_bytes(std::span(offsets).first(static_cast<std::size_t>(n))));
    for (Index i = 0; i < n; ++i) {
      check_offset(d + i, previous, offsets[i]);
      previous = offsets[i];
      if (previous < end) into.push_back(previous);
    }
  }
}

void TokenFile::check_offset(Index document, std::int64_t previous, std::int64_t value) const {
  if (value <= previous || value > tokens())
    bad(format("document_offsets[{}] is {} after {}, of {} tokens", document, value, previous, tokens()));
  if (document == documents() && value != tokens())
    bad(format("document_offsets[{}], the last, is {} of {} tokens", document, value, tokens()));
}

void TokenFile::verify() {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(std::min<Index>(kTokenBlock, tokens())));
  std::vector<std::int64_t> offsets;
  Index document = 0, previous = 0, held = 0;  // `held`: offsets read so far
  const auto next_offset = [&]() -> std::int64_t {
    if (document >= held) {
      const Index n = std::min(kVerifyOffsets, documents() + 1 - held);
      offsets.resize(static_cast<std::size_t>(n));
      offsets_.read({held}, {n}, std::as_writable_bytes(std::span(offsets)));
      held += n;
    }
    return offsets[static_cast<std::size_t>(document - (held - static_cast<Index>(offsets.size())))];
  };
  if (next_offset() != 0) bad(format("document_offsets[0] is {}, expected 0", next_offset()));
  ++document;
  for (Index begin = 0; begin < tokens(); begin += kTokenBlock) {
    const Index count = std::min(kTokenBlock, tokens() - begin);
    verify_block(begin / kTokenBlock);
    read(begin, std::span(ids).first(static_cast<std::size_t>(count)));
    while (document <= documents()) {
      const std::int64_t end = next_offset();
      if (end <= previous || end > tokens())
        bad(format("document_offsets[{}] is {} after {}, of {} tokens", document, end, previous, tokens()));
      if (end > begin + count) break;
      const std::int32_t last = ids[static_cast<std::size_t>(end - 1 - begin)];
      if (last != info_.end_of_document)
        bad(format("document {} ends with token {}, expected {}", document - 1, last, info_.end_of_document));
      previous = end;
      ++document;
    }
  }
  if (document <= documents() || previous != tokens())
    bad(format("document_offsets end at {} of {} tokens", previous, tokens()));
}

std::uint64_t TokenFile::fingerprint() const {
  std::vector<std::uint64_t> words = checksums_;
  words.insert(words.end(), {static_cast<std::uint64_t>(tokens()), info_.tokenizer_hash});
  return xxh3(std::as_bytes(std::span(words)));
}

std::uint64_t TokenFile::document_fingerprint() const {
  Xxh3Hasher hasher;
  std::vector<std::int64_t> offsets;
  std::int64_t previous = 0;
  for (Index d = 0; d <= documents(); d += static_cast<Index>(offsets.size())) {
    offsets.resize(static_cast<std::size_t>(std::min(kVerifyOffsets, documents() + 1 - d)));
    const auto bytes = std::as_writable_bytes(std::span(offsets));
    offsets_.read({d}, {static_cast<Index>(offsets.size())}, bytes);
    hasher.update(bytes);
    for (std::size_t i = 0; i < offsets.size(); ++i) {
      const Index document = d + static_cast<Index>(i);
      if (document > 0)
        check_offset(document, previous, offsets[i]);
      else if (offsets[0] != 0)
        bad(format("document_offsets[0] is {}, expected 0", offsets[0]));
      previous = offsets[i];
    }
  }
  if (previous != tokens()) bad(format("document_offsets end at {} of {} tokens", previous, tokens()));
  return hasher.digest();
}

}  // namespace dstrain
