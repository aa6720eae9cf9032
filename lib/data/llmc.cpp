#include <array>

#include "lib/data/foreign.h"
#include "lib/data/raw_file.h"

namespace dstrain {

namespace {

constexpr std::size_t kHeaderInts = 256;  // i32
struct Kind {
  std::int32_t magic, version;
  std::uint64_t width;
};
constexpr Kind kGpt2{20240520, 1, 2}, kLlama3{20240801, 7, 4};

// Cuts a stream of ids into documents. Where it begins with the end-of-document id, documents begin with it, the last
// one too, however short; else they end with it.
class Cutter {
 public:
  Cutter(const TokenFileInfo& info, TokenWriter& out) : info_(info), out_(out) {}

  void take(std::int32_t id) {
    if (id != info_.end_of_document) {
      document_.push_back(id);
    } else if (any_) {
      out_.add(document_);
      document_.clear();
    } else {
      leading_ = true;
    }
    any_ = true;
  }
  void finish() {
    if (leading_ || !document_.empty()) out_.add(document_);
  }

 private:
  const TokenFileInfo& info_;
  TokenWriter& out_;
  std::vector<std::int32_t> document_;
  bool any_ = false, leading_ = false;
};

template <class T>
void take_all(const RawReader& file, std::uint64_t count, const TokenFileInfo& info, Cutter& cutter) {
  RawArray<T> ids(file, kHeaderInts * 4, count);
  for (std::uint64_t i = 0; i < count; ++i) {
    const T id = ids[i];
    require(static_cast<std::uint64_t>(id) < static_cast<std::uint64_t>(info.vocab_size), ExitCode::data,
            "{}: token {} at {} is outside the vocabulary of {}", file.path(), id, i, info.vocab_size);
    cutter.take(static_cast<std::int32_t>(id));
  }
}

}  // namespace

void import_llmc(const Files& files, const std::vector<std::string>& paths, const TokenFileInfo& info,
                 TokenWriter& out) {
  Cutter cutter(info, out);
  for (const std::string& path : paths) {
    const RawReader file(files, path);
    require(file.holds(0, kHeaderInts, 4), ExitCode::data, "{}: {} bytes; a header of llm.c has {}", path, file.size(),
            kHeaderInts * 4);
    const auto magic = file.number<std::int32_t>(0), version = file.number<std::int32_t>(4),
               tokens = file.number<std::int32_t>(8);
    const Kind* kind = magic == kGpt2.magic ? &kGpt2 : magic == kLlama3.magic ? &kLlama3 : nullptr;
    require(kind != nullptr, ExitCode::data, "{}: it begins with {}; llm.c's files with {} or {}", path, magic,
            kGpt2.magic, kLlama3.magic);
    require(version == kind->version, ExitCode::data, "{}: version {} of magic {}; {} is known", path, version, magic,
            kind->version);
    require(tokens >= 0 && file.size() == kHeaderInts * 4 + static_cast<std::uint64_t>(tokens) * kind->width,
            ExitCode::data, "{}: its header says {} tokens of {} bytes, it has {} bytes behind the header", path,
            tokens, kind->width, file.size() - kHeaderInts * 4);
    if (kind->width == 2)
      take_all<std::uint16_t>(file, static_cast<std::uint64_t>(tokens), info, cutter);
    else
      take_all<std::uint32_t>(file, static_cast<std::uint64_t>(tokens), info, cutter);
  }
  cutter.finish();
}

std::vector<std::string> export_llmc(const Files& files, const std::vector<std::string>& paths,
                                     const std::string& prefix) {
  std::vector<std::string> out;
  for (const std::string& path : paths) {
    TokenFile from(files, path);
    const std::int32_t end = from.info().end_of_document;
    const Kind& kind = from.info().vocab_size <= 65536 ? kGpt2 : kLlama3;
    require(from.tokens() <= INT32_MAX, ExitCode::data, "{}: {} tokens; llm.c's header holds {} at most", path,
            from.tokens(), INT32_MAX);
    out.push_back(format("{}_{:06}.bin", prefix, out.size()));
    RawWriter to(files, out.back());
    std::array<std::int32_t, kHeaderInts> header{kind.magic, kind.version, static_cast<std::int32_t>(from.tokens())};
    to.put(std::span<const std::int32_t>(header));
    const auto put = [&](std::int32_t id) {
      if (kind.width == 2)
        to.put(static_cast<std::uint16_t>(id));
      else
        to.put(static_cast<std::uint32_t>(id));
    };
    // The end of each document becomes the beginning of the next.
    std::vector<std::int32_t> ids;
    for (Index begin = 0; begin < from.tokens(); begin += kTokenBlock) {
      ids.resize(static_cast<std::size_t>(std::min(kTokenBlock, from.tokens() - begin)));
      from.read(begin, ids);
      if (begin == 0) put(end);
      if (begin + kTokenBlock >= from.tokens()) ids.pop_back();
      for (const std::int32_t id : ids) put(id);
    }
    to.finish();
  }
  return out;
}

}  // namespace dstrain
