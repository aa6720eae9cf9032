#include "lib/data/text.h"

#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "lib/data/glob.h"

namespace dstrain {

namespace {

constexpr int kDepth = 32;
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
constexpr std::size_t kTextBuffer = 1 << 16;
constexpr std::array kEndings = {".txt", ".md", ".rst", ".jsonl"};
constexpr const char* kKnown = ".txt, .md, .rst and .jsonl, plain, .gz or .zst";

// The name without .gz or .zst.
std::string uncompressed(std::string name) {
  for (const char* ending : {".gz", ".zst"})
    if (name.ends_with(ending)) return name.substr(0, name.size() - std::string(ending).size());
  return name;
}

bool is_text(const std::string& name) {
  const std::string plain = uncompressed(name);
  return std::any_of(kEndings.begin(), kEndings.end(), [&](const char* e) { return plain.ends_with(e); });
}

void add(const Files& files, const std::string& path, std::vector<TextFile>& out) {
  out.push_back({path, files.open(path, OpenMode::read)->size(), uncompressed(path).ends_with(".jsonl")});
}

void search(const Files& files, const std::string& directory, int depth, std::vector<TextFile>& out) {
  require(depth < kDepth, ExitCode::data, "{}: directories nested deeper than {} levels", directory, kDepth);
  for (const auto& name : files.list(directory)) {
    const std::string path = directory + "/" + name;
    if (files.is_directory(path))
      search(files, path, depth + 1, out);
    else if (is_text(name))
      add(files, path, out);
  }
}

}  // namespace

std::vector<TextFile> find_text(const Files& files, const std::vector<std::string>& inputs) {
  std::vector<TextFile> out;
  for (const std::string& pattern : inputs) {
    const bool glob = !files.exists(pattern) && pattern.find_first_of("*?") != std::string::npos;
    const auto paths = glob ? expand_glob(files, pattern) : std::vector{pattern};
    require(!paths.empty(), ExitCode::data, "{}: no file matches", pattern);
    for (std::string input : paths) {
      while (input.size() > 1 && input.back() == '/') input.pop_back();
      if (files.is_directory(input)) {
        search(files, input, 0, out);
        continue;
      }
      require(files.exists(input), ExitCode::data, "{}: no such file or directory", input);
      if (glob && !is_text(input)) continue;
      require(is_text(input), ExitCode::data, "{}: not text that is read; {} are", input, kKnown);
      add(files, input, out);
    }
  }
  require(!out.empty(), ExitCode::data, "no text in the inputs; {} are read", kKnown);
  return out;
}

// ---- stream ----

struct TextStream::State {
  enum class Kind { plain, gzip, zstd } kind = Kind::plain;
  std::string path;
  std::unique_ptr<File> file;
  std::uint64_t size = 0, offset = 0;  // stored bytes in all, and read into `buffer`
  std::vector<char> buffer;
  std::size_t at = 0, held = 0;  // of the buffer
  bool inside = false;           // within a gzip member or a zstd frame
  bool begun = false;
  std::string head;  // the text's first bytes, as far as they are no byte order mark and not given out
  z_stream gzip{};
  ZSTD_DStream* zstd = nullptr;

  ~State() {
    if (kind == Kind::gzip) inflateEnd(&gzip);
    ZSTD_freeDStream(zstd);
  }
  // False at the end of the file.
  bool fill() {
    at = 0;
    held = static_cast<std::size_t>(std::min<std::uint64_t>(buffer.size(), size - offset));
    if (held == 0) return false;
    file->pread(std::as_writable_bytes(std::span(buffer).first(held)), offset);
    offset += held;
    return true;
  }
  std::uint64_t consumed() const { return offset - (held - at); }
  [[noreturn]] void damaged(const char* why) const {
    fail(ExitCode::data, "{}: damaged before byte {}: {}", path, consumed(), why);
  }
  std::size_t read(std::span<char> into);  // with the byte order mark
  // One call of the decompressor; returns the bytes made.
  std::size_t inflate_some(std::span<char> into);
  std::size_t decompress_some(std::span<char> into);
};

TextStream::TextStream(const Files& files, const std::string& path) : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.path = path;
  s.file = files.open(path, OpenMode::read);
  s.size = s.file->size();
  s.buffer.resize(static_cast<std::size_t>(std::min<std::uint64_t>(kTextBuffer, s.size)));
  if (path.ends_with(".gz")) {
    require(inflateInit2(&s.gzip, 15 + 16) == Z_OK, ExitCode::data, "{}: zlib does not start", path);
    s.kind = State::Kind::gzip;
    s.inside = true;  // an empty file is no gzip file
  } else if (path.ends_with(".zst")) {
    s.zstd = ZSTD_createDStream();
    require(s.zstd != nullptr, ExitCode::data, "{}: zstd does not start", path);
    s.kind = State::Kind::zstd;
    s.inside = true;
  }
}

TextStream::~TextStream() = default;
std::uint64_t TextStream::consumed() const { return state_->consumed(); }
const std::string& TextStream::path() const { return state_->path; }

std::size_t TextStream::State::inflate_some(std::span<char> into) {
  if (!inside) {  // another member follows
    if (inflateReset(&gzip) != Z_OK) damaged("its next member cannot be read");
    inside = true;
  }
  gzip.next_in = reinterpret_cast<Bytef*>(buffer.data() + at);
  gzip.avail_in = static_cast<uInt>(held - at);
  gzip.next_out = reinterpret_cast<Bytef*>(into.data());
  gzip.avail_out = static_cast<uInt>(into.size());
  const int rc = ::inflate(&gzip, Z_NO_FLUSH);
  at = held - gzip.avail_in;
  if (rc == Z_STREAM_END)
    inside = false;
  else if (rc != Z_OK && rc != Z_BUF_ERROR)
    damaged(gzip.msg ? gzip.msg : "bad data");
  return into.size() - gzip.avail_out;
}

std::size_t TextStream::State::decompress_some(std::span<char> into) {
  inside = true;
  ZSTD_inBuffer in{buffer.data(), held, at};
  ZSTD_outBuffer out{into.data(), into.size(), 0};
  const std::size_t rc = ZSTD_decompressStream(zstd, &out, &in);
  at = in.pos;
  if (ZSTD_isError(rc)) damaged(ZSTD_getErrorName(rc));
  inside = rc != 0;
  return out.pos;
}

std::size_t TextStream::read(std::span<char> into) {
  State& s = *state_;
  if (!std::exchange(s.begun, true)) {
    s.head.resize(kByteOrderMark.size());
    s.head.resize(s.read(s.head));
    if (s.head == kByteOrderMark) s.head.clear();
  }
  const std::size_t first = std::min(into.size(), s.head.size());
  std::copy_n(s.head.data(), first, into.data());
  s.head.erase(0, first);
  return first + s.read(into.subspan(first));
}

std::size_t TextStream::State::read(std::span<char> into) {
  State& s = *this;
  std::size_t done = 0;
  while (done < into.size()) {
    const bool more = s.at < s.held || s.fill();
    const auto rest = into.subspan(done);
    std::size_t made = 0;
    if (s.kind == State::Kind::plain) {
      if (!more) break;
      made = std::min(rest.size(), s.held - s.at);
      std::copy_n(s.buffer.data() + s.at, made, rest.data());
      s.at += made;
    } else {
      if (!more && !s.inside) break;
      made = s.kind == State::Kind::gzip ? s.inflate_some(rest) : s.decompress_some(rest);
      // What is kept inside the decompressor comes without input.
      require(more || made > 0, ExitCode::data, "{}: it ends too early", s.path);
    }
    done += made;
  }
  return done;
}

}  // namespace dstrain
