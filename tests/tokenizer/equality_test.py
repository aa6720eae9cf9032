#!/usr/bin/env python3
"""Compares dstrain's ids, decoded texts and saved files with PyPI tokenizers', for every kind of tokenizer.

build/deps/venv/bin/python equality_test.py TOKENIZE_LINES [--lines N] [--long BYTES] [--kind NAME ...]

Each kind sees N lines of the corpus of corpus.py, its own N of the 100,000, as large a share of lines with every character,
and one long line. --lines 99999 is the whole.
"""
import argparse
import json
import pathlib
import struct
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import corpus
import kinds
from tokenizers import Tokenizer


def pack(texts):
    return b"".join(struct.pack("<I", len(t)) + t for t in texts)


def unpack(data, width):
    at, out = 0, []
    while at < len(data):
        n, = struct.unpack_from("<I", data, at)
        out.append(data[at + 4:at + 4 + n * width] if width == 1 else struct.unpack_from(f"<{n}i", data, at + 4))
        at += 4 + n * width
    return out


def is_utf8(line):
    try:
        line.decode()
        return True
    except UnicodeDecodeError:
        return False


def run(program, tokenizer, lines, directory, *options):
    (directory / "t.json").write_text(tokenizer.to_str())
    (directory / "lines").write_bytes(pack(lines))
    done = subprocess.run([program, directory / "t.json", directory / "lines", directory / "ids", directory / "texts", *options],
                          stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    return unpack((directory / "ids").read_bytes(), 4), unpack((directory / "texts").read_bytes(), 1), (directory / "ids.json").read_text()


def compare(name, kind, lines, program, directory, special, template):
    t = kind.tokenizer
    t.encode_special_tokens = not special
    options = ["special"] * special + ["template"] * template
    ids, texts, saved = run(program, t, lines, directory, *options)
    assert len(ids) == len(lines), (name, len(ids))
    tokens = 0
    for start in range(0, len(lines), 2000):
        part = lines[start:start + 2000]
        theirs = t.encode_batch_fast([x.decode(errors="replace") for x in part], add_special_tokens=template)
        decoded = t.decode_batch([e.ids for e in theirs], skip_special_tokens=False)
        for i, (line, e, text) in enumerate(zip(part, theirs, decoded)):
            mine, my_text = ids[start + i], texts[start + i]
            tokens += len(mine)
            if kind.byte_level and not is_utf8(line):
                if kind.exact and not template and not special:
                    assert my_text == line, f"{name}: {line!r} comes back as {my_text!r}"
                continue
            if list(mine) != e.ids:
                at = next((k for k, (a, b) in enumerate(zip(mine, e.ids)) if a != b), min(len(mine), len(e.ids)))
                show = lambda x: [t.id_to_token(k) for k in x[max(0, at - 3):at + 5]]
                raise AssertionError(f"{name} {options}: ids differ at {at} for {line[:300]!r}: {show(mine)} ours, {show(e.ids)} theirs")
            assert my_text.decode(errors="replace") == text, f"{name} {options}: decoded texts differ for {line[:300]!r}: {my_text[:300]!r} ours, {text[:300]!r} theirs"
            if kind.exact and not template and not special:
                assert my_text == line, f"{name}: {line!r} comes back as {my_text!r}"
    again = Tokenizer.from_str(saved)
    assert json.loads(again.to_str()) == json.loads(t.to_str()), f"{name}: the saved tokenizer differs"
    return tokens


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--lines", type=int, default=2500)
    parser.add_argument("--long", type=int, default=100_000)
    parser.add_argument("--kind", nargs="*")
    parser.add_argument("--keep-going", action="store_true")
    args = parser.parse_args()
    whole, characters = corpus.lines(100_000, 10_000_000), corpus.characters()
    at = max(range(len(whole)), key=lambda i: len(whole[i]))
    long_line = whole.pop(at)
    learn = [x.decode() for x in whole[::9] if is_utf8(x)]
    failed = 0
    with tempfile.TemporaryDirectory() as d:
        directory = pathlib.Path(d)
        for n, (name, kind) in enumerate(kinds.make(learn).items()):
            if args.kind and name not in args.kind:
                continue
            begin = time.time()
            step = max(1, len(whole) // args.lines)
            lines = whole[n % step::step][:args.lines] + [long_line[:args.long].decode(errors="ignore").encode()]
            lines += characters[n % step::step if step == 1 else 4 * step]
            try:
                tokens = compare(name, kind, lines, args.program, directory, False, False)
                few = lines[::7] + [b"", b"<|endoftext|>", b" </s> "]
                tokens += compare(name, kind, few, args.program, directory, True, True)
            except AssertionError as e:
                print(e)
                failed += 1
                if not args.keep_going:
                    return 1
                continue
            print(f"{name}: {len(lines)} lines, {tokens} tokens equal, {time.time() - begin:.1f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
