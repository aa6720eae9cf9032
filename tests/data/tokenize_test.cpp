#include "lib/data/tokenize.h"

#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <random>

#include "lib/comm/world.h"
#include "lib/tokenizer/bpe_trainer.h"
#include "tests/data/temporary.h"
#include "tests/support/catch.h"
#include "tests/support/faulty_files.h"

using namespace dstrain;
using dstrain::test::FaultyFiles;
using dstrain::test::full_disk;

namespace {

void put(const std::string& path, const std::string& bytes) {
  system_files().make_directory(parent_path(path));
  system_files().open(path, OpenMode::replace)->pwrite(std::as_bytes(std::span(bytes)), 0);
}

std::string words(std::mt19937_64& random, std::size_t n) {
  static const char* const kWords[] = {"the", "quick", "brown", "fox", "jumps", "\xc3\xa9t\xc3\xa9", "12", "x\ty"};
  std::string out;
  for (std::size_t i = 0; i < n; ++i) out += std::string(i ? " " : "") + kWords[random() % 8];
  return out;
}

Tokenizer small_tokenizer() {
  BpeTrainer trainer(Split::gpt2);
  std::mt19937_64 random(1);
  trainer.add(words(random, 2000));
  return trainer.train(300);
}

// A few hundred documents in text and JSON lines, some empty, one larger than a unit.
struct Corpus {
  Temporary directory;
  std::vector<std::string> texts;  // what is no white space, in order
  Index empty = 0;

  explicit Corpus(int documents = 400) {
    std::mt19937_64 random(5);
    std::string lines, paragraphs;
    for (int d = 0; d < documents; ++d) {
      std::string text = d % 37 == 0 ? " " : words(random, 1 + random() % 300);
      if (d == 150) text = words(random, 100000);
      lines += "{\"id\": " + std::to_string(d) + ", \"text\": \"";
      for (const char c : text) lines += c == '\t' ? std::string("\\t") : std::string(1, c);
      lines += "\"}\n";
      if (d % 37 == 0)
        ++empty;
      else
        texts.push_back(text);
    }
    for (int d = 0; d < documents; ++d) {
      texts.push_back(words(random, 1 + random() % 100));
      paragraphs += texts.back() + "\n\n";
    }
    put(directory / "in/a.jsonl", lines);
    put(directory / "in/b.txt", paragraphs);
  }
  TokenizeOptions options(const std::string& name) const {
    return {.texts = find_text(system_files(), {directory / "in"}),
            .rule = DocumentRule::blank_line,
            .out = directory / name + "/train",
            .eval_out = directory / name + "/eval",
            .eval_fraction = 0.1,
            .tokens_per_file = 20000};
  }
};

TokenizeResult run(const Tokenizer& tokenizer, const TokenizeOptions& options, int ranks = 1, int threads = 1,
                   const Files& files = system_files()) {
  TokenizeResult result;
  std::mutex mutex;
  run_threads(ranks, [&](World& world) {
    std::vector<int> members;
    for (int r = 0; r < ranks; ++r) members.push_back(r);
    const auto group = world.group(Poster::loader, GroupKind::control, members);
    TokenizeResult mine = tokenize(files, tokenizer, options, threads, *group, {});
    const std::lock_guard lock(mutex);
    if (world.rank() == 0) result = mine;
  });
  return result;
}

// Name -> bytes of everything in a directory, the state file aside: it names other prefixes.
std::map<std::string, std::string> contents(const std::string& directory) {
  std::map<std::string, std::string> out;
  for (const auto& name : system_files().list(directory))
    if (!name.ends_with(".state.json")) out[name] = read_file(system_files(), directory + "/" + name);
  return out;
}

std::string error_of(const std::function<void()>& body, ExitCode code) {
  try {
    body();
  } catch (const Error& e) {
    CHECK(static_cast<int>(e.code()) == static_cast<int>(code));
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("token files hold the encoded documents in order, each on its side") {
  const Corpus corpus;
  const Tokenizer tokenizer = small_tokenizer();
  const TokenizeOptions options = corpus.options("one");
  const TokenizeResult result = run(tokenizer, options);
  Encoder encoder(tokenizer);
  std::vector<std::int32_t> expected[2], found[2];
  Index documents[2] = {0, 0};
  std::uint64_t bytes[2] = {0, 0};
  std::map<Index, Index> lengths;
  for (const std::string& text : corpus.texts) {
    const int side = held_out(text, options.eval_fraction);
    const std::size_t before = expected[side].size();
    encoder.encode(text, expected[side]);
    expected[side].push_back(tokenizer.end_of_document());
    ++documents[side];
    bytes[side] += text.size();
    for (Index n = 1;; n *= 2)
      if (static_cast<Index>(expected[side].size() - before) < 2 * n) {
        ++lengths[n];
        break;
      }
  }
  const SideStatistics* const sides[2] = {&result.statistics.train, &result.statistics.eval};
  Index counted = 0;
  for (const int side : {0, 1}) {
    const SideStatistics& s = *sides[side];
    for (const std::string& path : s.files) {
      TokenFile file(system_files(), path);
      file.verify();
      const std::size_t at = found[side].size();
      found[side].resize(at + static_cast<std::size_t>(file.tokens()));
      file.read(0, std::span(found[side]).subspan(at));
    }
    CHECK(found[side] == expected[side]);
    CHECK(s.documents == documents[side]);
    CHECK(s.tokens == static_cast<Index>(expected[side].size()));
    CHECK(s.bytes == bytes[side]);
    for (std::size_t i = 0; i < s.lengths.size(); ++i) counted += s.lengths[i];
  }
  for (const auto& [from, n] : lengths) {
    const auto i = static_cast<std::size_t>(std::bit_width(static_cast<std::uint64_t>(from)) - 1);
    CHECK(sides[0]->lengths[i] + sides[1]->lengths[i] == n);
  }
  CHECK(counted == documents[0] + documents[1]);
  CHECK(result.statistics.empty == corpus.empty);
  CHECK(sides[0]->files.size() > 3);
  CHECK(documents[1] > 20);
}

TEST_CASE("any number of ranks and threads writes the same bytes") {
  const Corpus corpus;
  const Tokenizer tokenizer = small_tokenizer();
  run(tokenizer, corpus.options("one"));
  const auto expected = contents(corpus.directory / "one");
  CHECK(expected.size() > 5);
  for (const int ranks : {1, 2, 4})
    for (const int threads : {1, 2, 4}) {
      const std::string name = format("r{}t{}", ranks, threads);
      INFO(name);
      run(tokenizer, corpus.options(name), ranks, threads);
      CHECK(contents(corpus.directory / name) == expected);
    }
}

TEST_CASE("a run that stopped goes on to the bytes of one that did not") {
  const Corpus corpus;
  const Tokenizer tokenizer = small_tokenizer();
  run(tokenizer, corpus.options("one"));
  const auto expected = contents(corpus.directory / "one");
  const std::string whole = corpus.directory / "one";
  // As a kill leaves it: the first k files of each side, and a partial one.
  for (const int k : {0, 1, 2, 5})
    for (const int ranks : {1, 3}) {
      const std::string name = format("k{}r{}", k, ranks), directory = corpus.directory / name;
      const TokenizeOptions options = corpus.options(name);
      const FaultyFiles full(system_files(), full_disk(4));
      CHECK(error_of([&] { run(tokenizer, options, ranks, 2, full); }, ExitCode::write) != "");
      REQUIRE(system_files().exists(directory + "/train.state.json"));
      for (const auto& entry : contents(directory)) system_files().remove(directory + "/" + entry.first);
      for (int i = 0; i < k; ++i)
        put(directory + format("/train-{:05}.h5", i), expected.at(format("train-{:05}.h5", i)));
      put(directory + format("/train-{:05}.h5.partial", k), "half a file");
      if (k == 5) put(directory + "/eval-00000.h5", expected.at("eval-00000.h5"));
      const TokenizeResult result = run(tokenizer, options, ranks, 2);
      CHECK((result.resumed > 0) == (k > 0));
      CHECK(contents(directory) == expected);
      // And once more: nothing is left to do.
      const TokenizeResult again = run(tokenizer, options, ranks, 2);
      CHECK(again.complete);
      CHECK(again.statistics.train.tokens == result.statistics.train.tokens);
      CHECK(again.statistics.train.lengths == result.statistics.train.lengths);
      CHECK(contents(directory) == expected);
    }
}

TEST_CASE("a run does not go on with other inputs or options") {
  const Corpus corpus(60);
  const Tokenizer tokenizer = small_tokenizer();
  const TokenizeOptions options = corpus.options("run");
  run(tokenizer, options);
  const std::string state = corpus.directory / "run/train.state.json: ";
  const auto said = [&](const std::function<void(TokenizeOptions&)>& change) {
    TokenizeOptions other = options;
    change(other);
    return error_of([&] { run(tokenizer, other, 2); }, ExitCode::usage);
  };
  const std::string advice = "; give the same, or remove the state and its token files, or choose another prefix";
  CHECK(said([](auto& o) { o.eval_fraction = 0.5; }) ==
        "rank 0: " + state + "eval_fraction is 0.1 here and 0.5 in this command" + advice);
  CHECK(said([](auto& o) { o.key = "body"; }) ==
        "rank 0: " + state + "key is \"text\" here and \"body\" in this command" + advice);
  CHECK_THAT(said([](auto& o) { o.rule = DocumentRule::file; }), Catch::Matchers::Contains("documents is"));
  CHECK_THAT(said([](auto& o) { o.tokens_per_file = 7; }), Catch::Matchers::Contains("tokens_per_file is 20000"));
  CHECK_THAT(said([](auto& o) { o.texts.pop_back(); }),
             Catch::Matchers::Contains("the number of inputs is 2 here and 1"));
  CHECK_THAT(said([](auto& o) { ++o.texts[1].bytes; }), Catch::Matchers::Contains("input 1 is"));
  // Without the state the files are somebody's.
  system_files().remove(corpus.directory / "run/train.state.json");
  CHECK_THAT(error_of([&] { run(tokenizer, options); }, ExitCode::write),
             Catch::Matchers::Contains("exists; remove it"));
  // A state without files binds nobody.
  for (const auto& name : system_files().list(corpus.directory / "run"))
    system_files().remove(corpus.directory / "run/" + name);
  put(corpus.directory / "run/train.state.json", "{\"format\": 1, \"key\": \"body\", \"inp");
  CHECK(run(tokenizer, options).statistics.train.documents > 0);
}

TEST_CASE("an error in a document ends every rank with the same words") {
  const Corpus corpus(300);
  const Tokenizer tokenizer = small_tokenizer();
  std::string lines = read_file(system_files(), corpus.directory / "in/a.jsonl");
  lines += "{\"text\": 3}\n{\"text\": 4}\n";
  put(corpus.directory / "in/a.jsonl", lines);
  for (const int ranks : {1, 3}) {
    const std::string name = format("bad{}", ranks);
    CHECK(error_of([&] { run(tokenizer, corpus.options(name), ranks, 2); }, ExitCode::data) ==
          (ranks > 1 ? "rank 0: " : "") +
              corpus.directory / "in/a.jsonl: line 301: expected text under 'text', found a number");
    // What was finished stays, what was not is gone.
    for (const auto& [file, bytes] : contents(corpus.directory / name)) CHECK(file.ends_with(".h5"));
  }
}

TEST_CASE("a disk that fails at any write leaves whole files, and the next run the right ones") {
  const Corpus corpus(60);
  const Tokenizer tokenizer = small_tokenizer();
  run(tokenizer, corpus.options("one"));
  const auto expected = contents(corpus.directory / "one");
  const FaultyFiles counting(system_files(), full_disk(1000000));
  run(tokenizer, corpus.options("count"), 1, 1, counting);
  const int total = counting.calls();
  CHECK(total > 12);
  for (int k = 0; k < total; k += 3) {
    INFO("after write " << k << " of " << total);
    const std::string name = format("f{}", k);
    const FaultyFiles full(system_files(), full_disk(k));
    const std::string said = error_of([&] { run(tokenizer, corpus.options(name), 2, 1, full); }, ExitCode::write);
    CHECK(said != "");
    run(tokenizer, corpus.options(name), 2, 1);
    CHECK(contents(corpus.directory / name) == expected);
  }
}
