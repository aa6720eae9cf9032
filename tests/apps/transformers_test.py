#!/usr/bin/env python3
"""What dstrain exports, in transformers: the same logits, loss, gradients and updates; what transformers saves, in dstrain; FP8 by PyTorch.
Needs the environment of tests/requirements_torch.txt. Run: transformers_test.py DSTRAIN SOURCE_DIR [NAME...]."""
import json
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file

from hugging_face_test import GOLDENS, fp8_model, read, read_model
from program_test import SOURCE, check, job, main, prepared, run

MODELS = {
    "llama": "{ type: llama, vocab_size: 300, hidden_size: 32, num_hidden_layers: 3, num_attention_heads: 4, num_key_value_heads: 2, intermediate_size: 64, "
             "attention_bias: true, mlp_bias: true, rope_theta: 5000.0, initializer_range: 0.1 }",
    "llama_tied": "{ type: llama, vocab_size: 300, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, head_dim: 12, intermediate_size: 64, "
                  "tie_word_embeddings: true, rms_norm_eps: 1.0e-5, initializer_range: 0.1 }",
    "gpt2": "{ type: gpt2, vocab_size: 300, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 100, max_position_embeddings: 64, "
            "initializer_range: 0.1 }",
    "deepseek_v3": "{ type: deepseek_v3, vocab_size: 300, hidden_size: 32, num_hidden_layers: 3, num_attention_heads: 4, intermediate_size: 48, q_lora_rank: 20, "
                   "kv_lora_rank: 16, qk_nope_head_dim: 12, qk_rope_head_dim: 8, v_head_dim: 10, first_k_dense_replace: 1, moe_intermediate_size: 24, "
                   "n_routed_experts: 8, n_shared_experts: 2, num_experts_per_tok: 3, n_group: 4, topk_group: 2, routed_scaling_factor: 2.5, "
                   "max_position_embeddings: 128, rope_type: yarn, rope_factor: 4, rope_original_max_position_embeddings: 16, rope_mscale: 1, "
                   "rope_mscale_all_dim: 1, initializer_range: 0.1 }",
    "deepseek_v2": "{ type: deepseek_v2, vocab_size: 300, hidden_size: 32, num_hidden_layers: 3, num_attention_heads: 4, intermediate_size: 48, kv_lora_rank: 16, "
                   "qk_nope_head_dim: 12, qk_rope_head_dim: 8, v_head_dim: 10, first_k_dense_replace: 1, moe_intermediate_size: 24, n_routed_experts: 8, "
                   "n_shared_experts: 1, num_experts_per_tok: 2, n_group: 4, topk_group: 2, topk_method: group_limited_greedy, routed_scaling_factor: 4.0, "
                   "max_position_embeddings: 128, rope_type: yarn, rope_factor: 4, rope_original_max_position_embeddings: 16, rope_mscale: 0.707, "
                   "rope_mscale_all_dim: 0.707, initializer_range: 0.1 }",
}


def load(directory, dtype=torch.float32):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="eager", experts_implementation="eager",
                                                                        output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        check(not info[kind], f"{directory}: {kind}: {info[kind]}")
    return model.eval()


def file_names(model, name, tensor):
    """A parameter's tensors as files name them: experts one by one."""
    if name.endswith("mlp.experts.gate_up_proj"):
        for e in range(tensor.shape[0]):
            gate, up = tensor[e].chunk(2, 0)
            yield f"{name[:-12]}{e}.gate_proj.weight", gate.contiguous()
            yield f"{name[:-12]}{e}.up_proj.weight", up.contiguous()
    elif name.endswith("mlp.experts.down_proj"):
        for e in range(tensor.shape[0]):
            yield f"{name[:-9]}{e}.down_proj.weight", tensor[e].contiguous()
    else:
        yield name, tensor.contiguous()


def reference(model, path, steps=3, batch=2, length=24):
    """golden.safetensors as dstrain parity reads it (docs/parity.md), of a model that transformers loaded."""
    torch.manual_seed(1)
    vocabulary = model.config.vocab_size
    ids = torch.randint(vocabulary, (steps, batch, length))
    out = {"input_ids": ids}
    decay, plain = ([p for p in model.parameters() if (p.ndim >= 2) == matrix] for matrix in (True, False))
    adam = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    losses, norms = [], []
    for step in range(steps):
        logits = model(input_ids=ids[step], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, vocabulary), ids[step][:, 1:].reshape(-1))
        adam.zero_grad(set_to_none=True)
        loss.backward()
        if step == 0:
            out |= {"logits": logits.detach().contiguous(), "loss": loss.detach().reshape(1)}
            out |= {"grad." + n: t.clone() for name, p in model.named_parameters() for n, t in file_names(model, name, p.grad)}
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        losses.append(loss.detach())
        adam.step()
    out |= {"losses": torch.stack(losses), "grad_norms": torch.stack(norms)}
    out |= {"final." + n: t.clone() for name, p in model.named_parameters() for n, t in file_names(model, name, p.detach())}
    save_file(out, path)


def test_goldens(d):
    """What is exported of transformers' own models gives the logits that they gave."""
    worst = {}
    for name in GOLDENS:
        run("checkpoint", "import", SOURCE / "tests/golden" / name, d / name)
        run("checkpoint", "export", d / name, d / f"{name}-out", "--max-shard-size", "100KB")
        golden = load_file(SOURCE / "tests/golden" / name / "golden.safetensors")
        with torch.no_grad():
            logits = load(d / f"{name}-out")(input_ids=golden["input_ids"][0]).logits
        worst[name] = float((logits - golden["logits"]).abs().max() / golden["logits"].abs().max())
        check(worst[name] <= 1e-6, f"{name}: logits differ by {worst[name]}")
    print("proof: transformers loads what was imported and exported: logits differ from the recorded by", max(worst.values()))


def test_trained(d):
    """Models that dstrain trained: transformers' logits, loss, gradients and updates are dstrain's to 1e-5."""
    prepared(d)
    for name, yaml in MODELS.items():
        path = job(d, name)
        text = path.read_text().split("\n")
        text[2] = "model: " + yaml
        path.write_text("\n".join(text))
        run("train", path, "eval.every=0", "training.steps=4", "moe.bias_update_rate=0.05" if name == "deepseek_v3" else "optimizer.eps=1.0e-8",
            "parallel.tensor=2", "parallel.pipeline=2", "--ranks", 4)
        out = d / f"{name}-out"
        run("checkpoint", "export", d / name, out)
        if name == "deepseek_v3":
            biases = [t for n, t in load_file(out / "model.safetensors").items() if n.endswith("e_score_correction_bias")]
            check(all(b.abs().max() > 0.01 for b in biases), "biases have moved")
        reference(load(out), out / "golden.safetensors")
        said = run("parity", out, says="pass")
        print(f"proof: {name} trained and exported, transformers beside dstrain: {said.splitlines()[-1]}")
        run("checkpoint", "export", d / name, d / f"{name}-bf16", "--dtype", "bfloat16")
        model = load(d / f"{name}-bf16", torch.bfloat16)
        files = load_file(d / f"{name}-bf16/model.safetensors")
        for parameter, tensor in list(model.named_parameters()) + list(model.named_buffers()):
            for n, t in file_names(model, parameter, tensor.detach()):
                if n in files:
                    check(t.dtype == files[n].dtype and torch.equal(t, files[n]), f"{name}: {n} in bfloat16")


def test_saved(d):
    """What transformers saves, single and in parts, in float32 and bfloat16, comes back with the same bytes."""
    for name in GOLDENS:
        for dtype, word in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
            model = load(SOURCE / "tests/golden" / name, dtype)
            for size in ("5GB", "100KB"):
                at = f"{name}-{word}-{size}"
                model.save_pretrained(d / at, max_shard_size=size)
                run("checkpoint", "import", d / at, d / f"{at}-run")
                run("checkpoint", "export", d / f"{at}-run", d / f"{at}-out", "--max-shard-size", size)
                check(read_model(d / at) == read_model(d / f"{at}-out"), f"{at}: other tensors")
                if size == "5GB":
                    check((d / at / "model.safetensors").read_bytes() == (d / f"{at}-out/model.safetensors").read_bytes(), f"{at}: other bytes")
                saved, written = (json.loads((x / "config.json").read_text()) for x in (d / at, d / f"{at}-out"))
                check(written["torch_dtype"] == saved["dtype"] == word, f"{at}: dtype")


def test_fp8(d):
    """weight_dequant of DeepSeek's inference code, in PyTorch: float8_e4m3fn to float32, times the block's scale, to bfloat16."""
    fp8_model(d / "fp8", modules=0)
    run("checkpoint", "import", d / "fp8", d / "run")
    run("checkpoint", "export", d / "run", d / "out")
    out, stored, compared = load_file(d / "out/model.safetensors"), {}, 0
    for part in sorted((d / "fp8").glob("*.safetensors")):
        stored |= load_file(part)
    for name, weight in stored.items():
        if weight.dtype != torch.float8_e4m3fn or name not in out:
            continue
        scale = stored[name + "_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)[:weight.shape[0], :weight.shape[1]]
        check(torch.equal(out[name], (weight.to(torch.float32) * scale).to(torch.bfloat16)), f"{name}: not DeepSeek's bfloat16")
        compared += weight.numel()
    check(compared > 1000000, f"{compared} numbers")
    logits = load(d / "out", torch.float32)(input_ids=torch.arange(24).reshape(1, 24)).logits
    check(bool(torch.isfinite(logits).all()), "logits")
    print(f"proof: {compared} FP8 weights became PyTorch's bfloat16 of weight * scale, to the bit")


if __name__ == "__main__":
    sys.exit(main(globals()))
