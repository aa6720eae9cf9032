#include "lib/data/text.h"

#include <zlib.h>
#include <zstd.h>

#include <random>

#include "lib/data/documents.h"
#include "tests/data/temporary.h"
#include "tests/support/catch.h"

using namespace dstrain;

namespace {

void put(const std::string& path, const std::string& bytes) {
  system_files().make_directory(parent_path(path));
  system_files().open(path, OpenMode::replace)->pwrite(std::as_bytes(std::span(bytes)), 0);
}

void put_gz(const std::string& path, const std::string& text, const char* mode = "wb") {
  gzFile f = gzopen(path.c_str(), mode);
  REQUIRE(gzwrite(f, text.data(), static_cast<unsigned>(text.size())) == static_cast<int>(text.size()));
  gzclose(f);
}

std::string zstd(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  ZSTD_CCtx* context = ZSTD_createCCtx();
  ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
  const std::size_t n = ZSTD_compress2(context, out.data(), out.size(), text.data(), text.size());
  ZSTD_freeCCtx(context);
  REQUIRE_FALSE(ZSTD_isError(n));
  out.resize(n);
  return out;
}

std::string all_of(const std::string& path, std::size_t step = 1000) {
  TextStream stream(system_files(), path);
  std::string out, buffer(step, '\0');
  for (std::size_t n; (n = stream.read(buffer)) > 0;) out.append(buffer, 0, n);
  CHECK(stream.consumed() == read_file(system_files(), path).size());
  return out;
}

std::string message(const std::vector<std::string>& inputs) {
  try {
    for (const auto& text : find_text(system_files(), inputs)) all_of(text.path);
    return "";
  } catch (const Error& e) {
    CHECK(e.code() == ExitCode::data);
    return e.what();
  }
}

std::vector<std::string> names(const std::vector<std::string>& inputs) {
  std::vector<std::string> out;
  for (const auto& text : find_text(system_files(), inputs)) out.push_back(text.path);
  return out;
}

std::string noise(std::size_t n) {
  std::mt19937_64 random(n);
  std::string out(n, '\0');
  for (char& c : out) c = static_cast<char>('a' + random() % 26);
  return out;
}

}  // namespace

TEST_CASE("text is found by its names, sorted, in directories below and by globs") {
  const Temporary t;
  for (const char* name : {"x/b.txt", "x/a.md", "x/c.bin", "x/sub/d.rst", "x/txt", "x/f.jsonl", "x/g.jsonl.zst"})
    put(t / name, "some");
  put_gz(t / "x/e.txt.gz", "e");
  CHECK(names({t / "x/"}) == std::vector<std::string>{t / "x/a.md", t / "x/b.txt", t / "x/e.txt.gz", t / "x/f.jsonl",
                                                      t / "x/g.jsonl.zst", t / "x/sub/d.rst"});
  CHECK(names({t / "x/b.txt", t / "x/sub"}) == std::vector<std::string>{t / "x/b.txt", t / "x/sub/d.rst"});
  CHECK(names({t / "x/?.*"}) ==
        std::vector<std::string>{t / "x/a.md", t / "x/b.txt", t / "x/e.txt.gz", t / "x/f.jsonl", t / "x/g.jsonl.zst"});
  for (const auto& text : find_text(system_files(), {t / "x"}))
    CHECK(text.records == (text.path.find("jsonl") != std::string::npos));
  CHECK(message({t / "absent"}) == t / "absent" + ": no such file or directory");
  CHECK(message({t / "absent*"}) == t / "absent*" + ": no file matches");
  CHECK(message({t / "x/c.bin"}) ==
        t / "x/c.bin" + ": not text that is read; .txt, .md, .rst and .jsonl, plain, .gz or .zst are");
  system_files().make_directory(t / "empty");
  CHECK(message({t / "empty"}) == "no text in the inputs; .txt, .md, .rst and .jsonl, plain, .gz or .zst are read");
}

TEST_CASE("streams give a file's text, whatever its compression and however it is read") {
  const Temporary t;
  const std::string text = noise(1000000) + std::string(3000000, 'e');
  put(t / "a.txt", text);
  put_gz(t / "a.txt.gz", text.substr(0, 700000));
  put_gz(t / "a.txt.gz", text.substr(700000), "ab");  // a second member
  put(t / "a.txt.zst", zstd(text.substr(0, 10)) + zstd("") + zstd(text.substr(10)));
  put(t / "e.txt.zst", zstd(""));
  put_gz(t / "e.txt.gz", "");
  put(t / "e.txt", "");
  for (const char* ending : {"", ".gz", ".zst"}) {
    for (const std::size_t step : {std::size_t{777}, std::size_t{1} << 20})
      CHECK(all_of(t / "a.txt" + ending, step) == text);
    CHECK(all_of(t / "e.txt" + ending).empty());
  }
}

TEST_CASE("a byte order mark at the beginning of a text is left out, and only there") {
  const Temporary t;
  const std::string mark = "\xef\xbb\xbf", line = "{\"text\": \"one\"}";
  put(t / "a.txt", mark + "some" + mark);
  put_gz(t / "a.txt.gz", mark + "some" + mark);
  put(t / "a.txt.zst", zstd(mark.substr(0, 1)) + zstd(mark.substr(1) + "some" + mark));
  for (const char* ending : {"", ".gz", ".zst"})
    for (const std::size_t step : {std::size_t{1}, std::size_t{2}, std::size_t{1000}})
      CHECK(all_of(t / "a.txt" + ending, step) == "some" + mark);
  for (const std::string& bytes : {mark.substr(0, 1), mark.substr(0, 2), mark.substr(0, 2) + "some", mark + mark}) {
    put(t / "b.txt", bytes);
    CHECK(all_of(t / "b.txt", 1) == (bytes == mark + mark ? mark : bytes));
  }
  put(t / "c.jsonl", mark + line);
  DocumentReader reader(system_files(), find_text(system_files(), {t / "c.jsonl"}), DocumentRule::file);
  RawDocument document;
  REQUIRE(reader.next(document));
  CHECK(text_of(std::move(document), reader.texts(), "text") == "one");
}

TEST_CASE("damage is named with its place") {
  const Temporary t;
  const std::string text = noise(1000000);
  put(t / "bad.txt.gz", "this is not gzip at all");
  CHECK(message({t / "bad.txt.gz"}) == t / "bad.txt.gz" + ": damaged before byte 2: incorrect header check");
  put(t / "bad.txt.zst", "this is not zstd at all");
  CHECK_THAT(message({t / "bad.txt.zst"}), Catch::Matchers::Contains(": damaged before byte 0: Unknown frame"));
  put_gz(t / "cut.txt.gz", text);
  put(t / "cut.txt.zst", zstd(text));
  for (const std::string ending : {".gz", ".zst"}) {
    const std::string path = t / "cut.txt" + ending, bytes = read_file(system_files(), path);
    for (const std::size_t n : {std::size_t{0}, std::size_t{1}, std::size_t{5}, bytes.size() / 2, bytes.size() - 1}) {
      put(path, bytes.substr(0, n));
      CHECK(message({path}) == path + ": it ends too early");
    }
    put(path, bytes + "x");
    CHECK(message({path}) != "");
    std::string changed = bytes;
    changed[bytes.size() - 2] = static_cast<char>(changed[bytes.size() - 2] ^ 1);
    put(path, changed);
    CHECK_THAT(message({path}), Catch::Matchers::StartsWith(path + ": damaged before byte "));
  }
}

TEST_CASE("text is cut into documents by file, blank line or record") {
  const Temporary t;
  const std::string text = "\n \t\nfirst\nsecond  \r\n\r\n\n third\n\n\n\nlast";
  put(t / "a.txt", text);
  put(t / "b.md", "");
  put(t / "c.jsonl", "{\"text\": \"one\"}\n\n{\"id\": [1, {\"text\": 3}], \"text\": \"two\\n\\u00e9\"}");
  const auto documents = [&](DocumentRule rule, std::size_t n) {
    DocumentReader reader(system_files(), find_text(system_files(), {t / "a.txt", t / "b.md", t / "c.jsonl"}), rule);
    std::vector<std::tuple<std::size_t, Index, std::string>> out;
    for (RawDocument d; reader.next(d);) {
      const auto file = d.file;
      const Index line = d.line;
      out.emplace_back(file, line, text_of(std::move(d), reader.texts(), "text"));
    }
    REQUIRE(out.size() >= 2);
    CHECK(out[out.size() - 2] == std::tuple{std::size_t{2}, Index{1}, std::string("one")});
    CHECK(out[out.size() - 1] == std::tuple{std::size_t{2}, Index{3}, std::string("two\n\xc3\xa9")});
    out.resize(out.size() - 2);
    CHECK(out.size() == n);
    return out;
  };
  using D = std::tuple<std::size_t, Index, std::string>;
  CHECK(documents(DocumentRule::file, 2) == std::vector<D>{{0, 1, text}, {1, 1, ""}});
  CHECK(documents(DocumentRule::blank_line, 3) ==
        std::vector<D>{{0, 3, "first\nsecond  "}, {0, 7, " third"}, {0, 11, "last"}});
  CHECK(documents(DocumentRule::record, 11) == std::vector<D>{{0, 1, ""},
                                                              {0, 2, " \t"},
                                                              {0, 3, "first"},
                                                              {0, 4, "second  "},
                                                              {0, 5, ""},
                                                              {0, 6, ""},
                                                              {0, 7, " third"},
                                                              {0, 8, ""},
                                                              {0, 9, ""},
                                                              {0, 10, ""},
                                                              {0, 11, "last"}});
  // Lines longer than every buffer.
  std::string lines;
  for (int i = 0; i < 5; ++i) lines += noise(static_cast<std::size_t>(300000 + i)) + "\n\n";
  put(t / "a.txt", lines);
  for (const DocumentRule rule : {DocumentRule::blank_line, DocumentRule::record}) {
    std::size_t i = 0;
    for (const auto& [file, line, bytes] : documents(rule, rule == DocumentRule::record ? 10 : 5))
      if (!bytes.empty()) CHECK(bytes == noise(300000 + i++));
    CHECK(i == 5);
  }
}

TEST_CASE("records that are not text under the key are named with file, line and value") {
  const Temporary t;
  const auto said = [&](const std::string& line) -> std::string {
    put(t / "a.jsonl", "{\"text\": \"good\"}\n" + line + "\n");
    DocumentReader reader(system_files(), find_text(system_files(), {t / "a.jsonl"}), DocumentRule::file);
    try {
      for (RawDocument d; reader.next(d);) text_of(std::move(d), reader.texts(), "text");
    } catch (const Error& e) {
      CHECK(e.code() == ExitCode::data);
      return e.what();
    }
    return "";
  };
  const std::string at = t / "a.jsonl: line 2: ";
  CHECK(said("{\"text\": \"x\"} ") == "");
  CHECK(said("{\"text\": 1, \"text\": \"the last counts\"}") == "");
  CHECK(said("{\"text\": \"x\", \"text\": 1}") == at + "expected text under 'text', found a number");
  CHECK(said("{\"text\": null}") == at + "expected text under 'text', found null");
  CHECK(said("{\"text\": {\"text\": \"x\"}}") == at + "expected text under 'text', found an object");
  CHECK(said("{\"text\": [\"x\"]}") == at + "expected text under 'text', found an array");
  CHECK(said("{\"txt\": \"x\", \"a\": {\"text\": \"x\"}}") ==
        at + "no key 'text' in '{\"txt\": \"x\", \"a\": {\"text\": \"x\"}}'");
  CHECK(said("[1]") == at + "expected an object, found an array: '[1]'");
  CHECK(said("\"text\"") == at + "expected an object, found text: '\"text\"'");
  CHECK_THAT(said("{\"text\": \"x\""), Catch::Matchers::StartsWith(at + "not JSON, byte 13 of '{\"text\": \"x\"': "));
  CHECK_THAT(said("{\"text\": \"\xff\"}"), Catch::Matchers::StartsWith(at + "not JSON, byte 11 of"));
  CHECK_THAT(said("{\"text\": \"\\ud800\"}"), Catch::Matchers::StartsWith(at + "not JSON, byte 17 of"));
  CHECK_THAT(said("{\"text\": \"x\", \"n\": 1e999}"), Catch::Matchers::StartsWith(at + "not JSON"));
  CHECK_THAT(said(std::string(1000000, '[')), Catch::Matchers::Contains("an array"));
  CHECK_THAT(said("{\"a\": " + std::string(1000000, '[')), Catch::Matchers::StartsWith(at + "not JSON"));
}
