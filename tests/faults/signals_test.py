#!/usr/bin/env python3
"""Stop signals at random moments, start-up and saves included, and what makes them go wrong.

    signals_test.py DSTRAIN SOURCE_DIR signals|second|lost [ROUNDS] [SEED]"""
import json
import os
import random
import signal
import sys
import time

from cluster import (Job, check, check_equal, dstrain_run, exit_file, handles_signals, is_alive, main, prepare, write_job)

DSTRAIN = os.path.abspath(sys.argv[1])
RANKS, STEPS = 4, 40
GRACE = 30.0  # watchdog.grace, by default


def test_signals(directory, rounds, seed):
    """SIGUSR1 to mpirun, to all ranks or to one; SIGTERM to all ranks or to one; at a random moment from the first line of
    main on. The run stops with 10 within half the grace, goes on, and ends as one that was never stopped."""
    rng = random.Random(seed)
    print(f"seed {seed}")
    prepare(DSTRAIN, directory)
    begin = time.monotonic()
    dstrain_run(DSTRAIN, "train", write_job(directory, "whole", STEPS), ranks=RANKS)
    length = time.monotonic() - begin
    worst, done, resumes, inside = 0.0, 0, 0, {"start": 0, "save": 0, "evaluation": 0}
    while done < rounds:
        # One run after the other goes its way from stop to stop.
        run = directory / f"stopped{resumes}"
        while done < rounds:
            job = Job(DSTRAIN, write_job(directory, run.name, STEPS), ranks=RANKS)
            try:
                job.find_ranks(ready=handles_signals)
                # A third in the start, a third anywhere, a third in a save.
                kind = rng.choice(["start", "any", "save"])
                if kind == "any":
                    time.sleep(rng.uniform(0, length / 3))
                elif kind == "start":
                    time.sleep(rng.uniform(0, 0.8))
                else:
                    job.open_table()
                    victim = rng.randrange(RANKS)
                    end = time.monotonic() + 60
                    while job.table.row(victim).saving < 0 and job.process.poll() is None and time.monotonic() < end:
                        time.sleep(0.0005)
                if job.process.poll() is not None:
                    break
                row = job.open_table().row(0) if job.table else None
                sign, to = rng.choice([(signal.SIGUSR1, "mpirun"), (signal.SIGUSR1, "all"), (signal.SIGUSR1, "one"),
                                       (signal.SIGTERM, "all"), (signal.SIGTERM, "one")])
                targets = {"mpirun": [job.process.pid], "all": list(job.pids.values()),
                           "one": [rng.choice(list(job.pids.values()))]}[to]
                for pid in targets:
                    os.kill(pid, sign)
                sent = time.monotonic()
                job.process.wait(GRACE)
                seconds = time.monotonic() - sent
                job.wait_gone(5)
                end = exit_file(run) if (run / "exit.json").exists() else {"code": None}
                if end["code"] == 0:  # it came with the last step
                    break
                check(end["code"] == 10, f"{sign.name} to {to} ({kind}): exit.json {end}, mpirun {job.process.returncode}\n{job.output}")
                check(job.process.returncode == 10, f"mpirun returned {job.process.returncode}\n{job.output}")
                check(seconds < GRACE / 2, f"{seconds} s from the signal to the end")
                saved = sorted(p.name for p in (run / "checkpoints").glob("step_*"))
                check(end["step"] == 0 or saved, f"nothing saved: {end}")
                worst = max(worst, seconds)
                done += 1
                inside["start"] += row is None or row.activity == "start"
                inside["save"] += row is not None and row.saving >= 0
                inside["evaluation"] += row is not None and row.activity == "evaluation"
                print(f"{sign.name} to {to} ({kind}, {row.activity if row else 'start'}): stopped at step {end['step']} "
                      f"after {seconds:.2f} s", flush=True)
            finally:
                job.kill_all()
        dstrain_run(DSTRAIN, "train", write_job(directory, run.name, STEPS), ranks=RANKS)
        check_equal(DSTRAIN, run, directory / "whole", STEPS)
        check(exit_file(run)["code"] == 0, "the end of a resumed run")
        resumes += 1
    print(f"{done} stop signals (in the start {inside['start']}, in a save {inside['save']}, in an evaluation "
          f"{inside['evaluation']}): exit 10 in exit.json {done}/{done}, worst {worst:.2f} s of {GRACE / 2:.0f} s, "
          f"{resumes} runs stopped that often end bit-equal to the unbroken one")


def test_second(directory, rounds, seed):
    """A second signal ends the run at once, and the checkpoint before stays."""
    prepare(DSTRAIN, directory)
    worst = 0.0
    for i in range(rounds):
        run = directory / f"second{i}"
        job = Job(DSTRAIN, write_job(directory, run.name, 100000), ranks=RANKS)
        try:
            job.find_ranks(ready=handles_signals)
            job.open_table()
            while job.table.row(0).step < 5:
                time.sleep(0.01)
            os.kill(job.pids[1], signal.SIGSTOP)  # nobody gets to a step's end any more
            for r in (0, 2, 3):
                os.kill(job.pids[r], signal.SIGUSR1)
            time.sleep(1.2)
            before = sorted(p.name for p in (run / "checkpoints").glob("step_*") if not p.name.endswith(".partial"))
            sent = time.monotonic()
            os.kill(job.pids[0 if i % 2 == 0 else 3], signal.SIGUSR1)
            while any(is_alive(p) for r, p in job.pids.items() if r != 1) and time.monotonic() - sent < 10:
                time.sleep(0.01)
            seconds = time.monotonic() - sent
            worst = max(worst, seconds)
            check(seconds < 2, f"{seconds} s from the second signal\n{job.output}")
            end = exit_file(run)
            check(end["code"] == 10 and "second signal" in end["reason"], f"{end}")
            after = sorted(p.name for p in (run / "checkpoints").glob("step_*") if not p.name.endswith(".partial"))
            check(set(before) <= set(after) and after, f"checkpoints {before}, then {after}")
        finally:
            job.kill_all()
    print(f"{rounds} second signals: all ended within {worst:.2f} s, exit 10, the checkpoint before kept")


def test_lost(directory, rounds, seed):
    """SIGTERM that comes because a rank is gone: no save, exit 11 within half a second."""
    prepare(DSTRAIN, directory)
    rng = random.Random(seed)
    worst = 0.0
    for i in range(rounds):
        run = directory / f"lost{i}"
        job = Job(DSTRAIN, write_job(directory, run.name, 100000, "watchdog: { limit: 30 }"), ranks=RANKS)
        try:
            job.find_ranks(ready=handles_signals)
            job.open_table()
            time.sleep(rng.uniform(0.2, 2))
            victim = rng.randrange(RANKS)
            others = [p for r, p in job.pids.items() if r != victim]
            for pid in others:
                os.kill(pid, signal.SIGTERM)
            os.kill(job.pids[victim], signal.SIGKILL)
            sent = time.monotonic()
            job.wait_gone(5)
            worst = max(worst, time.monotonic() - sent)
            # The signal may have been acted on first: then all was saved.
            if (run / "exit.json").exists():
                end = json.loads((run / "exit.json").read_text())
                check(end["code"] == 11 and f"rank {victim} on host" in end["reason"], f"{end}\n{job.output}")
        finally:
            job.kill_all()
    check(worst < 1.5, f"{worst} s to the end of all and of mpirun")
    print(f"{rounds} SIGTERMs with a rank gone: rank named, exit 11, all and mpirun ended within {worst:.2f} s, no save")


if __name__ == "__main__":
    main(globals(), {"signals": 20, "second": 2, "lost": 3}, 11, sys.argv[3:])
