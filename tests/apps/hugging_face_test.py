#!/usr/bin/env python3
"""Hugging Face's files both ways: bytes, dtypes, FP8, memory, refusals, kills; numpy is the oracle.
Run: hugging_face_test.py DSTRAIN SOURCE_DIR [NAME...]."""
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time

import numpy as np

from program_test import DSTRAIN, ENV, SOURCE, check, job, main, metrics, prepared, run

GOLDENS = ("llama_tiny", "gpt2_tiny", "deepseek_v2_lite_tiny", "deepseek_v3_tiny")
MTP = ("deepseek_v3_mtp_tiny", "deepseek_v3_mtp_pre_tiny")  # with modules of multi-token prediction
BIAS = ".e_score_correction_bias"
SIZES = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1}


def read(path):
    """{name: (dtype, shape, bytes)} of a safetensors file."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    body = memoryview(data)[8 + size:]
    return {name: (e["dtype"], e["shape"], bytes(body[e["data_offsets"][0]:e["data_offsets"][1]])) for name, e in header.items()}


def read_model(directory):
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        return read(directory / "model.safetensors")
    tensors, listed = {}, json.loads(index.read_text())["weight_map"]
    for file in sorted(set(listed.values())):
        part = read(directory / file)
        check(all(listed[name] == file for name in part), f"{index}: weight_map of {file}")
        tensors.update(part)
    check(set(tensors) == set(listed), f"{index}: tensors")
    return tensors


def write(path, tensors):
    """As safetensors' library: by dtype from the widest, then by name; a header padded to eight bytes."""
    names = sorted(tensors, key=lambda n: (-SIZES[tensors[n][0]], n))
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name in names:
        dtype, shape, data = tensors[name]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            f.write(tensors[name][2])


def bf16(values):
    """float32 to bfloat16's 16 bits, ties to even."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7fff + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def converted(tensors, dtype, keep=()):
    """F32 tensors in another dtype."""
    out = {}
    for name, (_, shape, data) in tensors.items():
        values = np.frombuffer(data, np.float32)
        if dtype == "F32" or name.endswith(tuple(keep)):
            out[name] = ("F32", shape, data)
        else:
            out[name] = (dtype, shape, (bf16(values) if dtype == "BF16" else values.astype(np.float16)).tobytes())
    return out


def copy_of(d, name, tensors, files=1, **keys):
    """A directory of a golden's config.json with changed keys and these tensors in one file or several with an index."""
    d.mkdir()
    config = json.loads((SOURCE / "tests/golden" / name / "config.json").read_text())
    config.update(keys)
    (d / "config.json").write_text(json.dumps(config))
    if files == 1:
        write(d / "model.safetensors", tensors)
        return d
    listed, names = {}, sorted(tensors)
    for i in range(files):
        file = f"model-{i + 1:05}-of-{files:05}.safetensors"
        part = {n: tensors[n] for n in names[i::files]}
        write(d / file, part)
        listed.update({n: file for n in part})
    (d / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    return d


def golden(name):
    return read(SOURCE / "tests/golden" / name / "model.safetensors")


def random_fp8(rng, rows, columns):
    """Bytes without NaN, their values by the format's definition, and scales."""
    data = rng.integers(0, 256, (rows, columns), dtype=np.uint8)
    data[(data & 0x7f) == 0x7f] = 0
    exponent, mantissa = (data >> 3 & 15).astype(np.int32), (data & 7).astype(np.float64)
    value = np.where(exponent == 0, mantissa / 512, np.ldexp(8 + mantissa, exponent - 10)) * np.where(data & 0x80, -1.0, 1.0)
    scales = rng.uniform(1e-4, 2e-3, (-(-rows // 128), -(-columns // 128))).astype(np.float32)
    full = np.repeat(np.repeat(scales, 128, 0), 128, 1)[:rows, :columns]
    return data, scales, value.astype(np.float32) * full


def fp8_model(d, files=3, seed=5, modules=1):
    """A deepseek_v3 with FP8 weights whose last blocks are not full, a module of multi-token prediction or none; what it stands for, in bfloat16."""
    sizes = {"hidden_size": 136, "intermediate_size": 260, "moe_intermediate_size": 130, "q_lora_rank": 140, "kv_lora_rank": 132,
             "num_nextn_predict_layers": modules, "vocab_size": 300,
             "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}}
    config = json.loads((SOURCE / "tests/golden/deepseek_v3_tiny/config.json").read_text()) | sizes
    h, heads, nope, rope, v = 136, config["num_attention_heads"], config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    rng = np.random.default_rng(seed)
    stored, meant = {}, {}

    def plain(name, shape, dtype="BF16", scale=0.05, mean=0.0):
        values = (rng.standard_normal(shape) * scale + mean).astype(np.float32)
        data = values if dtype == "F32" else bf16(values)
        stored[name] = meant[name] = (dtype, list(shape), data.tobytes())

    def linear(name, rows, columns):
        data, scales, product = random_fp8(rng, rows, columns)
        stored[name + ".weight"] = ("F8_E4M3", [rows, columns], data.tobytes())
        stored[name + ".weight_scale_inv"] = ("F32", list(scales.shape), scales.tobytes())
        meant[name + ".weight"] = ("BF16", [rows, columns], bf16(product).tobytes())

    plain("model.embed_tokens.weight", (300, h))
    plain("model.norm.weight", (h,), mean=1.0)
    plain("lm_head.weight", (300, h))
    for i in range(3 + modules):
        if i >= 3:  # a layer behind the last, with copies of embedding and head
            for name, shape in (("enorm.weight", (h,)), ("hnorm.weight", (h,)), ("eh_proj.weight", (h, 2 * h)), ("shared_head.norm.weight", (h,))):
                plain(f"model.layers.{i}.{name}", shape)
            for copy, of in (("embed_tokens.weight", "model.embed_tokens.weight"), ("shared_head.head.weight", "lm_head.weight")):
                stored[f"model.layers.{i}.{copy}"] = meant[f"model.layers.{i}.{copy}"] = meant[of]
        p = f"model.layers.{i}."
        for name, width in (("input_layernorm", h), ("post_attention_layernorm", h), ("self_attn.q_a_layernorm", 140), ("self_attn.kv_a_layernorm", 132)):
            plain(p + name + ".weight", (width,), mean=1.0)
        linear(p + "self_attn.q_a_proj", 140, h)
        linear(p + "self_attn.q_b_proj", heads * (nope + rope), 140)
        linear(p + "self_attn.kv_a_proj_with_mqa", 132 + rope, h)
        linear(p + "self_attn.kv_b_proj", heads * (nope + v), 132)
        linear(p + "self_attn.o_proj", h, heads * v)
        networks = {"mlp.": 260} if i == 0 else {f"mlp.experts.{e}.": 130 for e in range(8)} | {"mlp.shared_experts.": 130}
        for at, width in networks.items():
            linear(p + at + "gate_proj", width, h)
            linear(p + at + "up_proj", width, h)
            linear(p + at + "down_proj", h, width)
        if i > 0:
            plain(p + "mlp.gate.weight", (8, h))
            plain(p + "mlp.gate" + BIAS, (8,), "F32")
    copy_of(d, "deepseek_v3_tiny", stored, files, **sizes)
    return meant


def test_round_trip(d):
    """Import and export give the files of transformers back byte for byte, modules of multi-token prediction too; the exported directory has its reference results."""
    for name in GOLDENS + MTP:
        source, out = SOURCE / "tests/golden" / name, d / f"{name}-out"
        run("checkpoint", "import", source, d / name, says="imported to")
        run("checkpoint", "verify", d / name)
        run("checkpoint", "export", d / name, out, says="exported to")
        if name in GOLDENS:  # the others' files are in their script's order
            check((out / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes(), f"{name}: other bytes")
        check(read_model(out) == read_model(source), f"{name}: other tensors")
        check(sorted(p.name for p in out.iterdir()) == ["config.json", "model.safetensors"], f"{name}: {list(out.iterdir())}")
        check(not list(d.glob("*.partial")), "what was made on the way is gone")
        config, original = (json.loads((x / "config.json").read_text()) for x in (out, source))
        check(config["torch_dtype"] == "float32" and "rope_parameters" not in config, f"{name}: version 4's form")
        for key in ("architectures", "model_type", "bos_token_id", "eos_token_id", "vocab_size", "tie_word_embeddings"):
            check(key not in original or config[key] == original[key], f"{name}: {key}: {config.get(key)}, not {original.get(key)}")
        shutil.copy(source / "golden.safetensors", out)
        run("parity", out, *(["mtp.input=pre_norm"] if "_pre_" in name else []), says="pass")
        # Of a checkpoint as of its run; what an export wrote imports again.
        run("checkpoint", "export", d / name / "checkpoints/step_00000000", d / f"{name}-again")
        run("checkpoint", "import", d / f"{name}-again", d / f"{name}-third")
        run("checkpoint", "diff", d / name, d / f"{name}-third", says="equal, bit for bit")


def test_dtypes(d):
    """bfloat16 and float16 files, single and in parts, come back as they were; --dtype rounds to nearest even."""
    for name in GOLDENS:
        tensors = golden(name)
        for dtype, word in (("BF16", "bfloat16"), ("F16", "float16")):
            for files, keep in ((1, (BIAS,)), (3, ())):  # transformers writes a model in bfloat16 with or without its biases
                at = f"{name}-{dtype}-{files}"
                given = converted(tensors, dtype, keep)
                run("checkpoint", "import", copy_of(d / at, name, given, files, dtype=word), d / f"{at}-run")
                run("checkpoint", "export", d / f"{at}-run", d / f"{at}-out")
                check(read_model(d / f"{at}-out") == given, f"{at}: other tensors")
                if files == 1:
                    check((d / at / "model.safetensors").read_bytes() == (d / f"{at}-out/model.safetensors").read_bytes(), f"{at}: other bytes")
                check(json.loads((d / f"{at}-out/config.json").read_text())["torch_dtype"] == word, f"{at}: torch_dtype")
        run("checkpoint", "import", SOURCE / "tests/golden" / name, d / name)
        for dtype, word in (("BF16", "bfloat16"), ("F16", "float16"), ("F32", "float32")):
            out = d / f"{name}-{word}"
            run("checkpoint", "export", d / name, out, "--dtype", word, "--max-shard-size", "60KB", "--threads", 2)
            check(read_model(out) == converted(tensors, dtype, (BIAS,)), f"{name}: --dtype {word}")
            parts = sorted(out.glob("model-*.safetensors"))
            check(len(parts) > 2 and parts[0].name == f"model-00001-of-{len(parts):05}.safetensors", f"{parts}")
            for part in parts:
                sizes = [len(t[2]) for t in read(part).values()]
                check(sum(sizes) <= 60000 or len(sizes) == 1, f"{part}: {sum(sizes)} bytes")
            total = json.loads((out / "model.safetensors.index.json").read_text())["metadata"]["total_size"]
            check(total == sum(len(t[2]) for t in read_model(out).values()), f"total_size {total}")
    # A number that float16 does not reach is refused, and nothing is left.
    large = golden("llama_tiny")
    data = bytearray(large["lm_head.weight"][2])
    data[:4] = struct.pack("<f", 70000)
    large["lm_head.weight"] = ("F32", large["lm_head.weight"][1], bytes(data))
    run("checkpoint", "import", copy_of(d / "large", "llama_tiny", large), d / "large-run")
    run("checkpoint", "export", d / "large-run", d / "large-out", "--dtype", "float16", code=3,
        says="tensor 'lm_head.weight' holds 70000, more than float16 reaches")
    check(not (d / "large-out").exists() and not list(d.glob("*.partial")), "a refused export leaves nothing")


def test_fp8(d):
    """DeepSeek's FP8 files become the bfloat16 of its own rule, with multi-token prediction; training starts from them."""
    meant = fp8_model(d / "fp8")
    run("checkpoint", "import", d / "fp8", d / "run", says="FP8 weights are read as the bfloat16 that they stand for")
    run("checkpoint", "export", d / "run", d / "out")
    out = read_model(d / "out")
    check(set(out) == set(meant), f"names: {set(out) ^ set(meant)}")
    for name, tensor in meant.items():
        check(out[name] == tensor, f"{name}: not the product of weight and scale")
    config = json.loads((d / "out/config.json").read_text())
    check(config["torch_dtype"] == "bfloat16" and "quantization_config" not in config, "config.json of a model that is no longer FP8")
    # A config.json that does not name the module, and one that names a module that is not there.
    keys = json.loads((d / "fp8/config.json").read_text())
    (d / "fp8/config.json").write_text(json.dumps(keys | {"num_nextn_predict_layers": 0}))
    run("checkpoint", "import", d / "fp8", d / "plain", says="of multi-token prediction that config.json does not name are left out")
    run("checkpoint", "export", d / "plain", d / "plain-out")
    check(read_model(d / "plain-out") == {n: t for n, t in meant.items() if not n.startswith("model.layers.3.")}, "the main model alone")
    (d / "plain-out/config.json").write_text(json.dumps(keys | {"quantization_config": None}))
    run("checkpoint", "import", d / "plain-out", d / "again", says="multi-token prediction is off, the files have no layer 3")
    (d / "fp8/config.json").write_text(json.dumps(keys))
    prepared(d)
    losses = []
    for name, weights, source in (("from-fp8", d / "fp8", d / "fp8"), ("from-bf16", d / "out", d / "out"), ("from-run", d / "run", d / "run/hugging_face"),
                                  ("from-checkpoint", d / "run/checkpoints/step_00000000", d / "out")):
        path = job(d, name)
        text = path.read_text().split("\n")
        text[2] = f"model: {{ from: '{source}/config.json', weights: '{weights}' }}"
        path.write_text("\n".join(text))
        run("train", path, "training.steps=3", "eval.every=0")
        losses.append(metrics(d / name, "loss"))
    check(len(losses[0]) == 3 and all(x == losses[0] for x in losses), f"one start, other losses: {losses}")
    print(f"proof: FP8 import: {len(meant)} tensors, {sum(len(t[2]) for t in meant.values()) // 2} numbers, each the bfloat16 of weight * scale; "
          f"training from FP8 files, bfloat16 files, run and checkpoint: the same losses to the bit")


def test_runs(d):
    """Trained runs: any mesh exports one model; what is exported evaluates and writes the same after it was imported."""
    prepared(d)
    run("train", job(d, "one"), "eval.every=0")
    run("train", job(d, "four"), "eval.every=0", "parallel.tensor=2", "parallel.pipeline=2", "--ranks", 4)
    run("checkpoint", "export", d / "one", d / "one-out")
    run("checkpoint", "export", d / "four", d / "four-out", "--max-shard-size", "1KB")
    one, four = read_model(d / "one-out"), read_model(d / "four-out")
    check(set(one) == set(four) and all(one[n][:2] == four[n][:2] for n in one), "names, dtypes and shapes are those of one rank")
    worst = max(np.abs(np.frombuffer(one[n][2], np.float32) - np.frombuffer(four[n][2], np.float32)).max() for n in one)
    check(worst < 1e-3, f"weights of two meshes differ by {worst}")
    check((d / "one-out/tokenizer.json").read_bytes() == (d / "tokenizer.json").read_bytes(), "the job's tokenizer goes along")
    check(json.loads((d / "one-out/config.json").read_text())["eos_token_id"] == 0, "the end of a document ends a text")
    (d / "one-out/generation_config.json").write_text('{"do_sample": true}')
    run("checkpoint", "import", d / "one-out", d / "back")
    words = ["--prompt", "the quick", "--tokens", 20, "--temperature", 0]
    check(run("generate", d / "one", *words) == run("generate", d / "back", *words), "the same text")
    data = ["--data", f"held={d}/eval-00000.h5", "training.sequence_length=32", "eval.samples=0", "training.micro_batch_size=2", "training.global_batch_size=2", "--json"]
    losses = [json.loads(run("eval", d / x, *data))["loss"] for x in ("one", "back")]
    check(losses[0] == losses[1], f"losses {losses}")
    run("checkpoint", "export", d / "back", d / "back-out")
    for file in ("model.safetensors", "tokenizer.json", "generation_config.json", "config.json"):
        check((d / "back-out" / file).read_bytes() == (d / "one-out" / file).read_bytes(), f"{file} came back changed")
    # A mixed-precision job's weights are those that it computes with.
    run("train", job(d, "mixed"), "eval.every=0", "precision.compute=bfloat16", "training.steps=2")
    run("checkpoint", "export", d / "mixed", d / "mixed-out")
    check({t[0] for t in read_model(d / "mixed-out").values()} == {"BF16"}, "dtype of the job")
    # An imported run has no optimizer state to resume from.
    run("train", job(d, "back"), code=4, says="holds weights alone; train in another run.dir, with model.weights=")
    # transformers' config.json names a module of multi-token prediction that a run has not.
    for name in ("v3", "further"):
        path = job(d, name)
        lines = path.read_text().split("\n")
        lines[2] = ("model: { type: deepseek_v3, vocab_size: 300, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 16, "
                    "kv_lora_rank: 8, qk_nope_head_dim: 4, qk_rope_head_dim: 4, v_head_dim: 4, moe_intermediate_size: 8, n_routed_experts: 4, "
                    "num_experts_per_tok: 2 }")
        path.write_text("\n".join(lines))
    run("train", d / "v3.yaml", "eval.every=0", "training.steps=1")
    run("train", d / "further.yaml", f"model.weights={d}/v3", "model.num_nextn_predict_layers=1", code=4,
        says="the run has no multi-token prediction; model.num_nextn_predict_layers=0 goes without")
    run("train", d / "further.yaml", f"model.weights={d}/v3", "training.steps=1")


def large_model(d, layers):
    """A llama of 4 MB matrices, many of them, in bfloat16."""
    rng = np.random.default_rng(1)
    h, f, vocabulary = 1024, 2048, 512
    tensors = {"model.embed_tokens.weight": (vocabulary, h), "lm_head.weight": (vocabulary, h), "model.norm.weight": (h,)}
    for i in range(layers):
        p = f"model.layers.{i}."
        tensors |= {p + f"self_attn.{x}_proj.weight": (h, h) for x in "qkvo"}
        tensors |= {p + "mlp.gate_proj.weight": (f, h), p + "mlp.up_proj.weight": (f, h), p + "mlp.down_proj.weight": (h, f)}
        tensors |= {p + "input_layernorm.weight": (h,), p + "post_attention_layernorm.weight": (h,)}
    block = bf16(rng.standard_normal(f * h).astype(np.float32) * 0.02)
    stored = {n: ("BF16", list(s), block[:int(np.prod(s))].tobytes()) for n, s in tensors.items()}
    copy_of(d, "llama_tiny", stored, 4, vocab_size=vocabulary, hidden_size=h, intermediate_size=f, num_hidden_layers=layers, num_attention_heads=8,
            num_key_value_heads=8, head_dim=128)
    return sum(int(np.prod(s)) for s in tensors.values())


def peak(*args):
    """The command's largest resident memory in bytes; of a process whose parent is small, for what it inherits counts."""
    measure = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    done = subprocess.run([sys.executable, "-c", measure, DSTRAIN] + [str(a) for a in args], env=ENV, capture_output=True, text=True)
    check(done.returncode == 0, done.stdout + done.stderr)
    return int(done.stdout.split()[-1]) * 1024


def test_memory(d):
    """Memory does not grow with the model."""
    found = {}
    for layers in (2, 18):
        source, name = d / f"source{layers}", f"m{layers}"
        count = large_model(source, layers)
        found[layers] = (count, peak("checkpoint", "import", source, d / name, "--threads", 1),
                         peak("checkpoint", "export", d / name, d / f"{name}-out", "--threads", 1, "--max-shard-size", "40MB"))
        check(read_model(d / f"{name}-out") == read_model(source), "the same tensors")
        shutil.rmtree(source)
        shutil.rmtree(d / name)
    (small, import_small, export_small), (large, import_large, export_large) = found[2], found[18]
    mib = 1 << 20
    print(f"proof: {large - small:,} more parameters ({(large - small) * 4 // mib} MiB in float32) raise the peak of import from {import_small // mib} to "
          f"{import_large // mib} MiB and that of export from {export_small // mib} to {export_large // mib} MiB")
    # What the program takes without a model: in a build with CUDA that is its libraries, 200 MiB of them.
    idle = peak("config", "print", SOURCE / "configs/quickstart.yaml")
    for before, after in ((import_small, import_large), (export_small, export_large)):
        check(after - before < 8 * mib, f"{before} to {after} bytes of memory")
        check(after - idle < 100 * mib, f"{after} bytes of memory, {idle} of them without a model")


def test_refusals(d):
    """One clear error, the documented code, and nothing written."""
    source = SOURCE / "tests/golden/llama_tiny"
    tensors = golden("llama_tiny")

    def refused(name, code, says, change=None, files=1, **keys):
        given = dict(tensors)
        at = copy_of(d / name, "llama_tiny", given if change is None else change(given) or given, files, **keys)
        said = run("checkpoint", "import", at, d / f"{name}-run", code=code, says=says)
        check(said.count("\n") == 1 and said.startswith("dstrain: "), f"{name}: one line\n{said}")
        check(not (d / f"{name}-run").exists() and not list(d.glob("*.partial")), f"{name}: something was written")
        return at

    refused("missing", 3, "no tensor 'model.norm.weight'", lambda t: {n: v for n, v in t.items() if n != "model.norm.weight"})
    refused("extra", 3, "tensor 'model.extra' has no place in the model", lambda t: t | {"model.extra": ("F32", [1], b"\0" * 4)})
    refused("shape", 3, "tensor 'model.norm.weight' has shape (32, 2), the model's is (64)",
            lambda t: t | {"model.norm.weight": ("F32", [32, 2], t["model.norm.weight"][2])})
    refused("config", 3, "has shape (320, 64), the model's is (321, 64)", vocab_size=321)
    refused("nan", 3, "tensor 'model.norm.weight' holds nan in row 0, column 1",
            lambda t: t | {"model.norm.weight": ("F32", [64], struct.pack("<ff", 1, float("nan")) + t["model.norm.weight"][2][8:])})
    refused("layers", 3, "'model.layers.1.", num_hidden_layers=1)
    refused("unknown", 2, "config.json: frobnicate: true: unknown key", frobnicate=True)
    refused("type", 2, 'config.json: model_type: "bloom" is not supported', model_type="bloom")
    refused("quantized", 2, "quantization_config", quantization_config={"quant_method": "gptq", "bits": 4})
    at = refused("part", 3, "no tensor", lambda t: {n: v for n, v in t.items() if not n.startswith("lm_head")}, files=2)
    (at / "model-00002-of-00002.safetensors").unlink()
    run("checkpoint", "import", at, d / "part-run", code=3, says="model.safetensors.index.json: its file model-00002-of-00002.safetensors is missing")
    index = at / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "../missing/model.safetensors"}}))
    run("checkpoint", "import", at, d / "part-run", code=3, says="'../missing/model.safetensors' is no name of a .safetensors file beside the index")
    shutil.copytree(source, d / "cut")
    data = (source / "model.safetensors").read_bytes()
    (d / "cut/model.safetensors").write_bytes(data[:-1])
    run("checkpoint", "import", d / "cut", d / "cut-run", code=3, says="model.safetensors: tensor 'model.norm.weight': data_offsets")
    (d / "cut/config.json").write_text("[" * 100000)
    run("checkpoint", "import", d / "cut", d / "cut-run", code=2, says="nested deeper than 32 levels")
    (d / "cut/config.json").unlink()
    run("checkpoint", "import", d / "cut", d / "cut-run", code=2, says="there is no config.json")
    run("checkpoint", "import", d / "nowhere", d / "x", code=2, says="nowhere: there is no such directory")
    # What is there is not touched.
    run("checkpoint", "import", source, d / "run")
    run("checkpoint", "import", source, d / "run", code=5, says="run: there is something already")
    run("checkpoint", "export", d / "run", d / "run", code=5, says="there is something already")
    (d / "empty").mkdir()
    run("checkpoint", "export", d / "run", f"{d}/empty/")
    (d / "link").symlink_to(d / "empty")
    run("checkpoint", "export", d / "run", d / "link", code=5, says="it is a link")
    run("checkpoint", "export", source, d / "x", code=2, says="no run here")
    run("checkpoint", "export", d / "run", d / "x", "--dtype", "float8", code=2, says="--dtype")
    for size in ("0", "-1", "5XB", "GB", "99999999999GB", "1e9"):
        run("checkpoint", "export", d / "run", d / "x", "--max-shard-size", size, code=2, says="--max-shard-size")
    (d / "run/hugging_face/dtypes.json").write_text('{"dtype": "F64"}')
    run("checkpoint", "export", d / "run", d / "x", code=3, says="dtypes.json: 'F64' is no dtype of weights")
    (d / "run/hugging_face/dtypes.json").unlink()
    shard = d / "run/checkpoints/step_00000000/rank_00000.h5"
    good = shard.read_bytes()
    shard.write_bytes(good[:-1])
    run("checkpoint", "export", d / "run", d / "x", code=4, says="rank_00000.h5")
    shard.write_bytes(good)
    (d / "run/job.yaml").write_text((d / "run/job.yaml").read_text().replace("vocab_size: 320", "vocab_size: 319"))
    run("checkpoint", "export", d / "run", d / "x", code=4, says="has shape (320, 64), that of the job's model (319, 64)")
    limited = subprocess.run([DSTRAIN, "checkpoint", "import", str(source), str(d / "limited")], env=ENV, capture_output=True, text=True,
                             preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536)))
    check(limited.returncode == 5 and "File too large" in limited.stderr, f"exit {limited.returncode}: {limited.stderr}")
    check(not (d / "limited").exists() and not (d / "x").exists() and not list(d.glob("*.partial")), "nothing is left")


def test_kills(d, kills=40):
    """kill -9 at any instant: the directory is not there or whole, and the next try is not in its way."""
    large_model(d / "source", 2)
    run("checkpoint", "import", d / "source", d / "run")
    whole = read_model(d / "source")
    rng = random.Random(4)
    left = done = 0
    for command, made in ((("import", d / "source"), d / "imported"), (("export", d / "run"), d / "exported")):
        begin = time.monotonic()
        run("checkpoint", *command, made)
        seconds = time.monotonic() - begin
        shutil.rmtree(made)
        for _ in range(kills // 2):
            process = subprocess.Popen([DSTRAIN, "checkpoint", *map(str, command), str(made)], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(rng.uniform(0, seconds))
            process.send_signal(signal.SIGKILL)
            process.wait()
            left += made.with_name(made.name + ".partial").exists()
            if not made.exists():
                continue
            done += 1
            if command[0] == "import":
                run("checkpoint", "verify", made)
            else:
                check(read_model(made) == whole, "an export that is there is whole")
            shutil.rmtree(made)
        partial = made.with_name(made.name + ".partial")
        partial.mkdir(exist_ok=True)
        (partial / "model-00009-of-00009.safetensors").write_text("of a larger model, killed as well")
        run("checkpoint", *command, made)
        check(not partial.exists() and not list(made.rglob("model-00009*")), "leftovers are gone")
    check(left > 0, "no kill fell into the work")
    print(f"proof: {kills} kills of import and export: {left} left a .partial behind, {done} were done, 0 were half done")


if __name__ == "__main__":
    sys.exit(main(globals()))
