#pragma once
// The job: structs with their defaults. Every key is declared once more, with constraint and help, in fields.h.
// Model keys are Hugging Face's config.json keys. Pure data, no behaviour.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace dstrain {

struct RunConfig {
  std::string name = "run";
  std::string dir;  // run directory; required
  std::uint64_t seed = 1;
  std::string device = "auto";  // auto, cpu, cuda
  int threads = 0;              // a rank; 0: the cores it is bound to, else the host's divided by its ranks
  bool deterministic = true;
};

constexpr std::int64_t kMostMtpDepths = 8;

struct ModelConfig {
  std::string from;            // path of a config.json; then the keys below come from it and those given here override
  std::string weights;         // safetensors file or directory: initial weights of a run
  std::string type = "llama";  // llama, gpt2, deepseek_v2, deepseek_v3
  std::int64_t vocab_size = 0;
  std::int64_t hidden_size = 0;
  std::int64_t num_hidden_layers = 0;
  std::int64_t num_attention_heads = 0;
  std::int64_t num_key_value_heads = 0;  // 0: num_attention_heads
  std::int64_t head_dim = 0;             // 0: hidden_size / num_attention_heads
  std::int64_t intermediate_size = 0;    // gpt2: 0 means 4 * hidden_size
  std::int64_t max_position_embeddings = 2048;
  double rms_norm_eps = 1e-6;        // llama, deepseek
  double layer_norm_epsilon = 1e-5;  // gpt2
  double rope_theta = 10000.0;       // llama, deepseek
  std::string hidden_act;            // "": silu for llama, gelu_new for gpt2
  bool tie_word_embeddings = false;
  std::int64_t pad_token_id = -1;  // llama, deepseek: its row of the embedding is not trained; -1: none
  bool attention_bias = false;     // llama, deepseek
  bool mlp_bias = false;           // llama
  double initializer_range = 0.02;
  double resid_pdrop = 0.0;                      // gpt2
  double embd_pdrop = 0.0;                       // gpt2
  double attn_pdrop = 0.0;                       // gpt2
  bool scale_attn_weights = true;                // gpt2
  bool scale_attn_by_inverse_layer_idx = false;  // gpt2
  // deepseek_v2 and deepseek_v3
  std::int64_t q_lora_rank = 0;  // 0: queries straight from the hidden state
  std::int64_t kv_lora_rank = 0;
  std::int64_t qk_nope_head_dim = 128;
  std::int64_t qk_rope_head_dim = 64;
  std::int64_t v_head_dim = 128;
  std::int64_t first_k_dense_replace = 1;
  std::int64_t moe_intermediate_size = 0;
  std::int64_t n_routed_experts = 0;
  std::int64_t n_shared_experts = 1;
  std::int64_t num_experts_per_tok = 0;
  std::int64_t n_group = 1;
  std::int64_t topk_group = 1;
  bool norm_topk_prob = true;          // deepseek_v3
  std::string topk_method = "greedy";  // deepseek_v2: greedy, group_limited_greedy
  double routed_scaling_factor = 1.0;
  bool rope_interleave = true;  // deepseek_v3
  // llama, deepseek_v2 and deepseek_v3
  std::string rope_type = "default";  // default, linear, dynamic, yarn, llama3
  double rope_factor = 1.0;
  std::int64_t rope_original_max_position_embeddings = 0;  // 0: max_position_embeddings
  double rope_beta_fast = 32.0;
  double rope_beta_slow = 1.0;
  double rope_mscale = 0.0;            // 0: not given
  double rope_mscale_all_dim = 0.0;    // 0: not given
  double rope_attention_factor = 0.0;  // 0: not given
  bool rope_truncate = true;
  double rope_low_freq_factor = 1.0;
  double rope_high_freq_factor = 4.0;
  std::int64_t num_nextn_predict_layers = 0;  // deepseek_v3: depths of multi-token prediction; 0: off

  bool deepseek() const { return type == "deepseek_v2" || type == "deepseek_v3"; }
};

struct DataSource {
  std::string path;   // a token file or a glob of them
  double weight = 0;  // share of the samples, relative to the other entries' weights; 0: not given
  double epochs = 0;  // how often its samples may be read, at most; 0: no bound
};

struct DataConfig {
  std::string tokenizer;  // tokenizer.json; used by generate, and its hash must match the token files
  std::vector<DataSource> train;
  std::vector<DataSource> eval;
  bool document_mask = false;  // attention and positions stop at the borders of documents
};

struct TrainingConfig {
  std::int64_t steps = 0;
  std::int64_t sequence_length = 0;
  std::int64_t global_batch_size = 0;  // samples an optimizer step, over all data ranks and micro-batches
  std::int64_t micro_batch_size = 0;   // samples a forward
};

struct ParallelConfig {
  std::int64_t data = 0;  // 0: what is left of the ranks
  std::int64_t tensor = 1;
  std::int64_t context = 1;
  std::int64_t pipeline = 1;
  std::int64_t expert = 1;
  std::string schedule = "gpipe";
  std::int64_t bucket_bytes = 64 << 20;  // gradient bucket
};

struct OptimizerConfig {
  std::string type = "adamw";
  double lr = 1e-3;
  std::vector<double> betas = {0.9, 0.95};
  double eps = 1e-8;
  double weight_decay = 0.1;
  double clip_grad_norm = 1.0;  // 0: no clipping
};

struct LrScheduleConfig {
  std::string type = "cosine";  // constant, cosine, wsd
  std::int64_t warmup_steps = 0;
  std::int64_t decay_steps = 0;  // wsd: the last steps, in which lr falls to min_lr
  double min_lr = 0.0;
};

struct PrecisionConfig {
  std::string compute = "float32";    // float32, bfloat16
  std::string master = "float32";     // float32, split
  std::string gradients = "float32";  // float32, bfloat16
  bool tf32 = false;
};

struct CudaConfig {
  std::string graphs = "auto";     // auto, always, never
  std::string attention = "auto";  // auto, cudnn, native
  bool tune = true;
  bool nvls = false;
};

struct DebugConfig {
  bool blocking = false;
  bool check_finite = false;
  bool collectives = false;
};

struct ProfileConfig {
  std::vector<double> steps;  // [first, last]; empty: none
};

struct EvalConfig {
  std::int64_t every = 0;    // steps; 0: never
  std::int64_t samples = 0;  // 0: the whole held-out set
};

struct MoeConfig {
  double bias_update_rate = 0.001;  // deepseek_v3
  double balance_loss_alpha = 0.0001;
  double receive_factor = 2;  // expert parallelism
};

struct MtpConfig {
  std::string input = "post_norm";  // post_norm, pre_norm
  double loss_weight = 0.3;
  double loss_weight_after = 0.1;
  std::int64_t change_after_tokens = 0;  // 0: loss_weight stays
};

struct GuardConfig {
  std::string on_nonfinite = "abort";  // abort, skip, rollback
  std::string on_spike = "warn";       // warn, skip, rollback, abort
  double spike_z = 6;                  // robust z-score of a loss or gradient norm that is a spike
  std::int64_t max_skips = 3;          // in a row; then a rollback
  std::int64_t max_rollbacks = 2;      // then the run ends
  std::int64_t recompute_every = 500;  // steps; 0: never
  std::int64_t replica_hash_every = 100;
};

struct CheckpointConfig {
  std::int64_t every = 0;  // steps; 0: only at the end
  bool async = true;
  std::int64_t keep = 3;
  std::string verify = "written";  // written, readback
  double timeout = 1800;           // seconds that a save may take; 0: any
  std::int64_t device_buffer_bytes = 0;
};

struct WatchdogConfig {
  double limit = 0;  // seconds; 0: max(60, 10 * the median step)
  double start = 600;
  double evaluation = 600;
  double save = 600;
  double grace = 30;
};

struct ObserveConfig {
  bool tensorboard = false;
  std::int64_t expert_tokens_every = 100;  // steps; 0: never
};

struct Config {
  RunConfig run;
  ModelConfig model;
  DataConfig data;
  TrainingConfig training;
  ParallelConfig parallel;
  MoeConfig moe;
  MtpConfig mtp;
  OptimizerConfig optimizer;
  LrScheduleConfig lr_schedule;
  PrecisionConfig precision;
  CudaConfig cuda;
  EvalConfig eval;
  GuardConfig guard;
  CheckpointConfig checkpoint;
  DebugConfig debug;
  ProfileConfig profile;
  WatchdogConfig watchdog;
  ObserveConfig observe;
};

}  // namespace dstrain
