// dstrain data inspect: what token files hold.

#include <algorithm>
#include <map>
#include <memory>
#include <optional>

#include "apps/data.h"
#include "lib/data/glob.h"
#include "lib/data/token_file.h"
#include "lib/tokenizer/tokenizer.h"

namespace dstrain {

namespace {

struct Options {
  std::vector<std::string> files;
  std::string tokenizer;
  int samples = 3;
};

// A document for a terminal: control bytes and bytes that are not UTF-8 shown as '.'.
std::string preview(const std::string& text) {
  std::string out;
  for (std::size_t i = 0; i < text.size();) {
    const auto byte = [&](std::size_t k) { return k < text.size() ? static_cast<unsigned char>(text[k]) : 0u; };
    const unsigned c = byte(i);
    std::size_t n = c < 0x80                 ? 1
                    : c >= 0xc2 && c <= 0xdf ? 2
                    : (c & 0xf0u) == 0xe0    ? 3
                    : c >= 0xf0 && c <= 0xf4 ? 4
                                             : 0;
    for (std::size_t k = 1; k < n; ++k)
      if ((byte(i + k) & 0xc0u) != 0x80) n = 0;
    if (n == 0 || (n == 1 && c < 0x20 && c != '\n' && c != '\t') || c == 0x7f || (c == 0xc2 && byte(i + 1) < 0xa0)) {
      out += '.';
      i += std::max<std::size_t>(n, 1);
      continue;
    }
    out.append(text, i, n);
    i += n;
  }
  return out;
}

// Documents by their exact length: few lengths, however many documents.
using Lengths = std::map<Index, Index>;

void count_lengths(TokenFile& file, Lengths& lengths) {
  if (file.tokens() == 0) return;
  std::vector<Index> starts{0};
  file.document_starts(0, file.tokens(), starts);
  starts.push_back(file.tokens());
  for (std::size_t d = 0; d + 1 < starts.size(); ++d) ++lengths[starts[d + 1] - starts[d]];
}

// read() knows the vocabulary that the file says; a tokenizer may have fewer ids.
void check_ids(TokenFile& file, Index vocab_size) {
  if (file.info().vocab_size <= vocab_size) return;
  std::vector<std::int32_t> ids;
  for (Index begin = 0; begin < file.tokens(); begin += kTokenBlock) {
    ids.resize(static_cast<std::size_t>(std::min(kTokenBlock, file.tokens() - begin)));
    file.read(begin, ids);
    for (std::size_t i = 0; i < ids.size(); ++i)
      require(ids[i] < vocab_size, ExitCode::data, "{}: token {} at {} is outside the tokenizer's vocabulary of {}",
              file.path(), ids[i], begin + static_cast<Index>(i), vocab_size);
  }
}

void print_lengths(const Lengths& lengths) {
  Index documents = 0;
  for (const auto& [length, n] : lengths) documents += n;
  std::string line = "tokens a document:";
  for (const int percent : {0, 1, 5, 25, 50, 75, 95, 99, 100}) {
    // The shortest length that at least `percent` of the documents do not exceed.
    Index seen = 0, at = 0;
    for (const auto& [length, n] : lengths) {
      seen += n;
      at = length;
      if (100 * seen >= percent * documents) break;
    }
    line += format(" {} {}", percent == 0 ? "least" : percent == 100 ? "most" : format("{}%", percent), at);
  }
  say("{}", line);
}

ExitCode inspect(const Options& o) {
  constexpr Index kPreview = 64;  // tokens shown of a document
  const Files& files = system_files();
  std::optional<Tokenizer> tokenizer;
  if (!o.tokenizer.empty()) tokenizer.emplace(Tokenizer::load(files, o.tokenizer));
  std::vector<std::string> paths;
  for (const std::string& pattern : o.files) {
    const auto found = expand_glob(files, pattern);
    require(!found.empty(), ExitCode::data, "{}: no file matches", pattern);
    paths.insert(paths.end(), found.begin(), found.end());
  }
  Lengths lengths;
  Index documents = 0, tokens = 0;
  for (const std::string& path : paths) {
    TokenFile file(files, path);
    const TokenFileInfo& info = file.info();
    say("{}: {} documents, {} tokens ({}), vocabulary {}, end of document {}, tokenizer {}", path, file.documents(),
        file.tokens(), file.type(), info.vocab_size, info.end_of_document, hex(info.tokenizer_hash));
    file.verify();
    if (tokenizer) {
      require(tokenizer->hash() == info.tokenizer_hash, ExitCode::data, "{}: its hash is {}, the token file's {}",
              o.tokenizer, hex(tokenizer->hash()), hex(info.tokenizer_hash));
      check_ids(file, tokenizer->vocab_size());
    }
    count_lengths(file, lengths);
    documents += file.documents();
    tokens += file.tokens();
  }
  say("checksums, ids and document offsets are good");
  if (paths.size() > 1) say("{} files: {} documents, {} tokens", paths.size(), documents, tokens);
  if (documents > 0) print_lengths(lengths);

  // Samples at equal distances over all documents.
  const Index shown = std::min<Index>(o.samples, documents);
  Index before = 0, next = 0;
  for (const std::string& path : paths) {
    if (next == shown) break;
    TokenFile file(files, path);
    for (; next < shown && next * documents / shown < before + file.documents(); ++next) {
      const Index d = next * documents / shown - before;
      const auto [begin, end] = file.document(d);
      std::vector<std::int32_t> ids(static_cast<std::size_t>(std::min(kPreview, end - begin)));
      file.read(begin, ids);
      std::string text;
      if (tokenizer)
        text = preview(tokenizer->decode(ids));
      else
        for (const auto id : ids) text += format("{} ", id);
      say("--- {} document {}, {} tokens\n{}", path, d, end - begin, text);
    }
    before += file.documents();
  }
  return ExitCode::ok;
}

}  // namespace

RunCommand add_data_inspect(CLI::App& command) {
  const auto o = std::make_shared<Options>();
  command.add_option("files", o->files, "Token files, or globs of them")->required();
  command.add_option("--tokenizer", o->tokenizer, "tokenizer.json, to show text instead of ids");
  command.add_option("--samples", o->samples, "Documents to show")
      ->check(CLI::Range(0, INT32_MAX))
      ->capture_default_str();
  return [o] { return inspect(*o); };
}

}  // namespace dstrain
