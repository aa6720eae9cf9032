#!/usr/bin/env python3
"""What a run shows of itself: TensorBoard's event files and the report. Run: observe_test.py DSTRAIN SOURCE_DIR [NAME...]."""
import html.parser
import json
import math
import os
import pathlib
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

from program_test import DSTRAIN, ENV, check, job, main, metrics, prepared, run


def float32(value):
    return math.nan if value is None else struct.unpack("f", struct.pack("f", value))[0]


def expected_events(run_directory):
    """(tag, step) -> value, as metrics.jsonl has them."""
    lines = [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()]
    # A checkpoint is told of when it is durable, a later step; TensorBoard shows it at its own.
    at = lambda line: line.get("checkpoint_step", line["step"])
    return {(key, at(line)): float32(value) for line in lines for key, value in line.items() if key != "step"}


def read_events(run_directory):
    """The same as TensorBoard reads it. Fails when it has a step twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    accumulator = EventAccumulator(str(run_directory / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    events = {}
    for tag in accumulator.Tags()["scalars"]:
        for event in accumulator.Scalars(tag):
            check((tag, event.step) not in events, f"{tag} of step {event.step} is there twice")
            events[tag, event.step] = event.value
    return events


def check_same(run_directory, resumed=None):
    """`resumed`: the step gone back to. Its checkpoint was told of in lines of later steps, which are forgotten."""
    ours, reference = read_events(run_directory), expected_events(run_directory)
    for key in [k for k in ours if k not in reference and k[0].startswith("checkpoint") and k[1] == resumed]:
        del ours[key]
    check(ours.keys() == reference.keys(), f"events {sorted(ours.keys() ^ reference.keys())} are on one side only")
    for key, value in reference.items():
        check(ours[key] == value or math.isnan(ours[key]) and math.isnan(value), f"{key}: {ours[key]}, not {value}")
    return ours


def test_tensorboard(d):
    """TensorBoard's reader reads what metrics.jsonl holds, as float32, after resumes too."""
    prepared(d)
    on = "observe.tensorboard=true"
    run("train", job(d, "off"))
    check(not (d / "off/tensorboard").exists(), "event files that nobody asked for")
    run("train", job(d, "one"), on, "checkpoint.every=4")
    events = check_same(d / "one")
    check(("loss", 10) in events and ("eval_loss", 0) in events and ("grad_norm", 1) in events, str(sorted(events)[:5]))
    # Back to step 8: what was written of steps 9 and 10 is forgotten, then written anew.
    shutil.rmtree(d / "one/checkpoints/step_00000010")
    run("train", job(d, "one"), on, "training.steps=12", says="resumed from step 8")
    check_same(d / "one", resumed=8)
    check(len(list((d / "one/tensorboard").iterdir())) == 2, "one file a start")
    # A record torn by a kill is no obstacle.
    newest = sorted((d / "one/tensorboard").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-7])
    run("train", job(d, "one"), on, "training.steps=14", says="resumed from step 12")
    lost = expected_events(d / "one").keys() - read_events(d / "one").keys()
    check({step for _, step in lost} == {12}, f"lost {lost}")
    # Numbers that are not finite, and a rank that is not the first.
    run("train", job(d, "nan"), on, "guard.on_nonfinite=skip", "guard.max_skips=1000", "optimizer.lr=1000", "optimizer.weight_decay=100", "training.steps=60", "parallel.pipeline=2", ranks=2)
    check(any(math.isnan(v) for v in check_same(d / "nan").values()), "no NaN to look at")


class Page(html.parser.HTMLParser):
    """What a browser made of a report: its lines (id -> attributes) and its visible words."""

    def __init__(self, text):
        super().__init__()
        self.lines, self.words, self.tags, self.inside = {}, "", [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag in ("script", "style"):
            self.inside.append(tag)
        if "data-line" in attributes:
            self.lines[attributes["data-line"]] = attributes

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.words += data


def browse(path, screenshot=None, dark=False):
    """Opens a page in Chromium without a network, checks that it complains of nothing, returns it as drawn."""
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1500,2300",
               "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--virtual-time-budget=4000"]
    if dark:
        command += ["--blink-settings=preferredColorScheme=0"]
    with tempfile.TemporaryDirectory() as profile:
        command += [f"--user-data-dir={profile}"]
        done = subprocess.run(command + ["--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=250)
        check(done.returncode == 0, f"chromium: exit {done.returncode}\n{done.stderr}")
        check("CONSOLE" not in done.stderr, f"console messages:\n{done.stderr}")
        if screenshot:
            directory = pathlib.Path(os.environ.get("DSTRAIN_SCREENSHOTS", "build/screenshots"))
            directory.mkdir(parents=True, exist_ok=True)
            subprocess.run(command + [f"--screenshot={directory / screenshot}", path.as_uri()], capture_output=True, timeout=250, check=True)
            check((directory / screenshot).stat().st_size > 20000, "an empty screenshot")
    page = Page(done.stdout)
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            check(attributes.get(name, "data:").startswith("data:"), f"the page fetches {attributes}")
    return page


def use(path, script):
    """The page after a script has acted on it as a reader's hand would; what the script returns is in data-result."""
    copy = path.with_name("used.html")
    copy.write_text(path.read_text().replace("</body>", f"""<script>
function act(kind, node, x, y, more) {{ node.dispatchEvent(new PointerEvent(kind, {{ clientX: x, clientY: y, pointerId: 1, bubbles: true, ...more }})); }}
SVGElement.prototype.setPointerCapture = () => {{}};
document.body.dataset.result = JSON.stringify((() => {{ {script} }})());
</script></body>"""))
    return json.loads(next(a["data-result"] for tag, a in browse(copy).tags if tag == "body"))


def vertices(line):
    """Points of a drawn line, counted in its path."""
    return len(re.findall("[ML]", line["d"]))


def check_lines(page, number, run_directory):
    """Every point of metrics.jsonl is drawn."""
    for key in ("loss", "eval_loss", "lr", "grad_norm", "tokens_per_second", "mfu"):
        values = metrics(run_directory, key)
        finite = sum(v is not None for v in values)
        check(vertices(page.lines[f"{number}/{key}"]) == finite > 0, f"{key}: {vertices(page.lines[f'{number}/{key}'])} points of {finite}")
    stalls = [v for v in metrics(run_directory, "checkpoint_stall_seconds") if v > 0]
    check(vertices(page.lines[f"{number}/checkpoint_stall_seconds"]) == len(stalls) > 0, "stalls")
    steps = len(metrics(run_directory, "seconds"))
    for part in ("compute and the rest", "loader wait", "checkpoint stall"):  # there and back
        check(vertices(page.lines[f"{number}/time/{part}"]) == 2 * steps, part)


def test_report(d):
    """The page draws what metrics.jsonl holds, of one run and of two, without a word of complaint, and while the run goes on."""
    prepared(d)
    longer = ["training.steps=120", "checkpoint.every=30", "eval.every=20", "optimizer.lr=0.01", "lr_schedule.type=cosine", "lr_schedule.warmup_steps=10"]
    run("train", job(d, "first"), *longer)
    run("report", d / "first", says="report.html")
    page = browse(d / "first/report.html", "report_one.png")
    check_lines(page, 0, d / "first")
    for text in ("step 120 of 120, done", "vocab_size: 300", "mesh", "activations", "first", "Every step is drawn"):
        check(text in page.words, f"the page does not say '{text}'")
    browse(d / "first/report.html", "report_one_dark.png", dark=True)

    run("train", job(d, "second"), *longer, "optimizer.lr=0.003", "run.name=</script><b>é", "parallel.pipeline=2", ranks=2)
    run("report", d / "first", d / "second", "--out", d / "both.html")
    page = browse(d / "both.html", "report_two.png")
    check_lines(page, 0, d / "first")
    check_lines(page, 1, d / "second")
    check("</script><b>é" in page.words, "a name is text")
    check(any(a.get("class") == "differs" for _, a in page.tags), "what differs between jobs is marked")

    # The pointer reads a step on all plots, a drag looks at a span, a double click at all, a click hides a run.
    seen = use(d / "both.html", """
        const plot = plots[0], box = plot.node.getBoundingClientRect(), f = plot.frame, at = (s) => box.left + f.px(s);
        act("pointermove", plot.node, at(60.2), box.top + 50, {});
        const read = readout.innerText, dots = plots[1].marks.querySelectorAll("circle").length;
        act("pointerdown", plot.node, at(20), box.top + 50, {});
        act("pointermove", plot.node, at(30), box.top + 50, {});
        act("pointerup", plot.node, at(40), box.top + 50, {});
        const zoomed = [plots[2].frame.x0, plots[2].frame.x1];
        plot.node.dispatchEvent(new MouseEvent("dblclick"));
        const all = [plots[2].frame.x0, plots[2].frame.x1];
        document.querySelector(".run").click();
        const left = document.querySelectorAll("[data-line^='0/']").length;
        document.querySelector("button.small").click();
        return { read, dots, zoomed, all, left, log: plots[0].log };""")
    check("step 60" in seen["read"] and "eval" in seen["read"] and seen["dots"] == 2, f"readout: {seen}")
    check(abs(seen["zoomed"][0] - 20) < 0.5 and abs(seen["zoomed"][1] - 40) < 0.5 and seen["all"] == [0, 120], f"zoom: {seen}")
    check(seen["left"] == 0 and seen["log"] is True, f"buttons: {seen}")

    # Values that are not finite break the line.
    run("train", job(d, "nan"), "guard.on_nonfinite=skip", "guard.max_skips=1000", "optimizer.lr=1000", "optimizer.weight_decay=100", "training.steps=60")
    run("report", d / "nan")
    page = browse(d / "nan/report.html")
    losses = metrics(d / "nan", "loss")
    check(None in losses and vertices(page.lines["0/loss"]) == sum(v is not None for v in losses), "points that are not finite")

    # While the run goes on.
    train = subprocess.Popen([DSTRAIN, "train", str(job(d, "going")), "training.steps=1000000"], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    follow = None
    try:
        metrics_file = d / "going/metrics.jsonl"
        for _ in range(3000):
            if metrics_file.exists() and metrics_file.stat().st_size > 2000:
                break
            time.sleep(0.02)
        follow = subprocess.Popen([DSTRAIN, "report", "--follow", "--every", "1", str(d / "going")], stdout=subprocess.PIPE, text=True)
        check("report.html" in follow.stdout.readline(), "follow names its page")
        text = (d / "going/report.html").read_text()
        check("not ended" in text and '"reload":1' in text, "a page of a run that goes on loads itself again")
        written = (d / "going/report.html").stat().st_ino
        for _ in range(3000):
            if (d / "going/report.html").stat().st_ino != written:
                break
            time.sleep(0.02)
        check((d / "going/report.html").stat().st_ino != written, "the page is replaced while the run goes on")
        train.send_signal(signal.SIGTERM)
        check(train.wait(timeout=60) == 10, "stopped")
        check(follow.wait(timeout=60) == 0, "following ends with the run")
        text = (d / "going/report.html").read_text()
        check("exit 10" in text and '"reload":0' in text, "the last page")
        check(vertices(browse(d / "going/report.html").lines["0/loss"]) <= 3002, "thinned")
    finally:
        for process in (train, follow):
            if process:
                process.kill()
                process.wait()


def test_report_bad_metrics(d):
    """A torn last line is a run that goes on; anything else that is no metric is one error with its place."""
    prepared(d)
    run("report", d / "nowhere", code=2, says="nowhere")
    run("train", job(d, "run"))
    good = (d / "run/metrics.jsonl").read_bytes()
    lines = good.splitlines(keepends=True)
    run("report", d / "run", "--out", d / "no/such/place.html", code=5, says="place.html")
    for cut in (1, 5, len(lines[-1]) - 1):
        (d / "run/metrics.jsonl").write_bytes(good[:-cut])
        run("report", d / "run")
    bad = {b"{}\n": "no step", b"\n": "metrics.jsonl:5", b"[1, 2]\n": "an array", b"3\n": "instead of an object", b"{\"step\": 5,\n": "parse error",
           b'{"step": 1.5}\n': "step", b'{"step": -1}\n': "step", b'{"step": 1, "loss": "x"}\n': "'loss' is a string", b'{"step": 0, "loss": 1}\n': "step 0 after step",
           b'{"step": 3, "loss": 1, "loss": 2}\n': "'loss' twice", b'{"step": 3, "loss": 1e999}\n': "1e999", b"\x00\xff\n": "metrics.jsonl:5",
           b'{"step": 3, "x": ' + b"[" * 100000 + b"\n": "an array", b'{"step": 3, "x": ' + b"1" * (1 << 20) + b"}\n": "longer", b'{"step": 18446744073709551616}\n': "step",
           b'{"step": 3' + b"".join(b', "k%d": 1' % i for i in range(1100)) + b"}\n": "1024 keys"}
    for line, says in bad.items():
        (d / "run/metrics.jsonl").write_bytes(b"".join(lines[:4]) + line + b"".join(lines[4:]))
        output = run("report", d / "run", code=3, says=["metrics.jsonl:5: ", says])
        check(len(output.splitlines()) == 1, output)
    (d / "run/metrics.jsonl").write_bytes(good)
    for text in ("", "[]", '{"code": "x", "reason": 1}'):
        (d / "run/exit.json").write_text(text)
        run("report", d / "run", code=3, says="exit.json")


def test_report_of_a_million_steps(d):
    """A long run gives a page that opens, and its extremes are on it."""
    prepared(d)
    run("train", job(d, "long"))
    rng = random.Random(1)
    with open(d / "long/metrics.jsonl", "w") as file:
        for step in range(1, 1000001):
            loss = 99.5 if step == 654321 else 2 + 8 / step ** 0.3 + rng.random() * 0.2
            file.write(f'{{"step":{step},"tokens":{step * 256},"loss":{loss:.6f},"grad_norm":{1 + rng.random():.5f},"lr":0.001,"seconds":{0.1 + rng.random() * 0.02:.5f},'
                       f'"tokens_per_second":{2560 + rng.random():.3f},"mfu":0.5,"mfu_full":0.6,"loader_wait_seconds":0.001,"checkpoint_stall_seconds":{0.02 if step % 1000 == 0 else 0},"skipped":0}}\n')
    begin = time.monotonic()
    run("report", d / "long")
    print(f"report of 1e6 steps: {time.monotonic() - begin:.1f} s, page of {(d / 'long/report.html').stat().st_size} bytes")
    check((d / "long/report.html").stat().st_size < 4 << 20, "a page of some size")
    page = browse(d / "long/report.html", "report_long.png")
    line = page.lines["0/loss"]
    check(line["data-of"] == "1000000" and 2000 <= vertices(line) <= 2002, f"{vertices(line)} points")
    check("99.5" in (d / "long/report.html").read_text(), "the spike is there")
    check("Lines are thinned" in page.words, "it says that lines are thinned")


if __name__ == "__main__":
    sys.exit(main(globals()))
