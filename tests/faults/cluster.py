"""A small job on several ranks, looked at and disturbed from outside: what tests of faults share.

The whereabouts of ranks are read from the table that dstrain shares between them (lib/comm/rank_table.h), found as
/proc/PROCESS/fd/*, so that a fault can be put into a phase: the rank is stopped, and killed if it was caught there."""
import contextlib
import glob
import json
import mmap
import os
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time

ENV = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
WORDS = "the quick brown fox jumps over a lazy dog while many small models learn to write plain text".split()
ROWS_AT, ROW = 4096, 192  # rank_table.cpp; a test of comm holds them against the structs


class Failed(Exception):
    pass


def check(condition, message):
    if not condition:
        raise Failed(message)


def messages(output):
    """What dstrain says when it ends, of all that it printed."""
    return [line for line in output.splitlines() if line.startswith("dstrain: ")]


def main(tests, rounds, seed, arguments):
    """Runs test_NAME(directory, rounds, seed) of `tests`, in a directory of its own: NAME [ROUNDS] [SEED]. `rounds` by name."""
    name = arguments[0]
    count = int(arguments[1]) if len(arguments) > 1 else rounds[name]
    seed = int(arguments[2]) if len(arguments) > 2 else seed
    with tempfile.TemporaryDirectory(prefix="dstrain-faults-") as directory:
        try:
            tests["test_" + name](pathlib.Path(directory), count, seed)
        except Failed as e:
            print(f"FAILED (seed {seed}): {e}")
            sys.exit(1)


def text_at(data, at):
    return data[at:at + 24].split(b"\0")[0].decode(errors="replace")


class Row:
    """lib/core/whereabouts.h"""

    def __init__(self, data):
        self.process, = struct.unpack_from("i", data, 8)
        self.step, = struct.unpack_from("q", data, 24)
        self.layer, self.micro_batch = struct.unpack_from("ii", data, 32)
        self.activity, self.phase, self.op, self.waits = (text_at(data, at) for at in (48, 72, 96, 120))
        self.peer, self.directory, self.ended = struct.unpack_from("iii", data, 144)
        self.saving, = struct.unpack_from("q", data, 160)


class Table:
    """The shared table of a process's host."""

    def __init__(self, process):
        for path in glob.glob(f"/proc/{process}/fd/*"):
            with contextlib.suppress(OSError):
                if "memfd:dstrain-ranks" in os.readlink(path):
                    with open(path, "rb") as f:
                        if os.fstat(f.fileno()).st_size == 0:
                            continue  # just made: it has its length in a moment
                        self.memory = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
                    self.rows = struct.unpack_from("I", self.memory, 8)[0]
                    return
        raise LookupError(f"process {process} has no table")

    def row(self, rank):
        at = ROWS_AT + ROW * rank
        return Row(self.memory[at:at + ROW])


def children(process):
    with contextlib.suppress(OSError):
        return [int(p) for t in os.listdir(f"/proc/{process}/task")
                for p in pathlib.Path(f"/proc/{process}/task/{t}/children").read_text().split()]
    return []


def is_alive(process):
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False


def rank_of(process):
    with contextlib.suppress(OSError):
        for word in pathlib.Path(f"/proc/{process}/environ").read_bytes().split(b"\0"):
            for name in (b"OMPI_COMM_WORLD_RANK=", b"PMIX_RANK="):
                if word.startswith(name):
                    return int(word[len(name):])
    return None


def handles_signals(process):
    """Whether SIGTERM and SIGUSR1 have their handlers."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                mask = int(line.split()[1], 16)
                return all(mask >> (s - 1) & 1 for s in (signal.SIGTERM, signal.SIGUSR1))
    return False


class Job:
    """dstrain under mpirun, its output read as it comes."""

    def __init__(self, dstrain, path, overrides=(), ranks=4, launcher=None, command="train"):
        self.ranks = ranks
        launcher = launcher or ["mpirun", "--oversubscribe", "-n", str(ranks)]
        self.process = subprocess.Popen([*launcher, dstrain, command, str(path), *map(str, overrides)], env=ENV, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace",
                                        start_new_session=True)
        self.output = ""
        self.table = None
        self.pids = {}
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.output += line

    def find_ranks(self, timeout=30, ready=lambda pid: True):
        """The ranks' processes by rank, as soon as all are there and ready."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            found = {}
            for pid in children(self.process.pid):
                with contextlib.suppress(OSError):
                    name = pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
                    rank = rank_of(pid)
                    if name.startswith("dstrain") and rank is not None and ready(pid):
                        found[rank] = pid
            if len(found) == self.ranks:
                self.pids = found
                return found
            check(self.process.poll() is None, f"the job has ended with {self.process.returncode}:\n{self.output}")
            time.sleep(0.005)
        raise Failed(f"ranks did not start:\n{self.output}")

    def open_table(self, timeout=60):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            with contextlib.suppress(LookupError):
                self.table = Table(self.pids[0])
                if all(self.table.row(r).process == self.pids[r] for r in range(self.ranks)):
                    return self.table
            check(self.process.poll() is None, f"the job has ended with {self.process.returncode}:\n{self.output}")
            time.sleep(0.005)
        raise Failed("no table of ranks")

    def catch(self, rank, where, timeout=90):
        """Stops the rank in a place: where(row). False when the job ended before."""
        end = time.monotonic() + timeout
        pid = self.pids[rank]
        while time.monotonic() < end:
            if where(self.table.row(rank)):
                os.kill(pid, signal.SIGSTOP)
                wait_stopped(pid)
                if where(self.table.row(rank)):
                    return True
                os.kill(pid, signal.SIGCONT)
            if self.process.poll() is not None:
                return False
            time.sleep(random.uniform(0, 0.0005))
        raise Failed(f"rank {rank} was not met in its place; it is in {vars(self.table.row(rank))}\n{self.output}")

    def wait_gone(self, timeout):
        """Seconds until no rank is left alive but those in `stopped`, and mpirun has returned."""
        begin = time.monotonic()
        while time.monotonic() - begin < timeout:
            if self.process.poll() is not None and not any(is_alive(p) for p in self.pids.values()):
                self.reader.join(5)
                return time.monotonic() - begin
            time.sleep(0.01)
        raise Failed(f"after {timeout} s still alive: mpirun {self.process.poll() is None}, "
                     f"ranks {[r for r, p in self.pids.items() if is_alive(p)]}\n{self.output}")

    def kill_all(self):
        for pid in [*self.pids.values(), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def wait_stopped(pid):
    for _ in range(2000):
        with contextlib.suppress(OSError, IndexError):
            if pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt":
                return
        time.sleep(0.0002)


LLAMA = ("{ type: llama, vocab_size: 300, hidden_size: 64, num_hidden_layers: 4, num_attention_heads: 4, num_key_value_heads: 2, "
         "intermediate_size: 128 }")


def write_job(directory, name, steps=24, extra="", shape="parallel: { data: 2, pipeline: 2 }", model=LLAMA):
    text = f"""
run: {{ dir: {directory}/{name}, seed: 3, threads: 1, device: cpu }}
model: {model}
data: {{ tokenizer: {directory}/tokenizer.json, train: ['{directory}/train-*.h5'], eval: ['{directory}/eval-*.h5'] }}
training: {{ steps: {steps}, sequence_length: 64, global_batch_size: 16, micro_batch_size: 2 }}
{shape}
optimizer: {{ lr: 3.0e-3 }}
lr_schedule: {{ type: constant }}
eval: {{ every: 4, samples: 32 }}
checkpoint: {{ every: 2, keep: 4 }}
{extra}
"""
    path = pathlib.Path(directory) / f"{name}.yaml"
    path.write_text(text)
    return path


def dstrain_run(dstrain, *args, code=0, timeout=300, ranks=0):
    command = (["mpirun", "--oversubscribe", "-n", str(ranks)] if ranks else []) + [dstrain, *map(str, args)]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, errors="replace", timeout=timeout)
    check(done.returncode == code, f"{' '.join(command)}: exit {done.returncode}, expected {code}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def prepare(dstrain, directory, documents=40):
    """Corpus, tokenizer, token files."""
    corpus = directory / "corpus"
    corpus.mkdir()
    rng = random.Random(1)
    for i in range(documents):
        lines = (" ".join(rng.choice(WORDS) for _ in range(12)) + "." for _ in range(20))
        (corpus / f"{i:03}.txt").write_text("\n".join(lines))
    dstrain_run(dstrain, "data", "tokenizer", "--vocab-size", 300, "--out", directory / "tokenizer.json", corpus)
    dstrain_run(dstrain, "data", "tokenize", "--tokenizer", directory / "tokenizer.json", "--out", directory / "train",
                "--eval-out", directory / "eval", "--eval-fraction", 0.2, corpus)


def records(run, key):
    """{step: value} of a run's metrics."""
    lines = [json.loads(line) for line in (pathlib.Path(run) / "metrics.jsonl").read_text().splitlines()]
    found = {}
    for line in lines:
        if key in line:
            check(line["step"] not in found, f"{run}: two lines of {key} of step {line['step']}")
            found[line["step"]] = line[key]
    return found


def check_equal(dstrain, run, reference, step):
    """Curve, evaluations and the checkpoint of the step are those of the reference, bit for bit."""
    for key in ("loss", "grad_norm", "eval_loss", "tokens"):
        mine, other = records(run, key), records(reference, key)
        wrong = sorted(s for s in set(mine) | {s for s in other if s <= step} if mine.get(s) != other.get(s))
        check(not wrong, f"{run}: {key} differs at steps {wrong[:5]}: {[(mine.get(s), other.get(s)) for s in wrong[:3]]}")
    name = f"checkpoints/step_{step:08}"
    dstrain_run(dstrain, "checkpoint", "diff", pathlib.Path(reference) / name, pathlib.Path(run) / name)


def exit_file(run):
    return json.loads((pathlib.Path(run) / "exit.json").read_text())


def copy_run(source, target):
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
