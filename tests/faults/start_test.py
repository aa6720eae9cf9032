#!/usr/bin/env python3
"""What a launch can get wrong, clocks that lie, and watchdogs that must keep quiet.

    start_test.py DSTRAIN SOURCE_DIR wrong|hung|clock|quiet|restart [STEPS]

`hung` takes the shared library of stopped_start.cpp."""
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

from cluster import ENV, Failed, Job, check, check_equal, dstrain_run, is_alive, prepare, write_job

DSTRAIN = os.path.abspath(sys.argv[1])


def mpirun(ranks, *args, env=None, wrap=()):
    done = subprocess.run(["mpirun", "--oversubscribe", "-n", str(ranks), *wrap, DSTRAIN, *map(str, args)],
                          env=dict(ENV, **(env or {})), capture_output=True, text=True, timeout=120)
    return done.returncode, [line for line in done.stderr.splitlines() if line.startswith("dstrain: ")], done.stdout + done.stderr


def wrapper(path, line):
    """A program that runs another one behind a line of shell."""
    path.write_text(f'#!/bin/sh\n{line}\nexec "$@"\n')
    path.chmod(0o755)
    return path


def test_wrong(d):
    """A wrong number of ranks, tasks that do not know of each other, ranks of different jobs: one message, its code."""
    prepare(DSTRAIN, d)
    path = write_job(d, "wrong", 4)
    for ranks in (1, 2, 3):
        code, said, output = mpirun(ranks, "train", path)
        check(code == 2 and len(said) == 1 and "parallel" in said[0], f"{ranks} ranks: exit {code}\n{output}")
    code, said, output = mpirun(4, "train", path, "--ranks", 4)
    check(code == 2 and len(said) == 1 and "under a launcher" in said[0], f"exit {code}\n{output}")
    check(not (d / "wrong").exists(), "a refused start has made a run directory")
    # Rank 0 speaks for all, however late it comes; who has read something else speaks for itself.
    late = wrapper(d / "late", '[ "$OMPI_COMM_WORLD_RANK" = 0 ] && sleep 1')
    code, said, output = mpirun(4, "train", path, "--ranks", 4, wrap=[late])
    check(code == 2 and len(said) == 1 and "under a launcher" in said[0], f"rank 0 is late: exit {code}\n{output}")
    code, said, output = mpirun(4, "train", wrap=[late])
    check(code == 2 and output.count("job is required") == 1, f"no job, rank 0 is late: exit {code}\n{output}")
    other = wrapper(d / "other", f'[ "$OMPI_COMM_WORLD_RANK" = 2 ] && exec {DSTRAIN} train {d}/nowhere.yaml')
    code, said, output = mpirun(4, "train", path, wrap=[other])
    check(code == 2 and len(said) == 1 and "rank 2" in said[0] and "nowhere.yaml" in said[0], f"exit {code}\n{output}")
    done = subprocess.run([DSTRAIN, "train", path], env=dict(ENV, SLURM_STEP_ID="0", SLURM_STEP_NUM_TASKS="4"),
                          capture_output=True, text=True, timeout=30)
    check(done.returncode == 2 and "--mpi=pmix" in done.stderr, f"exit {done.returncode}\n{done.stderr}")
    dstrain_run(DSTRAIN, "train", write_job(d, "right", 6), ranks=4)
    dstrain_run(DSTRAIN, "train", write_job(d, "watched", 6), "debug.collectives=true", ranks=4)
    check_equal(DSTRAIN, d / "watched", d / "right", 6)
    print("1, 2 and 3 ranks of a job for 4, threads under mpirun, no job, rank 0 late, srun without MPI: exit 2, one message each; debug.collectives: the same bits")


def test_hung(d):
    """A rank that never comes to MPI, or not from there to the watchdog: the others do not wait for ever, and a launcher that
    ends in the start ends them."""
    prepare(DSTRAIN, d)
    path = write_job(d, "hung", 4, "watchdog: { start: 4 }")
    absent = wrapper(d / "absent", '[ "$OMPI_COMM_WORLD_RANK" = 2 ] && exec sleep 100')
    begin = time.monotonic()
    code, said, output = mpirun(4, "train", path, wrap=[absent])
    seconds = time.monotonic() - begin
    check(code == 11 and said and "MPI has not started after 4" in said[0], f"exit {code}\n{output}")
    check(seconds < 4 + 5, f"{seconds} s")
    preload = f"LD_PRELOAD={os.path.abspath(sys.argv[4])}"
    begin = time.monotonic()
    code, said, output = mpirun(4, "train", path, wrap=[wrapper(d / "stopped", f'[ "$OMPI_COMM_WORLD_RANK" = 0 ] && export {preload}')])
    stopped = time.monotonic() - begin
    check(code == 11 and said and "has come to the start within 4 s" in said[0], f"exit {code}\n{output}")
    check(stopped < 4 + 5, f"{stopped} s")
    job = Job(DSTRAIN, write_job(d, "hung", 4, "watchdog: { start: 60 }"), ranks=4,
              launcher=["mpirun", "--oversubscribe", "-n", "4", absent])
    time.sleep(2)
    pids = [int(p) for p in pathlib.Path(f"/proc/{job.process.pid}/task/{job.process.pid}/children").read_text().split()
            if pathlib.Path(f"/proc/{p}/comm").read_text().startswith("dstrain")]
    check(len(pids) == 3, f"{pids}")
    os.kill(job.process.pid, signal.SIGKILL)
    begin = time.monotonic()
    while any(map(is_alive, pids)) and time.monotonic() - begin < 5:
        time.sleep(0.01)
    check(not any(map(is_alive, pids)), "orphans")
    print(f"a rank that never comes: exit 11 after {seconds:.1f} s, one that is stopped behind MPI's start: {stopped:.1f} s "
          f"(limit 4 s); mpirun killed in the start: ranks ended {time.monotonic() - begin:.2f} s later")


def test_clock(d):
    """A year behind and ten ahead, with libfaketime where there is one."""
    library = next((p for p in pathlib.Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
    prepare(DSTRAIN, d)
    dstrain_run(DSTRAIN, "train", write_job(d, "whole", 12), ranks=4)
    if library is None:
        print("no libfaketime here: the clock test of test_train stands alone")
        return
    for name, offset in (("behind", "-365d"), ("ahead", "+3650d")):
        dstrain_run(DSTRAIN, "train", write_job(d, name, 8), ranks=4)
        fake = {"LD_PRELOAD": str(library), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        names = [word for key in fake for word in ("-x", key)]
        done = subprocess.run(["mpirun", "--oversubscribe", *names, "-n", "4", DSTRAIN, "train", write_job(d, name, 12)],
                              env=dict(ENV, **{k: v for k, v in fake.items()}), capture_output=True, text=True, timeout=120)
        check(done.returncode == 0, done.stdout + done.stderr)
        check_equal(DSTRAIN, d / name, d / "whole", 12)
    print("resumed with the clock a year behind and ten years ahead: bit-equal")


def test_quiet(d):
    """Normal steps, evaluations and saves under a short limit, and a slow first step: no alarm."""
    steps = int(sys.argv[4]) if len(sys.argv) > 4 else 300
    prepare(DSTRAIN, d)
    small = ["model.hidden_size=16", "model.intermediate_size=32", "model.num_hidden_layers=2", "training.sequence_length=16",
             "training.global_batch_size=8", "eval.every=500", "checkpoint.every=250"]
    path = write_job(d, "quiet", steps, "watchdog: { limit: 2, start: 30 }")
    job = Job(DSTRAIN, path, small, ranks=4)
    try:
        job.find_ranks()
        job.open_table()
        # A first step that takes ten times longer, for one rank.
        if job.catch(2, lambda r: r.activity == "step" and r.step == 1):
            time.sleep(1.5)
            os.kill(job.pids[2], signal.SIGCONT)
        job.process.wait(60 + steps / 20)
        job.reader.join(5)
        check(job.process.returncode == 0, job.output)
    finally:
        job.kill_all()
    print(f"{steps} steps of 4 ranks on {os.cpu_count()} cores with a limit of 2 s, the first one 1.5 s longer: 0 alarms")


def test_restart(d):
    """scripts/bench/restart on a tiny job: from a rank's death to the next trained step."""
    prepare(DSTRAIN, d)
    path = write_job(d, "restart", 1000000, shape="parallel: { data: 2 }")
    source = pathlib.Path(sys.argv[2]).resolve()
    done = subprocess.run([source / "scripts/bench/restart", "--dstrain", DSTRAIN, path, "checkpoint.every=5"], env=ENV,
                          capture_output=True, text=True, timeout=200)
    check(done.returncode == 0, done.stdout + done.stderr)
    print(done.stdout.strip())
    worst = float(re.search(r"worst of \d+ ([\d.]+) s", done.stdout)[1])
    check(worst <= 5, f"{worst} s to the next trained step")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="dstrain-start-") as directory:
        try:
            globals()["test_" + sys.argv[3]](pathlib.Path(directory))
        except Failed as e:
            print(f"FAILED: {e}")
            sys.exit(1)
