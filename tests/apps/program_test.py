#!/usr/bin/env python3
"""The program as a user meets it: text to a trained model, bad input, full disks, kills. Run: program_test.py DSTRAIN SOURCE_DIR [NAME...]."""
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

DSTRAIN = os.path.abspath(sys.argv[1])
SOURCE = pathlib.Path(sys.argv[2])
MPI = ["mpirun", "--oversubscribe", "-n"]
ENV = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
# Devices to test, as in tests/support/devices.h.
DEVICES = [d for d in os.environ.get("DSTRAIN_TEST_DEVICES", "cpu").split(",") if d]
WORDS = "the quick brown fox jumps over a lazy dog while many small models learn to write plain text".split()


class Failed(Exception):
    pass


def check(condition, message):
    if not condition:
        raise Failed(message)


def run(*args, ranks=0, code=0, says=(), timeout=120, cwd=None):
    """Runs dstrain (under mpirun when ranks > 0) and checks exit code and what it says. Returns its output."""
    command = (MPI + [str(ranks)] if ranks else []) + [DSTRAIN] + [str(a) for a in args]
    done = subprocess.run(command, env=ENV, cwd=cwd, capture_output=True, text=True, errors="surrogateescape", timeout=timeout)
    output = done.stdout + done.stderr
    check(done.returncode == code, f"{' '.join(command)}: exit {done.returncode}, expected {code}\n{output}")
    for text in [says] if isinstance(says, str) else says:
        check(text in output, f"{' '.join(command)}: does not say '{text}':\n{output}")
    return output


def write_corpus(directory, documents=60):
    directory.mkdir()
    rng = random.Random(1)
    for i in range(documents):
        lines = (" ".join(rng.choice(WORDS) for _ in range(12)) + "." for _ in range(20))
        (directory / f"{i:03}.txt").write_text("\n".join(lines))


def job(directory, name, **overrides):
    text = f"""
run: {{ dir: {directory}/{name}, seed: 3, threads: 1, device: cpu }}
model: {{ type: llama, vocab_size: 300, hidden_size: 32, num_hidden_layers: 4, num_attention_heads: 4, num_key_value_heads: 2, intermediate_size: 64 }}
data: {{ tokenizer: {directory}/tokenizer.json, train: ['{directory}/train-*.h5'], eval: ['{directory}/eval-*.h5'] }}
training: {{ steps: 10, sequence_length: 32, global_batch_size: 8, micro_batch_size: 2 }}
optimizer: {{ lr: 3.0e-3 }}
lr_schedule: {{ type: constant }}
eval: {{ every: 5, samples: 8 }}
"""
    path = directory / f"{name}.yaml"
    path.write_text(text)
    return path


def prepared(directory):
    """Corpus, tokenizer and token files."""
    write_corpus(directory / "corpus")
    run("data", "tokenizer", "--vocab-size", 300, "--out", directory / "tokenizer.json", directory / "corpus")
    run("data", "tokenize", "--tokenizer", directory / "tokenizer.json", "--out", directory / "train", "--eval-out",
        directory / "eval", "--eval-fraction", 0.1, directory / "corpus")


def metrics(run_directory, key):
    lines = [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def exit_code_file(run_directory):
    return json.loads((run_directory / "exit.json").read_text())["code"]


def test_text_to_text(d):
    """Text, tokens, training on 1 rank, on 2 and 4 MPI ranks and on thread ranks, evaluation, text, resume."""
    prepared(d)
    run("data", "inspect", d / "train-00000.h5", "--tokenizer", d / "tokenizer.json")
    run("plan", job(d, "one"), says="parameters")
    run("train", job(d, "one"))
    reference = metrics(d / "one", "loss")
    check(len(reference) == 10 and reference[-1] < reference[0], f"losses {reference}")
    check(len(metrics(d / "one", "eval_loss")) == 3, "evaluations at 0, 5 and 10")
    check(exit_code_file(d / "one") == 0, "exit.json")
    layouts = {"pipe": (2, ["parallel.pipeline=2"]), "data": (2, ["parallel.data=2"]),
               "tensor": (2, ["parallel.tensor=2"]), "all": (4, ["parallel.tensor=2", "parallel.pipeline=2"]),
               "wide": (4, ["parallel.tensor=2", "parallel.data=2"])}
    for name, (ranks, overrides) in layouts.items():
        run("train", job(d, name), *overrides, ranks=ranks)
        for a, b in zip(metrics(d / name, "loss"), reference, strict=True):
            # Float32 sums in another order, ten updates long.
            check(abs(a - b) <= 1e-4 * b, f"{name}: loss {a}, one rank has {b}")
    run("train", job(d, "threads"), "parallel.pipeline=2", "parallel.tensor=2", "--ranks", 4)
    check(metrics(d / "threads", "loss") == metrics(d / "all", "loss"), "thread and MPI ranks give the same bits")
    run("checkpoint", "diff", d / "threads/checkpoints/step_00000010", d / "all/checkpoints/step_00000010")
    run("train", job(d, "one"), "training.steps=12")
    check(len(metrics(d / "one", "loss")) == 12, "resumed metrics")
    check("step 12" in run("eval", d / "one"), "eval")
    run("eval", d / "all", ranks=2)
    run("eval", d / "all", "--ranks", 3)
    for option, value in (("--temperature", "nan"), ("--top-p", "nan"), ("--repetition-penalty", "nan"), ("--seed", -1)):
        run("generate", d / "one", "--prompt", "the", option, value, code=2, says=option)
    run("data", "tokenizer", "--vocab-size", 270, "--out", d / "other.json", d / "corpus")
    run("generate", d / "one", "--prompt", "the", "--tokenizer", d / "other.json", code=2, says="data.tokenizer")
    run("eval", d / "one", "--tokenizer", d / "other.json", code=2, says="data.tokenizer")
    run("generate", d / "one", "--prompt", "the", "--tokens", 1, "--tokenizer", d / "tokenizer.json")
    text = run("generate", d / "one", "--prompt", "the quick", "--tokens", 20, "--temperature", 0)
    check(text.startswith("the quick") and len(text) > 12, text)
    check(text == run("generate", d / "one", "--prompt", "the quick", "--tokens", 20, "--temperature", 0), "repeatable")
    run("checkpoint", "list", d / "one", says="12")
    run("checkpoint", "verify", d / "one")


def test_parity(d):
    """Reference results of transformers; a changed weight is noticed."""
    for name in ("llama_tiny", "gpt2_tiny", "deepseek_v3_tiny", "deepseek_v2_lite_tiny", "deepseek_v3_mtp_tiny", "llama_llama3_tiny",
                 "llama_yarn_tiny", "gpt2_scaled_tiny", "deepseek_v3_halves_tiny"):
        for device in DEVICES:
            run("parity", SOURCE / "tests/golden" / name, "--device", device, "--tolerance",
                {"cpu": 1e-5, "cuda": 1e-4}[device], says="pass")
    pre_norm = SOURCE / "tests/golden/deepseek_v3_mtp_pre_tiny"
    for device in DEVICES:
        run("parity", pre_norm, "--device", device, "--tolerance", {"cpu": 1e-5, "cuda": 1e-4}[device], "mtp.input=pre_norm",
            says="pass")
    run("parity", pre_norm, code=1, says="FAIL")
    broken = d / "broken"
    shutil.copytree(SOURCE / "tests/golden/llama_tiny", broken)
    data = bytearray((broken / "model.safetensors").read_bytes())
    data[-2] ^= 1  # a mantissa bit of the final norm
    (broken / "model.safetensors").write_bytes(data)
    run("parity", broken, code=1, says="FAIL")
    (broken / "model.safetensors").write_bytes(data[:-4])
    run("parity", broken, code=3, says="model.safetensors")
    run("parity", d / "nowhere", code=3)


def test_start_from_weights(d):
    """A Hugging Face model: config.json and safetensors."""
    prepared(d)
    golden = SOURCE / "tests/golden/llama_tiny"
    path = job(d, "hf")
    text = path.read_text().split("\n")
    text[2] = f"model: {{ from: '{golden}/config.json', weights: '{golden}/model.safetensors' }}"
    path.write_text("\n".join(text))
    run("train", path, "training.steps=2")
    run("train", path, "run.dir=" + str(d / "missing"), f"model.weights={d}/none.safetensors", code=3, says="none.safetensors")


def test_bad_arguments(d):
    """One clear error and the documented code."""
    prepared(d)
    run(code=2, says="dstrain needs a command: train, plan")
    run("fly", code=2, says="dstrain has no command 'fly'; there are train")
    run("trian", job(d, "typo"), code=2, says="did you mean 'train'?")
    run("data", code=2, says="dstrain data needs a command: ")
    run("data", "tokenise", code=2, says="dstrain data has no command 'tokenise'; did you mean 'tokenize'?")
    run("train", code=2, says="job is required")
    run("train", d / "missing.yaml", code=2, says="missing.yaml")
    (d / "empty.yaml").write_text("")
    run("train", d / "empty.yaml", code=2, says="empty.yaml")
    run("train", job(d, "typo"), "optimizer.wieght_decay=1", code=2, says="did you mean 'weight_decay'?")
    run("train", job(d, "few"), "parallel.pipeline=2", code=2, says="parallel")
    run("train", job(d, "few"), "parallel.pipeline=3", ranks=2, code=2, says="parallel")
    if "cuda" not in DEVICES:
        run("train", job(d, "gpu"), "run.device=cuda", code=13, says="run.device: cuda")
        run("plan", job(d, "gpu"), "run.device=cuda", "precision.compute=bfloat16", says="GPU total")
    run("train", job(d, "none"), "data.train=[]", code=2, says="data.train")
    run("train", job(d, "wide"), "model.hidden_size=512", "model.num_attention_heads=1", "model.num_key_value_heads=1", code=2, says="256")
    run("eval", d / "norun", code=2, says="norun")
    run("generate", d / "norun", code=2)
    check(not (d / "few").exists(), "a refused job leaves no directory")


def test_bad_data(d):
    """Missing, empty, foreign and damaged data."""
    prepared(d)
    run("train", job(d, "a"), "data.train=[" + str(d / "none-*.h5") + "]", code=3, says="none-*.h5")
    run("train", job(d, "b"), "model.vocab_size=200", code=3, says="200")
    (d / "void").mkdir()
    (d / "void/empty.txt").write_text("")
    run("data", "tokenizer", "--vocab-size", 300, "--out", d / "t.json", d / "void", code=3)
    run("data", "tokenize", "--tokenizer", d / "tokenizer.json", "--out", d / "x", d / "void", code=3)
    run("data", "tokenize", "--tokenizer", d / "corpus/000.txt", "--out", d / "x", d / "corpus", code=3)
    run("data", "tokenize", "--tokenizer", d / "tokenizer.json", "--out", d / "train", d / "corpus", code=2, says="eval_out")
    (d / "train.state.json").unlink()
    run("data", "tokenize", "--tokenizer", d / "tokenizer.json", "--out", d / "train", d / "corpus", code=5, says="train-00000.h5")
    data = bytearray((d / "train-00000.h5").read_bytes())
    for i in range(len(data) // 2, len(data) // 2 + 64):
        data[i] ^= 0x55
    (d / "bad-00000.h5").write_bytes(data)
    run("data", "tokenizer", "--vocab-size", 280, "--out", d / "other.json", d / "corpus")
    run("train", job(d, "other"), f"data.tokenizer={d}/other.json", code=3, says="other.json")
    run("train", job(d, "c"), f"data.train=[{d}/bad-00000.h5]", code=3, says="bad-00000.h5")
    check(exit_code_file(d / "c") == 3, "exit.json of a run with bad data")
    (d / "cut-00000.h5").write_bytes(data[: len(data) // 3])
    run("train", job(d, "e"), f"data.train=[{d}/cut-00000.h5]", code=3, says="cut-00000.h5")
    run("train", job(d, "f"), f"data.train=[{d}/cut-00000.h5]", ranks=2, code=3, says="cut-00000.h5")


class Mount:
    """A small file system of its own. Needs root, as CI has."""

    def __init__(self, path, options):
        path.mkdir()
        self.path = path
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], check=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run(["umount", "-l", str(self.path)], check=True)


def test_full_and_read_only_disks(d):
    """A disk without room is refused before training, one that fills later costs a checkpoint, not the run."""
    prepared(d)
    with Mount(d / "small", "size=200k"):
        run("train", job(d, "small/run"), code=5, says="small")
    with Mount(d / "filling", "size=2m"):
        path = job(d, "filling/run")
        run("train", path, "checkpoint.every=5", "training.steps=5")
        kept = (d / "filling/run/checkpoints/step_00000005/manifest.jsonl").read_bytes()
        with open(d / "filling/fill", "wb") as fill:
            free = os.statvfs(d / "filling")
            fill.write(b"x" * (free.f_bavail * free.f_bsize - 300 * 1024))
        run("train", path, "training.steps=6", code=5)
        check((d / "filling/run/checkpoints/step_00000005/manifest.jsonl").read_bytes() == kept, "the old checkpoint is intact")
        run("train", path, "training.steps=6", "checkpoint.every=6", code=5)  # the last save is one that was due
        os.remove(d / "filling/fill")
        run("train", path, "training.steps=6", says="resumed from step 5")
    with Mount(d / "readonly", "size=1m"):
        path = job(d, "readonly/run")
        subprocess.run(["mount", "-o", "remount,ro", str(d / "readonly")], check=True)
        run("train", path, code=5, says="readonly")


def test_one_run_a_directory(d):
    """The second run in a directory is told who holds it."""
    prepared(d)
    first = subprocess.Popen([DSTRAIN, "train", str(job(d, "run")), "training.steps=1000000"], env=ENV,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(500):
            if (d / "run/metrics.jsonl").exists():
                break
            time.sleep(0.02)
        run("train", job(d, "run"), code=5, says=str(first.pid))
        first.send_signal(signal.SIGTERM)
        check(first.wait(timeout=60) == 10, "SIGTERM saves and exits 10")
        check(exit_code_file(d / "run") == 10, "exit.json")
    finally:
        first.kill()
        first.wait()


def test_kills(d):
    """kill -9 at random moments of runs that save at every step: always a checkpoint to go on from, and the same end."""
    prepared(d)
    overrides = ["checkpoint.every=1", "training.steps=60", "eval.every=0"]
    run("train", job(d, "whole"), *overrides)
    rng = random.Random(5)
    kills = 0
    for attempt in range(400):
        process = subprocess.Popen([DSTRAIN, "train", str(job(d, "killed")), *overrides], env=ENV,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            # Long enough, now and then, to get on by a step or more.
            process.wait(timeout=rng.uniform(0.02, 0.35))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            process.stderr.close()
            kills += 1
            if kills < 50:
                continue
            run("train", job(d, "killed"), *overrides)
            break
        check(process.returncode == 0, process.stderr.read().decode())
        process.stderr.close()
        if kills >= 50:
            break
        # It got to the end before 50 kills: go on from an earlier checkpoint, which must be as good.
        steps = sorted((d / "killed/checkpoints").glob("step_*"))
        shutil.rmtree(steps[-1])
    check(kills >= 50, f"{kills} kills")
    run("train", job(d, "killed"), *overrides)
    run("checkpoint", "diff", d / "whole/checkpoints/step_00000060", d / "killed/checkpoints/step_00000060")
    check(metrics(d / "killed", "loss") == metrics(d / "whole", "loss"), "losses of a run that was killed 50 times")


def test_gpu(d):
    """The same jobs on a GPU: losses of the CPU, ranks that share it, the same bits recorded or not, either way resumed."""
    if "cuda" not in DEVICES:
        print("not asked for: DSTRAIN_TEST_DEVICES has no cuda")
        return
    prepared(d)
    run("train", job(d, "cpu"))
    reference = metrics(d / "cpu", "loss")

    def close(name, bound):
        for a, b in zip(metrics(d / name, "loss"), reference, strict=True):
            check(abs(a - b) <= bound * b, f"{name}: loss {a}, the CPU has {b}")

    gpu = "run.device=cuda"
    run("train", job(d, "gpu"), gpu, says="CUDA graphs")
    close("gpu", 1e-4)
    run("train", job(d, "plain"), gpu, "cuda.graphs=never", "cuda.tune=false")
    run("checkpoint", "diff", d / "gpu/checkpoints/step_00000010", d / "plain/checkpoints/step_00000010")
    run("train", job(d, "shared"), gpu, "parallel.tensor=2", "parallel.pipeline=2", ranks=4)
    close("shared", 1e-4)
    run("train", job(d, "threads"), gpu, "parallel.data=2", "parallel.tensor=2", "--ranks", 4)
    close("threads", 1e-4)
    for master in ("float32", "split"):
        run("train", job(d, f"bf16-{master}"), gpu, "precision.compute=bfloat16", f"precision.master={master}")
        close(f"bf16-{master}", 2 ** -8 * 12)
    # Half the steps on one device, the rest on the other.
    for first, second in (("cuda", "cpu"), ("cpu", "cuda")):
        run("train", job(d, f"from-{first}"), f"run.device={first}", "training.steps=5")
        run("train", job(d, f"from-{first}"), f"run.device={second}", says="resumed from step 5")
        close(f"from-{first}", 1e-4)
    run("eval", d / "gpu", says="step 10")
    text = run("generate", d / "gpu", "--prompt", "the quick", "--tokens", 20, "--temperature", 0)
    check(text == run("generate", d / "gpu", "--prompt", "the quick", "--tokens", 20, "--temperature", 0), "repeatable")
    run("train", job(d, "huge"), gpu, "model.hidden_size=16384", "model.num_attention_heads=128", "model.num_key_value_heads=128", "model.intermediate_size=65536",
        "model.num_hidden_layers=64", code=13, says=["GPU memory", "the plan counts"])
    traced(d, gpu)


def traced(d, *overrides):
    name = "traced" + str(len(overrides))
    run("train", job(d, name), "profile.steps=[3, 4]", *overrides, says="trace.json")
    events = json.loads((d / name / "trace.json").read_text())["traceEvents"]
    check(len(events) > 20 and all(e["dur"] >= 0 for e in events), f"{len(events)} events")


def test_debug_and_profile(d):
    """debug and profile keys, on every device."""
    prepared(d)
    traced(d)
    for device in DEVICES:
        run("train", job(d, f"checked-{device}"), f"run.device={device}", "debug.check_finite=true", "debug.blocking=true")
        # A learning rate that throws the weights out of float32's range.
        output = run("train", job(d, f"broken-{device}"), f"run.device={device}", "debug.check_finite=true",
                     "optimizer.lr=1000", "optimizer.weight_decay=100", "training.steps=200", code=12, says="not finite")
        check("layer" in output and "micro-batch" in output and "op '" in output, output)


def test_doctor_and_schedule(d):
    run("doctor", says=["cores", "BLAS"])
    run("schedule", "gpipe", "--stages", 8, "--microbatches", 32, says="17.9")
    run("config", "print", job(d, "p"), says="p.yaml:")
    run("config", "explain", "optimizer.lr", says="lr")
    json.loads(run("config", "schema"))


def main(functions):
    """Runs the tests among a module's globals, those named on the command line or all. Returns the exit code."""
    tests = {name[5:]: f for name, f in functions.items() if name.startswith("test_")}
    names = sys.argv[3:] or list(tests)
    failed = 0
    for name in names:
        with tempfile.TemporaryDirectory(prefix="dstrain-") as directory:
            begin = time.monotonic()
            try:
                tests[name](pathlib.Path(directory))
                print(f"ok    {name}  {time.monotonic() - begin:.1f} s", flush=True)
            except (Failed, subprocess.SubprocessError, OSError) as error:
                failed += 1
                print(f"FAIL  {name}: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(globals()))
