#!/usr/bin/env python3
"""Starts that lack something, and sinks that fail: files, threads, memory, data; a full or closed log.

    shortage_test.py DSTRAIN SOURCE_DIR files|threads|memory|data|sinks|resident|resident_experts [STEPS]"""
import os
import pathlib
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time

from cluster import ENV, Failed, check, dstrain_run, exit_file, messages, prepare, write_job

DSTRAIN = os.path.abspath(sys.argv[1])
ALONE = "parallel: { data: 1 }"


def start(path, ranks, *overrides, limit="", code=13, user=None, timeout=120):
    """Trains with a shell's limit set in every rank; checks the code, and that one message tells it."""
    wrap = ["sh", "-c", f'{limit}\nexec "$@"', "sh"] if limit else []
    command = (["mpirun", "--oversubscribe", "-n", str(ranks)] if ranks > 1 else []) + wrap + [DSTRAIN, "train", path, *overrides]
    done = subprocess.run(list(map(str, command)), env=ENV, capture_output=True, text=True, timeout=timeout, user=user)
    said = messages(done.stderr)
    check(done.returncode == code, f"{limit or path} on {ranks}: exit {done.returncode}, expected {code}\n{done.stdout}{done.stderr}")
    check(code == 0 or len(said) == 1, f"{limit or path} on {ranks}: {len(said)} messages\n{done.stderr}")
    check("terminate called" not in done.stderr and "core dumped" not in done.stderr, done.stderr)
    return said[0] if said else ""


def no_partial(run):
    left = [p.name for p in (run / "checkpoints").glob("*")] if (run / "checkpoints").exists() else []
    check(not any(name.endswith(".partial") for name in left), f"{left}")


def test_files(d):
    """File descriptors: with every limit from what a shell needs to what a run needs, one message and code 13, or a run."""
    prepare(DSTRAIN, d)
    counts = {13: 0, 0: 0}
    for limit in range(4, 33):
        path = write_job(d, f"files-{limit}", 2, shape=ALONE)
        done = subprocess.run(["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", DSTRAIN, "train", str(path)], env=ENV,
                              capture_output=True, text=True, timeout=60)
        said = messages(done.stderr)
        check(done.returncode in counts, f"ulimit -n {limit}: exit {done.returncode}\n{done.stderr}")
        counts[done.returncode] += 1
        if done.returncode:
            check(len(said) == 1 and "ulimit -n" in said[0], f"ulimit -n {limit}: {done.stderr}")
            no_partial(d / f"files-{limit}")
    check(counts[13] > 0 and counts[0] > 0, f"{counts}")
    start(write_job(d, "four", 2), 4, limit="ulimit -n 32", code=0)
    print(f"limits of 4 to 32 files: {counts[13]} refused with one message and code 13, {counts[0]} trained; 4 ranks train with 32")


def test_threads(d):
    """Threads: as a user that may have few."""
    prepare(DSTRAIN, d)
    os.chmod(d, 0o777)
    for f in d.glob("*.*"):
        os.chmod(f, 0o644)
    path = write_job(d, "threads", 2, shape=ALONE)
    refused = 0
    for limit in (1, 2, 3, 4, 6):
        def few(limit=limit):
            resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
            os.setgid(65534)
            os.setuid(65534)
        done = subprocess.run([DSTRAIN, "train", str(path), "run.threads=4"], env=dict(ENV, OPENBLAS_NUM_THREADS="1"),
                              capture_output=True, text=True, timeout=60, preexec_fn=few)
        said = messages(done.stderr)
        check(done.returncode in (0, 13), f"{limit} threads: exit {done.returncode}\n{done.stderr}")
        refused += done.returncode == 13
        if done.returncode:
            check(len(said) == 1 and "ulimit -u" in said[0], f"{limit} threads: {done.stderr}")
        no_partial(d / "threads")
        shutil.rmtree(d / "threads", ignore_errors=True)
    check(refused >= 3, f"{refused} refused")
    print(f"limits of 1, 2, 3, 4 and 6 threads: {refused} refused with one message and code 13")


def test_memory(d):
    """Host memory: refused before it is taken, with the largest purpose."""
    prepare(DSTRAIN, d)
    big = ["model.hidden_size=4096", "model.intermediate_size=16384", "model.num_hidden_layers=32", "model.num_attention_heads=64"]
    for ranks, shape in ((1, ALONE), (4, "parallel: { data: 2, pipeline: 2 }")):
        message = start(write_job(d, f"big-{ranks}", 2, shape=shape), ranks, *big)
        check("host memory is short" in message and "the most of them" in message, message)
        no_partial(d / f"big-{ranks}")
    # An address space in which the plan has no place, and one in which libraries have none.
    small = start(write_job(d, "small", 2, shape=ALONE), 1, "model.hidden_size=1024", "model.intermediate_size=8192", "model.num_attention_heads=16",
                  limit="ulimit -v 1500000")
    check("host memory is short" in small, small)
    print(f"jobs larger than the host, on 1 and 4 ranks: code 13; {message}")


def test_data(d):
    """Token files missing, cut short, or not those of the checkpoint; on 1 and 4 ranks one message and its code."""
    prepare(DSTRAIN, d)
    tokens = sorted(d.glob("train-*.h5"))[0]
    whole = tokens.read_bytes()
    for ranks, shape in ((1, ALONE), (4, "parallel: { data: 2, pipeline: 2 }")):
        path = write_job(d, f"data-{ranks}", 2, shape=shape)
        start(path, ranks, code=0)
        tokens.write_bytes(whole[:len(whole) // 2])
        start(path, ranks, "training.steps=4", code=3)
        tokens.unlink()
        check("train-" in start(path, ranks, "training.steps=4", code=3), "no name")
        tokens.write_bytes(whole)
        check("vocab" in start(write_job(d, f"ids-{ranks}", 2, shape=shape), ranks, "model.vocab_size=200", code=3), "no word of ids")
        other = d / "other"
        other.mkdir()
        dstrain_run(DSTRAIN, "data", "tokenize", "--tokenizer", d / "tokenizer.json", "--out", other / "train", d / "corpus" / "001.txt",
                    d / "corpus" / "002.txt", d / "corpus" / "003.txt")
        message = start(path, ranks, "training.steps=4", f"data.train=['{other}/train-*.h5']", code=3)
        check("are not those that the checkpoint of step 2 was trained on" in message, message)
        shutil.rmtree(other)
        start(path, ranks, "training.steps=4", code=0)
    print("token files cut, missing, changed, with ids past the vocabulary, on 1 and 4 ranks: code 3, one message each")


def test_sinks(d):
    """A log or terminal that cannot be written changes nothing: the run ends well with the same bits."""
    prepare(DSTRAIN, d)
    dstrain_run(DSTRAIN, "train", write_job(d, "plain", 8, shape=ALONE))
    for name in ("full", "closed", "rotated"):
        path = write_job(d, name, 8, shape=ALONE)
        (d / name).mkdir()
        if name == "full":
            try:  # links are refused
                os.mknod(d / name / "log.txt", 0o600 | stat.S_IFCHR, os.makedev(1, 7))  # /dev/full
            except PermissionError:
                print("not root: the log is not on a full device, the terminal is")
        process = subprocess.Popen([DSTRAIN, "train", str(path)], env=ENV,
                                   stdout=open("/dev/full", "w") if name == "full" else subprocess.PIPE, stderr=subprocess.PIPE)
        if name == "closed":
            process.stdout.close()
            process.stderr.close()
        if name == "rotated":
            def rotate():
                while process.poll() is None:
                    for f in ("log.txt", "metrics.jsonl"):
                        if (d / name / f).exists():
                            (d / name / f).rename(d / name / (f + ".1"))
                    time.sleep(0.01)
            threading.Thread(target=rotate).start()
        if name != "closed":
            process.communicate(timeout=120)
        check(process.wait(timeout=120) == 0, f"{name}: exit {process.returncode}")
        check(exit_file(d / name)["code"] == 0, name)
        dstrain_run(DSTRAIN, "checkpoint", "diff", d / "plain", d / name)
    print("log on a full device, closed terminal, rotated files: exit 0, the same bits")


EXPERTS = ("{ type: deepseek_v3, vocab_size: 300, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, "
           "intermediate_size: 64, kv_lora_rank: 16, qk_nope_head_dim: 8, qk_rope_head_dim: 8, v_head_dim: 16, "
           "first_k_dense_replace: 1, moe_intermediate_size: 16, n_routed_experts: 64, num_experts_per_tok: 6, n_group: 8, "
           "topk_group: 4, num_nextn_predict_layers: 1 }")


def test_resident(d, steps=1000):
    """Resident memory of a run: the second half of the steps takes no more than the first."""
    prepare(DSTRAIN, d)
    resident(d, steps, write_job(d, "long", steps, shape=ALONE), "model.hidden_size=32", "model.intermediate_size=64")


def test_resident_experts(d, steps=1000):
    """The same with 64 experts, six a token, and multi-token prediction."""
    prepare(DSTRAIN, d)
    resident(d, steps, write_job(d, "long", steps, shape=ALONE, model=EXPERTS))


def resident(d, steps, path, *overrides):
    process = subprocess.Popen([DSTRAIN, "train", str(path), "checkpoint.every=100", "eval.every=100",
                                "training.sequence_length=32", *overrides], env=ENV, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    samples = []
    metrics = d / "long" / "metrics.jsonl"
    while process.poll() is None:
        try:
            kilobytes = int(next(l for l in pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines() if l.startswith("VmRSS")).split()[1])
            samples.append((metrics.read_text().count('"loss"') if metrics.exists() else 0, kilobytes))
        except (OSError, StopIteration):
            pass
        time.sleep(0.2)
    check(process.returncode == 0, f"exit {process.returncode}")
    warm = [k for s, k in samples if steps * 0.1 <= s < steps * 0.5]
    late = [k for s, k in samples if s >= steps * 0.5]
    growth = max(late) / max(warm) - 1
    check(growth <= 0.01, f"{max(warm)} kB in the first half, {max(late)} kB in the second")
    print(f"resident memory over {steps} steps: {max(warm)} kB, then {max(late)} kB: {100 * growth:+.2f}%")


def main():
    name, rest = sys.argv[3], list(map(int, sys.argv[4:]))
    with tempfile.TemporaryDirectory(prefix="dstrain-shortage-") as directory:
        try:
            globals()[f"test_{name}"](pathlib.Path(directory), *rest)
        except Failed as e:
            print(f"{name}: {e}")
            sys.exit(1)


if __name__ == "__main__":
    main()
