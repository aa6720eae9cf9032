#!/usr/bin/env python3
"""Makes deepseek_v3_mtp_tiny and deepseek_v3_mtp_pre_tiny: what multi-token prediction trains, from PyTorch in float32.

  make_mtp_golden.py OUT_DIR

The main model and the modules' decoder layers are transformers' DeepseekV3; how a module joins the token after a position
with what came before, its head and the loss are written here from the report (arXiv 2412.19437, section 2.2), with the
embedding's half first, as the files of DeepSeek-V3 have it. The files are those of a parity directory (docs/parity.md),
with mtp_loss and mtp_losses (steps) beside loss and losses; the loss that is trained is
  loss + 0.3 * mean over depths of their mean cross-entropy.
Needs torch, transformers and safetensors.
"""
import json
import os
import sys

import torch
import transformers
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer, DeepseekV3RMSNorm

WEIGHT = 0.3
COMMON = dict(
    vocab_size=96, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=2, q_lora_rank=12, kv_lora_rank=8, qk_nope_head_dim=8,
    qk_rope_head_dim=4, v_head_dim=8, first_k_dense_replace=1, n_routed_experts=4, n_shared_experts=1,
    num_experts_per_tok=2, n_group=2, topk_group=1, routed_scaling_factor=2.5, norm_topk_prob=True,
    max_position_embeddings=64, rms_norm_eps=1e-6, attention_bias=False,
)
CASES = {
    "deepseek_v3_mtp_tiny": dict(depths=2, pre_norm=False, tied=False, seed=11),
    "deepseek_v3_mtp_pre_tiny": dict(depths=1, pre_norm=True, tied=True, seed=12),
}


class Module(torch.nn.Module):
    def __init__(self, config, number):
        super().__init__()
        width = config.hidden_size
        self.enorm = DeepseekV3RMSNorm(width, config.rms_norm_eps)
        self.hnorm = DeepseekV3RMSNorm(width, config.rms_norm_eps)
        self.eh_proj = torch.nn.Linear(2 * width, width, bias=False)
        self.layer = DeepseekV3DecoderLayer(config, number)
        self.norm = DeepseekV3RMSNorm(width, config.rms_norm_eps)

    def names(self, prefix):
        """Our module's parameter names to those of DeepSeek's files."""
        for name, p in self.named_parameters():
            if name.startswith("layer."):
                name = name[len("layer."):]
            elif name.startswith("norm."):
                name = "shared_head." + name
            yield prefix + name, p


class Model(torch.nn.Module):
    def __init__(self, config, depths, pre_norm):
        super().__init__()
        self.main = transformers.DeepseekV3ForCausalLM(config)
        n = config.num_hidden_layers
        self.further = torch.nn.ModuleList(Module(config, n + k) for k in range(depths))
        self.first, self.pre_norm = n, pre_norm

    def forward(self, ids):
        base = self.main.model
        kept = {}
        hook = base.norm.register_forward_pre_hook(lambda module, args: kept.update(sum=args[0]))
        hidden = base(input_ids=ids, use_cache=False).last_hidden_state
        hook.remove()
        logits = [self.main.lm_head(hidden)]
        before = kept["sum"] if self.pre_norm else hidden
        for k, m in enumerate(self.further, 1):
            length = ids.shape[1] - k
            embedding = base.embed_tokens(ids[:, k:])
            x = m.eh_proj(torch.cat([m.enorm(embedding), m.hnorm(before[:, :length])], -1))
            positions = torch.arange(length)[None]
            mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
            out = m.layer(x, attention_mask=mask, position_ids=positions,
                          position_embeddings=base.rotary_emb(x, positions))
            out = out[0] if isinstance(out, tuple) else out
            normed = m.norm(out)
            logits.append(self.main.lm_head(normed))
            before = out if self.pre_norm else normed
        return logits

    def losses(self, ids):
        """The logits of the main model, its loss and the mean of the further tokens' losses."""
        logits = self(ids)
        each = [cross_entropy(l[:, : ids.shape[1] - 1 - k].flatten(0, 1), ids[:, 1 + k :].flatten())
                for k, l in enumerate(logits)]
        return logits[0], each[0], torch.stack(each[1:]).mean()

    def parameters_by_file(self):
        for name, p in self.main.named_parameters():
            yield name, p
        for k, m in enumerate(self.further):
            yield from m.names(f"model.layers.{self.first + k}.")


def per_expert(name, t):
    """Fused tensors of experts to the files' names."""
    if name.endswith("mlp.experts.gate_up_proj"):
        base = name[: -len("gate_up_proj")]
        for e in range(t.shape[0]):
            gate, up = t[e].chunk(2, 0)
            yield f"{base}{e}.gate_proj.weight", gate.contiguous().clone()
            yield f"{base}{e}.up_proj.weight", up.contiguous().clone()
    elif name.endswith("mlp.experts.down_proj"):
        base = name[: -len("down_proj")]
        for e in range(t.shape[0]):
            yield f"{base}{e}.down_proj.weight", t[e].contiguous().clone()
    else:
        yield name, t.contiguous().clone()


def make(name, out, depths, pre_norm, tied, seed, batch=3, length=15, steps=10):
    torch.manual_seed(seed)
    config = transformers.DeepseekV3Config(**COMMON, tie_word_embeddings=tied)
    config._attn_implementation = "eager"
    model = Model(config, depths, pre_norm).float()
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.normal_(0, 0.08) if p.ndim >= 2 else p.normal_(1, 0.1)
        biases = {}
        for n, b in model.named_buffers():
            if n.endswith("e_score_correction_bias"):
                b.copy_(torch.randn_like(b) * 0.3 - 1.2)
                at = n.split(".")
                number = int(at[3]) if at[0] == "main" else model.first + int(at[1])
                biases[f"model.layers.{number}.mlp.gate.e_score_correction_bias"] = b.clone()
    model.main.tie_weights()

    files = dict(biases)
    for n, p in model.parameters_by_file():
        files.update(per_expert(n, p.detach()))
    embedding = files["model.embed_tokens.weight"]
    for k in range(depths):
        files[f"model.layers.{model.first + k}.embed_tokens.weight"] = embedding.clone()
        files[f"model.layers.{model.first + k}.shared_head.head.weight"] = (
            embedding.clone() if tied else files["lm_head.weight"].clone())
    directory = os.path.join(out, name)
    os.makedirs(directory, exist_ok=True)
    save_file(files, os.path.join(directory, "model.safetensors"))
    with open(os.path.join(directory, "config.json"), "w") as f:
        json.dump(dict(COMMON, model_type="deepseek_v3", architectures=["DeepseekV3ForCausalLM"], hidden_act="silu",
                       rope_theta=10000.0, tie_word_embeddings=tied, num_nextn_predict_layers=depths), f, indent=2)
        f.write("\n")

    ids = torch.randint(config.vocab_size, (steps, batch, length))
    golden = {"input_ids": ids}
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
         {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}],
        lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    losses, further, norms = [], [], []
    model.train()
    for step in range(steps):
        logits, loss, mtp_loss = model.losses(ids[step])
        optimizer.zero_grad(set_to_none=True)
        (loss + WEIGHT * mtp_loss).backward()
        if step == 0:
            golden["logits"], golden["loss"] = logits.detach().contiguous(), loss.detach().reshape(1)
            golden["mtp_loss"] = mtp_loss.detach().reshape(1)
            for n, p in model.parameters_by_file():
                golden.update(("grad." + k, t) for k, t in per_expert(n, p.grad))
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
        losses.append(loss.detach())
        further.append(mtp_loss.detach())
        optimizer.step()
    golden["losses"], golden["mtp_losses"] = torch.stack(losses), torch.stack(further)
    golden["grad_norms"] = torch.stack([torch.as_tensor(n) for n in norms])
    for n, p in model.parameters_by_file():
        golden.update(("final." + k, t) for k, t in per_expert(n, p.detach()))
    save_file(golden, os.path.join(directory, "golden.safetensors"),
              {"transformers": transformers.__version__, "torch": torch.__version__})
    print(name, "loss", losses[0].item(), "->", losses[-1].item(), "mtp", further[0].item(), "->", further[-1].item(),
          "norm", norms[0].item())


if __name__ == "__main__":
    for case, options in CASES.items():
        make(case, sys.argv[1], **options)
