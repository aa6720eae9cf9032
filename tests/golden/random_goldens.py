#!/usr/bin/env python3
"""dstrain parity over random tiny models of transformers, in transformers 4's and 5's forms of config.json: whatever the file can say is computed or
refused by name. Needs the environment of tests/requirements_torch.txt.
Run: random_goldens.py DSTRAIN SOURCE_DIR [--count N] [--seed S] [--family F] [--only N] [--keep DIR]"""
import argparse
import collections
import json
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "apps"))
import torch
import transformers
from program_test import DSTRAIN, ENV
from safetensors.torch import load_file
from transformers_test import load, reference

CLASSES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "deepseek_v2": "DeepseekV2ForCausalLM", "deepseek_v3": "DeepseekV3ForCausalLM"}
# What is refused, with the key and value that the message must name; no number of a model that is refused is computed.
REFUSED = {
    "gpt2": [("activation_function", "tanh"), ("activation_function", "mish"), ("add_cross_attention", True)],
    "llama": [("hidden_act", "gelu"), ("hidden_act", "relu"), ("head_dim", 7), ("head_dim", 258), ("attention_dropout", 0.1)],
    "deepseek_v2": [("hidden_act", "gelu"), ("norm_topk_prob", True), ("mlp_bias", True), ("attention_dropout", 0.1)],
    "deepseek_v3": [("hidden_act", "gelu"), ("scoring_func", "softmax"), ("moe_layer_freq", 2), ("attention_dropout", 0.1)],
}


def rope(r, family):
    """rope_parameters of any type that is supported, some with optional keys."""
    kind = r.choice(["default", "default", "linear", "dynamic", "yarn", "yarn", "yarn", "llama3"])
    out = {"rope_type": kind, "rope_theta": r.choice([10000.0, 500000.0, 1000000, 100.0, 123.5])}
    if kind != "default":
        out["factor"] = r.choice([1.0, 2, 4.0, 8.0, 40, 1.5])
    if kind == "llama3":
        out |= {"low_freq_factor": r.choice([1.0, 2, 0.5]), "high_freq_factor": r.choice([4.0, 3, 8.5])}
        out |= {"original_max_position_embeddings": r.choice([8, 16, 40])}
    if kind == "yarn":
        options = {"original_max_position_embeddings": [8, 16, 50], "beta_fast": [32, 8.0, 2], "beta_slow": [1, 0.25], "mscale": [1.0, 0.707],
                   "mscale_all_dim": [1.0, 0.707, 0.5], "attention_factor": [1.0, 1.3, 0.8], "truncate": [True, False]}
        out |= {k: r.choice(v) for k, v in options.items() if r.random() < 0.6}
    if kind != "default" and family != "llama" and r.random() < 0.2:
        out["mscale_all_dim"] = 0.8
    return out


def common(r):
    return {"vocab_size": r.choice([61, 96, 128, 257]), "max_position_embeddings": r.choice([130, 140, 256]), "tie_word_embeddings": r.random() < 0.4,
            "initializer_range": r.choice([0.02, 0.1]), "pad_token_id": r.choice([None, None, None, 0, 7])}


def without_division(c, width):
    """transformers divides by zero for a dynamic embedding of two elements."""
    if width == 2 and c["rope_parameters"]["rope_type"] == "dynamic":
        c["rope_parameters"]["rope_type"] = "linear"
    return c


def gpt2(r):
    heads, width = r.choice([(1, 36), (3, 12), (4, 9), (2, 17), (1, 8), (5, 8), (4, 16)])
    return common(r) | {
        "n_embd": heads * width, "n_head": heads, "n_layer": r.choice([1, 2, 3]), "n_inner": r.choice([None, None, 50, 33, 7]),
        "activation_function": r.choice(["gelu_new", "gelu_new", "gelu", "gelu_pytorch_tanh", "gelu_fast"]),
        "layer_norm_epsilon": r.choice([1e-5, 1e-5, 1e-3, 1e-12]), "scale_attn_weights": r.random() < 0.75,
        "scale_attn_by_inverse_layer_idx": r.random() < 0.3, "reorder_and_upcast_attn": r.random() < 0.3, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
        "attn_pdrop": 0.0}


def llama(r):
    heads = r.choice([1, 2, 4, 6, 8])
    hidden = heads * r.choice([6, 10, 16, 2, 18])
    c = common(r) | {
        "hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": r.choice([None] + [k for k in range(1, heads + 1) if heads % k == 0]),
        "head_dim": r.choice([None, None, 4, 8, 24, 64, 130]), "intermediate_size": r.choice([44, 61, 8, 1, 100]), "num_hidden_layers": r.choice([1, 2, 3]),
        "rms_norm_eps": r.choice([1e-6, 1e-5, 1e-3, 1e-8]), "attention_bias": r.random() < 0.3, "mlp_bias": r.random() < 0.3,
        "hidden_act": r.choice(["silu", "silu", "swish"]), "pretraining_tp": r.choice([1, 1, 2]), "rope_parameters": rope(r, "llama")}
    return without_division(c, c["head_dim"] or hidden // heads)


def deepseek(r, family):
    even = family == "deepseek_v2"  # transformers' complex numbers want even strides
    layers, heads = r.choice([1, 2, 3]), r.choice([1, 2, 3, 4])
    groups, size = r.choice([1, 1, 2, 3, 4]), r.choice([2, 3, 4])
    top = r.randint(1, groups)
    return common(r) | {
        "hidden_size": heads * r.choice([8, 12, 17, 20]), "num_attention_heads": heads, "num_key_value_heads": heads, "intermediate_size": r.choice([44, 61, 96]),
        "moe_intermediate_size": r.choice([20, 13, 32]), "num_hidden_layers": layers, "first_k_dense_replace": r.choice([0, 0, 1, layers]),
        "q_lora_rank": r.choice([None, 12, 25]), "kv_lora_rank": r.choice([16, 24, 10 if even else 11]), "qk_nope_head_dim": r.choice([8, 12, 6 if even else 5]),
        "qk_rope_head_dim": r.choice([4, 8, 6, 2, 16]), "v_head_dim": r.choice([8, 12, 7]), "n_routed_experts": groups * size,
        "n_shared_experts": r.choice([1, 2, 3, 0]), "num_experts_per_tok": r.randint(1, top * size), "n_group": groups, "topk_group": top,
        "routed_scaling_factor": r.choice([1.0, 2.5, 16.0, 0.7]), "rms_norm_eps": r.choice([1e-6, 1e-5, 1e-3]), "attention_bias": r.random() < 0.3,
        "rope_parameters": rope(r, family)}


def deepseek_v2(r, family="deepseek_v2"):
    c = deepseek(r, family) | {"topk_method": r.choice(["greedy", "group_limited_greedy"])}
    if family == "deepseek_v2" and c["topk_method"] == "greedy" and r.random() < 0.5:
        c |= {"n_group": None, "topk_group": None}
    return without_division(c, c["qk_rope_head_dim"])


def deepseek_v3(r):
    c = deepseek_v2(r, "deepseek_v3") | {"topk_method": "noaux_tc", "rope_interleave": r.random() < 0.7, "scoring_func": "sigmoid"}
    # The weight of one expert alone, normalised, is 1: the router's gradient is rounding, and what Adam makes of it.
    return c | {"norm_topk_prob": r.random() < 0.6 and c["num_experts_per_tok"] > 1}


def old_form(r, c):
    """config.json as transformers 4 wrote it."""
    c = dict(c, torch_dtype=c.pop("dtype"), transformers_version=r.choice(["4.33.1", "4.46.3", "4.57.1"]))
    scaled = c.pop("rope_parameters", None)
    if scaled is not None:
        c["rope_theta"] = scaled.pop("rope_theta")
        kind = scaled.pop("rope_type")
        scaled.pop("type", None)
        names = r.choice([["type"], ["rope_type"], ["type", "rope_type"]])
        c["rope_scaling"] = None if kind == "default" else scaled | {n: kind for n in names}
    if c["model_type"] == "gpt2":
        c |= {"n_ctx": c["n_positions"], "n_special": 0, "predict_special_tokens": True, "task_specific_params": {"text-generation": {"do_sample": True}}}
    if c["model_type"].startswith("deepseek"):
        c |= {"aux_loss_alpha": 0.001, "seq_aux": True, "moe_layer_freq": 1, "ep_size": 1, "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekConfig"}}
        c |= {"scoring_func": "softmax" if c["model_type"] == "deepseek_v2" else "sigmoid"}
    if c["model_type"] == "llama" and r.random() < 0.5:
        c |= {"is_llama_config": True, "rope_interleaved": False, "_name_or_path": "x", "quantization_config": None}
    return c


def model_of(family, config, seed, balance):
    """Random weights, larger than the usual, so that every term shows; `balance`: mean of V3's biases of experts."""
    torch.manual_seed(seed)
    cls = getattr(transformers, CLASSES[family])
    model = cls(cls.config_class(**config, attn_implementation="eager", experts_implementation="eager")).float()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(0, 0.08) if p.ndim >= 2 else p.normal_(0, 0.05) if "bias" in name else p.normal_(1, 0.1)
        for name, b in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                b.copy_(torch.randn_like(b) * 0.3 + balance)
    model.tie_weights()
    return model.eval()


def save(model, directory):
    model.save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)


def make(r, family, directory):
    """A model, its golden.safetensors, and what the run must name when it is refused. Returns the last and a short description."""
    config = globals()[family](r)
    refused = r.choice(REFUSED[family]) if r.random() < 0.08 else None
    model = model_of(family, config, r.randrange(1 << 30), r.choice([0, -1.2]))
    save(model, directory)
    path = directory / "config.json"
    written = json.loads(path.read_text())
    old = r.random() < 0.5
    if old:
        written = old_form(r, written)
    if refused:
        written[refused[0]] = refused[1]
    path.write_text(json.dumps(written, indent=2))
    if not refused:
        reference(model, directory / "golden.safetensors", steps=10, batch=r.choice([1, 2, 3]), length=r.choice([2, 5, 24, 33, 130]))
    else:
        shutil.copy(pathlib.Path(__file__).parent / "llama_tiny/golden.safetensors", directory)
    return refused, f"transformers {4 if old else 5} form, {config}"


def tried(directory, refused):
    """What is wrong, or "", the worst error before training and its tensor."""
    done = subprocess.run([DSTRAIN, "parity", str(directory)], env=ENV, capture_output=True, text=True)
    said = done.stdout + done.stderr
    if refused:
        key, value = refused
        named = any(key in line and json.dumps(value).strip('"') in line for line in said.splitlines())
        return ("" if done.returncode == 2 and named else f"exit {done.returncode}, refused by name is {refused}: {said}"), 0.0, ""
    worst = re.search(r"worst before training: (.*), (\S+);", said)
    failed = [line for line in said.splitlines() if "FAIL" in line]
    return ("" if done.returncode == 0 and worst else f"exit {done.returncode}:\n" + ("\n".join(failed) or said)), *((float(worst[2]), worst[1]) if worst else (0.0, ""))


def undetermined(directory, wrong):
    """Whether only weights after training are wrong, each of a tensor where transformers' own float32 is over parity's bound beside its float64."""
    failed = [line.split()[0] for line in wrong.splitlines() if line.endswith("FAIL") and not line.startswith("worst")]
    failed = {name.split("[")[0] for name in failed}
    golden = load_file(directory / "golden.safetensors")
    if not failed or not all(name.startswith("final.") for name in failed):
        return False
    steps, batch, length = golden["input_ids"].shape
    reference(load(directory).double(), directory / "exact.safetensors", steps, batch, length)
    exact = load_file(directory / "exact.safetensors")
    over = lambda name: int(((golden[name] - exact[name]).abs() > 1e-5 * exact[name].abs().max()).sum())
    return all(over(name) > max(2, exact[name].numel() // 500) for name in failed)


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--count", type=int, default=25, help="models of each family")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--family", choices=CLASSES)
    options.add_argument("--only", type=int, help="this model of each family alone")
    options.add_argument("--keep", help="where the models that fail go")
    options = options.parse_args(sys.argv[3:])
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    table, bad = [], 0
    for family in [options.family] if options.family else CLASSES:
        worst, refusals, passed, loose = (0.0, "", 0), collections.Counter(), 0, 0
        for n in range(options.count) if options.only is None else [options.only]:
            with tempfile.TemporaryDirectory() as d:
                directory = pathlib.Path(d)
                refused, what = make(random.Random(f"{options.seed} {family} {n}"), family, directory)
                wrong, *error = tried(directory, refused)
                worst, passed = max(worst, (*error, n)), passed + (not wrong and not refused)
                refusals[f"{refused[0]}: {refused[1]}" if refused else ""] += 1
                if not refused and wrong and undetermined(directory, wrong):
                    wrong, loose = "", loose + 1
                if not wrong:
                    continue
                bad += 1
                print(f"{family} {n}: {what}\n{wrong}", flush=True)
                if options.keep:
                    shutil.copytree(directory, pathlib.Path(options.keep) / f"{family}-{options.seed}-{n}", dirs_exist_ok=True)
        refusals.pop("", None)
        table.append(f"{family}: {passed} pass, worst {worst[0]:.1e} ({worst[1]} of {worst[2]}); {loose} where float32 leaves final weights open; "
                     f"{sum(refusals.values())} refused by name: {', '.join(sorted(refusals)) or 'none'}")
        print(table[-1], flush=True)
    print(f"proof: {bad} of {options.count * len(table)} models are wrong; " + "; ".join(table))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
