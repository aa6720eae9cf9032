#!/usr/bin/env python3
"""Two hosts (tests/support/two_hosts; as root): ranks that die while no launcher cleans up, a host that falls silent, a
SIGTERM because a rank of the other host is gone, a cut cable, and a run directory that one host does not see.

    hosts_test.py DSTRAIN SOURCE_DIR [NAME...]"""
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from cluster import (ENV, Failed, Job, check, check_equal, children, dstrain_run, exit_file, is_alive, prepare, rank_of, write_job)

DSTRAIN = os.path.abspath(sys.argv[1])
BED = str(pathlib.Path(sys.argv[2]).resolve() / "tests/support/two_hosts")
LIMIT = 3.0
EXTRA = f"watchdog: {{ limit: {LIMIT}, start: 30 }}"
SHAPES = {4: "parallel: { data: 2, pipeline: 2 }", 2: "parallel: { data: 2 }"}


def descendants(process):
    found = [process]
    for child in children(process):
        found += descendants(child)
    return found


class Hosts(Job):
    """A job on both hosts, its launchers found, its ranks at work. Careless: the launcher ends no rank for another's sake."""

    def __init__(self, directory, name, ranks, steps=100000, work=True, careless=True):
        each = ranks // 2
        self.run = directory / name
        path = write_job(directory, name, steps, EXTRA, SHAPES[ranks])
        super().__init__(DSTRAIN, path, ranks=ranks,
                         launcher=[BED, "mpirun", *(["--enable-recovery"] if careless else []), "--host", f"h1:{each},h2:{each}", "-n", str(ranks)])
        end = time.monotonic() + 40
        while work and (len(self.pids) < ranks or not self.steps()):
            check(time.monotonic() < end and self.process.poll() is None, f"the job does not start\n{self.output}")
            self.find(name)
            time.sleep(0.05)
        time.sleep(0.5)

    def find(self, name):
        self.launchers = descendants(self.process.pid)
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if words[0] == DSTRAIN.encode() and any(f"/{name}.yaml".encode() in w for w in words):
                    self.pids[rank_of(entry.name)] = int(entry.name)

    def steps(self):
        with contextlib.suppress(OSError):
            return (self.run / "metrics.jsonl").read_text().count('"loss"') >= 3
        return False

    def wait_ranks(self, ranks, within):
        begin = time.monotonic()
        while any(is_alive(self.pids[r]) for r in ranks):
            check(time.monotonic() - begin < within,
                  f"ranks {[r for r in ranks if is_alive(self.pids[r])]} alive after {within} s\n{self.output}")
            time.sleep(0.01)
        return time.monotonic() - begin

    def clean(self):
        self.launchers += descendants(self.process.pid)
        self.kill_all()
        for pid in set(self.launchers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def messages(self):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        time.sleep(0.2)
        return [line for line in self.output.splitlines() if line.startswith("dstrain: ")]


def test_alone(d):
    """Every rank in turn is killed under a launcher that ends nobody for that."""
    worst = 0.0
    for victim in range(4):
        job = Hosts(d, f"alone{victim}", 4)
        try:
            os.kill(job.pids[victim], signal.SIGKILL)
            worst = max(worst, job.wait_ranks([r for r in range(4) if r != victim], 5))
            host = "h1" if victim < 2 else "h2"
            end = exit_file(job.run)
            check(end["code"] == 11 and f"rank {victim} on host {host} (process {job.pids[victim]})" in end["reason"], f"{end}")
            said = job.messages()
            check(len(said) == 1, f"{len(said)} messages: {said}")
        finally:
            job.clean()
    print(f"4 ranks of 2 hosts killed under a launcher that does not care: all ended within {worst:.2f} s, one message, rank and host named")


def test_silent(d):
    """The only rank of a host is killed or stopped: nobody on its host can tell."""
    worst = 0.0
    for victim in (0, 1):
        for sign in (signal.SIGKILL, signal.SIGSTOP):
            job = Hosts(d, f"silent{victim}{sign}", 2)
            try:
                os.kill(job.pids[victim], sign)
                worst = max(worst, job.wait_ranks([1 - victim], LIMIT + 5))
                end = exit_file(job.run)
                check(end["code"] == 11 and f"rank {victim} on host h{victim + 1}" in end["reason"], f"{end}")
            finally:
                job.clean()
    print(f"the only rank of a host killed or stopped, 4 cases: the other host ends within {worst:.2f} s (limit {LIMIT} s), "
          "rank and host named")


def test_sigterm(d):
    """SIGTERM for a rank that another host has lost: mpirun kills a second later."""
    worst = 0.0
    for victim in (0, 1):
        for careless in (True, False):
            job = Hosts(d, f"sigterm{victim}{careless}", 2, careless=careless)
            try:
                os.kill(job.pids[victim], signal.SIGKILL)
                if careless:  # what mpirun does after seconds of its own
                    os.kill(job.pids[1 - victim], signal.SIGTERM)
                seconds = job.wait_ranks([1 - victim], 8)
                worst = max(worst, seconds if careless else 0)
                end = exit_file(job.run)
                check(end["code"] == 11 and f"rank {victim} on host h{victim + 1}" in end["reason"], f"{end}\n{job.output}")
            finally:
                job.clean()
    check(worst < 0.8, f"{worst} s")
    print(f"SIGTERM for a rank lost on the other host: exit 11 within {worst:.2f} s, rank and host named, no save; the same "
          "under a live mpirun")


def test_cable(d):
    job = Hosts(d, "cable", 4)
    try:
        subprocess.run([BED, "cut"], check=True)
        seconds = job.wait_ranks(range(4), LIMIT + 5)
        check(exit_file(job.run)["code"] == 11, f"{exit_file(job.run)}")
    finally:
        subprocess.run([BED, "join"], check=True)
        job.clean()
    dstrain_run(DSTRAIN, "train", write_job(d, "whole", 12, EXTRA), ranks=4)
    last = max(int(p.name[5:]) for p in (job.run / "checkpoints").glob("step_*[0-9]"))
    job = Hosts(d, "cable", 4, steps=last + 4, work=False, careless=False)
    job.process.wait(60)
    check(job.process.returncode == 0, job.output)
    dstrain_run(DSTRAIN, "train", write_job(d, "again", last + 4, EXTRA), ranks=4)
    check_equal(DSTRAIN, d / "cable", d / "again", last + 4)
    print(f"a cut cable: both hosts end within {seconds:.2f} s (limit {LIMIT} s), resumed over the mended one bit-equal")


def test_directory(d):
    """A host with a directory of its own at the same path."""
    path = write_job(d, "apart", 4, EXTRA, SHAPES[2])
    wrapper = d / "wrapper"
    wrapper.write_text('#!/bin/sh\nif [ "$OMPI_COMM_WORLD_RANK" = 1 ]; then\n'
                       f'  exec unshare -m sh -c \'mkdir -p {d}/apart; mount -t tmpfs none {d}/apart; exec "$@"\' - "$@"\nfi\nexec "$@"\n')
    wrapper.chmod(0o755)
    done = subprocess.run([BED, "mpirun", "--host", "h1:1,h2:1", "-n", "2", wrapper, DSTRAIN, "train", path], env=ENV,
                          capture_output=True, text=True, timeout=60)
    said = [line for line in done.stderr.splitlines() if line.startswith("dstrain: ")]
    check(done.returncode == 2 and len(said) == 1, f"exit {done.returncode}\n{done.stderr}")
    check(said[0] == f"dstrain: rank 1: host h2 does not see the run directory {d}/apart that rank 0 on host h1 writes to: "
          "all hosts must share it", said[0])
    check(not list((d / "apart").glob("shared-*")), "the proof is left behind")
    print("a run directory that one host does not see: exit 2, host and path named")


if __name__ == "__main__":
    names = sys.argv[3:] or ["directory", "alone", "silent", "sigterm", "cable"]
    subprocess.run([BED, "start"], check=True)
    with tempfile.TemporaryDirectory(prefix="dstrain-hosts-") as directory:
        try:
            prepare(DSTRAIN, pathlib.Path(directory))
            for name in names:
                globals()["test_" + name](pathlib.Path(directory))
        except Failed as e:
            print(f"FAILED: {e}")
            sys.exit(1)
        finally:
            subprocess.run([BED, "stop"], check=True)
