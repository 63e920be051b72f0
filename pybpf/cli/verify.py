# SPDX-License-Identifier: BSD-2-Clause
"""``pybpf verify``: load every program, attach none, and tell what the verifier said."""

from __future__ import annotations

import errno
import mmap
import os
from itertools import pairwise
from time import perf_counter_ns

from pybpf.cli.common import add_edits, edit, emit, error_text, read_object, warn
from pybpf.compiler.compile import compile
from pybpf.compiler.maps import needs_size
from pybpf.compiler.target import Target
from pybpf.errors import CompileError, KernelError, PybpfError, UsageError, VerifierError
from pybpf.plan.live import Object
from pybpf.plan.run import run as run_plan
from pybpf.record import replace
from pybpf.spec import ObjectSpec
from pybpf.sys import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from typing import Any

__all__ = ["add", "keeping", "run", "sized", "unpinned", "verify"]

# BPF_LOG_STATS. Writing every step of an accepted program down (BPF_LOG_LEVEL1) made one of the
# kernel's own tests take 20 s in place of 0.3; a refused one is loaded again with it.
LOG_LEVEL = 4
# What the last lines of a log count (kernel/bpf/verifier.c: print_verification_stats).
_STATISTICS = {
    "processed": "processed_insns",
    "max_states_per_insn": "max_states_per_insn",
    "total_states": "total_states",
    "peak_states": "peak_states",
}


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("objects", metavar="OBJ", nargs="+", help="BPF object file")
    parser.add_argument("--json", action="store_true", help="one line of JSON an object")
    parser.add_argument(
        "--program",
        metavar="NAME",
        action="append",
        default=[],
        help="only this program (also one that is not loaded by default)",
    )
    parser.add_argument(
        "--alone", action="store_true", help="give each program maps of its own, loaded afresh"
    )
    parser.add_argument(
        "--relocate",
        choices=("kernel", "python"),
        default="python",
        help="who relocates: pybpf (default; errors are told better) or the kernel (5.17)",
    )
    parser.add_argument("--log", action="store_true", help="print the whole log of a refusal")
    add_edits(parser)


def run(args: argparse.Namespace) -> int:
    """Verify every object; 1 if any program was refused."""
    target = Target.of_running()
    status = 0
    for path in args.objects:
        try:
            spec = edit(read_object(path), args)
            found = verify(
                spec, target, only=args.program, alone=args.alone, relocate=args.relocate
            )
        except UsageError:
            raise
        except PybpfError as exc:
            status = 1
            if args.json:
                emit({"object": path, "error": str(exc), "notes": [], "programs": []})
            else:
                warn("verify", str(exc))
            continue
        if not all(p["loaded"] for p in found["programs"]):
            status = 1
        if args.json:
            emit({"object": path, **found})
        else:
            _print(path, found, args.log)
    return status


def sized(spec: ObjectSpec, notes: list[str]) -> ObjectSpec:
    """Give maps whose size is left to the loader one entry, which is enough to verify with; a
    ring buffer, whose size is in bytes, one page."""
    for name, found in spec.maps.items():
        if needs_size(found) and found.autocreate:
            ring = found.type in (abi.BPF_MAP_TYPE_RINGBUF, abi.BPF_MAP_TYPE_USER_RINGBUF)
            size = mmap.PAGESIZE if ring else 1
            notes.append(f"map {name} says no max_entries: verified with {size}.")
            spec = spec.with_map(name, max_entries=size)
    return spec


def unpinned(spec: ObjectSpec) -> ObjectSpec:
    """Verifying must leave nothing behind, so nothing is pinned or taken from a pin."""
    maps = {n: replace(m, pin=0, pin_path=None) for n, m in spec.maps.items()}
    return replace(spec, maps=maps)


def keeping(spec: ObjectSpec, name: str | None) -> ObjectSpec:
    """A copy that has one program only, which is loaded (None: maps alone)."""
    programs = {} if name is None else {name: replace(spec.programs[name], autoload=True)}
    return replace(spec, programs=programs)


def verify(
    spec: ObjectSpec,
    target: Target,
    *,
    only: list[str] | None = None,
    alone: bool = False,
    relocate: str = "python",
) -> dict[str, Any]:
    """Load each program by itself and close it again.

    Gives {"error", "notes", "programs": [{"name", "section", "prog_type", "loaded", "errno",
    "error", "reason", "insns", "processed_insns", "total_states", "peak_states",
    "max_states_per_insn", "verification_time_us", "load_time_us", "log"}]}. errno is the
    kernel's, or the one that stands for a refusal before the kernel is asked: libbpf's
    (CompileError.errno), EINVAL for all else.
    """
    for name in only or ():
        spec = spec.with_program(name, autoload=True)
    notes = list(spec.notes.get("damaged", ()))
    spec = unpinned(sized(spec, notes))
    names = [p.name for p in spec.programs.values() if p.autoload and (not only or p.name in only)]
    shared: Object | None = None
    failure: PybpfError | None = None
    if not alone and names:
        try:
            shared = run_plan(compile(keeping(spec, None), target, relocate=relocate))
        except PybpfError as exc:
            failure = exc
    out = []
    try:
        for name in names:
            entry: dict[str, Any] = _blank(spec, name)
            if failure is not None:
                _refused(entry, failure)
            else:
                _verify_one(entry, spec, name, target, relocate, shared)
            out.append(entry)
    finally:
        if shared is not None:
            shared.close()
    return {"error": None, "notes": notes, "programs": out}


def _blank(spec: ObjectSpec, name: str) -> dict[str, Any]:
    program = spec.programs[name]
    return {
        "name": name,
        "section": program.section,
        "prog_type": program.type,
        "loaded": False,
        "errno": None,
        "error": None,
        "reason": None,
        "insns": None,
        **dict.fromkeys(_STATISTICS.values()),
        "verification_time_us": None,
        "load_time_us": None,
        "log": "",
    }


def _verify_one(
    entry: dict[str, Any],
    spec: ObjectSpec,
    name: str,
    target: Target,
    relocate: str,
    shared: Object | None,
) -> None:
    maps = {n: m.fileno() for n, m in shared.maps.items()} if shared is not None else None
    try:
        plan = compile(keeping(spec, name), target, relocate=relocate)
        start = perf_counter_ns()
        with run_plan(plan, log_level=LOG_LEVEL, maps=maps) as live:
            entry["load_time_us"] = (perf_counter_ns() - start) // 1000
            entry["loaded"] = True
            entry["insns"] = live.programs[name].info()["xlated_prog_len"] // 8
            entry["log"] = "\n".join(live.logs.values())
    except PybpfError as exc:
        from pybpf.compiler.refusal import explain

        _refused(entry, explain(exc, spec))
    entry.update(_statistics(entry["log"]))


def _refused(entry: dict[str, Any], error: PybpfError) -> None:
    entry["error"] = error_text(error)
    entry["reason"] = error.message
    if isinstance(error, (KernelError, CompileError)):
        entry["errno"] = error.errno
    else:
        entry["errno"] = errno.EINVAL
    if isinstance(error, VerifierError):
        entry["log"] = error.log
        entry["reason"] = error.summary or error.message


def _statistics(log: str) -> dict[str, int]:
    """The numbers of a log's last lines."""
    out: dict[str, int] = {}
    for line in log.splitlines():
        words = line.split()
        if line.startswith("processed "):
            for word, value in _pairs(words):
                if word in _STATISTICS:
                    out[_STATISTICS[word]] = value
        elif line.startswith("verification time ") and len(words) > 2 and words[2].isdigit():
            out["verification_time_us"] = int(words[2])
    return out


def _pairs(words: list[str]) -> Iterator[tuple[str, int]]:
    for word, value in pairwise(words):
        if value.isdigit():
            yield word, int(value)


def _print(path: str, found: dict[str, Any], whole_log: bool) -> None:
    print(path)
    for note in found["notes"]:
        print(f"  {note}")
    said: set[str] = set()
    for program in found["programs"]:
        head = f"  {program['name']} ({program['section']}): "
        if program["loaded"]:
            print(
                f"{head}loaded, {program['insns']} instructions, "
                f"{program['processed_insns']} processed, {program['total_states']} states, "
                f"{program['verification_time_us']} us"
            )
            continue
        name = errno.errorcode.get(program["errno"])
        print(
            f"{head}refused" + (f" with {name} ({os.strerror(program['errno'])})" if name else "")
        )
        if program["error"] not in said:  # what is wrong with the object is told once
            warn("verify", program["error"])
            said.add(program["error"])
        if whole_log and program["log"]:
            print(program["log"])
