// A packed batch under a document mask has the loss and the gradients of its documents alone.

#include "lib/layers/host_batch.h"
#include "tests/support/catch.h"
#include "tests/support/devices.h"
#include "tests/train/tiny_run.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

// Token files of documents of 0 to 20 tokens: several a sample of 13, and some longer than one.
std::vector<std::vector<std::int32_t>> write_documents(const std::string& prefix, int count) {
  TokenWriter writer(system_files(), prefix, {.tokenizer_hash = 1, .vocab_size = kVocabulary, .end_of_document = 0},
                     200);
  std::vector<std::vector<std::int32_t>> documents;
  for (int d = 0; d < count; ++d) {
    const Philox generator = philox(static_cast<std::uint64_t>(d), "documents");
    std::vector<std::int32_t>& document = documents.emplace_back(generator(0, 0)[0] % 21);
    for (std::size_t i = 0; i < document.size(); ++i)
      document[i] = static_cast<std::int32_t>(1 + generator(1, i)[0] % (kVocabulary - 1));
    writer.add(document);
    document.push_back(0);
  }
  writer.finish();
  return documents;
}

std::string data_override(const std::string& prefix) { return format("data.train=['{}-*.h5']", prefix); }

// What of each document falls into each of the step's samples: from the documents alone, and the sampler's order.
std::vector<std::vector<std::int32_t>> fragments_of(const std::vector<std::vector<std::int32_t>>& documents,
                                                    const Sampler& sampler) {
  std::vector<std::int32_t> stream;
  for (const auto& d : documents) stream.insert(stream.end(), d.begin(), d.end());
  std::vector<std::vector<std::int32_t>> out;
  for (Index i = 0; i < kSamples; ++i) {
    const Sample s = sampler.locate(i);
    out.emplace_back();
    for (Index k = 0; k < s.tokens; ++k) {
      out.back().push_back(stream[static_cast<std::size_t>(s.begin + k)]);
      if (out.back().back() == 0 && k + 1 < s.tokens) out.emplace_back();
    }
  }
  return out;
}

struct Outcome {
  double eval_loss = 0, train_loss = 0, valid = 0;
  std::map<std::string, NamedTensor> gradients;
};

// One fragment a sample, alone, on one rank.
Outcome alone(const std::string& model, const std::vector<std::vector<std::int32_t>>& fragments) {
  Outcome out;
  const auto n = static_cast<Index>(fragments.size());
  const Config config = tiny_job(model, 1, 1, 1, 1, {format("training.global_batch_size={}", n)});
  std::vector<HostBatch> host;
  std::vector<Batch> batches;
  host.reserve(fragments.size());
  for (const auto& fragment : fragments) {
    HostBatch& b = host.emplace_back(1, kLength);
    for (std::size_t i = 0; i < fragment.size() && i < b.tokens.size(); ++i) {
      b.tokens[i] = fragment[i];
      if (i + 1 == fragment.size()) continue;
      b.targets[i] = fragment[i + 1];
      b.loss_weights[i] = 1;
      ++out.valid;
    }
    batches.push_back(b.view());
  }
  run_threads(1, [&](World& world) {
    const auto engine = make_engine(config, world, Mesh(mesh_sizes(config.parallel)), Device::cpu, 1);
    engine->initialize(config.run.seed);
    out.eval_loss = engine->evaluate(batches) / out.valid;
    out.train_loss = engine->gradients(batches, out.valid, false).loss;
    collect_owned(
        engine->stage().model(), [&](const Param& p) { return engine->gradient(p); }, out.gradients);
  });
  return out;
}

// The job's own batches under a mesh, as the loader makes them.
Outcome packed(const Config& config) {
  Outcome out;
  std::mutex mutex;
  const Mesh mesh(mesh_sizes(config.parallel));
  run_threads(mesh.ranks(), [&](World& world) {
    const Device device = run_device(config);
    use_device(config, world, device);
    const auto engine = make_engine(config, world, mesh, device, 1);
    engine->initialize(config.run.seed);
    TokenSources sources(system_files(), config.data.train, config.model.vocab_size);
    const Sampler sampler = train_sampler(config, sources);
    BatchReader reader(sources, sampler, data_plan(config, engine->coordinates(), -1, device == Device::cuda));
    StepData step;
    Buffer memory;
    reader.read(0, step, memory);
    const auto valid = static_cast<double>(
        predicted_tokens(sources, sampler, 0, config.training.global_batch_size, config.data.document_mask));
    const double eval = engine->evaluate(step.batches) / valid;
    const double train = engine->gradients(step.batches, valid, false).loss;
    const std::lock_guard lock(mutex);
    out.eval_loss = eval;
    out.train_loss = train;
    out.valid = valid;
    if (engine->coordinates().data == 0)
      collect_owned(
          engine->stage().model(), [&](const Param& p) { return engine->gradient(p); }, out.gradients);
  });
  return out;
}

}  // namespace

TEST_CASE("a packed and masked batch has the loss and gradients of its documents alone, under every mesh", "[mask]") {
  const TemporaryDirectory directory;
  const auto documents = write_documents(directory / "documents", 40);
  const std::string data = data_override(directory / "documents");
  for (const int m : {0, 1, 2}) {  // without dropout
    const TinyModel& model = tiny_models()[static_cast<std::size_t>(m)];
    const Config one = tiny_job(model.yaml, 1, 1, 1, 8, {data, "data.document_mask=true"});
    TokenSources sources(system_files(), one.data.train, one.model.vocab_size);
    const auto fragments = fragments_of(documents, train_sampler(one, sources));
    REQUIRE(fragments.size() > kSamples + 10);
    const Outcome expected = alone(model.yaml, fragments);
    for (const std::string& device : test_devices()) {
      const auto job = [&](int d, int t, int p, const char* mask) {
        return tiny_job(model.yaml, d, t, p, std::max<Index>(1, kSamples / d / (p > 1 ? 3 : 1)),
                        {data, std::string("data.document_mask=") + mask, "run.device=" + device});
      };
      // The mask is what makes them equal.
      CHECK(std::fabs(packed(job(1, 1, 1, "false")).eval_loss - expected.eval_loss) > 1e-3);
      int meshes = 0;
      for (const int ranks : {1, 2, 3, 4, 6, 8})
        for (int t = 1; t <= ranks; ++t)
          for (int p = 1; t * p <= ranks; ++p) {
            if (ranks % (t * p) != 0 || !fits(model, t, p)) continue;
            const int d = ranks / (t * p);
            ++meshes;
            INFO(model.name << " on " << device << ": data " << d << ", tensor " << t << ", pipeline " << p);
            const Outcome ours = packed(job(d, t, p, "true"));
            CHECK(ours.valid == expected.valid);
            CHECK(std::fabs(ours.eval_loss - expected.eval_loss) <= 1e-6);
            CHECK(std::fabs(ours.train_loss - expected.train_loss) <= 1e-6);
            REQUIRE(ours.gradients.size() == expected.gradients.size());
            for (const auto& [name, gradient] : expected.gradients) {
              INFO(name);
              CHECK(relative_error(ours.gradients.at(name), gradient) <=
                    gradient_tolerance(model.layers, static_cast<Index>(fragments.size()) * kLength));
            }
          }
      CHECK(meshes >= 16);
    }
  }
}
