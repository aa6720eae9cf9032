"""Forward passes of the tiny golden models in numpy, float64: an oracle that shares nothing with dstrain."""
import json
import math
import pathlib
import struct

import numpy as np


def load(directory):
    """config.json and the tensors of model.safetensors, in float64."""
    directory = pathlib.Path(directory)
    return json.loads((directory / "config.json").read_text()), safetensors(directory / "model.safetensors")


def safetensors(path):
    data = pathlib.Path(path).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    tensors = {}
    for name, entry in json.loads(data[8:8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        kind = {"F32": np.float32, "I64": np.int64}[entry["dtype"]]
        array = np.frombuffer(data[8 + size + begin:8 + size + end], kind).reshape(entry["shape"])
        tensors[name] = array.astype(np.float64) if kind is np.float32 else array
    return tensors


def attend(q, k, v):
    """(H, T, D) each; causal."""
    scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
    scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True) @ v


def heads(x, n):
    return x.reshape(len(x), n, -1).transpose(1, 0, 2)


def merge(x):
    return x.transpose(1, 0, 2).reshape(x.shape[1], -1)


def llama(config, w, ids):
    """Logits (T, V) of one sequence."""
    n, kv = config["num_attention_heads"], config["num_key_value_heads"]
    x, t = w["model.embed_tokens.weight"][ids], np.arange(len(ids))

    def norm(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * w[name]

    def rotate(x):
        half = x.shape[-1] // 2
        angle = t[:, None] * config["rope_parameters"]["rope_theta"] ** (-np.arange(half) / half)
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)

    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        y = norm(x, at + "input_layernorm.weight")
        q, k, v = (heads(y @ w[f"{at}self_attn.{p}_proj.weight"].T, h) for p, h in (("q", n), ("k", kv), ("v", kv)))
        k, v = (np.repeat(a, n // kv, 0) for a in (rotate(k), v))
        x = x + merge(attend(rotate(q), k, v)) @ w[at + "self_attn.o_proj.weight"].T
        y = norm(x, at + "post_attention_layernorm.weight")
        gate = y @ w[at + "mlp.gate_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w[at + "mlp.up_proj.weight"].T)) @ w[at + "mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight") @ w["lm_head.weight"].T


def gpt2(config, w, ids):
    n = config["n_head"]
    x = w["transformer.wte.weight"][ids] + w["transformer.wpe.weight"][:len(ids)]

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred ** 2).mean(-1, keepdims=True) + config["layer_norm_epsilon"]) * w[name + ".weight"] + w[name + ".bias"]

    def linear(x, name):
        return x @ w[name + ".weight"] + w[name + ".bias"]

    for i in range(config["n_layer"]):
        at = f"transformer.h.{i}."
        q, k, v = (heads(a, n) for a in np.split(linear(norm(x, at + "ln_1"), at + "attn.c_attn"), 3, -1))
        x = x + linear(merge(attend(q, k, v)), at + "attn.c_proj")
        y = linear(norm(x, at + "ln_2"), at + "mlp.c_fc")
        x = x + linear(0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y ** 3))), at + "mlp.c_proj")
    return norm(x, "transformer.ln_f") @ w["transformer.wte.weight"].T


FORWARD = {"llama": llama, "gpt2": gpt2}


class TinyModel:
    def __init__(self, directory):
        self.config, self.weights = load(directory)
        golden = safetensors(pathlib.Path(directory) / "golden.safetensors")
        ids, logits = golden["input_ids"][0][0], golden["logits"][0]
        error = np.abs(self.logits(ids) - logits).max() / np.abs(logits).max()
        assert error < 1e-5, f"the oracle differs from the golden logits by {error}"

    def logits(self, ids):
        return FORWARD[self.config["model_type"]](self.config, self.weights, np.asarray(ids))

    def losses(self, ids):
        """Negative log likelihood of ids[1:], each after those before it."""
        x = self.logits(ids[:-1])
        top = x.max(-1, keepdims=True)
        log_sum = np.log(np.exp(x - top).sum(-1)) + top[:, 0]
        return log_sum - x[np.arange(len(x)), np.asarray(ids[1:])]
