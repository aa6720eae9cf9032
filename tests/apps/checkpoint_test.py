#!/usr/bin/env python3
"""Checkpoints as a user meets them: the commands, directories that are refused, many jobs in one directory, kills of MPI
ranks, losses of power. Run: checkpoint_test.py DSTRAIN SOURCE_DIR [NAME...]."""
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

from program_test import DSTRAIN, ENV, MPI, check, exit_code_file, job, main, metrics, prepared, run


def steps_of(run_directory):
    return sorted(int(p.name[5:]) for p in (run_directory / "checkpoints").glob("step_????????"))


def step(run_directory, number):
    return run_directory / f"checkpoints/step_{number:08}"


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_commands(d):
    """list, verify and diff, over layouts too; exit 1 when the answer is no."""
    prepared(d)
    saving = ["checkpoint.every=2", "training.steps=4", "eval.every=0"]
    run("train", job(d, "one"), *saving)
    run("train", job(d, "same"), *saving)
    run("train", job(d, "two"), *saving, "parallel.data=2", ranks=2)
    listed = run("checkpoint", "list", d / "one")
    check([line.split()[0] for line in listed.splitlines()[1:]] == ["4", "2"], listed)
    run("checkpoint", "verify", d / "one", says=["step_00000002: good", "step_00000004: good"])
    run("checkpoint", "diff", d / "one", d / "same", says="equal, bit for bit")
    # Saved by two ranks that read it from one: not a bit differs, and only the shards do.
    shutil.copytree(step(d / "one", 4), step(d / "again", 4))
    run("train", job(d, "again"), "training.steps=4", "parallel.data=2", ranks=2)  # nothing left to do
    run("train", job(d, "again"), "training.steps=5", "optimizer.lr=0", "parallel.data=2", "parallel.pipeline=2", ranks=4)
    listed = run("checkpoint", "list", d / "again")
    check(listed.splitlines()[1].split()[2] == "4" and listed.splitlines()[2].split()[2] == "1", listed)
    output = run("checkpoint", "diff", step(d / "one", 4), step(d / "again", 5), code=1, says=["step: 4 and 5", "different"])
    check("\nweight" not in output and "\nexp_avg" in output, "with a rate of 0 no weight changes:\n" + output)
    output = run("checkpoint", "diff", step(d / "one", 2), step(d / "one", 4), code=1, says="step: 2 and 4")
    check(output.count("lm_head.weight") == 3, output)
    flip(step(d / "one", 4) / "rank_00000.h5", 5000)
    run("checkpoint", "verify", d / "one", code=1, says=["step_00000002: good", "NOT GOOD", "rank_00000.h5: bytes 0 to"])
    run("checkpoint", "diff", d / "one", d / "same", code=4, says="rank_00000.h5")
    flip(step(d / "one", 2) / "manifest.jsonl", 100)
    run("checkpoint", "list", d / "one", says="not usable")
    run("train", job(d, "one"), code=4, says="none of 2 checkpoints is usable")
    run("train", job(d, "one"), *saving, "run.dir=" + str(d / "same"))
    flip(step(d / "same", 4) / "rank_00000.h5", 5000)
    run("train", job(d, "same"), *saving, says=["step_00000004 is not usable", "resumed from step 2"])
    run("checkpoint", "verify", d / "same")
    run("checkpoint", "list", d / "nowhere", code=2, says="nowhere")
    (d / "empty").mkdir()
    run("checkpoint", "verify", d / "empty", code=4, says="there is no checkpoint")
    run("checkpoint", "diff", d / "one", code=2)
    run("checkpoint", code=2)
    # Written and read back by another rank before it counts.
    run("train", job(d, "readback"), "training.steps=2", "checkpoint.verify=readback", "parallel.data=2", ranks=2)
    run("checkpoint", "verify", d / "readback")
    check(metrics(d / "readback", "checkpoint_step") == [2] and metrics(d / "readback", "checkpoint_write_seconds")[0] > 0, "metrics of a save")


def test_refused_directories(d):
    """Links, other users' directories and files in the place of ours are refused before training; limits of file sizes are errors."""
    prepared(d)
    (d / "real").mkdir()
    (d / "link").symlink_to(d / "real")
    path = job(d, "link")
    run("train", path, code=5, says="it is a link")
    check(list((d / "real").iterdir()) == [], "nothing was written through the link")
    (d / "other").mkdir()
    (d / "other/checkpoints").symlink_to(d / "real")
    run("train", job(d, "other"), code=5, says="checkpoints: it is a link")
    (d / "logged").mkdir()
    (d / "logged/log.txt").symlink_to(d / "corpus/000.txt")
    before = (d / "corpus/000.txt").read_bytes()
    run("train", job(d, "logged"), code=5, says="log.txt: it is a link")
    check((d / "corpus/000.txt").read_bytes() == before, "what a link points to is left alone")
    (d / "file").write_text("")
    run("train", job(d, "file"), code=5, says="it is not a directory")
    if os.geteuid() == 0:
        (d / "foreign").mkdir()
        os.chown(d / "foreign", 12345, 12345)
        run("train", job(d, "foreign"), code=5, says="it belongs to user 12345")
        check(list((d / "foreign").iterdir()) == [], "nothing was written")
    # What is made is for the owner and the group alone.
    umask = os.umask(0)
    run("train", job(d, "modes"), "training.steps=1")
    os.umask(umask)
    for path in (d / "modes").rglob("*"):
        check(path.stat().st_mode & 0o7777 == (0o750 if path.is_dir() else 0o640), f"{path}: {path.stat().st_mode:o}")
    limited = subprocess.run([DSTRAIN, "train", str(job(d, "limited")), "training.steps=1"], env=ENV, capture_output=True, text=True,
                             preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536)))
    check(limited.returncode == 5 and "File too large" in limited.stderr, f"exit {limited.returncode}: {limited.stderr}")
    check(exit_code_file(d / "limited") == 5 and steps_of(d / "limited") == [], "exit.json and no checkpoint")


def eight_at_once(d, rounds):
    prepared(d)
    slowest, told = 0.0, 0
    for number in range(rounds):
        path = job(d, f"run{number}")
        begin = time.monotonic()
        jobs = [subprocess.Popen([DSTRAIN, "train", str(path), "training.steps=1000000", "checkpoint.every=1", "eval.every=0"],
                                 env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(8)]
        try:
            running = list(jobs)
            while len(running) > 1 and time.monotonic() < begin + 60:
                for process in list(running):
                    if process.poll() is not None:
                        slowest = max(slowest, time.monotonic() - begin)
                        running.remove(process)
                time.sleep(0.005)
            check(len(running) == 1, f"round {number}: {len(running)} of 8 go on")
            winner = running[0]
            for process in jobs:
                if process is winner:
                    continue
                said = process.stderr.read()
                check(process.returncode == 5 and f"process {winner.pid}," in said, f"round {number}: exit {process.returncode}: {said}")
                told += 1
            # Stopped in its start it would leave nothing to verify.
            while not any((d / f"run{number}/checkpoints").glob("step_????????")) and time.monotonic() < begin + 60:
                time.sleep(0.01)
            winner.send_signal(signal.SIGTERM)
            check(winner.wait(timeout=60) == 10, f"the winner: exit {winner.returncode}")
        finally:
            for process in jobs:
                if process.poll() is None:
                    process.kill()
                process.stderr.close()
                process.wait()
        run("checkpoint", "verify", d / f"run{number}")
        shutil.rmtree(d / f"run{number}")
    print(f"proof: 8 jobs at once in one directory: {rounds} rounds, one winner each, {told} losers told who holds it, 0 corrupt; "
          f"the last loser of a round ended {slowest:.2f} s after 8 were started")


def test_eight_at_once(d):
    """Eight jobs at once in one directory: one goes on, the others say who holds it."""
    eight_at_once(d, 5)


def test_eight_at_once_many(d):
    eight_at_once(d, 60)


def test_told_at_once(d):
    """A job that comes too late knows within a second who holds the directory; the lock of a killed one is free at once."""
    prepared(d)
    path = job(d, "run")
    owner = subprocess.Popen([DSTRAIN, "train", str(path), "training.steps=1000000"], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(500):
            if (d / "run/metrics.jsonl").exists():
                break
            time.sleep(0.02)
        seconds = []
        for _ in range(5):
            begin = time.monotonic()
            run("train", path, code=5, says=[f"process {owner.pid}, started 20", "is in use by host"])
            seconds.append(time.monotonic() - begin)
        check(min(seconds) < 1, f"told after {min(seconds):.2f} s")
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
        run("train", path, "training.steps=1")
    finally:
        owner.kill()
        owner.wait()
    print(f"proof: who comes late is told within {min(seconds):.2f} s, start of the program included; a dead owner's lock is free at once")


def kills_of_mpi_ranks(d, kills):
    prepared(d)
    overrides = ["checkpoint.every=1", "training.steps=40", "eval.every=0", "parallel.data=2"]
    run("train", job(d, "whole"), *overrides, "checkpoint.keep=100", ranks=2)
    rng = random.Random(9)
    killed = 0
    while killed < kills:
        before = (steps_of(d / "killed") or [0])[-1]
        if before == 40:
            shutil.rmtree(d / "killed")
            before = 0
        launcher = subprocess.Popen(MPI + ["2", DSTRAIN, "train", str(job(d, "killed")), *overrides], env=ENV,
                                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        goal = before + rng.randint(1, 4)
        ranks = []
        while launcher.poll() is None:
            if (steps_of(d / "killed") or [0])[-1] >= goal:
                time.sleep(rng.uniform(0, 0.02))
                ranks = [int(p) for p in subprocess.run(["pgrep", "-P", str(launcher.pid), "dstrain"], capture_output=True, text=True).stdout.split()]
                for pid in ranks:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
                break
            time.sleep(0.002)
        launcher.wait(timeout=60)
        killed += len(ranks) == 2
        newest = steps_of(d / "killed")[-1]
        run("checkpoint", "diff", step(d / "killed", newest), step(d / "whole", newest))
    run("train", job(d, "killed"), *overrides, ranks=2)
    run("checkpoint", "diff", step(d / "killed", 40), step(d / "whole", 40))
    check(metrics(d / "killed", "loss") == metrics(d / "whole", "loss"), "losses")
    print(f"proof: kill -9 of both ranks of mpirun -n 2 near a save: {kills} times, the newest checkpoint each time the clean run's")


def test_kills_of_mpi_ranks(d):
    """kill -9 of all MPI ranks near saves: the newest checkpoint is the clean run's, bit for bit."""
    kills_of_mpi_ranks(d, 6)


def test_kills_of_mpi_ranks_many(d):
    kills_of_mpi_ranks(d, 100)


def shell(*command):
    return subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout


def test_power_loss(d, losses=100):
    """ext4 in a file: its bytes at random instants of a run that saves at every step, mounted so that the journal replays.
    Needs root and loop devices."""
    prepared(d)
    last = 150
    overrides = ["checkpoint.every=1", f"training.steps={last}", "eval.every=0"]
    run("train", job(d, "whole"), *overrides, "checkpoint.keep=1000")
    image, copy, disk, found = d / "image", d / "copy", d / "disk", d / "found"
    disk.mkdir()
    found.mkdir()
    with open(image, "wb") as f:
        f.truncate(48 << 20)
    shell("mkfs.ext4", "-q", "-F", image)
    shell("mount", "-o", "loop", image, disk)
    rng = random.Random(3)
    done = lost = corrupt = late = replayed = 0
    try:
        path = job(d, "disk/run")
        while done < losses:
            shutil.rmtree(disk / "run", ignore_errors=True)
            process = subprocess.Popen([DSTRAIN, "train", str(path), *overrides], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                while done < losses:
                    try:
                        check(process.wait(timeout=rng.uniform(0.01, 0.4)) == 0, f"exit {process.returncode}")
                        break
                    except subprocess.TimeoutExpired:
                        pass
                    os.kill(process.pid, signal.SIGSTOP)
                    acknowledged = 0
                    if (disk / "run/metrics.jsonl").exists():
                        for line in (disk / "run/metrics.jsonl").read_text().splitlines():
                            if '"checkpoint_step"' in line and line.endswith("}"):
                                acknowledged = json.loads(line)["checkpoint_step"]
                    shell("cp", "--sparse=always", image, copy)
                    os.kill(process.pid, signal.SIGCONT)
                    replayed += "needs_recovery" in shell("dumpe2fs", "-h", copy)
                    shell("mount", "-o", "loop", copy, found)
                    try:
                        steps = steps_of(found / "run") if (found / "run/checkpoints").exists() else []
                        newest = steps[-1] if steps else 0
                        lost += newest < acknowledged
                        late += newest > acknowledged
                        if newest:
                            same = subprocess.run([DSTRAIN, "checkpoint", "diff", step(found / "run", newest), step(d / "whole", newest)],
                                                  env=ENV, capture_output=True, text=True)
                            corrupt += same.returncode != 0
                            if same.returncode:
                                print(same.stdout + same.stderr)
                            good = subprocess.run([DSTRAIN, "checkpoint", "verify", found / "run"], env=ENV, capture_output=True, text=True)
                            corrupt += good.returncode != 0
                    finally:
                        shell("umount", found)
                    done += 1
            finally:
                process.kill()
                process.wait()
    finally:
        shell("umount", "-l", disk)
    print(f"proof: loss of power: {done} images of ext4 at random instants of a run, {replayed} journals replayed: {lost} acknowledged "
          f"checkpoints lost, {corrupt} corrupt ({late} times a newer one than acknowledged was there)")
    check(lost == 0 and corrupt == 0 and done == losses, "losses")


if __name__ == "__main__":
    sys.exit(main(globals()))
