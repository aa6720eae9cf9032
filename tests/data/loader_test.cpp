#include "lib/data/loader.h"

#include <map>
#include <mutex>
#include <random>

#include "lib/comm/world.h"
#include "tests/data/temporary.h"
#include "tests/support/catch.h"

using namespace dstrain;

namespace {

constexpr TokenFileInfo kInfo{42, 500, 0};
constexpr Index kT = 16;

// Two sources, the first of several files.
struct Corpus {
  Temporary directory;
  std::vector<DataSource> patterns;
  std::vector<std::vector<std::int32_t>> streams{2};

  Corpus() {
    std::mt19937_64 random(8);
    for (std::size_t s = 0; s < 2; ++s) {
      const std::string prefix = directory / (s == 0 ? "a" : "b");
      TokenWriter writer(system_files(), prefix, kInfo, s == 0 ? 200 : kTokensPerFile);
      for (int d = 0; d < (s == 0 ? 12 : 5); ++d) {
        std::vector<std::int32_t> document(random() % 90);
        for (auto& t : document) t = static_cast<std::int32_t>(1 + random() % 499);
        writer.add(document);
        streams[s].insert(streams[s].end(), document.begin(), document.end());
        streams[s].push_back(0);
      }
      REQUIRE((writer.finish().size() > 1) == (s == 0));
      patterns.push_back({prefix + "-*.h5"});
    }
  }
  TokenSources open() const { return TokenSources(system_files(), patterns, 512); }
};

// Writes the token file at `path`, of less than a block, anew with other document offsets, as many as it had.
void replace_offsets(const std::string& path, const std::vector<std::int64_t>& offsets) {
  std::vector<std::uint16_t> tokens;
  {
    const Hdf5File old = Hdf5File::open(system_files(), path);
    const Hdf5Dataset stored = old.open_dataset("tokens");
    tokens.resize(static_cast<std::size_t>(stored.shape()[0]));
    stored.read(std::as_writable_bytes(std::span(tokens)));
  }
  Hdf5File f = Hdf5File::create(system_files(), path, OpenMode::replace);
  const auto put = [&](const char* name, Hdf5Type type, const auto& v) {
    f.create_dataset(name, type, {static_cast<Index>(v.size())}).write(std::as_bytes(std::span(v)));
  };
  put("tokens", Hdf5Type::u16, tokens);
  put("document_offsets", Hdf5Type::i64, offsets);
  put("block_checksums", Hdf5Type::u64, std::vector{xxh3(std::as_bytes(std::span(tokens)))});
  f.write_attribute("/", "format_version", kTokenFormat);
  f.write_attribute("/", "vocab_size", std::int64_t{kInfo.vocab_size});
  f.write_attribute("/", "end_of_document_id", std::int64_t{kInfo.end_of_document});
  f.write_attribute("/", "token_count", static_cast<std::int64_t>(tokens.size()));
  f.write_attribute("/", "document_count", static_cast<std::int64_t>(offsets.size()) - 1);
  f.write_attribute("/", "tokenizer_hash", hex(kInfo.tokenizer_hash));
  f.close()->close();
}

// A row of a step, to be compared: sample id, tokens, targets, weights.
struct Row {
  Index sample;
  std::vector<std::int32_t> tokens, targets;
  std::vector<float> weights;
  bool operator==(const Row&) const = default;
};

std::vector<Row> rows_of(const StepData& step) {
  std::vector<Row> out;
  for (const Batch& b : step.batches) {
    REQUIRE(b.rows() == b.batch * b.length);
    for (Index r = 0; r < b.batch; ++r) {
      const auto part = [&](auto* p) { return std::vector(p + r * b.length, p + (r + 1) * b.length); };
      out.push_back({b.sample_ids.as<std::int64_t>()[r], part(b.tokens.as<std::int32_t>()),
                     part(b.targets.as<std::int32_t>()), part(b.loss_weights.as<float>())});
      for (Index i = 0; i < b.length; ++i) {
        REQUIRE(b.positions.as<std::int32_t>()[r * b.length + i] == i);
        REQUIRE(b.row_sample_ids.as<std::int64_t>()[r * b.length + i] == out.back().sample);
      }
    }
  }
  return out;
}

// What the row of a sample must be, from the streams alone.
Row expected_row(const Corpus& corpus, const Sampler& sampler, Index sample) {
  const Sample s = sampler.locate(sample);
  const auto& stream = corpus.streams[static_cast<std::size_t>(s.source)];
  Row row{sample, {}, {}, {}};
  for (Index i = 0; i < kT; ++i) {
    const auto at = static_cast<std::size_t>(s.begin + i);
    row.tokens.push_back(at < stream.size() ? stream[at] : 0);
    row.targets.push_back(at + 1 < stream.size() ? stream[at + 1] : 0);
    row.weights.push_back(at + 1 < stream.size() ? 1.0f : 0.0f);
  }
  return row;
}

}  // namespace

TEST_CASE("data ranks share a step without overlap, and know its count", "[loader]") {
  const Corpus corpus;
  for (const int ranks : {1, 2, 4}) {
    std::mutex mutex;
    std::map<Index, std::map<Index, Row>> steps;  // cursor -> sample -> row
    std::map<Index, std::vector<Index>> counts;
    const Index global = 8;
    run_threads(ranks, [&](World& world) {
      TokenSources sources = corpus.open();
      const Sampler sampler(sources.tokens(), kT, 3, true);
      std::vector<int> members;
      for (int r = 0; r < ranks; ++r) members.push_back(r);
      const auto group = world.group(Poster::loader, GroupKind::replica, members);
      Loader loader(sources, sampler,
                    {.global_batch = global, .micro_batch = 2, .data_ranks = ranks, .data_rank = world.rank()},
                    group.get());
      for (Index cursor = 0; cursor < 3 * sampler.samples(); cursor += global) {
        const StepData& step = loader.next(cursor);
        const std::lock_guard lock(mutex);
        CHECK(step.cursor == cursor);
        CHECK(static_cast<int>(step.batches.size()) == 4 / ranks);
        CHECK(step.wait_seconds >= 0);
        Index sample = cursor + world.rank() * (global / ranks);
        for (const Row& row : rows_of(step)) {
          CHECK(row.sample == sample++);
          CHECK(row == expected_row(corpus, sampler, row.sample));
          CHECK(steps[cursor].emplace(row.sample, row).second);
        }
        counts[cursor].push_back(step.valid_tokens);
      }
      world.group(Poster::compute, GroupKind::control, members);
    });
    for (const auto& [cursor, rows] : steps) {
      CHECK(rows.size() == static_cast<std::size_t>(global));
      float valid = 0;
      for (const auto& [sample, row] : rows)
        for (const float w : row.weights) valid += w;
      CHECK(counts[cursor] == std::vector<Index>(static_cast<std::size_t>(ranks), static_cast<Index>(valid)));
    }
  }
}

TEST_CASE("any cursor can be asked for, and views stay valid until the call after the next", "[loader]") {
  const Corpus corpus;
  TokenSources sources = corpus.open();
  const Sampler sampler(sources.tokens(), kT, 3, true);
  Loader loader(sources, sampler, {.global_batch = 4, .micro_batch = 2}, nullptr);
  std::vector<Row> previous;
  const StepData* before = nullptr;
  for (const Index cursor : {0, 4, 8, 100, 104, 104, 0, 7, 11, 1000000, 1000004, 12}) {
    const StepData& step = loader.next(cursor);
    if (before) CHECK(rows_of(*before) == previous);
    previous = rows_of(step);
    before = &step;
    for (std::size_t i = 0; i < previous.size(); ++i)
      CHECK(previous[i] == expected_row(corpus, sampler, cursor + static_cast<Index>(i)));
  }
}

TEST_CASE("an evaluation reads every held-out token once, in order, and pads its last step", "[loader]") {
  const Corpus corpus;
  TokenSources sources = corpus.open();
  const Sampler sampler(sources.tokens(), kT, 3, false);
  const Index global = 8;
  Index valid = 0;
  for (int rank = 0; rank < 2; ++rank) {
    BatchReader reader(
        sources, sampler,
        {.global_batch = global, .micro_batch = 2, .data_ranks = 2, .data_rank = rank, .end = sampler.samples()});
    StepData step;
    Buffer memory;
    for (Index cursor = 0; cursor < sampler.samples(); cursor += global) {
      reader.read(cursor, step, memory);
      valid += step.valid_tokens;
      for (const Row& row : rows_of(step))
        if (row.sample >= sampler.samples()) CHECK(row.weights == std::vector<float>(kT, 0.0f));
    }
  }
  CHECK(valid == static_cast<Index>(corpus.streams[0].size() + corpus.streams[1].size()) - 2);
}

TEST_CASE("what the loader's thread meets surfaces in next(), again and again", "[loader]") {
  const Corpus corpus;
  TokenSources sources = corpus.open();
  // The sampler is told of more tokens than the first source holds, as if the file had shrunk.
  auto tokens = sources.tokens();
  tokens[0] += 100 * kT;
  const Sampler sampler(tokens, kT, 3, false);
  Loader loader(sources, sampler, {.global_batch = 2, .micro_batch = 2}, nullptr);
  loader.next(0);
  const Index bad = corpus.streams[0].size() / kT + 2;
  CHECK_THROWS_AS(loader.next(bad), Error);
  CHECK_THROWS_AS(loader.next(0), Error);
}

TEST_CASE("sources must fit each other and the model", "[loader]") {
  const Corpus corpus;
  CHECK_THROWS_WITH(TokenSources(system_files(), corpus.patterns, 499),
                    corpus.patterns[0].path + ": its vocabulary of 500 is larger than model.vocab_size: 499");
  TokenWriter writer(system_files(), corpus.directory / "c", {43, 500, 0});
  writer.add(std::vector<std::int32_t>{1, 2});
  writer.finish();
  CHECK_THROWS_AS(TokenSources(system_files(), {corpus.patterns[0], {corpus.directory / "c-*.h5"}}, 512), Error);
  CHECK_THROWS_AS(TokenSources(system_files(), {}, 512), Error);
}

TEST_CASE("a weighted mixture is the same on any number of data ranks, from any cursor", "[loader]") {
  Corpus corpus;
  corpus.patterns[0].weight = 1;
  corpus.patterns[1].weight = 3;
  TokenSources sources = corpus.open();
  const Sampler sampler = sources.sampler(kT, 3, true);
  std::vector<Row> expected;
  int of_second = 0;
  for (Index i = 0; i < 64; ++i) {
    expected.push_back(expected_row(corpus, sampler, i));
    of_second += static_cast<int>(sampler.locate(i).source);
  }
  CHECK(of_second == 48);
  for (const int ranks : {1, 2, 4})
    for (const Index start : {0, 8, 40})
      for (int rank = 0; rank < ranks; ++rank) {
        BatchReader reader(sources, sampler,
                           {.global_batch = 8, .micro_batch = 2, .data_ranks = ranks, .data_rank = rank});
        StepData step;
        Buffer memory;
        reader.read(start, step, memory);
        Index sample = start + rank * (8 / ranks);
        for (const Row& row : rows_of(step)) CHECK(row == expected[static_cast<std::size_t>(sample++)]);
      }
}

TEST_CASE("with a document mask documents stand alone in a sample", "[loader]") {
  const Corpus corpus;
  TokenSources sources = corpus.open();
  const Sampler sampler = sources.sampler(kT, 3, true);
  const Index global = 4;
  bool border = false;
  Index all = 0;
  for (Index cursor = 0; cursor < sampler.samples(); cursor += global) {
    BatchReader reader(sources, sampler, {.global_batch = global, .micro_batch = 2, .document_mask = true});
    StepData step;
    Buffer memory;
    reader.read(cursor, step, memory);
    Index sample = cursor, valid = 0;
    for (const Batch& b : step.batches)
      for (Index r = 0; r < b.batch; ++r, ++sample) {
        const Sample s = sampler.locate(sample);
        const auto& stream = corpus.streams[static_cast<std::size_t>(s.source)];
        Index first = 0;  // of the document, or of what is left of it
        for (Index i = 0; i < kT; ++i) {
          const Index at = s.begin + i;
          const auto token = [&](Index k) { return stream[static_cast<std::size_t>(k)]; };
          // Only ends of documents are 0.
          const bool padding = i >= s.tokens, predicts = i + 1 < s.tokens && token(at) != 0;
          if ((i > 0 && i < s.tokens && token(at - 1) == 0) || i == s.tokens) first = i;
          border = border || (first > 0 && !padding);
          const Index row = r * kT + i;
          INFO("sample " << sample << ", position " << i);
          REQUIRE(b.tokens.as<std::int32_t>()[row] == (padding ? 0 : token(at)));
          REQUIRE(b.positions.as<std::int32_t>()[row] == i - first);
          REQUIRE(b.first_keys.as<std::int32_t>()[row] == first);
          REQUIRE(b.loss_weights.as<float>()[row] == (predicts ? 1.0f : 0.0f));
          if (predicts) REQUIRE(b.targets.as<std::int32_t>()[row] == token(at + 1));
          valid += predicts;
        }
      }
    CHECK(step.valid_tokens == valid);
    all += valid;
  }
  CHECK(border);
  // The last step reaches into the next epoch.
  const Index end = (sampler.samples() + global - 1) / global * global;
  CHECK(predicted_tokens(sources, sampler, 0, end, true) == all);
}

TEST_CASE("with a document mask a document that does not begin behind an end of document is refused", "[loader]") {
  const Temporary t;
  TokenWriter writer(system_files(), t / "d", kInfo);
  for (int d = 0; d < 4; ++d) writer.add(std::vector<std::int32_t>{5, 6, 7});
  const std::string path = writer.finish()[0];
  const auto said = [&](bool document_mask) -> std::string {
    TokenSources sources(system_files(), {{path}}, 512);
    const Sampler sampler = sources.sampler(kT, 3, true);
    BatchReader reader(sources, sampler, {.global_batch = 1, .micro_batch = 1, .document_mask = document_mask});
    StepData step;
    Buffer memory;
    try {
      reader.read(0, step, memory);
      return "";
    } catch (const Error& e) {
      CHECK(e.code() == ExitCode::data);
      return e.what();
    }
  };
  CHECK(said(true) == "");
  replace_offsets(path, {0, 4, 7, 12, 16});
  CHECK(said(true) ==
        path + ": document 1 ends with token 7, expected 0; document_offsets are not those of the tokens");
  CHECK(said(false) == "");
}

TEST_CASE("the fingerprint covers the documents where they are asked for, and only there", "[loader]") {
  const Temporary t;
  // Ids of the end of a document stand inside documents too: only the offsets tell the two cuts apart.
  TokenWriter writer(system_files(), t / "d", kInfo);
  writer.add(std::vector<std::int32_t>{5, 0, 7, 0, 9});
  writer.add(std::vector<std::int32_t>{5});
  const std::string path = writer.finish()[0];
  const auto of = [&](bool documents) { return TokenSources(system_files(), {{path}}, 512, documents).fingerprint(); };
  const std::string plain = of(false), masked = of(true);
  CHECK(plain == hex(xxh3(hex(TokenSource(system_files(), path).fingerprint()))));
  CHECK(masked != plain);
  CHECK(masked == of(true));
  replace_offsets(path, {0, 2, 8});
  CHECK(of(false) == plain);
  CHECK(of(true) != masked);
  for (const auto& [offsets, says] :
       {std::pair<std::vector<std::int64_t>, const char*>{{1, 6, 8}, ": document_offsets[0] is 1, expected 0"},
        {{0, 9, 8}, ": document_offsets[1] is 9 after 0, of 8 tokens"},
        {{0, 6, 7}, ": document_offsets[2], the last, is 7 of 8 tokens"}}) {
    replace_offsets(path, offsets);
    CHECK_THROWS_WITH(of(true), path + says);
    CHECK(of(false) == plain);
  }
}

TEST_CASE("a step without a token to predict is an error", "[loader]") {
  const Temporary t;
  TokenWriter writer(system_files(), t / "e", kInfo);
  for (int d = 0; d < 100; ++d) writer.add({});
  writer.finish();
  TokenSources sources(system_files(), {{t / "e-*.h5"}}, 512);
  const Sampler sampler = sources.sampler(kT, 3, false);
  Loader loader(sources, sampler, {.global_batch = 2, .micro_batch = 2, .document_mask = true}, nullptr);
  CHECK_THROWS_WITH(loader.next(0), "the step at sample 0 has no token to predict: its documents have one token each");
}

TEST_CASE("epochs bound how often a source is read", "[loader]") {
  Corpus corpus;
  corpus.patterns[0] = {corpus.patterns[0].path, 1, 2};
  corpus.patterns[1] = {corpus.patterns[1].path, 3, 0};
  TokenSources sources = corpus.open();
  const Sampler sampler = sources.sampler(kT, 3, true);
  const Index most = 4 * 2 * sampler.samples(0);  // a fourth of the samples are of the first source
  sources.require_epochs(sampler, most, 0, "data.train", "it");
  try {
    sources.require_epochs(sampler, most + 8, 0, "data.train", "training.steps: 7");
    FAIL("no error");
  } catch (const Error& e) {
    CHECK(e.code() == ExitCode::data);
    const double read = 2 + 2.0 / static_cast<double>(sampler.samples(0));
    // The last sample of the bound's share is not the first source's.
    CHECK_THAT(e.what(), Catch::Matchers::Contains(format(
                             "data.train[0] {}: training.steps: 7 read it {:.3f} times, and its epochs are 2.000",
                             corpus.patterns[0].path, read)));
    Index largest = most + 8;
    while (sampler.epochs(largest)[0] > 2) --largest;
    CHECK_THAT(e.what(), Catch::Matchers::Contains(format("; {} samples are the most", largest)));
  }
  // An evaluation reads its sources once unless told otherwise.
  CHECK_THROWS_AS(sources.require_epochs(sampler, most, 1, "data.eval", "it"), Error);
}

TEST_CASE("the fingerprint of the tokens covers the weights, and is as before without them", "[loader]") {
  Corpus corpus;
  const TokenSources plain = corpus.open();
  CHECK(plain.fingerprint() == hex(xxh3(hex(plain.sources[0]->fingerprint()) + hex(plain.sources[1]->fingerprint()))));
  const auto with = [&](double a, double b) {
    corpus.patterns[0].weight = a;
    corpus.patterns[1].weight = b;
    return corpus.open().fingerprint();
  };
  CHECK(with(1, 3) != plain.fingerprint());
  CHECK(with(1, 3) == with(2, 6));
  CHECK(with(1, 3) != with(1, 2));
}
