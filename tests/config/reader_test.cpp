#include "lib/config/reader.h"

#include <cstring>

#include "lib/config/writer.h"
#include "lib/config/yaml.h"
#include "tests/support/catch.h"

using namespace dstrain;

namespace {

constexpr const char* kBase =
    "run: {dir: r}\n"
    "model: {vocab_size: 64, hidden_size: 32, num_hidden_layers: 4, num_attention_heads: 4, intermediate_size: 64}\n"
    "training: {steps: 10, sequence_length: 16, global_batch_size: 8, micro_batch_size: 2}\n";

// The report of a job file, or "" when it is accepted.
std::string report(const std::string& text, const std::vector<std::string>& overrides = {}) {
  try {
    parse_config(system_files(), "job.yaml", text, overrides);
    return "";
  } catch (const Error& e) {
    CHECK(e.code() == ExitCode::usage);
    return e.what();
  }
}

struct Case {
  const char* added;  // below the base, from line 4
  const char* expected;
};

}  // namespace

TEST_CASE("each mistake in a job file has its own words and place") {
  const Case cases[] = {
      // keys
      {"optimizer:\n  wieght_decay: 0.1\n",
       "job.yaml:5:3: optimizer.wieght_decay: unknown key; did you mean 'weight_decay'?"},
      {"optimiser: {}\n", "job.yaml:4:1: optimiser: unknown key; did you mean 'optimizer'?"},
      {"optimizer: {warmup_steps: 3}\n",
       "job.yaml:4:13: optimizer.warmup_steps: unknown key; did you mean 'lr_schedule.warmup_steps'?"},
      {"zebra: 1\n", "job.yaml:4:1: zebra: unknown key"},
      {"optimizer: {lr: 1.0, lr: 2.0}\n", "job.yaml:4:22: optimizer.lr: given twice; first at 4:13"},
      {"eval: {every: 0}\neval: {every: 0}\n", "job.yaml:5:1: eval: given twice; first at 4:1"},
      {"optimizer: {shard: state}\n", "job.yaml:4:13: optimizer.shard: not in this version: sharded optimizer state"},
      {"moe: {experts: 8}\n", "job.yaml:4:7: moe.experts: unknown key"},
      {"eval:\n", "job.yaml:4:1: eval: no keys under it; leave it out, or write {}"},
      {"eval: 3\n", "job.yaml:4:1: eval: expected a mapping of keys to values"},
      {"eval: [every]\n", "job.yaml:4:1: eval: expected a mapping of keys to values"},
      {"? [a, b]\n: 1\n", "job.yaml:4:3: a key must be a name, not a list or a mapping; is a bracket left open?"},
      {"eval: {~: 1}\n", "job.yaml:4:8: eval: a key must be a name"},
      // YAML that is not taken
      {"eval: &e {every: 1}\n",
       "job.yaml:4:7: eval: anchors (&name) are not accepted; write the value where it is used"},
      {"eval: {every: &e 1, samples: *e}\n",
       "job.yaml:4:15: eval.every: anchors (&name) are not accepted; write the value where it is used\n"
       "job.yaml:4:21: eval.samples: no value; leave the key out to take the default\n"
       "job.yaml:4:30: eval.samples: aliases (*name) are not accepted; write the value out"},
      {"eval: {every: !!int 1}\n",
       "job.yaml:4:8: eval.every: expected an integer, found the text \"1\"\n"
       "job.yaml:4:15: eval.every: tags (tag:yaml.org,2002:int) are not accepted"},
      {"eval: {<<: {every: 1}}\n", "job.yaml:4:8: eval.<<: merge keys are not accepted; write the keys out"},
      {"---\neval: {}\n", "job.yaml:5:1: more than one document; a job file is one"},
      {"eval: {every: 1\n", "job.yaml:5:1: not valid YAML: end of map flow not found"},
      {"run: \x01\n", "job.yaml:4:6: a control character"},
      {"run: \xff\n", "job.yaml:4:6: not UTF-8 text"},
      // integers
      {"eval: {every: 010}\n",
       "job.yaml:4:8: eval.every: expected an integer, found '010'; no leading zeros: some readers take them for "
       "octal"},
      {"eval: {every: 0x10}\n", "job.yaml:4:8: eval.every: expected an integer, found '0x10'; numbers are decimal"},
      {"eval: {every: 1_000}\n", "job.yaml:4:8: eval.every: expected an integer, found '1_000'; no '_' between digits"},
      {"eval: {every: 1e3}\n", "job.yaml:4:8: eval.every: expected an integer, found '1e3'"},
      {"eval: {every: 1.0}\n", "job.yaml:4:8: eval.every: expected an integer, found '1.0'"},
      {"eval: {every: \"1\"}\n", "job.yaml:4:8: eval.every: expected an integer, found the text \"1\""},
      {"eval: {every: }\n", "job.yaml:4:8: eval.every: no value; leave the key out to take the default"},
      {"eval: {every: ~}\n", "job.yaml:4:8: eval.every: no value; leave the key out to take the default"},
      {"eval: {every: [1]}\n", "job.yaml:4:8: eval.every: expected an integer, found a list"},
      {"eval: {every: {a: 1}}\n", "job.yaml:4:8: eval.every: expected an integer, found a mapping"},
      {"eval: {every: -1}\n",
       "job.yaml:4:8: eval.every: -1 is out of range; expected an integer in [0, 1000000000000]"},
      {"eval: {every: 99999999999999999999}\n",
       "job.yaml:4:8: eval.every: 99999999999999999999 is out of range; expected an integer in [0, 1000000000000]"},
      {"parallel: {context: 2}\n",
       "job.yaml:4:12: parallel.context: 2 is out of range; expected an integer that is 1: context parallelism is not "
       "in "
       "this version"},
      // numbers
      {"optimizer: {lr: .nan}\n", "job.yaml:4:13: optimizer.lr: expected a number, found '.nan'; numbers are finite"},
      {"optimizer: {lr: -.inf}\n", "job.yaml:4:13: optimizer.lr: expected a number, found '-.inf'; numbers are finite"},
      {"optimizer: {lr: .5}\n",
       "job.yaml:4:13: optimizer.lr: expected a number, found '.5'; a digit on both sides of the point"},
      {"optimizer: {lr: 1e999}\n",
       "job.yaml:4:13: optimizer.lr: 1e999 is out of range; expected a number in [0, 1000]"},
      {"optimizer: {lr: fast}\n", "job.yaml:4:13: optimizer.lr: expected a number, found 'fast'"},
      {"optimizer: {eps: 0}\n", "job.yaml:4:13: optimizer.eps: 0 is out of range; expected a number in [1e-30, 1]"},
      {"optimizer: {betas: [0.9]}\n", "job.yaml:4:13: optimizer.betas: expected a list of 2 numbers, found 1"},
      {"optimizer: {betas: 0.9}\n", "job.yaml:4:13: optimizer.betas: expected a list of 2 numbers, found '0.9'"},
      {"optimizer: {betas: [0.9, 1]}\n",
       "job.yaml:4:26: optimizer.betas[1]: 1 is out of range; expected a number in [0, 0.99999]"},
      // true and false
      {"checkpoint: {async: yes}\n", "job.yaml:4:14: checkpoint.async: expected true or false, found 'yes'"},
      {"checkpoint: {async: 1}\n", "job.yaml:4:14: checkpoint.async: expected true or false, found '1'"},
      {"checkpoint: {async: True}\n", "job.yaml:4:14: checkpoint.async: expected true or false, found 'True'"},
      // text
      {"data: {tokenizer: 12}\n",
       "job.yaml:4:8: data.tokenizer: expected text, found '12', which reads as a number; put it in quotes"},
      {"data: {tokenizer: 0o14}\n",
       "job.yaml:4:8: data.tokenizer: expected text, found '0o14', which reads as a number; put it in quotes"},
      {"data: {tokenizer: 1_000.5}\n",
       "job.yaml:4:8: data.tokenizer: expected text, found '1_000.5', which reads as a number; put it in quotes"},
      {"data: {tokenizer: Off}\n",
       "job.yaml:4:8: data.tokenizer: expected text, found 'Off', which reads as true or false; put it in quotes"},
      {"data: {tokenizer: \"\"}\n", "job.yaml:4:8: data.tokenizer: expected text of 1 to 4096 bytes, found 0"},
      {"data: {tokenizer: \"a\\nb\"}\n", "job.yaml:4:8: data.tokenizer: a control character in text"},
      {"data: {tokenizer: [a]}\n", "job.yaml:4:8: data.tokenizer: expected text, found a list"},
      {"lr_schedule: {type: cosin}\n",
       "job.yaml:4:15: lr_schedule.type: expected one of constant, cosine, wsd, found 'cosin'; did you mean 'cosine'?"},
      {"precision: {compute: bf16}\n",
       "job.yaml:4:13: precision.compute: expected one of float32, bfloat16, found 'bf16'"},
      {"guard: {on_nonfinite: warn}\n",
       "job.yaml:4:9: guard.on_nonfinite: expected one of abort, skip, rollback, found 'warn'"},
      // lists of files
      {"data: {train: a.h5}\n", "job.yaml:4:8: data.train: expected a list of paths, found 'a.h5'"},
      {"data: {train: [3]}\n",
       "job.yaml:4:16: data.train[0]: expected text, found '3', which reads as a number; put it in quotes"},
      {"data: {train: [{path: a, weight: 0}]}\n",
       "job.yaml:4:26: data.train[0].weight: 0 is out of range; expected a number in [1e-06, 1000000]"},
      {"data: {train: [{path: a, epochs: -1.5}]}\n",
       "job.yaml:4:26: data.train[0].epochs: -1.5 is out of range; expected a number in (0, 1000000]"},
      {"data: {train: [{path: a, colour: 2}]}\n",
       "job.yaml:4:26: data.train[0].colour: unknown key; path, weight and epochs are known here"},
      {"data: {train: [{paht: a}]}\n",
       "job.yaml:4:16: data.train[0].path: missing: a path or a glob of token files\n"
       "job.yaml:4:17: data.train[0].paht: unknown key; did you mean 'path'?"},
  };
  for (const Case& c : cases) {
    INFO(c.added);
    CHECK(report(std::string(kBase) + c.added) == c.expected);
  }
  CHECK(report(kBase) == "");
}

TEST_CASE("mistakes are reported together, sorted by place") {
  CHECK(report("training: {stepps: 1, sequence_length: yes}\nmodel: {type: gpt3}\n") ==
        "job.yaml:1:1: run.dir: missing\n"
        "job.yaml:1:1: training.steps: missing\n"
        "job.yaml:1:1: training.global_batch_size: missing\n"
        "job.yaml:1:1: training.micro_batch_size: missing\n"
        "job.yaml:1:12: training.stepps: unknown key; did you mean 'steps'?\n"
        "job.yaml:1:23: training.sequence_length: expected an integer, found 'yes'\n"
        "job.yaml:2:1: model.vocab_size: missing\n"
        "job.yaml:2:1: model.hidden_size: missing\n"
        "job.yaml:2:1: model.num_hidden_layers: missing\n"
        "job.yaml:2:1: model.num_attention_heads: missing\n"
        "job.yaml:2:9: model.type: expected one of llama, gpt2, deepseek_v2, deepseek_v3, found 'gpt3'; did you mean "
        "'gpt2'?");
  CHECK(report("") == "job.yaml:1:1: the file is empty; a job file has at least run, model and training");
  CHECK(report("- a\n") == "job.yaml:1:1: expected sections (run, model, ...), found a list or a value");
}

TEST_CASE("limits of size, depth and number hold") {
  CHECK(report(std::string(kYamlBytes + 1, ' ')) == "job.yaml:1:1: 1048577 bytes; at most 1048576 are accepted");
  const std::string deep = "eval: " + std::string(40, '[') + std::string(40, ']') + "\n";
  CHECK(report(kBase + deep).find("nested deeper than 32 levels") != std::string::npos);
  std::string many = "data: {train: [";
  for (int i = 0; i < 10001; ++i) many += "a,";
  CHECK(report(kBase + many + "]}\n").find("more than 10000 values") != std::string::npos);
  std::string unknown;
  for (int i = 0; i < 300; ++i) unknown += "zz" + std::to_string(i) + ": 1\n";
  CHECK(report(kBase + unknown).find("\n... and 200 more") != std::string::npos);
  // Whatever costs a YAML reader time, in a file as long as is accepted.
  for (const char* unit : {"[",    "{",    "- ", "? ", "a: ", "\"", "'",   "&a ",  "*a ", "!a ", ": ",          "[a,",
                           "{a: ", "|\n ", "%",  "#",  "\n",  "\t", "a\n", "- - ", "\\",  ",",   "x: &a [*a]\n"}) {
    std::string text;
    while (text.size() + std::strlen(unit) <= kYamlBytes / 16) text += unit;
    INFO(unit);
    CHECK(report(text) != "");
  }
}

TEST_CASE("overrides win over the file, the later over the earlier, with the file's words for mistakes") {
  const Loaded loaded = parse_config(
      system_files(), "job.yaml", std::string(kBase) + "optimizer: {lr: 0.5}\n",
      {"optimizer.lr=0.25", "optimizer.lr=0.125", "data.train=[a.h5, {path: b.h5, weight: 2.5, epochs: 3}]",
       "optimizer.betas=[0.5, 0.75]", "run.name=x y"});
  CHECK(loaded.config.optimizer.lr == 0.125);
  CHECK(loaded.config.optimizer.betas == std::vector<double>{0.5, 0.75});
  REQUIRE(loaded.config.data.train.size() == 2);
  CHECK(loaded.config.data.train[0].weight == 0);
  CHECK(loaded.config.data.train[1].path == "b.h5");
  CHECK(loaded.config.data.train[1].weight == 2.5);
  CHECK(loaded.config.data.train[1].epochs == 3);
  // What is printed reads back.
  const Loaded again = parse_config(system_files(), "job.yaml", to_yaml(loaded.config), {});
  CHECK(again.config.data.train[0].path == "a.h5");
  CHECK(again.config.data.train[1].weight == 2.5);
  CHECK(again.config.data.train[1].epochs == 3);
  CHECK(loaded.config.run.name == "x y");
  CHECK(loaded.origin("optimizer.lr").text == "override 'optimizer.lr=0.125'");
  CHECK(loaded.origin("training.steps").text == "job.yaml:3:12");
  CHECK(loaded.origin("training.steps").line == 3);
  CHECK(loaded.origin("optimizer.eps").text == "default");

  const std::pair<const char*, const char*> cases[] = {
      {"optimizer.lr=x", "override 'optimizer.lr=x': optimizer.lr: expected a number, found 'x'"},
      {"optimizer.rl=1", "override 'optimizer.rl=1': optimizer.rl: unknown key; did you mean 'lr'?"},
      {"lr=1", "override 'lr=1': lr: unknown key; did you mean 'optimizer.lr'?"},
      {"optimizer={lr: 1}", "override 'optimizer={lr: 1}': optimizer: a section; name one of its keys"},
      {"lr", "override 'lr': expected section.key=value"},
      {"=1", "override '=1': expected section.key=value"},
      {"optimizer.lr=", "override 'optimizer.lr=': optimizer.lr: no value; leave the key out to take the default"},
      {"optimizer.lr=[",
       "override 'optimizer.lr=[': a key must be a name, not a list or a mapping; is a bracket left open?"},
      {"eval.every=*a", "override 'eval.every=*a': not valid YAML: the referenced anchor is not defined"},
      {"optimizer.lr.x=1", "override 'optimizer.lr.x=1': optimizer.lr.x: unknown key"},
  };
  for (const auto& [text, expected] : cases) {
    const std::string all = report(kBase, {text});
    CHECK(all.substr(0, all.find('\n')) == expected);
  }
  CHECK(report("run: {dri: r}\n" + std::string(kBase).substr(14), {"optimizer.lr=x", "moe.x=1"}) ==
        "job.yaml:1:1: run.dir: missing\n"
        "job.yaml:1:7: run.dri: unknown key; did you mean 'dir'?\n"
        "override 'optimizer.lr=x': optimizer.lr: expected a number, found 'x'\n"
        "override 'moe.x=1': moe.x: unknown key");
}

TEST_CASE("a file that cannot be read is one clear error") {
  try {
    load_config(system_files(), "/nonexistent/job.yaml", {});
    FAIL("accepted");
  } catch (const Error& e) {
    CHECK(e.code() == ExitCode::usage);
    CHECK(std::string(e.what()) == "cannot open /nonexistent/job.yaml: No such file or directory");
  }
}

TEST_CASE("numbers are read by one grammar and written so that they read back") {
  const Loaded loaded =
      parse_config(system_files(), "job.yaml", kBase,
                   {"run.seed=18446744073709551615", "optimizer.lr=+1.25e-2", "optimizer.weight_decay=1e-300",
                    "eval.every=+7", "run.name='a \"quoted\" \\n back\\slash \xc3\xa9'"});
  CHECK(loaded.config.run.seed == 18446744073709551615ull);
  CHECK(loaded.config.optimizer.lr == 0.0125);
  CHECK(loaded.config.optimizer.weight_decay == 1e-300);
  CHECK(loaded.config.eval.every == 7);
  CHECK(loaded.config.run.name == "a \"quoted\" \\n back\\slash \xc3\xa9");
  CHECK(report(kBase, {"run.seed=18446744073709551616"}) != "");
  CHECK(report(kBase, {"run.seed=-1"}) != "");
  const std::string text = to_yaml(loaded.config);
  const Config again = parse_config(system_files(), "x", text, {}).config;
  CHECK(to_yaml(again) == text);
  CHECK(again.run.name == loaded.config.run.name);
  CHECK(again.optimizer.weight_decay == loaded.config.optimizer.weight_decay);
}
