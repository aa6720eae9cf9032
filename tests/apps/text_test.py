#!/usr/bin/env python3
"""Text out of a model: dstrain generate and dstrain eval, against transformers' tokens and a model in numpy.
Run: text_test.py DSTRAIN SOURCE_DIR [NAME...]."""
import json
import math
import os
import subprocess
import sys

import h5py

from program_test import DSTRAIN, ENV, SOURCE, check, job, main, prepared, run
from tiny_models import TinyModel

def meshes(tensor):
    """Options of thread ranks by mesh."""
    return {"one": [], "data": ["--ranks", 2], "tensor": ["--ranks", tensor, f"parallel.tensor={tensor}"], "pipeline": ["--ranks", 2, "parallel.pipeline=2"],
            "all": ["--ranks", 4 * tensor, f"parallel.tensor={tensor}", "parallel.pipeline=2"]}


TENSOR = {"llama_tiny": 2, "gpt2_tiny": 3}  # what divides their heads


def golden_run(d, name):
    """A run directory whose checkpoint holds a golden model's weights: a step with a learning rate of 0."""
    golden = SOURCE / "tests/golden" / name
    path = job(d, name)
    text = path.read_text().split("\n")
    text[2] = f"model: {{ from: '{golden}/config.json', weights: '{golden}/model.safetensors' }}"
    path.write_text("\n".join(text))
    run("train", path, "training.steps=1", "optimizer.lr=0")
    return d / name


def lines_of(output):
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def write(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def spelling(d):
    """The tokenizer's vocabulary: id -> bytes; ids without text have none."""
    tokenizer = json.loads((d / "tokenizer.json").read_text())
    special = {t["content"] for t in tokenizer["added_tokens"]}
    # GPT-2's alphabet: a printable byte is itself, the others are 256, 257, ... in order.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(b): b for b in printable}
    letters.update((chr(256 + i), b) for i, b in enumerate(b for b in range(256) if b not in printable))
    return {i: bytes(letters[c] for c in token) for token, i in tokenizer["model"]["vocab"].items() if token not in special}


def test_greedy(d):
    """The tokens that transformers writes, greedily and with a repetition penalty, in every batch and on every mesh."""
    prepared(d)
    texts = spelling(d)
    golden = json.loads((SOURCE / "tests/golden/generation.json").read_text())
    for name, rows in golden["models"].items():
        directory = golden_run(d, name)
        prompts = write(d / "prompts.jsonl", [{"tokens": row["prompt"]} for row in rows])
        for mesh, options in meshes(TENSOR[name]).items():
            for batch in (1, 2, 8) if mesh == "one" else (2,):
                output = run("generate", directory, "--prompts", prompts, "--tokens", 20, "--temperature", 0, "--batch-size", batch, *options)
                lines = lines_of(output)
                check(len(lines) == len(rows), output)
                for line, row in zip(lines, rows):
                    expected = row["greedy"]
                    end = 0 in expected and expected.index(0)  # id 0 is this tokenizer's end of document
                    check(line["tokens"] == (expected if end is False else expected[:end]), f"{name} {mesh} {batch}: {line['tokens']} is not {expected}")
                    check(line["reason"] == ("tokens" if end is False else "end_of_document"), line["reason"])
                    text = b"".join(texts.get(i, b"") for i in line["tokens"]).decode(errors="replace")
                    check(line["text"] == text, f"text {line['text']!r}, not {text!r}")
        output = run("generate", directory, "--prompts", prompts, "--tokens", 20, "--temperature", 0, "--repetition-penalty", golden["penalty"])
        for line, row in zip(lines_of(output), rows, strict=True):
            expected = row["penalised"]
            check(line["tokens"] == expected[:expected.index(0) if 0 in expected else None], f"{name}: penalised {line['tokens']} is not {expected}")
        run("generate", directory, "--prompts", prompts, "--tokens", 4, ranks=2)


def test_sampling(d):
    """The same seed and prompt give the same text; what ends a text; streams and lines; bad prompts."""
    prepared(d)
    run("train", job(d, "run"), "training.steps=60", "optimizer.lr=0.01", "model.max_position_embeddings=64")
    texts = ["the quick", "", "a lazy dog", "many small models learn to", "é\u4e2d"]
    prompts = d / "prompts.txt"
    prompts.write_text("\n".join(texts) + "\n")
    sampled = ["--temperature", 1.2, "--top-k", 30, "--top-p", 0.95, "--seed", 5, "--tokens", 12]
    reference = lines_of(run("generate", d / "run", "--prompts", prompts, *sampled))
    check([line["prompt"] for line in reference] == texts, str(reference))
    for mesh, options in {**meshes(2), "single": ["--batch-size", 1]}.items():
        check(lines_of(run("generate", d / "run", "--prompts", prompts, *sampled, *options)) == reference, f"{mesh}: other texts")
    check(lines_of(run("generate", d / "run", "--prompts", prompts, *sampled, ranks=2)) == reference, "two MPI ranks: other texts")
    alone = run("generate", d / "run", "--prompt", texts[0], *sampled)
    check(alone == texts[0] + reference[0]["text"] + "\n", f"a stream: {alone!r}, not {reference[0]}")
    check(run("generate", d / "run", "--prompt", texts[0], *[6 if x == 5 else x for x in sampled]) != alone, "another seed")
    check(run("generate", d / "run", "--prompt", texts[0], *sampled, "parallel.pipeline=2", ranks=2) == alone, "a stream from the last stage")

    greedy = ["--temperature", 0, "--tokens", 30]
    whole = run("generate", d / "run", "--prompt", "the quick", *greedy)
    stop = whole[len("the quick") + 5:][:4]
    cut = run("generate", d / "run", "--prompt", "the quick", *greedy, "--stop", "never said", "--stop", stop)
    check(cut == whole[:whole.index(stop, len("the quick"))] + "\n", f"{cut!r} does not stop before {stop!r} in {whole!r}")
    write(d / "p.jsonl", [{"prompt": "the quick"}, {"prompt": "the " * 12}])
    lines = lines_of(run("generate", d / "run", "--prompts", d / "p.jsonl", *greedy, "--stop", stop))
    check(lines[0]["reason"] == "stop" and "the quick" + lines[0]["text"] + "\n" == cut, str(lines))
    lines = lines_of(run("generate", d / "run", "--prompts", d / "p.jsonl", "--temperature", 0, "--tokens", 500))
    for line in lines:
        prompt_tokens = 64 + 1 - len(line["tokens"])
        check(line["reason"] == "end_of_document" or 0 < prompt_tokens <= 64 and line["reason"] == "positions", str(line))

    # A prompt is text, unless it is asked to be more.
    special = write(d / "special.jsonl", [{"prompt": "<|endoftext|>z"}])
    tokens = write(d / "tokens.jsonl", [{"tokens": [0, next(i for i, t in spelling(d).items() if t == b"z")]}])
    of = lambda path, *options: lines_of(run("generate", d / "run", "--prompts", path, *greedy, *options))[0]["tokens"]
    check(of(special, "--special-tokens") == of(tokens), "a special token in a prompt")
    check(of(special) != of(tokens), "a special token's text is text")

    # Tokens come as they are made. Such a pipe keeps writes apart, however late they are read.
    out, into = os.pipe2(os.O_DIRECT)
    process = subprocess.Popen([DSTRAIN, "generate", str(d / "run"), "--prompt", "the", "--tokens", "40", "--temperature", "0"], env=ENV, stdout=into)
    os.close(into)
    parts = []
    while part := os.read(out, 4096):
        parts.append(part)
    os.close(out)
    check(process.wait() == 0 and len(parts) >= 10, f"a stream of {len(parts)} parts")

    long = d / "long.txt"
    long.write_text("the\n" + "the quick brown fox " * 40 + "\n")
    run("generate", d / "run", "--prompts", long, code=3, says=["long.txt:2", "64 positions"])
    run("generate", d / "run", "--prompts", long, "--ranks", 2, code=3, says="long.txt:2")
    run("generate", d / "run", "--prompt", "the quick brown fox " * 40, code=2, says="64 positions")
    (d / "none.txt").write_text("")
    run("generate", d / "run", "--prompts", d / "none.txt", code=3, says="no prompt")
    run("generate", d / "run", "--prompts", d / "missing.txt", code=3, says="missing.txt")
    run("generate", d / "run", "--prompts", long, "--prompt", "x", code=2)
    run("generate", d / "run", "--stop", "", code=2)
    for bad, says in (("{", "not a JSON object"), ("[" * 1000000, "not a JSON object"), ('{"prompt": "\\ud800"}', "not a JSON object"), ("[]", "not a JSON object"), ("{}", "neither"), ('{"prompt": 3}', "no text"), ('{"tokens": [3, -1]}', "no id"),
                      ('{"tokens": [300]}', "no id"), ('{"tokens": [1.5]}', "no id"), ('{"tokens": 3}', "neither")):
        (d / "bad.jsonl").write_text('{"prompt": "the"}\n' + bad + "\n")
        run("generate", d / "run", "--prompts", d / "bad.jsonl", code=3, says=["bad.jsonl:2: ", says])


def test_loss(d):
    """Loss and bits per byte of token files are those of a model in numpy, on every mesh."""
    prepared(d)
    texts = spelling(d)
    with h5py.File(d / "eval-00000.h5") as file:
        ids = file["tokens"][:].astype(int)
    length = 32
    for name in ("llama_tiny", "gpt2_tiny"):
        directory, model = golden_run(d, name), TinyModel(SOURCE / "tests/golden" / name)
        samples = 1 + int((ids == 0).argmax()) // length  # up to the end of a document
        windows = [ids[i * length:(i + 1) * length + 1] for i in range(samples)]
        losses = [loss for window in windows for loss in model.losses(window)]
        targets = [i for window in windows for i in window[1:]]
        check(0 in targets, "no end of a document")
        size = sum(len(texts.get(i, b"")) for i in targets)
        expected = {"loss": sum(losses) / len(losses), "bits_per_byte": sum(losses) / math.log(2) / size, "bytes": size, "tokens": len(targets)}
        for mesh, options in meshes(TENSOR[name]).items():
            output = run("eval", directory, "--json", "--data", f"held={d}/eval-*.h5", "--data", f"again={d}/eval-00000.h5", f"eval.samples={samples}", *options)
            results = lines_of(output)
            check([r["name"] for r in results] == ["held", "again"], output)
            for result in results:
                for key, value in expected.items():
                    # Float32 logits; the goldens' worst logit is 1.1e-6 off.
                    check(abs(result[key] - value) <= 2e-6 * value, f"{name} {mesh}: {key} {result[key]}, not {value}")
    run("eval", directory, "eval.samples=9", says=["eval loss", "bits a byte", "tokens"])
    run("eval", directory, "--data", "oops", code=2, says="NAME=PATH")
    run("eval", directory, "--data", f"x={d}/none.h5", code=3, says="none.h5")


def test_choices(d):
    """Log-likelihoods of choices, and the accuracies made of them, are those of a model in numpy."""
    prepared(d)
    (d / "tokenizer.json").unlink()
    run("data", "tokenizer", "--vocab-size", 257, "--out", d / "tokenizer.json", d / "corpus")  # bytes: a text's ids are easy
    ids_of = {text[0]: i for i, text in spelling(d).items() if len(text) == 1}
    encode = lambda text: [ids_of[b] for b in text.encode()]
    for name in ("llama_tiny", "gpt2_tiny"):
        model = TinyModel(SOURCE / "tests/golden" / name)
        for part in ("train", "eval"):
            for old in d.glob(f"{part}-*.h5"):
                old.unlink()
        run("data", "tokenize", "--tokenizer", d / "tokenizer.json", "--out", d / "train", "--eval-out", d / "eval", "--eval-fraction", 0.1, d / "corpus")
        directory = golden_run(d, name)
        questions = [{"context": "the quick brown", "choices": ["fox", "lazy dog", "é"], "answer": 0}, {"context": "", "choices": ["a", "while many"], "answer": 1},
                     {"context": "models learn  ", "choices": ["to write", "plain", "text", "over"], "answer": 2}, {"context": "x", "choices": ["only"], "answer": 0},
                     {"context": "many small", "choices": ["models", "zzzz"], "answer": 1}]
        path = write(d / "questions.jsonl", questions)
        scores, sizes = [], []
        for q in questions:
            context = q["context"].rstrip()
            prefix = encode(context) or [0]
            rest = q["context"][len(context):]
            scores.append([-sum(model.losses(prefix + encode(rest + " " + c))[len(prefix) - 1:]) for c in q["choices"]])
            sizes.append([len(c.encode()) for c in q["choices"]])
        best = lambda values: values.index(max(values))
        acc = sum(best(s) == q["answer"] for s, q in zip(scores, questions)) / len(questions)
        acc_norm = sum(best([x / n for x, n in zip(s, b)]) == q["answer"] for s, b, q in zip(scores, sizes, questions)) / len(questions)
        for mesh, options in {**meshes(TENSOR[name]), "three": ["--batch-size", 3]}.items():
            result = lines_of(run("eval", directory, "--json", "--choices", path, "--details", d / "details.jsonl", *options))[0]
            check((result["acc"], result["acc_norm"], result["questions"]) == (acc, acc_norm, len(questions)), f"{name} {mesh}: {result}, not {acc} {acc_norm}")
            for line, expected, size in zip(lines_of((d / "details.jsonl").read_text()), scores, sizes, strict=True):
                check(line["bytes"] == size, str(line))
                check(all(abs(a - b) <= 2e-6 * abs(b) for a, b in zip(line["log_likelihoods"], expected, strict=True)), f"{name} {mesh}: {line}, not {expected}")
    run("eval", directory, "--choices", path, says=["acc ", "acc_norm", "5 questions"])
    good = '{"context": "a", "choices": ["b", "c"], "answer": 0}\n'
    for bad, says in (("nonsense", "not a JSON object"), ('{"a":' * 1000000, "not a JSON object"), ('{"context": "a", "choices": ["b"], "answer": 18446744073709551616}', "'answer'"), ('{"choices": ["a"], "answer": 0}', "'context'"), ('{"context": "a", "answer": 0}', "'choices'"), ('{"context": "a", "choices": [], "answer": 0}', "'choices'"),
                      ('{"context": "a", "choices": ["b", 3], "answer": 0}', "choice 1"), ('{"context": "a", "choices": ["b", ""], "answer": 0}', "choice 1"), ('{"context": "a", "choices": ["b"], "answer": 1}', "'answer'"),
                      ('{"context": "a", "choices": ["b"], "answer": -1}', "'answer'"), ('{"context": "a", "choices": ["b"], "answer": "0"}', "'answer'"), (json.dumps({"context": "a" * 200, "choices": ["b"], "answer": 0}), "positions"), ("", "not a JSON object")):
        (d / "bad.jsonl").write_text(good + bad + "\n" + good)
        run("eval", directory, "--choices", d / "bad.jsonl", code=3, says=["bad.jsonl:2: ", says])
    (d / "bad.jsonl").write_text("")
    run("eval", directory, "--choices", d / "bad.jsonl", code=3, says="no question")


if __name__ == "__main__":
    sys.exit(main(globals()))
