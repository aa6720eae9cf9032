#!/usr/bin/env python3
"""Checks that a folder includes only folders above it in the layout (docs/architecture.md). Exit 1 names each slip."""
import pathlib
import re
import sys

ORDER = ["lib/core", "lib/observe", "lib/config", "lib/mesh", "kernels", "lib/comm", "lib/layers", "lib/model",
         "lib/pipeline", "lib/optim", "lib/tokenizer", "lib/data", "lib/checkpoint", "lib/train", "apps"]


def folder_of(path):
    return next((f for f in ORDER if path == f or path.startswith(f + "/")), None)


def main(root):
    slips = []
    files = [p for top in ("apps", "lib", "kernels") for p in sorted((root / top).rglob("*")) if p.suffix in
             (".h", ".cpp", ".cu", ".cuh")]
    for path in files:
        name = path.relative_to(root).as_posix()
        mine = folder_of(name)
        if mine is None:
            slips.append(f"{name}: in no folder of the layout")
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            found = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
            if not found:
                continue
            theirs = folder_of(found[1])
            if theirs is None:
                slips.append(f"{name}:{number}: '{found[1]}' is not named from the repository's root")
            elif ORDER.index(theirs) > ORDER.index(mine):
                slips.append(f"{name}:{number}: {mine} includes {theirs}, which lies below it")
    print("\n".join(slips) or f"{len(files)} files, all arrows point up")
    return 1 if slips else 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
