#!/usr/bin/env python3
"""Host memory that runs out: the n-th allocation of a run fails, for n all over its start, steps, saves and end.

    memory_test.py DSTRAIN SOURCE_DIR FAILING_MEMORY threads|ranks [ROUNDS] [SEED]

FAILING_MEMORY is the shared library of failing_memory.cpp: operator new, by whatever C++, and the program's own arenas.
One allocation fails, or every one from the n-th on. The run then ends with one message and code 13, or goes on to its end
with the bits of an undisturbed one (a save, a line of metrics or of the log was given up); the checkpoint before is whole,
and the next run goes on from it."""
import os
import random
import re
import subprocess
import sys

from cluster import ENV, check, check_equal, copy_run, dstrain_run, exit_file, main, messages, prepare, records, write_job

DSTRAIN, LIBRARY = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[3])
BEFORE, STEPS = 2, 5  # steps of the run that has begun, and of the whole
SHAPE = "parallel: { data: 2 }"
SMALL = ["model.hidden_size=16", "model.intermediate_size=32", "model.num_hidden_layers=2", "training.sequence_length=16",
         "eval.samples=8", "watchdog.limit=20"]


def run(path, at, report, ranks):
    """dstrain train with a failing allocation in all of its process, or in one rank of mpirun's."""
    report.unlink(missing_ok=True)
    train = [DSTRAIN, "train", str(path), *SMALL]
    failing = ["env", f"LD_PRELOAD={LIBRARY}", f"FAILING_MEMORY={at}", f"FAILING_MEMORY_REPORT={report}", *train]
    command = [*failing, "--ranks", "2"]
    if ranks:
        victim = ranks - 1
        parts = [["-n", "1", *(failing if r == victim else train)] for r in range(2)]
        command = ["mpirun", "--oversubscribe", *parts[0], ":", *parts[1]]
    return subprocess.run(command, env=ENV, capture_output=True, text=True, errors="replace", timeout=120)


def one(directory, at, ranks, resume):
    """Returns the exit code of a run whose allocation `at` fails."""
    broken, report = directory / "broken", directory / "report"
    copy_run(directory / "begun", broken)
    path = write_job(directory, "broken", STEPS, shape=SHAPE)
    done = run(path, at, report, ranks)
    story = f"allocation {at}{f' of rank {ranks - 1}' if ranks else ''}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    story += report.read_text() if report.exists() else ""
    said = messages(done.stderr)
    # mpirun returns the code of the rank that it saw first: the one that is short, or its peer, which lost it.
    check(done.returncode in ((0, 13, 11) if ranks else (0, 13)), story)
    check("terminate called" not in story and "Segmentation" not in story, story)
    if done.returncode:
        short = [line for line in said if "out of host memory" in line or "host memory for" in line]
        # A rank that cannot even unwind is gone without notice: its peer says so too.
        lost = [line for line in said if ranks and f"rank {ranks - 1} on host" in line]
        check(len(short) == 1 and len(lost) <= 1 and len(said) == len(short) + len(lost), f"{len(said)} messages: {story}")
        left = exit_file(broken) if (broken / "exit.json").exists() else None
        check(left is None or left["code"] in (13, 11, 0), f"{left}: {story}")
    else:
        check(not said, story)
        check_equal(DSTRAIN, broken, directory / "whole", STEPS)
    kept = [p for p in sorted((broken / "checkpoints").glob("step_????????"))]
    check(kept, f"no checkpoint is left: {story}")
    dstrain_run(DSTRAIN, "checkpoint", "verify", kept[-1])
    if done.returncode and resume:
        dstrain_run(DSTRAIN, "train", path, *SMALL, "--ranks", "2")
        dstrain_run(DSTRAIN, "checkpoint", "diff", directory / "whole", broken)
        mine, other = records(broken, "loss"), records(directory / "whole", "loss")
        wrong = [s for s in mine if mine[s] != other.get(s)]
        check(not wrong, f"steps {wrong} differ: {story}")
    return done.returncode


def sample(directory, rounds, seed, ranks):
    rng = random.Random(seed)
    print(f"seed {seed}")
    prepare(DSTRAIN, directory)
    for name, steps in (("begun", BEFORE), ("whole", STEPS)):
        if name == "whole":
            copy_run(directory / "begun", directory / "whole")
        dstrain_run(DSTRAIN, "train", write_job(directory, name, steps, shape=SHAPE), *SMALL, "--ranks", "2")
    copy_run(directory / "begun", directory / "broken")
    counting = run(write_job(directory, "broken", STEPS, shape=SHAPE), 0, directory / "report", ranks)
    check(counting.returncode == 0, counting.stderr)
    total = int(re.search(r"allocations: (\d+)", (directory / "report").read_text()).group(1))
    codes = {0: 0, 13: 0, 11: 0}
    for i in range(rounds):
        n = 1 + int((i + rng.random()) * total / rounds)
        if i % 4 == 1:  # the job is read and resolved in a few of them
            n = 1 + n // 20
        codes[one(directory, f"{n}{'+' if i % 2 else ''}", ranks, i % 4 == 3)] += 1
    print(f"{rounds} of {total} allocations failed{' in one of 2 MPI ranks' if ranks else ''}: {codes[13] + codes[11]} runs ended "
          f"with one message (code 13 {codes[13]}, its peer's 11 {codes[11]}), {codes[0]} went on to the same bits; "
          "0 crashes, 0 checkpoints lost")


def test_threads(directory, rounds, seed):
    """Two ranks as threads of one process."""
    sample(directory, rounds, seed, 0)


def test_ranks(directory, rounds, seed):
    """One of two MPI ranks."""
    sample(directory, rounds, seed, 2)


if __name__ == "__main__":
    main(globals(), {"threads": 40, "ranks": 8}, 5, sys.argv[4:])
