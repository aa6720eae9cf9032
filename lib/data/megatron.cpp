#include <cstring>

#include "lib/data/foreign.h"
#include "lib/data/raw_file.h"

namespace dstrain {

namespace {

constexpr char kMagic[9] = {'M', 'M', 'I', 'D', 'I', 'D', 'X', 0, 0};
constexpr std::uint64_t kHeader = 9 + 8 + 1 + 8 + 8;
constexpr std::uint8_t kU16 = 8, kI32 = 4;

std::string stem(const std::string& path) { return path.ends_with(".idx") ? path.substr(0, path.size() - 4) : path; }

// One FILE.idx with its FILE.bin.
class Dataset {
 public:
  Dataset(const Files& files, const std::string& path)
      : index_(files, stem(path) + ".idx"), ids_(files, stem(path) + ".bin") {
    const std::string& name = index_.path();
    require(index_.holds(0, kHeader, 1), ExitCode::data, "{}: {} bytes; its header has {}", name, index_.size(),
            kHeader);
    char magic[9];
    index_.read(std::as_writable_bytes(std::span(magic)), 0);
    require(std::memcmp(magic, kMagic, 9) == 0, ExitCode::data, "{}: it does not begin with MMIDIDX", name);
    const auto version = index_.number<std::uint64_t>(9);
    require(version == 1, ExitCode::data, "{}: version {}; 1 is known", name, version);
    const auto type = index_.number<std::uint8_t>(17);
    require(type == kU16 || type == kI32, ExitCode::data, "{}: ids of type {}; 8 (u16) and 4 (i32) are known", name,
            type);
    width_ = type == kU16 ? 2 : 4;
    sequences_ = index_.number<std::uint64_t>(18);
    entries_ = index_.number<std::uint64_t>(26);
    const std::uint64_t sizes = kHeader;
    require(index_.holds(sizes, sequences_, 4 + 8), ExitCode::data, "{}: {} sequences do not fit into its {} bytes",
            name, sequences_, index_.size());
    pointers_ = sizes + sequences_ * 4;
    documents_ = pointers_ + sequences_ * 8;
    require(index_.holds(documents_, entries_, 8), ExitCode::data,
            "{}: {} document entries do not fit into its {} bytes", name, entries_, index_.size());
  }

  // Calls visit(ids) for each document.
  template <class F>
  void read(const TokenFileInfo& info, F&& visit) {
    const std::string& name = index_.path();
    RawArray<std::int32_t> sizes(index_, kHeader, sequences_);
    RawArray<std::int64_t> pointers(index_, pointers_, sequences_), documents(index_, documents_, entries_);
    std::vector<std::int32_t> ids;
    std::int64_t previous = 0;
    for (std::uint64_t d = 0; d < entries_; ++d) {
      const std::int64_t until = documents[d];
      require(until >= previous && static_cast<std::uint64_t>(until) <= sequences_ && (d > 0 || until == 0),
              ExitCode::data, "{}: document entry {} is {} after {}, of {} sequences", name, d, until, previous,
              sequences_);
      if (d == 0) continue;
      ids.clear();
      for (auto s = static_cast<std::uint64_t>(previous); s < static_cast<std::uint64_t>(until); ++s)
        append(s, sizes[s], pointers[s], info, ids);
      visit(ids);
      previous = until;
    }
    require(static_cast<std::uint64_t>(previous) == sequences_, ExitCode::data,
            "{}: its documents end at sequence {} of {}", name, previous, sequences_);
  }

 private:
  void append(std::uint64_t sequence, std::int32_t size, std::int64_t pointer, const TokenFileInfo& info,
              std::vector<std::int32_t>& into) {
    require(size >= 0 && pointer >= 0 &&
                ids_.holds(static_cast<std::uint64_t>(pointer), static_cast<std::uint64_t>(size), width_),
            ExitCode::data, "{}: sequence {}: {} tokens at byte {} are not within the {} bytes of {}", index_.path(),
            sequence, size, pointer, ids_.size(), ids_.path());
    bytes_.resize(static_cast<std::size_t>(size) * width_);
    ids_.read(bytes_, static_cast<std::uint64_t>(pointer));
    for (std::size_t i = 0; i < static_cast<std::size_t>(size); ++i) {
      std::uint32_t id = 0;
      std::memcpy(&id, bytes_.data() + i * width_, width_);
      require(id < static_cast<std::uint64_t>(info.vocab_size), ExitCode::data,
              "{}: token {} of sequence {}, number {}, is outside the vocabulary of {}", ids_.path(), id, sequence, i,
              info.vocab_size);
      into.push_back(static_cast<std::int32_t>(id));
    }
  }

  RawReader index_, ids_;
  std::size_t width_ = 2;
  std::uint64_t sequences_ = 0, entries_ = 0, pointers_ = 0, documents_ = 0;
  std::vector<std::byte> bytes_;
};

}  // namespace

void import_megatron(const Files& files, const std::vector<std::string>& paths, const TokenFileInfo& info,
                     TokenWriter& out) {
  for (const std::string& path : paths)
    Dataset(files, path).read(info, [&](std::vector<std::int32_t>& ids) {
      if (!ids.empty() && ids.back() == info.end_of_document) ids.pop_back();
      out.add(ids);
    });
}

std::vector<std::string> export_megatron(const Files& files, const std::vector<std::string>& paths,
                                         const std::string& prefix) {
  RawWriter bin(files, prefix + ".bin"), idx(files, prefix + ".idx");
  std::vector<std::int32_t> sizes, ids;
  std::vector<Index> starts;
  bool wide = false;
  for (const std::string& path : paths) wide = wide || TokenFile(files, path).info().vocab_size > 65536;
  for (const std::string& path : paths) {
    TokenFile from(files, path);
    if (from.tokens() == 0) continue;
    starts = {0};
    from.document_starts(0, from.tokens(), starts);
    starts.push_back(from.tokens());
    for (std::size_t d = 0; d + 1 < starts.size(); ++d) {
      const Index n = starts[d + 1] - starts[d];
      require(n <= INT32_MAX, ExitCode::data, "{}: document {} has {} tokens; Megatron's sizes hold {} at most", path,
              d, n, INT32_MAX);
      sizes.push_back(static_cast<std::int32_t>(n));
    }
    for (Index begin = 0; begin < from.tokens(); begin += kTokenBlock) {
      ids.resize(static_cast<std::size_t>(std::min(kTokenBlock, from.tokens() - begin)));
      from.read(begin, ids);
      for (const std::int32_t id : ids) {
        if (wide)
          bin.put(id);
        else
          bin.put(static_cast<std::uint16_t>(id));
      }
    }
  }
  idx.put(std::span<const char>(kMagic));
  idx.put(std::uint64_t{1});
  idx.put(wide ? kI32 : kU16);
  idx.put(static_cast<std::uint64_t>(sizes.size()));
  idx.put(static_cast<std::uint64_t>(sizes.size()) + 1);
  idx.put(std::span<const std::int32_t>(sizes));
  std::int64_t pointer = 0;
  for (const std::int32_t n : sizes) {
    idx.put(pointer);
    pointer += std::int64_t{n} * (wide ? 4 : 2);
  }
  for (std::int64_t d = 0; d <= static_cast<std::int64_t>(sizes.size()); ++d) idx.put(d);
  // The index last: with it the data set is complete.
  bin.finish();
  idx.finish();
  return {prefix + ".bin", prefix + ".idx"};
}

}  // namespace dstrain
