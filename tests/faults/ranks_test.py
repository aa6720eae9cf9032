#!/usr/bin/env python3
"""Ranks that die or hang, with mpirun -n 4: every other rank ends in time and names it, nothing is left, and the run goes
on to the bits of one that was never disturbed.

    ranks_test.py DSTRAIN SOURCE_DIR kills|stops|launcher|inference [ROUNDS] [SEED]"""
import contextlib
import os
import random
import signal
import sys
import time

from cluster import (Job, check, check_equal, copy_run, dstrain_run, exit_file, is_alive, main, messages, prepare, write_job)

DSTRAIN = os.path.abspath(sys.argv[1])
RANKS, STEPS = 4, 8
LIMIT = 3.0   # seconds: watchdog.limit of the stops
KILLED = 5.0  # seconds from a kill to the end of all

# Where a rank is met, by what it publishes.
PHASES = {
    "start": lambda r: r.activity == "start",
    "forward": lambda r: r.activity == "step" and r.phase == "forward" and not r.waits,
    "backward": lambda r: r.activity == "step" and r.phase == "backward" and not r.waits,
    "reduce": lambda r: r.activity == "step" and r.phase == "reduce",
    "optimizer": lambda r: r.activity == "step" and r.phase == "optimizer",
    "save": lambda r: r.saving >= 0,
    "evaluation": lambda r: r.activity == "evaluation",
}
LIMITS = f"watchdog: {{ limit: {LIMIT}, start: 20, evaluation: 20, save: 20 }}"


def end_of(job, victim, stopped, within):
    """Everybody has ended in time, but a stopped rank, which is as good as gone with its host."""
    begin = time.monotonic()
    others = [p for r, p in job.pids.items() if r != victim or not stopped]
    while time.monotonic() - begin < within:
        if job.process.poll() is not None and not any(map(is_alive, others)):
            break
        if not any(map(is_alive, others)) and stopped and is_alive(job.pids[victim]):
            break  # mpirun waits for the stopped one to be ended by hand
        time.sleep(0.01)
    seconds = time.monotonic() - begin
    left = [r for r, p in job.pids.items() if p in others and is_alive(p)]
    check(not left, f"ranks {left} are alive {within} s after rank {victim}\n{job.output}")
    return seconds


def one_fault(directory, whole, phase, victim, sign, rng):
    """A run disturbed once. Returns the seconds that its end took."""
    run = directory / "broken"
    copy_run(directory / "empty", run)
    extra = LIMITS
    job = Job(DSTRAIN, write_job(directory, "broken", STEPS, extra), ranks=RANKS)
    try:
        job.find_ranks()
        job.open_table()
        from_step = rng.randint(1, STEPS - 2) if phase not in ("start", "evaluation") else 0
        where = PHASES[phase]
        if not job.catch(victim, lambda r: r.step >= from_step and where(r)):
            return None  # it ran to its end before it was met there
        row = job.table.row(victim)
        if sign == signal.SIGKILL:
            os.kill(job.pids[victim], signal.SIGKILL)
        stopped = sign == signal.SIGSTOP
        limit = LIMIT + 5 if stopped else KILLED
        seconds = end_of(job, victim, stopped, limit)
        if stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(job.pids[victim], signal.SIGCONT)
                os.kill(job.pids[victim], signal.SIGKILL)
        job.wait_gone(10)
        said = messages(job.output)
        check(len(said) == 1, f"{len(said)} messages instead of one:\n{job.output}")
        check(f"dstrain: rank {victim} on host " in said[0], f"rank {victim} is not named: {said[0]}")
        check(f"last seen in {row.activity}" in said[0] and (not row.phase or phase == "start" or row.phase in said[0]),
              f"it was in {row.activity}, {row.phase}: {said[0]}")
        check("waiting for it" in said[0] or "waits for it yet" in said[0], said[0])
        if row.directory:
            end = exit_file(run)
            check(end["code"] == 11 and f"rank {victim} " in end["reason"], f"exit.json: {end}")
        if not stopped:
            check(job.process.returncode != 0, "mpirun returned 0")
        dstrain_run(DSTRAIN, "train", write_job(directory, "broken", STEPS, extra), ranks=RANKS)
        check_equal(DSTRAIN, run, whole, STEPS)
        return seconds
    finally:
        job.kill_all()


def faults(directory, sign, rounds, seed):
    rng = random.Random(seed)
    print(f"seed {seed}")
    prepare(DSTRAIN, directory)
    dstrain_run(DSTRAIN, "train", write_job(directory, "whole", STEPS, LIMITS), ranks=RANKS)
    (directory / "empty").mkdir()
    cases = [(p, r) for p in PHASES for r in range(RANKS)]
    worst, done, missed = 0.0, 0, 0
    begin = time.monotonic()
    while done < rounds:
        rng.shuffle(cases)
        for phase, victim in cases[:rounds - done]:
            seconds = one_fault(directory, directory / "whole", phase, victim, sign, rng)
            if seconds is None:
                missed += 1
                check(missed < 10 + rounds, "phases are missed too often")
                continue
            done += 1
            worst = max(worst, seconds)
            print(f"{signal.Signals(sign).name} of rank {victim} in {phase}: all ended after {seconds:.2f} s", flush=True)
    print(f"{done} of {signal.Signals(sign).name}: worst end {worst:.2f} s "
          f"({'limit ' + str(LIMIT) + ' s' if sign == signal.SIGSTOP else 'of 5 s'}), right rank named {done}/{done}, "
          f"orphans 0, resumed bit-equal {done}/{done}, {time.monotonic() - begin:.0f} s")


def test_kills(directory, rounds, seed):
    faults(directory, signal.SIGKILL, rounds, seed)


def test_stops(directory, rounds, seed):
    faults(directory, signal.SIGSTOP, rounds, seed)


def test_launcher(directory, rounds, seed):
    """mpirun itself is killed: its ranks notice."""
    prepare(DSTRAIN, directory)
    worst = 0.0
    for i in range(rounds):
        job = Job(DSTRAIN, write_job(directory, f"orphan{i}", 100000, LIMITS), ranks=RANKS)
        try:
            job.find_ranks()
            job.open_table()
            time.sleep(random.Random(seed + i).uniform(0, 2))
            os.kill(job.process.pid, signal.SIGKILL)
            worst = max(worst, job.wait_gone(KILLED))
        finally:
            job.kill_all()
    print(f"{rounds} kills of mpirun: worst end of all ranks {worst:.2f} s, orphans 0")


def test_inference(directory, rounds, seed):
    """eval and generate: a rank that is killed or stopped ends the others, which name it."""
    prepare(DSTRAIN, directory)
    job = write_job(directory, "run", 2)
    dstrain_run(DSTRAIN, "train", job, ranks=RANKS)
    (directory / "prompts.txt").write_text("the quick brown\n" * 5000)
    commands = {"eval": ["--data", f"eval={directory}/eval-*.h5"] * 1000, "generate": ["--prompts", directory / "prompts.txt"]}
    rng, worst = random.Random(seed), {signal.SIGKILL: 0.0, signal.SIGSTOP: 0.0}
    for i in range(rounds):
        command = list(commands)[i % 2]
        sign = list(worst)[i // 2 % 2]
        victim = rng.randrange(RANKS)
        job = Job(DSTRAIN, directory / "run", [*commands[command], "watchdog.limit=3"], RANKS, command=command)
        try:
            job.find_ranks()
            job.open_table()
            check(job.catch(victim, lambda r: r.phase == "forward" and not r.waits), f"{command} has ended\n{job.output}")
            if sign == signal.SIGKILL:
                os.kill(job.pids[victim], sign)
            seconds = end_of(job, victim, sign == signal.SIGSTOP, LIMIT + 5 if sign == signal.SIGSTOP else KILLED)
            said = messages(job.output)
            check(len(said) == 1 and f"dstrain: rank {victim} on host " in said[0], f"{command}: {job.output}")
            activity = {"eval": "evaluation 2", "generate": "generation"}[command]
            check(f"last seen in {activity}, forward" in said[0], said[0])
            worst[sign] = max(worst[sign], seconds)
        finally:
            job.kill_all()
    print(f"{rounds} faults of a rank of eval and generate: all ended, the rank named; worst end after a kill "
          f"{worst[signal.SIGKILL]:.2f} s, after a stop {worst[signal.SIGSTOP]:.2f} s (limit {LIMIT} s)")


if __name__ == "__main__":
    main(globals(), {"kills": 16, "stops": 8, "launcher": 2, "inference": 4}, 7, sys.argv[3:])
