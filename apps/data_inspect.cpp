// dstrain data inspect: what a token file holds.

#include <algorithm>
#include <memory>
#include <optional>

#include "apps/data.h"
#include "lib/data/token_file.h"
#include "lib/tokenizer/tokenizer.h"

namespace dstrain {

namespace {

struct Options {
  std::string file, tokenizer;
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

ExitCode inspect(const Options& o) {
  constexpr Index kPreview = 64;  // tokens shown of a document
  const Files& files = system_files();
  TokenFile file(files, o.file);
  const TokenFileInfo& info = file.info();
  say("{}: {} documents, {} tokens ({}), vocabulary {}, end of document {}, tokenizer {}", o.file, file.documents(),
      file.tokens(), file.type(), info.vocab_size, info.end_of_document, hex(info.tokenizer_hash));
  file.verify();
  say("checksums, ids and document offsets are good");
  std::optional<Tokenizer> tokenizer;
  if (!o.tokenizer.empty()) {
    tokenizer.emplace(Tokenizer::load(files, o.tokenizer));
    require(tokenizer->hash() == info.tokenizer_hash, ExitCode::data, "{}: its hash is {}, the token file's {}",
            o.tokenizer, hex(tokenizer->hash()), hex(info.tokenizer_hash));
  }
  const Index shown = std::min<Index>(std::max(0, o.samples), file.documents());
  for (Index s = 0; s < shown; ++s) {
    const Index d = s * file.documents() / shown;
    const auto [begin, end] = file.document(d);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(std::min(kPreview, end - begin)));
    file.read(begin, ids);
    std::string text;
    if (tokenizer)
      text = preview(tokenizer->decode(ids));
    else
      for (const auto id : ids) text += format("{} ", id);
    say("--- document {}, {} tokens\n{}", d, end - begin, text);
  }
  return ExitCode::ok;
}

}  // namespace

RunCommand add_data_inspect(CLI::App& command) {
  const auto o = std::make_shared<Options>();
  command.add_option("file", o->file, "Token file")->required();
  command.add_option("--tokenizer", o->tokenizer, "tokenizer.json, to show text instead of ids");
  command.add_option("--samples", o->samples, "Documents to show")->capture_default_str();
  return [o] { return inspect(*o); };
}

}  // namespace dstrain
