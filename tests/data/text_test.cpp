#include "lib/data/text.h"

#include <zlib.h>

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

std::string message(const std::vector<std::string>& inputs) {
  try {
    for (const auto& path : find_documents(system_files(), inputs)) read_document(system_files(), path);
    return "";
  } catch (const Error& e) {
    CHECK(e.code() == ExitCode::data);
    return e.what();
  }
}

}  // namespace

TEST_CASE("documents are found by their names, sorted, in directories below") {
  const Temporary t;
  put(t / "x/b.txt", "b");
  put(t / "x/a.md", "a");
  put(t / "x/c.bin", "no");
  put(t / "x/sub/d.rst", "d");
  put(t / "x/txt", "no");
  put_gz(t / "x/e.txt.gz", std::string(100000, 'e'));
  CHECK(find_documents(system_files(), {t / "x/"}) ==
        std::vector<std::string>{t / "x/a.md", t / "x/b.txt", t / "x/e.txt.gz", t / "x/sub/d.rst"});
  CHECK(find_documents(system_files(), {t / "x/b.txt", t / "x/sub"}).size() == 2);
  CHECK(read_document(system_files(), t / "x/e.txt.gz") == std::string(100000, 'e'));
  put_gz(t / "x/e.txt.gz", "more", "ab");  // a second member
  CHECK(read_document(system_files(), t / "x/e.txt.gz") == std::string(100000, 'e') + "more");
}

TEST_CASE("inputs that cannot be read are named") {
  const Temporary t;
  put(t / "a.bin", "x");
  put(t / "bad.txt.gz", "this is not gzip at all");
  system_files().make_directory(t / "empty");
  CHECK(message({t / "absent"}) == t / "absent" + ": no such file or directory");
  CHECK(message({t / "a.bin"}) == t / "a.bin" + ": not text that is read; .txt, .md, .rst and .gz of them are");
  CHECK(message({t / "empty"}) == "no .txt, .md or .rst file, or .gz of one, in the inputs");
  CHECK(message({t / "bad.txt.gz"}) == t / "bad.txt.gz" + ": damaged: incorrect header check");
  put_gz(t / "cut.txt.gz", std::string(10000, 'x') + "end");
  std::string bytes = read_file(system_files(), t / "cut.txt.gz");
  put(t / "cut.txt.gz", bytes.substr(0, bytes.size() / 2));
  CHECK(message({t / "cut.txt.gz"}) == t / "cut.txt.gz" + ": it ends too early");
  put(t / "nothing.txt.gz", "");
  CHECK(message({t / "nothing.txt.gz"}) == t / "nothing.txt.gz" + ": it ends too early");
  bytes[bytes.size() - 6] = static_cast<char>(bytes[bytes.size() - 6] ^ 1);
  put(t / "sum.txt.gz", bytes);
  CHECK(message({t / "sum.txt.gz"}) == t / "sum.txt.gz" + ": damaged: incorrect data check");
}
