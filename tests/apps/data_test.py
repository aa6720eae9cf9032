#!/usr/bin/env python3
"""dstrain data as a user meets it: formats of others, kills, locate. Run: data_test.py DSTRAIN SOURCE_DIR [NAME...]."""
import gzip
import json
import os
import pathlib
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time

import h5py
import numpy as np

DSTRAIN = os.path.abspath(sys.argv[1])
ENV = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
WORDS = "the quick brown fox jumps over a lazy dog while many small models learn to write plain text".split()


class Failed(Exception):
    pass


def check(condition, message):
    if not condition:
        raise Failed(message)


def run(*args, code=0, says=(), ranks=0):
    command = (["mpirun", "--oversubscribe", "-n", str(ranks)] if ranks else []) + [DSTRAIN, *map(str, args)]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=120)
    output = done.stdout + done.stderr
    check(done.returncode == code, f"{' '.join(command)}: exit {done.returncode}, expected {code}\n{output}")
    for text in [says] if isinstance(says, str) else says:
        check(text in output, f"{' '.join(command)}: does not say '{text}':\n{output}")
    return output


def sentence(rng, most=60):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, most)))


def tokenizer(directory):
    rng = random.Random(1)
    (directory / "t.txt").write_text("\n".join(sentence(rng) for _ in range(300)))
    run("data", "tokenizer", "--vocab-size", 300, "--out", directory / "tokenizer.json", directory / "t.txt")
    return directory / "tokenizer.json"


def contents(directory, prefix):
    return {p.name: p.read_bytes() for p in sorted(directory.glob(prefix + "*")) if not p.name.endswith(".state.json")}


def documents_of(path):
    """The documents of a token file, by its names alone: what docs/data.md shows."""
    with h5py.File(path) as f:
        offsets, tokens = f["document_offsets"][:], f["tokens"][:]
        check(f.attrs["format_version"] == 1, "format_version")
        check(f.attrs["document_count"] == len(offsets) - 1, "document_count")
        check(f.attrs["token_count"] == len(tokens), "token_count")
        check(int(tokens.max()) < f.attrs["vocab_size"], "vocab_size")
        end = f.attrs["end_of_document_id"]
        check(all(tokens[o - 1] == end for o in offsets[1:]), "documents end with their id")
        check(len(f["block_checksums"]) == -(-len(tokens) // 2**20), "block_checksums")
        check(len(f.attrs["tokenizer_hash"]) == 16, "tokenizer_hash")
    return [tokens[a:b].tolist() for a, b in zip(offsets[:-1], offsets[1:])]


def h5py_by_names(d):
    path = tokenizer(d)
    texts = ["first text", "second, a longer one", "third"]
    (d / "in.jsonl").write_text("".join(json.dumps({"body": t}) + "\n" for t in texts))
    run("data", "tokenize", "--tokenizer", path, "--out", d / "train", "--key", "body", d / "in.jsonl",
        says=["3 documents", "documents by length"])
    found = documents_of(d / "train-00000.h5")
    check(len(found) == 3, "three documents")
    # Bytes are tokens of a byte-level vocabulary: decoded by the tokenizer's own table.
    vocabulary = {i: t for t, i in json.loads(path.read_text())["model"]["vocab"].items()}
    for ids, text in zip(found, texts):
        check("".join(vocabulary[i] for i in ids[:-1]).replace("\u0120", " ") == text, text)
    statistics = json.loads((d / "train.json").read_text())["train"]
    check(statistics["documents"] == 3 and statistics["bytes"] == sum(map(len, texts)), statistics)
    check(statistics["tokens"] == sum(map(len, found)), statistics)
    check(sum(row["documents"] for row in statistics["lengths"]) == 3, statistics)


def ranks_and_threads(d):
    path, rng = tokenizer(d), random.Random(3)
    (d / "in").mkdir()
    lines = [json.dumps({"text": sentence(rng, 400), "n": i}) for i in range(3000)]
    with gzip.open(d / "in/a.jsonl.gz", "wt") as f:
        f.write("\n".join(lines))
    (d / "in/b.txt").write_text("\n\n".join(sentence(rng) for _ in range(2000)))
    subprocess.run(["zstd", "-q", "--rm", d / "in/b.txt"], check=True)
    expected = None
    for name, options, ranks in [("one", ["--threads", 1], 0), ("threads2", ["--threads", 2], 0),
                                 ("threads4", ["--threads", 4], 0), ("ranks2", ["--ranks", 2], 0),
                                 ("ranks4", ["--ranks", 4, "--threads", 1], 0), ("mpi2", [], 2),
                                 ("mpi4", ["--threads", 2], 4)]:
        out = d / name
        run("data", "tokenize", "--tokenizer", path, "--out", out / "x", "--eval-out", out / "e", "--eval-fraction",
            0.05, "--documents", "blank-line", "--tokens-per-file", 200000, d / "in", *options, ranks=ranks)
        found = contents(out, "")
        check(len(found) > 4, found.keys())
        expected = expected or found
        check(found == expected, f"{name}: other bytes")


def kill_and_go_on(d):
    path, rng = tokenizer(d), random.Random(5)
    with open(d / "in.jsonl", "w") as f:
        for i in range(60000):
            f.write(json.dumps({"text": sentence(rng, 300)}) + "\n")

    def command(name):
        return ["data", "tokenize", "--tokenizer", path, "--out", d / name / "x", "--eval-out", d / name / "e",
                "--eval-fraction", 0.02, "--tokens-per-file", 300000, "--threads", 2, d / "in.jsonl"]

    run(*command("whole"))
    expected = contents(d / "whole", "")
    check(len(expected) > 20, expected.keys())
    for kills, at in [(1, 3), (3, 2)]:
        name = f"killed{kills}"
        for k in range(kills):
            process = subprocess.Popen([DSTRAIN, *map(str, command(name))], stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)
            while process.poll() is None and not (d / name / f"x-{at * (k + 1):05}.h5").exists():
                time.sleep(0.002)
            if k == 0:  # it has made a file: the state is its
                process.send_signal(signal.SIGSTOP)
                run(*command(name), code=5, says="x.state.json: another tokenize is writing here")
            process.send_signal(signal.SIGKILL)
            check(process.wait() == -signal.SIGKILL, "it ended before it was killed")
        finished = {p.name: p.stat().st_mtime_ns for p in (d / name).glob("*.h5")}
        check(len(finished) >= at, finished)
        other = command(name)
        other[other.index(0.02)] = 0.03
        run(*other, code=2, says="eval_fraction is 0.02 here and 0.03 in this command")
        run(*command(name), says="documents were in token files of an earlier run")
        check(contents(d / name, "") == expected, f"{name}: other bytes")
        for file, modified in finished.items():
            check((d / name / file).stat().st_mtime_ns == modified, f"{file} was written again")
        run(*command(name), says="nothing to do")


def write_llmc(path, tokens, wide=False):
    header = np.zeros(256, dtype="<i4")
    header[:3] = (20240801, 7, len(tokens)) if wide else (20240520, 1, len(tokens))
    path.write_bytes(header.tobytes() + np.array(tokens, dtype="<u4" if wide else "<u2").tobytes())


def read_llmc(path):
    data = path.read_bytes()
    header = np.frombuffer(data[:1024], dtype="<i4")
    wide = header[0] == 20240801
    check((header[0], header[1]) == ((20240801, 7) if wide else (20240520, 1)), header[:3])
    tokens = np.frombuffer(data[1024:], dtype="<u4" if wide else "<u2")
    check(len(tokens) == header[2], header[:3])
    return tokens.tolist()


def write_megatron(prefix, sequences, documents, dtype="<u2"):
    """`documents`: the first sequence of each, and their number."""
    arrays = [np.array(s, dtype=dtype) for s in sequences]
    pathlib.Path(f"{prefix}.bin").write_bytes(b"".join(a.tobytes() for a in arrays))
    pointers = np.cumsum([0] + [a.nbytes for a in arrays])[:-1]
    pathlib.Path(f"{prefix}.idx").write_bytes(
        b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, {"<u2": 8, "<i4": 4}[dtype], len(arrays), len(documents)) +
        np.array([len(a) for a in arrays], dtype="<i4").tobytes() + pointers.astype("<i8").tobytes() +
        np.array(documents, dtype="<i8").tobytes())


def read_megatron(prefix):
    index = pathlib.Path(f"{prefix}.idx").read_bytes()
    check(index[:9] == b"MMIDIDX\0\0", index[:9])
    version, code, count, entries = struct.unpack("<QBQQ", index[9:34])
    check(version == 1, version)
    dtype = {8: np.dtype("<u2"), 4: np.dtype("<i4")}[code]
    sizes = np.frombuffer(index, "<i4", count, 34)
    pointers = np.frombuffer(index, "<i8", count, 34 + 4 * count)
    documents = np.frombuffer(index, "<i8", entries, 34 + 12 * count)
    check(len(index) == 34 + 12 * count + 8 * entries, "size of the index")
    check(documents.tolist() == list(range(count + 1)), "documents")
    data = pathlib.Path(f"{prefix}.bin").read_bytes()
    return dtype, [np.frombuffer(data, dtype, n, p).tolist() for n, p in zip(sizes, pointers)]


def formats_of_others(d):
    rng = random.Random(7)
    for wide in (False, True):
        name, vocabulary = ("wide", 128256) if wide else ("narrow", 50257)
        end = vocabulary - 1
        documents = [[rng.randrange(end) for _ in range(rng.choice([0, 1, 5, 3000]))] for _ in range(700)]
        whole = [d_ + [end] for d_ in documents]
        here = d / name
        here.mkdir()
        ids = ["--vocab-size", vocabulary, "--end-of-document", end]

        # llm.c: documents begin with the id; files are cut anywhere.
        stream = [t for doc in documents for t in [end] + doc]
        cuts = [0, 1000, 1001, 400000, len(stream)]
        for i, (a, b) in enumerate(zip(cuts, cuts[1:])):
            write_llmc(here / f"in_{i:06}.bin", stream[a:b], wide)
        run("data", "import", "--format", "llmc", "--out", here / "llmc", *ids, here / "in_*.bin", says="700 documents")
        check(documents_of(here / "llmc-00000.h5") == whole, "llm.c's documents")
        run("data", "export", "--format", "llmc", "--out", here / "back", here / "llmc-*.h5")
        check(read_llmc(here / "back_000000.bin") == stream, "llm.c's tokens again")
        # Files whose documents end with the id.
        write_llmc(here / "ends.bin", stream[1:] + [end], wide)
        run("data", "import", "--format", "llmc", "--out", here / "ends", *ids, here / "ends.bin")
        check(documents_of(here / "ends-00000.h5") == whole, "llm.c's documents with the id at their ends")

        # Megatron: a document of several sequences; with and without the id at its end.
        sequences, firsts = [], [0]
        for i, doc in enumerate(documents):
            tokens = doc + [end] * (i % 2)
            sequences += [tokens[:2], tokens[2:]] if i % 3 == 0 else [tokens]
            firsts.append(len(sequences))
        write_megatron(here / "m", sequences, firsts, "<i4" if wide else "<u2")
        run("data", "import", "--format", "megatron", "--out", here / "mega", *ids, here / "m.idx", says="700 documents")
        check(documents_of(here / "mega-00000.h5") == whole, "Megatron's documents")
        check((here / "mega-00000.h5").read_bytes() == (here / "llmc-00000.h5").read_bytes(), "the same token file")
        run("data", "export", "--format", "megatron", "--out", here / "mback", here / "mega-*.h5")
        dtype, found = read_megatron(here / "mback")
        check(found == whole and dtype.itemsize == (4 if wide else 2), "Megatron's documents again")
        run("data", "export", "--format", "megatron", "--out", here / "mback", here / "mega-*.h5", code=5, says="exists")


def hostile_formats(d):
    ids = ["--vocab-size", 100, "--end-of-document", 0]

    def refused(kind, says, *files):
        run("data", "import", "--format", kind, "--out", d / "out", *ids, *files, code=3, says=says)
        check(not list(d.glob("out*")), "something was left")

    def llmc(change, says):
        write_llmc(d / "a.bin", [0, 1, 2, 0, 3])
        data = bytearray((d / "a.bin").read_bytes())
        data = change(data) or data
        (d / "a.bin").write_bytes(data)
        refused("llmc", says, d / "a.bin")

    def put(data, offset, layout, *values):
        struct.pack_into(layout, data, offset, *values)

    llmc(lambda b: b[:1000], "a.bin: 1000 bytes; a header of llm.c has 1024")
    llmc(lambda b: b[:-1], "its header says 5 tokens of 2 bytes, it has 9 bytes behind the header")
    llmc(lambda b: put(b, 8, "<i", -1), "says -1 tokens")
    llmc(lambda b: put(b, 8, "<i", 2**31 - 1), "says 2147483647 tokens")
    llmc(lambda b: put(b, 0, "<i", 7), "it begins with 7")
    llmc(lambda b: put(b, 4, "<i", 2), "version 2")
    llmc(lambda b: put(b, 1024 + 8, "<H", 100), "a.bin: token 100 at 4 is outside the vocabulary of 100")
    refused("llmc", "no file matches", d / "none*.bin")

    def megatron(change, says):
        write_megatron(d / "m", [[1, 2], [3], [4, 5, 6]], [0, 1, 3])
        data = bytearray((d / "m.idx").read_bytes())
        data = change(data) or data
        (d / "m.idx").write_bytes(data)
        refused("megatron", says, d / "m")

    sizes, pointers, documents = 34, 34 + 12, 34 + 36
    megatron(lambda b: b[:20], "its header has 34")
    megatron(lambda b: put(b, 0, "<B", 0), "does not begin with MMIDIDX")
    megatron(lambda b: put(b, 9, "<Q", 2), "version 2")
    megatron(lambda b: put(b, 17, "<B", 6), "ids of type 6")
    for many in (2**63, 2**64 - 1, 2**61, 1000):
        megatron(lambda b: put(b, 18, "<Q", many), f"{many} sequences do not fit")
        megatron(lambda b: put(b, 26, "<Q", many), f"{many} document entries do not fit")
    megatron(lambda b: put(b, sizes, "<i", -1), "sequence 0: -1 tokens at byte 0")
    megatron(lambda b: put(b, sizes + 4, "<i", 2**31 - 1), "sequence 1: 2147483647 tokens at byte 4")
    for pointer in (-2**63, 2**63 - 1, 9):
        megatron(lambda b: put(b, pointers + 16, "<q", pointer), f"sequence 2: 3 tokens at byte {pointer}")
    megatron(lambda b: put(b, documents + 8, "<q", 4), "document entry 1 is 4 after 0, of 3 sequences")
    megatron(lambda b: put(b, documents + 8, "<q", -2**63), "document entry 1 is -9223372036854775808 after 0")
    megatron(lambda b: put(b, documents + 16, "<q", 0), "document entry 2 is 0 after 1")
    megatron(lambda b: put(b, documents + 16, "<q", 2), "its documents end at sequence 2 of 3")
    megatron(lambda b: put(b, documents, "<q", 1), "document entry 0 is 1 after 0")
    write_megatron(d / "m", [[1, 2], [3, 100]], [0, 1, 2])
    refused("megatron", "token 100 of sequence 1, number 1, is outside the vocabulary of 100", d / "m.idx")
    (d / "m.bin").unlink()
    refused("megatron", "m.bin", d / "m.idx")


def ids_of_a_tokenizer(d):
    """A vocabulary that is padded for a model holds no more ids than the tokenizer has."""
    path = tokenizer(d)
    own = max(json.loads(path.read_text())["model"]["vocab"].values())
    own = max([own] + [t["id"] for t in json.loads(path.read_text()).get("added_tokens", [])]) + 1
    padded = ["--vocab-size", own + 84]
    for name, last in [("good", own - 1), ("bad", own)]:
        write_llmc(d / f"{name}.bin", [5, 6, 7, last])
        write_megatron(d / f"m{name}", [[5, 6], [7, last]], [0, 1, 2])
    for kind, file, says in [("llmc", "bad.bin", f"bad.bin: token {own} at 3 is outside the vocabulary of {own}"),
                             ("megatron", "mbad.idx", f"mbad.bin: token {own} of sequence 1, number 1, is outside")]:
        run("data", "import", "--format", kind, "--out", d / "out", "--tokenizer", path, *padded, d / file, code=3,
            says=says)
        check(not list(d.glob("out*")), "something was left")
    run("data", "import", "--format", "llmc", "--out", d / "out", "--tokenizer", path, *padded, "--end-of-document",
        own, d / "good.bin", code=2, says="--end-of-document: ")
    for kind, file in [("llmc", "good.bin"), ("megatron", "mgood.idx")]:
        run("data", "import", "--format", kind, "--out", d / kind, "--tokenizer", path, *padded, d / file)
        run("data", "inspect", "--tokenizer", path, d / f"{kind}-00000.h5", says=f"vocabulary {own + 84}")
    # A file that has such an id all the same, and the tokenizer's hash.
    end = json.loads(run("data", "inspect", d / "llmc-00000.h5").split("end of document ")[1].split(",")[0])
    run("data", "import", "--format", "llmc", "--out", d / "old", *padded, "--end-of-document", end, d / "bad.bin")
    with h5py.File(d / "llmc-00000.h5") as good, h5py.File(d / "old-00000.h5", "r+") as f:
        f.attrs.modify("tokenizer_hash", np.bytes_(good.attrs["tokenizer_hash"]))
    run("data", "inspect", "--tokenizer", path, d / "old-00000.h5", code=3,
        says=f"old-00000.h5: token {own} at 3 is outside the tokenizer's vocabulary of {own}")


def hostile_text(d):
    path = tokenizer(d)

    def refused(name, data, says, *options, code=3):
        (d / name).write_bytes(data)
        run("data", "tokenize", "--tokenizer", path, "--out", d / "out/x", *options, d / name, code=code, says=says)
        check(not list((d / "out").glob("*.h5*")), "something was left")

    good = b'{"text": "good"}\n'
    refused("a.jsonl", good + b'{"text": "x"\n', "a.jsonl: line 2: not JSON")
    refused("a.jsonl", good * 2000 + b'{"body": "x"}\n', "a.jsonl: line 2001: no key 'text' in '{\"body\": \"x\"}'")
    refused("a.jsonl", good + b'{"text": 7}\n', "a.jsonl: line 2: expected text under 'text', found a number")
    refused("a.jsonl", good + b'{"text": "\xff"}\n', "a.jsonl: line 2: not JSON")
    refused("a.jsonl", good, "a.jsonl: line 1: no key 'body'", "--key", "body")
    # Ranks say what one of them met, once.
    for bad, says in [(d / "none.txt", "no such file"), (d / "a.jsonl", "line 1: no key 'body'")]:
        output = run("data", "tokenize", "--tokenizer", path, "--out", d / "out/x", "--key", "body", bad, code=3,
                     says=says, ranks=3)
        check(output.count("dstrain: ") == 1, output)
    refused("a.txt.gz", gzip.compress(b"some text " * 9999)[:-20], "a.txt.gz: it ends too early")
    refused("a.txt.gz", b"no gzip", "a.txt.gz: damaged before byte 2")
    refused("a.txt.zst", b"no zstd at all", "a.txt.zst: damaged before byte 0")
    refused("a.txt", b" \n\t\n", "no text: 1 document(s) in 1 file(s), all empty")
    for name, says in [("big.txt.zst", "; --documents blank-line or record cuts it"), ("big.jsonl.zst", "")]:
        with open(d / name, "wb") as f:  # 2^30 and some bytes of one letter
            zstd = subprocess.Popen(["zstd", "-q"], stdin=subprocess.PIPE, stdout=f)
            for _ in range(1025):
                zstd.stdin.write(b"x" * 2**20)
            zstd.stdin.close()
            check(zstd.wait() == 0, "zstd")
        run("data", "tokenize", "--tokenizer", path, "--out", d / "out/x", d / name, code=3,
            says=f"{name}: line 1: a document of more than 1073741824 bytes{says}")
        (d / name).unlink()
    refused("a.pdf", b"x", "not text that is read")
    # What is no regular file is not waited for, be it named or found in a directory.
    (d / "pipes").mkdir()
    os.mkfifo(d / "pipes/p.txt")
    os.symlink("/dev/zero", d / "zero.jsonl")
    for bad, named in [(d / "pipes/p.txt",) * 2, (d / "pipes", d / "pipes/p.txt"), (d / "zero.jsonl",) * 2]:
        says = f"cannot open {named}: not a regular file"
        run("data", "tokenize", "--tokenizer", path, "--out", d / "out/x", bad, code=3, says=says)
        run("data", "tokenizer", "--vocab-size", 300, "--out", d / "out.json", bad, code=3, says=says)
    run("data", "tokenize", "--tokenizer", d / "pipes/p.txt", "--out", d / "out/x", path, code=3,
        says="not a regular file")
    refused("a.txt", b"x", "--documents: ", "--documents", "page", code=2)
    # One place under two names is one place.
    (d / "out/sub").mkdir(parents=True, exist_ok=True)
    os.symlink(d / "out", d / "link")
    here = os.path.relpath(d / "out/x")
    for other in (d / "out/x", d / "out/./x", d / "out/sub/../x", d / "link/x", here, "./" + here):
        refused("a.txt", b"x y z", "must differ from --out", "--eval-out", other, "--eval-fraction", 0.5, code=2)


def inspect_and_locate(d):
    path, rng = tokenizer(d), random.Random(9)
    for i, name in enumerate("ab"):
        (d / f"{name}.jsonl").write_text("".join(json.dumps({"text": sentence(rng)}) + "\n" for _ in range(400)))
        run("data", "tokenize", "--tokenizer", path, "--out", d / name, "--tokens-per-file", 5000, d / f"{name}.jsonl")
    files = {str(p): documents_of(p) for p in sorted(d.glob("[ab]-*.h5"))}
    check(len(files) > 3, files.keys())
    lengths = sorted(len(doc) for docs in files.values() for doc in docs)
    output = run("data", "inspect", d / "a-*.h5", d / "b-*.h5", "--tokenizer", path, "--samples", 5,
                 says=["checksums, ids and document offsets are good", "800 documents", f"least {lengths[0]} ",
                       f"50% {lengths[399]} ", f"95% {lengths[759]} ", f"most {lengths[-1]}"])
    check(output.count("--- ") == 5, output)
    run("data", "inspect", d / "a-*.h5", "--samples", -4, code=2, says="--samples: ")

    (d / "job.yaml").write_text(f"""
run: {{ dir: {d}/run, seed: 3, threads: 1, device: cpu }}
model: {{ type: llama, vocab_size: 300, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16 }}
data: {{ train: [{{ path: '{d}/a-*.h5', weight: 3 }}, {{ path: '{d}/b-*.h5', weight: 1, epochs: 4 }}], document_mask: true }}
training: {{ steps: 6, sequence_length: 64, global_batch_size: 8, micro_batch_size: 2 }}
""")
    run("plan", d / "job.yaml", says=["% of the samples", "epochs of at most 4.000"])
    run("train", d / "job.yaml", "--ranks", 2)
    for step in (1, 6):
        output = run("data", "locate", d / "run", "--step", step)
        samples = [line for line in output.splitlines() if line.startswith("sample ")]
        check([int(s.split()[1][:-1]) for s in samples] == list(range(8 * (step - 1), 8 * step)), output)
        check(sum("a-*.h5" in s for s in samples) == 6, output)
        check([int(s.split("data rank ")[1][0]) for s in samples] == [0] * 4 + [1] * 4, output)
        for line in output.splitlines():
            if not line.startswith("  "):
                continue
            # "  FILE document N: tokens A to B of the file, C to D of its L"
            w = line.split()
            document = files[w[0]][int(w[2][:-1])]
            a, b, c, e, length = int(w[4]), int(w[6]), int(w[10]), int(w[12]), int(w[15])
            before = sum(len(x) for x in files[w[0]][:int(w[2][:-1])])
            check(length == len(document) and a - before == c and b - before == e and 0 <= c < e <= length, line)
    run("data", "locate", d / "run", "--step", 7, code=2, says="--step: 7 is not in [1, 6]")
    run("data", "locate", d / "nothing", "--step", 1, code=2, says="no run here")
    # A resume with another batch: steps keep the samples that they had, and epochs count them.
    run("train", d / "job.yaml", "--ranks", 2, "training.steps=8", "training.global_batch_size=16")
    for step, samples in ((6, "40 to 48"), (7, "48 to 64"), (8, "64 to 80")):
        run("data", "locate", d / "run", "--step", step, says=f"step {step}: samples {samples}")
    run("train", d / "job.yaml", "--ranks", 2, "training.steps=9", "data.document_mask=false", code=3,
        says="tokens, weights or document mask")
    once = [f"data.train=[{{ path: '{d}/a-*.h5', epochs: 1 }}]", f"run.dir={d}/once"]
    epoch = sum((len_of_source - 1 + 63) // 64 for len_of_source in
                [sum(len(doc) for p, docs in files.items() if "/a-" in p for doc in docs)])
    steps = epoch * 7 // 80
    run("train", d / "job.yaml", *once, f"training.steps={steps}")
    rest = (epoch - 8 * steps) // 2
    smaller = ["training.global_batch_size=2", "training.micro_batch_size=2"]
    run("train", d / "job.yaml", *once, *smaller, f"training.steps={steps + rest + 1}", code=3,
        says=["data.train[0]", f"{8 * steps} samples of {steps} steps"])
    run("train", d / "job.yaml", *once, *smaller, f"training.steps={steps + rest}")
    run("plan", d / "job.yaml", "training.steps=1000", code=3, says="and its epochs are 4.000")
    run("train", d / "job.yaml", "training.steps=1000", f"run.dir={d}/long", code=3, says="data.train[1]")


TESTS = [h5py_by_names, ranks_and_threads, kill_and_go_on, formats_of_others, hostile_formats,
         ids_of_a_tokenizer, hostile_text, inspect_and_locate]


def main():
    failures = 0
    for test in TESTS:
        if len(sys.argv) > 3 and test.__name__ not in sys.argv[3:]:
            continue
        begin = time.time()
        with tempfile.TemporaryDirectory(prefix="dstrain-data-") as directory:
            try:
                test(pathlib.Path(directory))
                print(f"ok    {test.__name__}  {time.time() - begin:.1f} s")
            except (Failed, AssertionError, subprocess.TimeoutExpired) as e:
                failures += 1
                print(f"FAIL  {test.__name__}: {e}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
