#include "lib/config/resolve.h"

#include <algorithm>
#include <functional>
#include <tuple>

#include "lib/config/values.h"

namespace dstrain {

namespace {

using std::int64_t;

// Values in [1, limit] nearest to `value` that satisfy `good`: the next above and below. "" when there are none.
std::string neighbours(int64_t value, int64_t limit, const std::function<bool(int64_t)>& good) {
  constexpr int64_t kSearch = 100000;
  std::string above, below;
  for (int64_t v = std::max<int64_t>(value + 1, 1); v <= std::min(limit, value + kSearch) && above.empty(); ++v)
    if (good(v)) above = format("{}", v);
  for (int64_t v = std::min(value - 1, limit); v >= std::max<int64_t>(1, value - kSearch) && below.empty(); --v)
    if (good(v)) below = format("{}", v);
  if (above.empty() && below.empty()) return "";
  return format("; did you mean {}?", above.empty() ? below : below.empty() ? above : above + " or " + below);
}

class Rules {
 public:
  explicit Rules(const Loaded& loaded) : loaded_(loaded) {}

  // The value with its place, for the second half of a message: "model.num_attention_heads: 16 (job.yaml:2:80)".
  std::string with_place(const std::string& key, const std::string& value) const {
    return format("{}: {} ({})", key, value, loaded_.origin(key).text);
  }
  std::string with_place(const std::string& key, int64_t value) const { return with_place(key, format("{}", value)); }

  const std::string& place(const std::string& key) const { return loaded_.origin(key).text; }

  void broken(const std::string& key, const std::string& message) {
    const Origin& o = loaded_.origin(key);
    std::string place = o.text;
    if (o.kind == Origin::Kind::defaulted) place = loaded_.path;
    lines_.push_back({static_cast<int>(o.kind), o.line, o.column,
                      format("{}: {}: {}{}", place, key, message,
                             o.kind == Origin::Kind::defaulted ? " (" + key + " is the default)" : "")});
  }
  // `key` must divide `of`; the values suggested satisfy `also` as well.
  void divides(
      const std::string& key, int64_t value, const std::string& of, int64_t total,
      const std::function<bool(int64_t)>& also = [](int64_t) { return true; }) {
    if (total % value == 0) return;
    broken(key, format("{} does not divide {}{}", value, with_place(of, total),
                       neighbours(value, total, [&](int64_t v) { return total % v == 0 && also(v); })));
  }
  void at_most(const std::string& key, int64_t value, const std::string& of, int64_t limit) {
    if (value > limit) broken(key, format("{} is more than {}", value, with_place(of, limit)));
  }
  void throw_if_any() {
    if (lines_.empty()) return;
    std::stable_sort(lines_.begin(), lines_.end(), [](const Line& a, const Line& b) {
      return std::tie(a.kind, a.line, a.column) < std::tie(b.kind, b.line, b.column);
    });
    std::string text;
    for (const auto& l : lines_) text += (text.empty() ? "" : "\n") + l.text;
    throw Error(ExitCode::usage, text);
  }

 private:
  struct Line {
    int kind, line, column;
    std::string text;
  };
  const Loaded& loaded_;
  std::vector<Line> lines_;
};

void resolve_mesh(Config& c, int ranks, Rules& rules) {
  ParallelConfig& p = c.parallel;
  const int64_t fixed = p.tensor * p.context * p.pipeline;
  const std::string product =
      format("parallel.tensor * context * pipeline: {} * {} * {} = {}", p.tensor, p.context, p.pipeline, fixed);
  if (p.data == 0) {
    if (ranks % fixed == 0) {
      p.data = ranks / fixed;
      return;
    }
    const std::string key = p.tensor > 1 ? "parallel.tensor" : "parallel.pipeline";
    const int64_t below = ranks / fixed * fixed;
    rules.broken(key, format("{} ranks cannot be shared out: {} does not divide {}; start {}{} ranks", ranks, product,
                             ranks, below > 0 ? format("{} or ", below) : "", below + fixed));
    p.data = 1;
    return;
  }
  if (p.data * fixed == ranks) return;
  rules.broken("parallel.data",
               format("{} times {} makes {} ranks, but there are {}; start {} ranks{}", p.data, product, p.data * fixed,
                      ranks, p.data * fixed, ranks % fixed == 0 ? format(", or set it to {}", ranks / fixed) : ""));
}

// Latent attention and experts. What Hugging Face's models compute without saying so is refused.
void resolve_deepseek(ModelConfig& m, const ParallelConfig& p, Rules& rules) {
  const auto needed = [&](const char* key, int64_t value) {
    if (value == 0) rules.broken(std::string("model.") + key, format("missing; {} has no default", m.type));
  };
  needed("kv_lora_rank", m.kv_lora_rank);
  m.head_dim = m.qk_nope_head_dim + m.qk_rope_head_dim;
  m.num_key_value_heads = m.num_attention_heads;
  if (m.qk_rope_head_dim % 2 != 0)
    rules.broken("model.qk_rope_head_dim", format("{} elements cannot be rotated in pairs", m.qk_rope_head_dim));
  if (m.head_dim > 256)
    rules.broken("model.qk_nope_head_dim",
                 format("a head of width {} with its rotated part; at most 256 are supported", m.head_dim));
  if (m.first_k_dense_replace >= m.num_hidden_layers + m.num_nextn_predict_layers) return;
  needed("n_routed_experts", m.n_routed_experts);
  needed("moe_intermediate_size", m.moe_intermediate_size);
  needed("num_experts_per_tok", m.num_experts_per_tok);
  if (m.n_routed_experts == 0 || m.num_experts_per_tok == 0) return;
  rules.at_most("model.topk_group", m.topk_group, "model.n_group", m.n_group);
  rules.divides("model.n_group", m.n_group, "model.n_routed_experts", m.n_routed_experts);
  const int64_t size = m.n_routed_experts / m.n_group;
  const bool grouped = m.type == "deepseek_v3" || m.topk_method == "group_limited_greedy";
  const int64_t open = grouped ? size * m.topk_group : m.n_routed_experts;
  if (m.num_experts_per_tok > open)
    rules.broken("model.num_experts_per_tok",
                 format("{} is more than the {} experts of {} groups", m.num_experts_per_tok, open, m.topk_group));
  rules.divides("parallel.tensor", p.tensor, "model.moe_intermediate_size", m.moe_intermediate_size);
  rules.divides("parallel.expert", p.expert, "model.n_routed_experts", m.n_routed_experts,
                [&](int64_t n) { return m.n_routed_experts % n == 0 && p.data % n == 0; });
  rules.divides("parallel.expert", p.expert, "parallel.data", p.data,
                [&](int64_t n) { return m.n_routed_experts % n == 0 && p.data % n == 0; });
}

void resolve_model(ModelConfig& m, const ParallelConfig& p, const Loaded& loaded, Rules& rules) {
  const std::string heads = "model.num_attention_heads", kv = "model.num_key_value_heads";
  if (m.deepseek()) resolve_deepseek(m, p, rules);
  if ((m.rope_type == "yarn" || m.rope_type == "llama3") && m.rope_original_max_position_embeddings == 0)
    m.rope_original_max_position_embeddings = m.max_position_embeddings;
  if (m.rope_type == "llama3" && m.rope_high_freq_factor <= m.rope_low_freq_factor)
    rules.broken("model.rope_high_freq_factor",
                 format("{} is not more than {}", real_text(m.rope_high_freq_factor),
                        rules.with_place("model.rope_low_freq_factor", real_text(m.rope_low_freq_factor))));
  if (p.expert > 1 && (!m.deepseek() || m.first_k_dense_replace >= m.num_hidden_layers))
    rules.broken("parallel.expert", format("{} ranks have no experts to share: no layer of {} has any", p.expert,
                                           rules.with_place("model.type", m.type)));
  const bool llama = m.type != "gpt2";
  if (m.head_dim == 0) {
    if (m.hidden_size % m.num_attention_heads != 0)
      rules.broken(heads, format("{} does not divide {}{}{}", m.num_attention_heads,
                                 rules.with_place("model.hidden_size", m.hidden_size),
                                 neighbours(m.num_attention_heads, m.hidden_size,
                                            [&](int64_t v) {
                                              return m.hidden_size % v == 0 && v % p.tensor == 0 &&
                                                     (!llama || m.hidden_size / v % 2 == 0);
                                            }),
                                 llama ? " Or give model.head_dim" : ""));
    m.head_dim = std::max<int64_t>(1, m.hidden_size / m.num_attention_heads);
  }
  if (m.head_dim > 256 && !m.deepseek())
    rules.broken(heads, format("a head of width {}; at most 256 are supported", m.head_dim));
  if (m.type == "llama" && m.head_dim % 2 != 0 && m.hidden_size % m.num_attention_heads == 0)
    rules.broken(loaded.origin("model.head_dim").kind == Origin::Kind::defaulted ? heads : "model.head_dim",
                 format("a head of width {} cannot be rotated; the rotary embedding needs an even one", m.head_dim));
  if (m.num_key_value_heads == 0) m.num_key_value_heads = m.num_attention_heads;
  rules.divides(kv, m.num_key_value_heads, heads, m.num_attention_heads);
  if (m.intermediate_size == 0) {
    if (llama) rules.broken("model.intermediate_size", format("missing; {} has no default", m.type));
    m.intermediate_size = 4 * m.hidden_size;
  }
  if (m.hidden_act.empty()) m.hidden_act = llama ? "silu" : "gelu_new";
  if (llama != (m.hidden_act == "silu"))
    rules.broken("model.hidden_act", format("{} is not an activation of model.type {}; {}", m.hidden_act, m.type,
                                            llama ? "silu is" : "gelu_new, gelu_pytorch_tanh and gelu are"));

  const auto tensor_fits = [&](int64_t t) {
    return m.num_attention_heads % t == 0 && m.intermediate_size % t == 0 &&
           (m.num_key_value_heads % t == 0 || t % m.num_key_value_heads == 0);
  };
  rules.divides("parallel.tensor", p.tensor, heads, m.num_attention_heads, tensor_fits);
  if (m.num_key_value_heads != m.num_attention_heads && m.num_key_value_heads % p.tensor != 0 &&
      p.tensor % m.num_key_value_heads != 0)
    rules.broken("parallel.tensor", format("{} neither divides nor is a multiple of {}{}", p.tensor,
                                           rules.with_place(kv, m.num_key_value_heads),
                                           neighbours(p.tensor, m.num_attention_heads, tensor_fits)));
  rules.divides("parallel.tensor", p.tensor, "model.intermediate_size", m.intermediate_size, tensor_fits);
  rules.at_most("parallel.pipeline", p.pipeline, "model.num_hidden_layers", m.num_hidden_layers);
}

void resolve_training(const Config& c, Rules& rules) {
  const TrainingConfig& t = c.training;
  const std::string global = "training.global_batch_size";
  const int64_t step = c.parallel.data * t.micro_batch_size;
  if (t.global_batch_size % step != 0) {
    const int64_t whole = t.global_batch_size / step * step;
    rules.broken(
        global,
        format("{} is not a multiple of parallel.data * training.micro_batch_size: {} * {} = {} ({}); did you "
               "mean {}{}?",
               t.global_batch_size, c.parallel.data, t.micro_batch_size, step, rules.place("training.micro_batch_size"),
               whole + step, whole > 0 ? format(" or {}", whole) : ""));
  }
  rules.at_most("training.sequence_length", t.sequence_length, "model.max_position_embeddings",
                c.model.max_position_embeddings);

  const LrScheduleConfig& s = c.lr_schedule;
  rules.at_most("lr_schedule.warmup_steps", s.warmup_steps, "training.steps", t.steps);
  if (s.type == "wsd") {
    if (s.decay_steps == 0)
      rules.broken("lr_schedule.decay_steps", "missing; wsd needs the number of steps in which lr falls");
    else if (s.warmup_steps + s.decay_steps > t.steps)
      rules.broken("lr_schedule.decay_steps", format("{} and {} together are more than {}", s.decay_steps,
                                                     rules.with_place("lr_schedule.warmup_steps", s.warmup_steps),
                                                     rules.with_place("training.steps", t.steps)));
  } else if (s.decay_steps != 0) {
    rules.broken("lr_schedule.decay_steps",
                 format("only wsd has decay steps, not {}", rules.with_place("lr_schedule.type", s.type)));
  }
  if (s.min_lr > c.optimizer.lr)
    rules.broken("lr_schedule.min_lr", format("{} is more than {}", real_text(s.min_lr),
                                              rules.with_place("optimizer.lr", real_text(c.optimizer.lr))));
  if (c.eval.every > 0 && c.data.eval.empty())
    rules.broken("eval.every", "there is nothing to evaluate on; data.eval names no file");
}

// Weights are given to all entries of a list or to none.
void resolve_sources(const std::string& key, const std::vector<DataSource>& sources, Rules& rules) {
  const auto weighted = [](const DataSource& s) { return s.weight > 0; };
  const auto n = std::count_if(sources.begin(), sources.end(), weighted);
  if (n == 0 || n == static_cast<std::ptrdiff_t>(sources.size())) return;
  const auto without = std::find_if_not(sources.begin(), sources.end(), weighted);
  rules.broken(
      key, format("{} has no weight, and other entries have one; give all entries a weight, or none", without->path));
}

void resolve_precision(const Config& c, Rules& rules) {
  const PrecisionConfig& p = c.precision;
  if (p.master == "split" && p.compute != "bfloat16")
    rules.broken("precision.master", format("split keeps the low bits of a bfloat16 weight, not with {}",
                                            rules.with_place("precision.compute", p.compute)));
  if (p.gradients == "bfloat16") {
    if (p.compute != "bfloat16")
      rules.broken("precision.gradients",
                   format("bfloat16 has no meaning with {}", rules.with_place("precision.compute", p.compute)));
    const TrainingConfig& t = c.training;
    const int64_t step = c.parallel.data * t.micro_batch_size;
    if (t.global_batch_size > step)
      rules.broken("precision.gradients",
                   format("bfloat16 would round the sum again with every micro-batch; a step must be one: {} is more "
                          "than parallel.data: {} times {} = {}",
                          rules.with_place("training.global_batch_size", t.global_batch_size), c.parallel.data,
                          rules.with_place("training.micro_batch_size", t.micro_batch_size), step));
  }
  if (p.tf32 && p.compute != "float32")
    rules.broken("precision.tf32",
                 format("true has no meaning with {}", rules.with_place("precision.compute", p.compute)));
  const std::vector<double>& steps = c.profile.steps;
  if (steps.size() == 2 && steps[0] > steps[1])
    rules.broken("profile.steps",
                 format("the first step, {}, comes after the last, {}", real_text(steps[0]), real_text(steps[1])));
}

// Keys that mean nothing for the chosen model are refused, not ignored.
struct Meaningless {
  const Loaded& loaded;
  Rules& rules;
  std::string current;

  void section(const char* name, const char*) { current = name; }
  template <class T>
  void field(const Key& key, T&) {
    const std::string path = current + "." + key.name;
    const auto kind = loaded.origin(path).kind;
    if (has_meaning(key, loaded.config.model.type)) return;
    if (kind == Origin::Kind::file || kind == Origin::Kind::overridden)
      rules.broken(path, format("only model.type {} has it, not {}", key.model_type,
                                rules.with_place("model.type", loaded.config.model.type)));
  }
};

}  // namespace

Config resolve(const Loaded& loaded, int ranks) {
  check(ranks >= 1, "resolve for {} ranks", ranks);
  Config c = loaded.config;
  Rules rules(loaded);
  Meaningless meaningless{loaded, rules, ""};
  visit_fields(c, meaningless);
  resolve_mesh(c, ranks, rules);
  resolve_model(c.model, c.parallel, loaded, rules);
  resolve_training(c, rules);
  resolve_sources("data.train", c.data.train, rules);
  resolve_sources("data.eval", c.data.eval, rules);
  if (!c.data.eval.empty() && c.data.eval[0].weight > 0 && c.eval.samples == 0)
    rules.broken("data.eval", "weights mix the samples of an evaluation; eval.samples must say how many they are");
  resolve_precision(c, rules);
  rules.throw_if_any();
  c.model.from.clear();
  return c;
}

}  // namespace dstrain
