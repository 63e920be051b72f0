# SPDX-License-Identifier: BSD-2-Clause
"""The command tools/fuzz: one process a target, one target at a time."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tools.fuzzing import worker

# Importing the targets here would import pybpf before atheris can instrument it.
# Of the time: most of it for objects, where most of the code is.
SHARE = {"elf": 8, "commands": 3, "plan": 3, "btf": 3, "core": 3, "log": 1, "disasm": 1}
NAMES = tuple(SHARE)


def _default_out() -> Path:
    cache = os.environ.get("RESTRICT_CACHE") or os.path.expanduser("~/.cache/pybpf-restrict")
    return Path(cache) / "fuzz"


def main() -> int:
    """Fuzz, then run what was found once more without instrumentation."""
    parser = argparse.ArgumentParser(prog="tools/fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="in all (default 30)")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers (default 1)")
    parser.add_argument("--target", action="append", choices=NAMES, help="only this (repeatable)")
    parser.add_argument(
        "--out", type=Path, default=_default_out(), help="keeps corpus and findings"
    )
    parser.add_argument("--repro", type=Path, nargs="+", help="run kept inputs; --target says how")
    parser.add_argument("--work", choices=NAMES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        worker.fuzz(args.work, seconds=args.minutes * 60, seed=args.seed, out=args.out)
        return 0
    if args.repro:
        return max(
            worker.reproduce(args.target[0] if args.target else path.parent.name, path)
            for path in args.repro
        )
    names = args.target or list(NAMES)
    whole = sum(SHARE[name] for name in names)
    status = 0
    for name in names:
        minutes = args.minutes * SHARE[name] / whole
        print(f"== {name}: {minutes:.1f} minutes, seed {args.seed}", flush=True)
        done = _child("--work", name, "--minutes", str(minutes), args=args)
        if done not in (0, 77):
            print(f"== {name}: the process ended with {done}", flush=True)
            status = 1
        found = sorted((args.out / "findings" / name).glob("*"))
        for path in found:
            if _child("--target", name, "--repro", str(path), args=args):
                status = 1
            elif path.name.startswith("TooSlow"):
                path.unlink()  # slow while its branches were counted only
    return status


def _child(*more: str, args: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "tools.fuzzing", *more]
    command += ["--seed", str(args.seed), "--out", str(args.out)]
    return subprocess.run(command).returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)  # what was found until then is kept
