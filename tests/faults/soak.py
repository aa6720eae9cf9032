#!/usr/bin/env python3
"""Soak: a seeded scheduler deals faults to a job of 4 ranks without end. At every restart the newest checkpoint has the
hash that the undisturbed run had at that step, and so has every line of the curve at the end of a lap.

    soak.py DSTRAIN SOURCE_DIR [MINUTES] [SEED]

As root the run lives on a small tmpfs, which is filled now and then; else that fault is left out."""
import contextlib
import hashlib
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from cluster import (Failed, Job, check, dstrain_run, exit_file, handles_signals, is_alive, prepare, records)

DSTRAIN = os.path.abspath(sys.argv[1])
RANKS, LAP, LIMIT, TMPFS_MIB = 4, 400, 2.0, 24


def write_job(directory, run, steps, keep):
    text = f"""
run: {{ dir: {run}, seed: 3, threads: 1, device: cpu }}
model: {{ type: llama, vocab_size: 300, hidden_size: 16, num_hidden_layers: 4, num_attention_heads: 2, intermediate_size: 32 }}
data: {{ tokenizer: {directory}/tokenizer.json, train: ['{directory}/train-*.h5'], eval: ['{directory}/eval-*.h5'] }}
training: {{ steps: {steps}, sequence_length: 32, global_batch_size: 16, micro_batch_size: 2 }}
parallel: {{ data: 2, pipeline: 2 }}
optimizer: {{ lr: 1.0e-3 }}
lr_schedule: {{ type: constant }}
eval: {{ every: 7, samples: 16 }}
checkpoint: {{ every: 1, keep: {keep} }}
watchdog: {{ limit: {LIMIT}, start: 20 }}
"""
    path = directory / f"{pathlib.Path(run).name}.yaml"
    path.write_text(text)
    return path


def hash_of(checkpoint):
    """Of the manifest, which holds the hashes of all shards."""
    return hashlib.sha256((checkpoint / "manifest.jsonl").read_bytes()).hexdigest()


def checkpoints(run):
    return sorted(p for p in (run / "checkpoints").glob("step_*") if re.fullmatch(r"step_\d{8}", p.name))


class Soak:
    def __init__(self, directory, seed):
        self.directory, self.rng = directory, random.Random(seed)
        self.counts, self.restarts, self.steps, self.laps, self.hashes_checked = {}, 0, 0, 0, 0
        self.disk = directory / "disk"
        self.disk.mkdir()
        self.small = os.geteuid() == 0 and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_MIB}m", "none", self.disk]).returncode == 0
        self.run = self.disk / "run"
        self.job, self.full_at = None, -100.0

    def reference(self):
        whole = self.directory / "whole"
        self.hashes = {}
        for end in range(50, LAP + 1, 50):
            dstrain_run(DSTRAIN, "train", write_job(self.directory, whole, end, 1000), ranks=RANKS)
            for c in checkpoints(whole):
                self.hashes[int(c.name[5:])] = hash_of(c)
            for c in checkpoints(whole)[:-1]:
                shutil.rmtree(c)
        check(sorted(self.hashes) == list(range(1, LAP + 1)), "steps of the undisturbed run")
        self.curve = {key: records(whole, key) for key in ("loss", "grad_norm", "eval_loss")}

    def start(self):
        (self.run / "exit.json").unlink(missing_ok=True)  # of the start before: a kill may come before a new one
        self.job = Job(DSTRAIN, write_job(self.directory, self.run, LAP, 3), ranks=RANKS)
        self.job.find_ranks(ready=handles_signals)
        self.restarts += 1

    def check_state(self):
        """What a restart goes on from, and the curve so far."""
        found = checkpoints(self.run)
        for c in found:
            step = int(c.name[5:])
            with contextlib.suppress(FileNotFoundError):  # retention may be at it
                check(hash_of(c) == self.hashes[step], f"the state of step {step} is another than the undisturbed run's")
                self.hashes_checked += 1
        self.steps = max(self.steps, int(found[-1].name[5:]) if found else 0)
        for key, curve in self.curve.items():
            if (self.run / "metrics.jsonl").exists():
                for step, value in self.complete_records(key).items():
                    check(value == curve[step], f"{key} of step {step}: {value}, undisturbed {curve[step]}")

    def complete_records(self, key):
        # A killed writer may leave a torn line, which the next start removes.
        path = self.run / "metrics.jsonl"
        data = path.read_bytes()
        whole = data[:data.rfind(b"\n") + 1]
        copy = self.directory / "metrics"
        copy.mkdir(exist_ok=True)
        (copy / "metrics.jsonl").write_bytes(whole)
        return records(copy, key)

    def ended(self, codes, within, but=None):
        others = [p for r, p in self.job.pids.items() if r != but]
        begin = time.monotonic()
        while any(map(is_alive, others)):
            check(time.monotonic() - begin < within, f"alive after {within} s: {[p for p in others if is_alive(p)]}\n{self.job.output}")
            time.sleep(0.01)
        self.job.kill_all()
        self.job.reader.join(5)
        if (self.run / "exit.json").exists():
            code = exit_file(self.run)["code"]
            if time.monotonic() - self.full_at < 5:
                codes = [*codes, 5]
            check(code in codes, f"exit.json {exit_file(self.run)}, expected {codes}\n{self.job.output}")

    # Faults. Each returns whether the job has ended.
    def kill(self):
        os.kill(self.job.pids[self.rng.randrange(RANKS)], signal.SIGKILL)
        self.ended([11, 0], 5)
        return True

    def kill_all_ranks(self):
        for pid in self.job.pids.values():
            os.kill(pid, signal.SIGKILL)
        self.ended([11, 0], 5)
        return True

    def kill_launcher(self):
        os.kill(self.job.process.pid, signal.SIGKILL)
        self.ended([11, 0], 5)
        return True

    def stop(self):
        victim = self.rng.randrange(RANKS)
        os.kill(self.job.pids[victim], signal.SIGSTOP)
        self.ended([11, 0], 25, victim)  # 20 s in the start
        return True

    def pause(self):
        """Shorter than the limit: nothing happens."""
        pid = self.job.pids[self.rng.randrange(RANKS)]
        os.kill(pid, signal.SIGSTOP)
        time.sleep(self.rng.uniform(0, LIMIT / 2))
        os.kill(pid, signal.SIGCONT)
        return False

    def term(self):
        for pid in self.job.pids.values():
            os.kill(pid, signal.SIGTERM)
        self.ended([10, 0], 15)
        return True

    def usr1(self):
        os.kill(self.job.process.pid, signal.SIGUSR1)
        self.ended([10, 0], 15)
        return True

    def twice(self):
        os.kill(self.job.process.pid, signal.SIGUSR1)
        time.sleep(1.1)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.job.process.pid, signal.SIGUSR1)
        self.ended([10, 0], 15)
        return True

    def second_job(self):
        """Refused at once, while the first holds the directory."""
        self.job.open_table()
        if self.job.table.row(0).directory == 0:
            return False
        begin = time.monotonic()
        second = Job(DSTRAIN, write_job(self.directory, self.run, LAP, 3), ranks=RANKS)
        with contextlib.suppress(Failed):
            second.find_ranks()
        while second.process.poll() is None and self.job.process.poll() is None and time.monotonic() - begin < 30:
            time.sleep(0.02)
        if self.job.process.poll() is None:
            check(second.process.poll() == 5, f"the second job: {second.process.poll()}\n{second.output}")
            second.reader.join(5)
            check("is in use by host" in second.output, second.output)
        second.kill_all()
        return False

    def full_disk(self):
        """No byte is left for a while: saves fail, training goes on. (A start on a full disk is refused.)"""
        self.job.open_table()
        if self.job.table.row(0).activity in ("", "start"):
            return False
        balloon = self.disk / "balloon"
        try:
            with open(balloon, "wb", buffering=0) as f:
                with contextlib.suppress(OSError):
                    while True:
                        f.write(bytes(1 << 16))
                with contextlib.suppress(OSError):
                    while True:
                        f.write(bytes(64))
            time.sleep(self.rng.uniform(0.1, 1.0))
        finally:
            balloon.unlink()
            self.full_at = time.monotonic()
        time.sleep(0.3)
        return False

    def deal(self, until):
        faults = [self.kill, self.kill, self.kill_all_ranks, self.kill_launcher, self.stop, self.pause, self.term, self.usr1,
                  self.twice, self.second_job] + ([self.full_disk] if self.small else [])
        while time.monotonic() < until:
            if self.job is None:
                self.check_state()
                self.start()
            if self.rng.random() < 0.25:
                time.sleep(self.rng.uniform(0, 0.8))  # perhaps in the start
            else:
                for _ in range(1000):
                    if (self.run / "checkpoints").exists() and checkpoints(self.run):
                        break
                    time.sleep(0.02)
                time.sleep(self.rng.uniform(0.8, 3))
            if self.job.process.poll() is None:
                fault = self.rng.choice(faults)
                with contextlib.suppress(ProcessLookupError):  # it has just come to its end
                    ended = fault()
                    self.counts[fault.__name__] = self.counts.get(fault.__name__, 0) + 1
                    if not ended and self.job.process.poll() is None:
                        continue
            self.job.kill_all()
            self.job.reader.join(5)
            code = exit_file(self.run)["code"] if (self.run / "exit.json").exists() else None
            # A start on a full disk is refused, and a last save on one fails.
            allowed = (None, 0, 10, 11, *([5] if time.monotonic() - self.full_at < 5 else []))
            check(code in allowed, f"exit.json {exit_file(self.run) if code else None}\n{self.job.output}")
            self.job = None
            if code == 0:
                self.check_state()
                check(self.steps == LAP, f"done at step {self.steps}")
                self.laps, self.steps = self.laps + 1, 0
                shutil.rmtree(self.run)

    def close(self):
        if self.job:
            self.job.kill_all()
        if self.small:
            subprocess.run(["umount", "-l", self.disk])


def main():
    minutes = float(sys.argv[3]) if len(sys.argv) > 3 else 30
    seed = int(sys.argv[4]) if len(sys.argv) > 4 else random.SystemRandom().randrange(10**6)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="dstrain-soak-") as directory:
        soak = Soak(pathlib.Path(directory), seed)
        try:
            prepare(DSTRAIN, soak.directory)
            soak.reference()
            begin = time.monotonic()
            soak.deal(begin + minutes * 60)
            if soak.job:
                soak.job.kill_all()
                soak.job = None
            soak.check_state()
            faults = sum(soak.counts.values())
            print(f"{faults} faults in {minutes:g} min ({', '.join(f'{k} {v}' for k, v in sorted(soak.counts.items()))}): "
                  f"{soak.restarts} starts, {soak.laps} laps of {LAP} steps, {soak.hashes_checked} states and every line of "
                  f"the curve equal to the undisturbed run's; seed {seed}")
        except Failed as e:
            print(f"FAILED (seed {seed}): {e}\n{soak.counts}")
            sys.exit(1)
        finally:
            soak.close()


if __name__ == "__main__":
    main()
