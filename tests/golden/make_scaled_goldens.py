#!/usr/bin/env python3
"""Makes the models of transformers with scaled rotary embeddings and scores in tests/golden, as parity reads them (docs/parity.md).
Needs the environment of tests/requirements_torch.txt. Run: make_scaled_goldens.py DSTRAIN SOURCE_DIR OUT_DIR"""
import pathlib
import sys

from random_goldens import model_of, reference, save

FIXED = {
    "llama_llama3_tiny": ("llama", dict(
        vocab_size=61, hidden_size=20, num_attention_heads=4, num_key_value_heads=1, head_dim=6, intermediate_size=18, num_hidden_layers=2,
        tie_word_embeddings=True, attention_bias=True, mlp_bias=True, pad_token_id=7, max_position_embeddings=64,
        rope_parameters={"rope_type": "llama3", "rope_theta": 1000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 16})),
    "llama_yarn_tiny": ("llama", dict(
        vocab_size=61, hidden_size=18, num_attention_heads=3, num_key_value_heads=3, head_dim=8, intermediate_size=19, num_hidden_layers=2, pad_token_id=60,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "truncate": False, "attention_factor": 1.3, "beta_fast": 8,
                         "original_max_position_embeddings": 16})),
    "gpt2_scaled_tiny": ("gpt2", dict(
        vocab_size=61, n_embd=18, n_head=2, n_layer=3, n_inner=25, n_positions=40, scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True,
        tie_word_embeddings=False, activation_function="gelu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)),
    "deepseek_v3_halves_tiny": ("deepseek_v3", dict(
        vocab_size=61, hidden_size=20, num_attention_heads=2, num_key_value_heads=2, intermediate_size=18, moe_intermediate_size=7, num_hidden_layers=2,
        first_k_dense_replace=1, q_lora_rank=None, kv_lora_rank=9, qk_nope_head_dim=5, qk_rope_head_dim=6, v_head_dim=7, n_routed_experts=4,
        n_shared_experts=0, num_experts_per_tok=2, n_group=1, topk_group=1, norm_topk_prob=False, rope_interleave=False, attention_bias=True,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "linear", "rope_theta": 100.0, "factor": 1.5, "mscale_all_dim": 0.8})),
}

if __name__ == "__main__":
    for number, (name, (family, config)) in enumerate(FIXED.items()):
        directory = pathlib.Path(sys.argv[3]) / name
        model = model_of(family, config, number, 0)
        save(model, directory)
        reference(model, directory / "golden.safetensors", steps=10, batch=2, length=33)
