#pragma once
// The keys of the section model, in the words of Hugging Face's config.json: a part of the walk of fields.h.

#include "lib/config/config.h"
#include "lib/config/key.h"

namespace dstrain {

template <class C, class V>
void visit_model_fields(C& c, V& v) {
  v.section("model", "the model, in the words of Hugging Face's config.json");
  v.field(Key{.name = "from", .help = "a Hugging Face config.json; keys given here override it"}, c.model.from);
  v.field(Key{.name = "weights",
              .help = "the weights that a new run starts from: a safetensors file, a directory with "
                      "model.safetensors or its index, a run or a checkpoint"},
          c.model.weights);
  v.field(Key{.name = "type", .help = "architecture", .choices = {"llama", "gpt2", "deepseek_v2", "deepseek_v3"}},
          c.model.type);
  v.field(Key{.name = "vocab_size", .help = "tokens in the vocabulary", .required = true, .min = 1, .max = kBig},
          c.model.vocab_size);
  v.field(
      Key{.name = "hidden_size", .help = "width of the residual stream", .required = true, .min = 1, .max = 1048576},
      c.model.hidden_size);
  v.field(Key{.name = "num_hidden_layers", .help = "transformer blocks", .required = true, .min = 1, .max = 10000},
          c.model.num_hidden_layers);
  v.field(Key{.name = "num_attention_heads", .help = "query heads", .required = true, .min = 1, .max = 65536},
          c.model.num_attention_heads);
  v.field(Key{.name = "num_key_value_heads",
              .help = "key-value heads; 0: num_attention_heads",
              .min = 0,
              .max = 65536,
              .model_type = "llama"},
          c.model.num_key_value_heads);
  v.field(Key{.name = "head_dim",
              .help = "width of a head; 0: hidden_size / num_attention_heads",
              .min = 0,
              .max = 256,
              .model_type = "llama"},
          c.model.head_dim);
  v.field(Key{.name = "intermediate_size",
              .help = "width of the MLP; gpt2: 0 means 4 * hidden_size",
              .min = 0,
              .max = 4194304},
          c.model.intermediate_size);
  v.field(Key{.name = "max_position_embeddings", .help = "longest sequence, in tokens", .min = 1, .max = kBig},
          c.model.max_position_embeddings);
  v.field(
      Key{.name = "rms_norm_eps", .help = "epsilon of RMSNorm", .min = 1e-30, .max = 1, .model_type = kLlamaDeepseek},
      c.model.rms_norm_eps);
  v.field(
      Key{.name = "layer_norm_epsilon", .help = "epsilon of LayerNorm", .min = 1e-30, .max = 1, .model_type = "gpt2"},
      c.model.layer_norm_epsilon);
  v.field(Key{.name = "rope_theta",
              .help = "base of the rotary embedding",
              .min = 1,
              .max = 1e12,
              .model_type = kLlamaDeepseek},
          c.model.rope_theta);
  v.field(Key{.name = "hidden_act",
              .help = "activation of the MLP; default silu for llama, gelu_new for gpt2",
              .choices = {"silu", "gelu_new", "gelu_pytorch_tanh", "gelu"}},
          c.model.hidden_act);
  v.field(Key{.name = "tie_word_embeddings", .help = "the head shares the embedding's weight; default true for gpt2"},
          c.model.tie_word_embeddings);
  v.field(Key{.name = "pad_token_id",
              .help = "a token whose row of the embedding gets no gradient, as in Hugging Face's models; -1: none",
              .min = -1,
              .max = kBig,
              .model_type = kLlamaDeepseek},
          c.model.pad_token_id);
  v.field(Key{.name = "attention_bias", .help = "biases in the attention's linears", .model_type = kLlamaDeepseek},
          c.model.attention_bias);
  v.field(Key{.name = "mlp_bias", .help = "biases in the MLP's linears", .model_type = "llama"}, c.model.mlp_bias);
  v.field(Key{.name = "initializer_range", .help = "standard deviation of initial weights", .min = 0, .max = 10},
          c.model.initializer_range);
  v.field(Key{.name = "resid_pdrop",
              .help = "dropout before each residual sum",
              .min = 0,
              .max = 0.99,
              .model_type = "gpt2"},
          c.model.resid_pdrop);
  v.field(Key{.name = "embd_pdrop", .help = "dropout of the embeddings", .min = 0, .max = 0.99, .model_type = "gpt2"},
          c.model.embd_pdrop);
  v.field(Key{.name = "attn_pdrop",
              .help = "dropout of attention probabilities",
              .min = 0,
              .max = 0.99,
              .model_type = "gpt2"},
          c.model.attn_pdrop);
  v.field(Key{.name = "scale_attn_weights",
              .help = "attention scores are divided by the root of the head's width",
              .model_type = "gpt2"},
          c.model.scale_attn_weights);
  v.field(Key{.name = "scale_attn_by_inverse_layer_idx",
              .help = "attention scores of layer i, from 1, are divided by i",
              .model_type = "gpt2"},
          c.model.scale_attn_by_inverse_layer_idx);

  const auto deepseek = [&](const char* name, const char* help, auto& value, double min, double max) {
    v.field(Key{.name = name, .help = help, .min = min, .max = max, .model_type = kDeepseek}, value);
  };
  deepseek("q_lora_rank", "width of the queries' latent vector; 0: none", c.model.q_lora_rank, 0, 1048576);
  deepseek("kv_lora_rank", "width of the latent vector of keys and values", c.model.kv_lora_rank, 0, 1048576);
  deepseek("qk_nope_head_dim", "width of a query's and key's head without position", c.model.qk_nope_head_dim, 1, 255);
  deepseek("qk_rope_head_dim", "width of it that carries the position", c.model.qk_rope_head_dim, 2, 254);
  deepseek("v_head_dim", "width of a value's head", c.model.v_head_dim, 1, 256);
  deepseek("first_k_dense_replace", "layers at the start with an MLP instead of experts", c.model.first_k_dense_replace,
           0, 10000);
  deepseek("moe_intermediate_size", "width of an expert", c.model.moe_intermediate_size, 0, 4194304);
  deepseek("n_routed_experts", "experts that the router chooses from", c.model.n_routed_experts, 0, 1024);
  deepseek("n_shared_experts", "experts that see every token, as one of their width together", c.model.n_shared_experts,
           0, 1024);
  deepseek("num_experts_per_tok", "experts that a token goes to", c.model.num_experts_per_tok, 0, 1024);
  deepseek("n_group", "groups of experts", c.model.n_group, 1, 1024);
  deepseek("topk_group", "groups whose experts a token may go to", c.model.topk_group, 1, 1024);
  v.field(Key{.name = "norm_topk_prob",
              .help = "the weights of a token's experts sum to routed_scaling_factor",
              .model_type = "deepseek_v3"},
          c.model.norm_topk_prob);
  v.field(Key{.name = "topk_method",
              .help = "greedy: among all experts; group_limited_greedy: in the topk_group best groups",
              .choices = {"greedy", "group_limited_greedy"},
              .model_type = "deepseek_v2"},
          c.model.topk_method);
  deepseek("routed_scaling_factor", "factor of the experts' weights", c.model.routed_scaling_factor, 0, 1e6);
  v.field(Key{.name = "rope_interleave",
              .help = "the elements that carry the position are rotated as neighbours; false: as halves",
              .model_type = "deepseek_v3"},
          c.model.rope_interleave);
  v.field(Key{.name = "rope_type",
              .help = "how the rotary embedding reaches past its original length; dynamic: not at all up to "
                      "max_position_embeddings",
              .choices = {"default", "linear", "dynamic", "yarn", "llama3"},
              .model_type = kLlamaDeepseek},
          c.model.rope_type);
  const auto rope = [&](const char* name, const char* help, auto& value, double min, double max) {
    v.field(Key{.name = name, .help = help, .min = min, .max = max, .model_type = kLlamaDeepseek}, value);
  };
  rope("rope_factor", "by how much longer; not of default", c.model.rope_factor, 1, 1e6);
  rope("rope_original_max_position_embeddings", "yarn, llama3: the original length; 0: max_position_embeddings",
       c.model.rope_original_max_position_embeddings, 0, kBig);
  rope("rope_beta_fast", "yarn: turns over the original length from which a pair stays as it is",
       c.model.rope_beta_fast, 1e-6, 1e6);
  rope("rope_beta_slow", "yarn: turns up to which a pair is slowed by the whole factor", c.model.rope_beta_slow, 1e-6,
       1e6);
  rope("rope_mscale", "yarn: scale of sines and cosines, over that of rope_mscale_all_dim; 0: not given",
       c.model.rope_mscale, 0, 1e3);
  rope("rope_mscale_all_dim", "deepseek: scale of the attention's scores; yarn: see rope_mscale; 0: not given",
       c.model.rope_mscale_all_dim, 0, 1e3);
  rope("rope_attention_factor", "yarn: scale of sines and cosines; 0: from rope_factor or the mscales",
       c.model.rope_attention_factor, 0, 1e3);
  v.field(Key{.name = "rope_truncate",
              .help = "yarn: the first and last pair between the betas are whole numbers",
              .model_type = kLlamaDeepseek},
          c.model.rope_truncate);
  rope("rope_low_freq_factor",
       "llama3: turns over the original length up to which a pair is slowed by the whole factor",
       c.model.rope_low_freq_factor, 1e-6, 1e6);
  rope("rope_high_freq_factor", "llama3: turns from which it stays as it is", c.model.rope_high_freq_factor, 1e-6, 1e6);

  v.field(Key{.name = "num_nextn_predict_layers",
              .help = "modules that predict further tokens in training, each one token further than the one before; 0: "
                      "none, also against model.from",
              .min = 0,
              .max = static_cast<double>(kMostMtpDepths),
              .model_type = "deepseek_v3"},
          c.model.num_nextn_predict_layers);
}

}  // namespace dstrain
