# SPDX-License-Identifier: BSD-2-Clause
"""The command line of tools/bench."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.benchmarks.corpus import corpus_text
from tools.benchmarks.errors import BenchError
from tools.benchmarks.objects import DEFAULT, choose, corpus_folder
from tools.benchmarks.report import guest_text, host_text
from tools.benchmarks.scale import scale_text
from tools.guest.errors import GuestError

__all__ = ["main"]

_PARTS = ("host", "corpus", "scale", "guest")
_LEAST_ROUNDS = 3


def _rounds(text: str) -> int:
    value = int(text)
    if value < _LEAST_ROUNDS:
        raise argparse.ArgumentTypeError(f"at least {_LEAST_ROUNDS}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/bench",
        description="Measure loading on this host against a C program on Debian's libbpf and "
        "against bpftool, and in a virtual machine what the policy costs. Needs root.",
        epilog="Exit status: 0 measured, 1 something failed, 2 usage. No timing decides it.",
    )
    parser.add_argument("parts", nargs="*", metavar="PART",
                        help="host, corpus, scale, guest; default: all")  # fmt: skip
    parser.add_argument(
        "--pairs", type=_rounds, default=30, metavar="N",
        help="rounds of the host part; each runs every contender once (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--objects", default=",".join(DEFAULT), metavar="NAME,…",
        help="objects of the host part: names from the corpus or from tools/benchmarks/bpf, "
        "or files that end in .o (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--corpus-rounds", type=_rounds, default=7, metavar="N",
        help="rounds of the corpus part, for each of its objects (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--corpus", metavar="DIR", help="the corpus (default: as tools/corpus finds it)"
    )
    parser.add_argument(
        "--guest-rounds", type=_rounds, default=3, metavar="N",
        help="rounds of the guest part, whose clock counts instructions (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--guest-objects", default="", metavar="NAME,…",
        help="objects to load in the guest beside fsaccess (each takes some minutes)",
    )  # fmt: skip
    parser.add_argument(
        "--lane", action="append", choices=("7.3", "6.12"), metavar="LANE",
        help="kernel of the guest part, 7.3 or 6.12, more than once for both (default 7.3)",
    )  # fmt: skip
    parser.add_argument(
        "--python", metavar="FILE",
        help="interpreter of the measured processes (default: /usr/bin/python3, else this one)",
    )  # fmt: skip
    parser.add_argument("--no-phases", action="store_true", help="host: leave the phases out")
    parser.add_argument("--json", metavar="FILE", help="write the results there, - for stdout")
    return parser


def _interpreter(given: str | None) -> Path:
    """The interpreter that is measured: outside of any virtual environment."""
    if given:
        return Path(given).absolute()
    system = Path("/usr/bin/python3")
    if system.exists():
        return system
    return Path(str(getattr(sys, "_base_executable", sys.executable)))


def _host(arguments: argparse.Namespace) -> dict[str, Any]:
    from tools.benchmarks.host import HostBench, bpf_filesystem, describe_host

    subjects, missing = choose(
        [word for word in arguments.objects.split(",") if word], corpus_folder(arguments.corpus)
    )
    python = _interpreter(arguments.python)
    with bpf_filesystem() as pins, tempfile.TemporaryDirectory(prefix="bench-") as folder:
        about = describe_host(python)
        bench = HostBench(python, arguments.pairs, Path(folder), pins)
        objects: dict[str, Any] = {}
        result = {"about": about, "start": bench.start(), "objects": objects, "missing": missing}
        for subject in subjects:
            objects[subject.name] = bench.load(subject)
            if not arguments.no_phases:
                objects[subject.name]["phases"] = bench.phases(subject)
            objects[subject.name]["calls"] = bench.calls(subject)
    return result


def _corpus(arguments: argparse.Namespace) -> dict[str, Any]:
    from tools.benchmarks.corpus import measure as measure_corpus
    from tools.benchmarks.host import HostBench, bpf_filesystem

    corpus = corpus_folder(arguments.corpus)
    if corpus is None:
        raise BenchError("there is no corpus; give its folder with --corpus")
    python = _interpreter(arguments.python)
    with bpf_filesystem() as pins, tempfile.TemporaryDirectory(prefix="bench-") as folder:
        bench = HostBench(python, arguments.pairs, Path(folder), pins)
        return measure_corpus(bench, corpus, arguments.corpus_rounds)


def _scale(arguments: argparse.Namespace) -> dict[str, Any]:
    from tools.benchmarks.host import HostBench, bpf_filesystem
    from tools.benchmarks.scale import measure as measure_scale

    python = _interpreter(arguments.python)
    with bpf_filesystem() as pins, tempfile.TemporaryDirectory(prefix="bench-") as folder:
        return measure_scale(HostBench(python, arguments.pairs, Path(folder), pins))


def _guest(arguments: argparse.Namespace) -> dict[str, Any]:
    from tools.benchmarks.acts import measure_acts
    from tools.benchmarks.boot import boot_times
    from tools.benchmarks.guest import measure

    words = [word for word in arguments.guest_objects.split(",") if word]
    subjects = choose(words, corpus_folder(arguments.corpus))[0] if words else []
    return {
        lane: {
            "boot": {keep: boot_times(lane, keep) for keep in ("exec", "auto")},
            "acts": measure_acts(lane, arguments.guest_rounds),
            **measure(lane, arguments.guest_rounds, subjects),
        }
        for lane in arguments.lane or ["7.3"]
    }


def main(words: Sequence[str] | None = None) -> int:
    """Entry point; gives the exit status."""
    parser = _parser()
    arguments = parser.parse_args(words)
    parts = arguments.parts or [
        part for part in _PARTS if part != "corpus" or corpus_folder(arguments.corpus)
    ]
    for part in parts:
        if part not in _PARTS:
            parser.error(f"there is no part {part!r}; parts: {', '.join(_PARTS)}")
    started = time.monotonic()
    quiet = arguments.json == "-"
    result: dict[str, Any] = {"format": 1, "pairs": arguments.pairs}
    parts_known = {
        "host": (_host, host_text), "corpus": (_corpus, corpus_text),
        "scale": (_scale, scale_text), "guest": (_guest, guest_text),
    }  # fmt: skip
    try:
        if os.geteuid():
            raise BenchError("root is needed: run tools/bench as root")
        for part in parts:
            run, text = parts_known[part]
            result[part] = run(arguments)
            if not quiet:
                print(text(result[part]), end="\n\n")
    except (BenchError, GuestError) as error:
        print(f"tools/bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    result["seconds"] = round(time.monotonic() - started, 1)
    if arguments.json:
        written = json.dumps(result, indent=1) + "\n"
        if quiet:
            sys.stdout.write(written)
        else:
            Path(arguments.json).write_text(written)
    print(f"tools/bench: took {result['seconds']} s", file=sys.stderr)
    return 0
