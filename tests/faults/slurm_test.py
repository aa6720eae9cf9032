#!/usr/bin/env python3
"""scripts/slurm/train.sbatch under a real Slurm on this machine (tests/support/slurm_bed; as root): time limit, pre-emption,
scancel and a killed rank, each with srun and mpirun. The run goes on by itself, and ends as one that was never stopped.

    slurm_test.py DSTRAIN SOURCE_DIR [timelimit preempt scancel killed ...]"""
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from cluster import ENV, Failed, check, check_equal, dstrain_run, exit_file, prepare, rank_of, records, write_job

DSTRAIN = os.path.abspath(sys.argv[1])
SOURCE = pathlib.Path(sys.argv[2]).resolve()
STEPS = 300
SHAPE = "parallel: { data: 2 }"


class Bed:
    def __init__(self, directory):
        self.directory = directory
        self.env = dict(ENV, SLURM_CONF=f"{directory}/bed/slurm.conf", DSTRAIN=DSTRAIN,
                        OMPI_MCA_rmaps_base_oversubscribe="1")
        self._bed("start")

    def _bed(self, verb):
        subprocess.run([SOURCE / "tests/support/slurm_bed", verb, self.directory / "bed"], env=self.env, check=True,
                       timeout=300, stdout=subprocess.DEVNULL)

    def stop(self):
        self._bed("stop")

    def call(self, *command):
        return subprocess.run(command, env=self.env, cwd=self.directory, capture_output=True, text=True, timeout=60).stdout

    def submit(self, *words, launch="srun"):
        done = subprocess.run(["sbatch", "--parsable", *words], env=dict(self.env, LAUNCH=launch), cwd=self.directory,
                              capture_output=True, text=True, timeout=60)
        check(done.returncode == 0, done.stderr)
        return done.stdout.strip()

    def show(self, job, what):
        for word in self.call("scontrol", "show", "job", job).split():
            if word.startswith(what + "="):
                return word.partition("=")[2]
        return None

    def wait(self, job, condition, timeout, what):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            # A requeued job waits two minutes for the epilogs of large machines: not here.
            if self.show(job, "JobState") == "PENDING" and self.show(job, "Reason") == "BeginTime":
                self.call("scontrol", "update", f"JobId={job}", "StartTime=now")
            if condition():
                return
            time.sleep(0.2)
        raise Failed(f"job {job}: {what} has not come in {timeout} s; state {self.show(job, 'JobState')}\n"
                     + "".join(p.read_text()[-3000:] for p in self.directory.glob(f"*-{job}.log")))


def rank_processes(run):
    found = {}
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if words[0] == DSTRAIN.encode() and b"train" in words and any(run.name.encode() in w for w in words):
                found[rank_of(entry.name)] = int(entry.name)
    return found


def step_of(run):
    with contextlib.suppress(OSError, ValueError, IndexError):
        return max(records(run, "loss"))
    return 0


def one(bed, name, launch, whole):
    directory = bed.directory
    run = directory / f"{name}_{launch}"
    path = write_job(directory, run.name, STEPS, shape=SHAPE)
    script = str(SOURCE / "scripts/slurm/train.sbatch")
    options = ["--time=2", "--signal=B:USR1@100"] if name == "timelimit" else ["--time=30"]
    begin = time.monotonic()
    job = bed.submit(*options, script, str(path), launch=launch)
    starts = 1
    if name != "timelimit":
        bed.wait(job, lambda: step_of(run) > 20, 60, "step 20")
        bed.wait(job, lambda: f"{job}.0" in bed.call("squeue", "-s", "-h", "-o", "%i"), 30, "a step of Slurm's")
    if name == "preempt":
        high = bed.submit("--partition=high", "--ntasks=2", "--wrap", "sleep 3")
        bed.wait(high, lambda: bed.show(high, "JobState") == "COMPLETED", 120, "the end of the job that pre-empts")
    if name == "killed":
        os.kill(rank_processes(run)[1], signal.SIGKILL)
    if name == "scancel":
        bed.call("scancel", job)
        bed.wait(job, lambda: bed.show(job, "JobState") == "CANCELLED" and not rank_processes(run), 60, "its end")
        check(exit_file(run)["code"] == 10, f"exit.json {exit_file(run)}")
        stopped = exit_file(run)["step"]
        check((run / f"checkpoints/step_{stopped:08}").exists(), f"nothing saved at step {stopped}")
        time.sleep(3)
        check(bed.show(job, "JobState") == "CANCELLED", "a cancelled job came back")
        job = bed.submit(*options, script, str(path), launch=launch)
        starts += 1
    bed.wait(job, lambda: bed.show(job, "JobState") in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED"), 400,
             "the end of the run")
    check(bed.show(job, "JobState") == "COMPLETED" and exit_file(run)["code"] == 0,
          f"{bed.show(job, 'JobState')}, {exit_file(run)}\n"
          + "".join(p.read_text()[-3000:] for p in directory.glob(f"*-{job}.log")))
    starts += int(bed.show(job, "Restarts") or 0)
    check(starts > 1, "the job was never stopped: the test tests nothing")
    check_equal(DSTRAIN, run, whole, STEPS)
    log = "".join(p.read_text() for p in directory.glob(f"*-{job}.log"))
    check(name == "scancel" or log.count("requeued") == starts - 1, f"the log was not appended to:\n{log}")
    print(f"{name} with {launch}: {starts} starts, loss curve and step {STEPS} bit-equal to the unbroken run, "
          f"{time.monotonic() - begin:.0f} s", flush=True)


def array(bed, whole):
    """An array of two runs, of which one is the unbroken one's twin."""
    directory = bed.directory
    path = write_job(directory, "array", STEPS // 10, shape=SHAPE)
    (directory / "overrides.txt").write_text(f"run.dir={directory}/array1\nrun.dir={directory}/array2 optimizer.lr=1.0e-3\n")
    bed.env["DSTRAIN_SLURM"] = str(SOURCE / "scripts/slurm")
    job = bed.submit("--array=1-2", "--ntasks=2", str(SOURCE / "scripts/slurm/array.sbatch"), str(path), "overrides.txt")
    bed.wait(job, lambda: all((directory / f"array{i}/exit.json").exists() and exit_file(directory / f"array{i}")["code"] == 0
                              for i in (1, 2)), 120, "the end of both")
    ours, theirs = records(directory / "array1", "loss"), records(whole, "loss")
    check(all(theirs[s] == v for s, v in ours.items()) and len(ours) == STEPS // 10, "array1 is another run")
    check(records(directory / "array2", "loss") != ours, "array2 is the same run")
    print("array of 2: both done, the first bit-equal to the unbroken run", flush=True)


if __name__ == "__main__":
    names = sys.argv[3:] or ["timelimit", "preempt", "scancel", "killed", "array"]
    with tempfile.TemporaryDirectory(prefix="dstrain-slurm-") as directory:
        bed = Bed(pathlib.Path(directory))
        try:
            prepare(DSTRAIN, bed.directory)
            dstrain_run(DSTRAIN, "train", write_job(bed.directory, "whole", STEPS, shape=SHAPE), ranks=2)
            for name in names:
                if name == "array":
                    array(bed, bed.directory / "whole")
                    continue
                for launch in ("srun", "mpirun"):
                    one(bed, name, launch, bed.directory / "whole")
        except Failed as e:
            print(f"FAILED: {e}")
            sys.exit(1)
        finally:
            bed.stop()
