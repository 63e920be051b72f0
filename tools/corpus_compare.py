# SPDX-License-Identifier: BSD-2-Clause
"""Hold pybpf against a corpus of BPF objects and what libbpf made of them.

The corpus is a folder with objects/PACKAGE/NAME.bpf.o, golden/PACKAGE/NAME.bpf.KERNEL.json.gz
and btf/KERNEL.btf.xz; its README says what the fields mean. Compared are maps, programs and
final instructions for every kernel, and on a machine with the kernel of the verdicts, as root,
what the verifier says. Every difference is told; one that is not ours carries its reason.
"""

from __future__ import annotations

import gzip
import json
import lzma
import mmap
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pybpf.btf.model import Btf
from pybpf.cli.verify import verify
from pybpf.compiler.listing import MAP_MARK, listing
from pybpf.compiler.target import Target
from pybpf.elf.jump_tables import JUMP_TABLES
from pybpf.elf.reader import read
from pybpf.errors import PybpfError
from pybpf.sys import abi

__all__ = [
    "Difference",
    "Report",
    "compare",
    "compare_live",
    "find_corpus",
    "host_matches",
    "main",
]

_STOPPED = "libbpf stopped at this object too"
_FOREIGN_STRUCT = "libbpf takes the structs of struct_ops from the kernel that it runs on"
VERDICT_KERNEL = "host-6.18"  # the only kernel with load verdicts, and the one of all kfunc ids
LDIMM64, CALL = 0x18, 0x85
PSEUDO_MAPS, PSEUDO_BTF_ID, PSEUDO_KFUNC = (1, 2), 3, 2
TREE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Difference:
    """One thing that is not as in the corpus. reason: None if it is ours to mend."""

    object: str
    kernel: str
    what: str
    detail: str
    reason: str | None = None


@dataclass
class Report:
    """What was compared, and the differences."""

    objects: int = 0
    listings: int = 0
    programs: int = 0
    verdicts: int = 0
    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ours(self) -> list[Difference]:
        """Differences without a reason."""
        return [d for d in self.differences if d.reason is None]

    def as_json(self) -> dict[str, Any]:
        """The report as JSON data."""
        return {
            "objects": self.objects,
            "listings": self.listings,
            "programs": self.programs,
            "verdicts": self.verdicts,
            "ours": len(self.ours),
            "differences": [vars(d) for d in self.differences],
            "notes": self.notes,
        }


def find_corpus(path: str | None = None) -> Path | None:
    """The corpus: the path given, $RESTRICT_CORPUS, or ../shared/corpus beside the checkout."""
    for candidate in (path, os.environ.get("RESTRICT_CORPUS"), str(TREE.parent / "shared/corpus")):
        if candidate and (Path(candidate) / "objects").is_dir():
            return Path(candidate)
    return None


def host_matches() -> str | None:
    """None if load verdicts can be compared here, else why not."""
    if not os.uname().release.startswith("6.18."):
        return f"load verdicts are of a 6.18 kernel; this is {os.uname().release}"
    if os.uname().machine != "x86_64":
        return f"load verdicts are of x86-64; this is {os.uname().machine}"
    return None if os.geteuid() == 0 else "loading needs root"


def kernel_btf(corpus: Path, kernel: str) -> Btf:
    """The vmlinux BTF of one of the corpus' kernels."""
    with lzma.open(corpus / "btf" / f"{kernel}.btf.xz") as file:
        return Btf.parse(file.read(), name=f"{kernel} vmlinux")


def _golden(corpus: Path, path: Path, kernel: str) -> dict[str, Any]:
    name = path.name.removesuffix(".o")
    with gzip.open(corpus / "golden" / path.parent.name / f"{name}.{kernel}.json.gz") as file:
        found: dict[str, Any] = json.load(file)
    return found


def compare(corpus: Path, *, kernels: list[str] | None = None, load: bool = False) -> Report:
    """Compare everything; ``load``: verdicts too."""
    report = Report()
    names = kernels or sorted(p.name.removesuffix(".btf.xz") for p in corpus.glob("btf/*.btf.xz"))
    host = kernel_btf(corpus, VERDICT_KERNEL)
    objects = sorted((corpus / "objects").glob("*/*.o"))
    report.objects = len(objects)
    for kernel in names:
        target = Target(btf=host if kernel == VERDICT_KERNEL else kernel_btf(corpus, kernel))
        for path in objects:
            label = f"{path.parent.name}/{path.name}"
            golden = _golden(corpus, path, kernel)
            report.listings += 1
            for what, detail, reason in _compare_one(path, target, golden, host, report):
                report.differences.append(Difference(label, kernel, what, detail, reason))
    if load:
        running = Target.of_running()
        for path in objects:
            label = f"{path.parent.name}/{path.name}"
            golden = _golden(corpus, path, VERDICT_KERNEL)
            for what, detail, reason in _compare_verdicts(path, running, golden, report):
                report.differences.append(Difference(label, "running", what, detail, reason))
    return report


def compare_live(
    folder: Path, libbpf: Path, *, btf: Path | None = None, load: bool = False
) -> Report:
    """Compare every object in ``folder`` with what the libbpf in ``libbpf`` makes of it here.

    btf: another kernel's than the running one's. Raises YardstickError.
    """
    from tools.corpus_yardstick import YardstickError, build, results

    program = build(libbpf)
    objects = sorted(folder.rglob("*.o"))
    if not objects:
        raise YardstickError(f"there are no objects in {folder}")
    report = Report(objects=len(objects))
    host = Btf.vmlinux()
    target = Target(btf=host if btf is None else Btf.open(str(btf)))
    kernel = "running" if btf is None else btf.name
    running = Target.of_running()
    for only_load in (False, True) if load else (False,):
        for golden in results(program, objects, btf=btf, load=only_load):
            path = Path(golden["object"])
            label = str(path.relative_to(folder))
            if "crashed" in golden:
                report.notes.append(f"{label}: libbpf ended with {golden['crashed']}")
                continue
            report.listings += not only_load
            found = (
                _compare_verdicts(path, running, golden, report)
                if only_load
                else _compare_one(path, target, golden, host, report)
            )
            for what, detail, reason in found:
                report.differences.append(Difference(label, kernel, what, detail, reason))
    return report


Found = Iterator[tuple[str, str, str | None]]


def _compare_one(
    path: Path, target: Target, golden: dict[str, Any], host: Btf, report: Report
) -> Found:
    try:
        spec = read(path)
    except PybpfError as exc:
        if not golden["open_err"]:
            yield "object", f"refused: {exc}", None
        return
    if golden["open_err"]:
        yield "object", f"read, libbpf refused it with {golden['open_err']}", None
        return
    mine = listing(spec, target).as_json(str(path))
    theirs = {m["name"]: m for m in golden["maps"]}
    ours = {m["name"]: m for m in mine["maps"]}
    yield from _names("map", set(ours), set(theirs))
    stopped = bool(golden.get("prepare_err"))
    for name in ours.keys() & theirs.keys():
        foreign = target.vmlinux is not host
        yield from _compare_map(name, ours[name], theirs[name], foreign=foreign, stopped=stopped)
    programs = {p["name"]: p for p in golden["progs"]}
    found = {p["name"]: p for p in mine["programs"]}
    yield from _names("program", set(found), set(programs))
    # Behind the object's maps ours count those of jump tables.
    ours_named = [m["name"] for m in (*mine["maps"], *mine.get("jump_tables", ()))]
    map_names = ours_named, [m["name"] for m in golden["maps"]]
    for name in found.keys() & programs.keys():
        report.programs += 1
        yield from _compare_program(
            found[name], programs[name], map_names, target, host, spec.byteorder == "big", stopped
        )


def _names(what: str, ours: set[str], theirs: set[str]) -> Found:
    for name in sorted(ours - theirs):
        yield what, f"{name}: not in the corpus", None
    for name in sorted(theirs - ours):
        yield what, f"{name}: missing here", None


_MAP_FIELDS = (
    ("type", "type"), ("key_size", "key"), ("value_size", "value"), ("max_entries", "max"),
    ("map_flags", "flags"), ("map_extra", "extra"),
)  # fmt: skip


def _compare_map(
    name: str, ours: dict[str, Any], theirs: dict[str, Any], *, foreign: bool, stopped: bool
) -> Found:
    for mine, golden in _MAP_FIELDS:
        if ours[mine] == theirs[golden]:
            continue
        reason = None
        if mine == "max_entries" and ours["type"] == abi.BPF_MAP_TYPE_PERF_EVENT_ARRAY:
            reason = "the number of CPUs, which are not the same on the machine of the corpus"
        elif mine == "max_entries" and ours[mine] == 0 and theirs[golden] in (1, mmap.PAGESIZE):
            # libbpf makes a page of it where the map is a ring buffer.
            reason = "the object leaves the size to its loader; the corpus was made with 1"
        elif mine == "value_size" and ours["type"] == abi.BPF_MAP_TYPE_STRUCT_OPS:
            reason = _FOREIGN_STRUCT if foreign else _STOPPED if stopped else None
        yield "map", f"{name}: {mine} {ours[mine]}, not {theirs[golden]}", reason


def _compare_program(
    ours: dict[str, Any],
    theirs: dict[str, Any],
    map_names: tuple[list[str], list[str]],
    target: Target,
    host: Btf,
    big: bool,
    stopped: bool,
) -> Found:
    name = ours["name"]
    foreign = target.vmlinux is not host
    for mine, golden in (
        ("section", "sec"), ("prog_type", "type"), ("expected_attach_type", "eat"),
        ("autoload", "autoload"),
    ):  # fmt: skip
        if ours[mine] != theirs[golden]:
            struct_ops = ours["prog_type"] == abi.BPF_PROG_TYPE_STRUCT_OPS
            member = struct_ops and mine == "expected_attach_type"
            reason = _FOREIGN_STRUCT if member and foreign else None
            if member and stopped:
                reason = _STOPPED
            yield "program", f"{name}: {mine} {ours[mine]}, not {theirs[golden]}", reason
    if "insns" not in theirs:
        if ours["error"] is not None:
            yield "program", f"{name}: {ours['error']}", _STOPPED
        return
    if ours["error"] is not None:
        yield "program", f"{name}: {ours['error']}", None
        return
    a = list(_instructions(bytes.fromhex(ours["insns"]), map_names[0], big))
    b = list(_instructions(bytes.fromhex(theirs["insns"]), map_names[1], big))
    if len(a) != len(b):
        yield "instructions", f"{name}: {len(a)} instructions, not {len(b)}", None
        return
    renamed = set()
    for index, (x, y) in enumerate(zip(a, b, strict=True)):
        if x == y:
            continue
        if x[1] == JUMP_TABLES:
            reason = "libbpf tells the map of a jump table by its fd"
            yield "instructions", f"{name}: instruction {index}: a jump table", reason
            continue
        same = _same_symbol(x, y, target, host)
        if same is None:
            yield "instructions", f"{name}: instruction {index}: {x}, not {y}", None
            return
        renamed.add(same)
    for symbol in sorted(renamed):
        yield (
            "instructions",
            f"{name}: another id of kernel function {symbol}",
            f"kernel functions of the corpus were looked up in {VERDICT_KERNEL}, here in the "
            "kernel that was asked for",
        )


Instruction = tuple[str, str | int, str]


def _instructions(raw: bytes, maps: list[str], big: bool) -> Iterator[Instruction]:
    """Instructions one by one; those that name a map have its name, a kfunc's its id apart."""
    at = 0
    while at < len(raw):
        opcode, regs = raw[at], raw[at + 1]
        imm = int.from_bytes(raw[at + 4 : at + 8], "big" if big else "little")
        size = 16 if opcode == LDIMM64 else 8
        head = raw[at : at + 4].hex()
        tail = raw[at + 8 : at + size].hex()
        source = regs & 15 if big else regs >> 4
        if opcode == LDIMM64 and source in PSEUDO_MAPS and imm & ~0xFFFFFF == MAP_MARK:
            yield head, maps[imm & 0xFFFFFF], tail
        elif (opcode == LDIMM64 and source == PSEUDO_BTF_ID) or (
            opcode == CALL and source == PSEUDO_KFUNC
        ):
            yield head, imm, tail
        else:
            yield raw[at : at + size].hex(), "", ""
        at += size


def _same_symbol(x: Instruction, y: Instruction, target: Target, host: Btf) -> str | None:
    """The name of the kernel symbol that both ids mean, each in its kernel; None: not the same."""
    if target.vmlinux is host or not isinstance(y[1], int):
        return None
    theirs = host.type(y[1])
    if not x[1] and not target.vmlinux.find(theirs.name, theirs.kind):
        return theirs.name  # weak, and not there
    if x[0] != y[0] or x[2] != y[2] or not isinstance(x[1], int):
        return None
    mine = target.vmlinux.type(x[1])
    return mine.name if (mine.name, mine.kind) == (theirs.name, theirs.kind) else None


def _compare_verdicts(path: Path, target: Target, golden: dict[str, Any], report: Report) -> Found:
    if golden["open_err"]:
        return
    theirs = {p["name"]: p for p in golden["load"]}
    try:
        spec = read(path)
    except PybpfError as exc:
        if not all(p["err"] for p in golden["load"]):
            yield "verdict", f"refused: {exc}", None
        return
    for program in verify(spec, target)["programs"]:
        report.verdicts += 1
        name, error = program["name"], -(program["errno"] or 0)
        if name not in theirs:
            yield "verdict", f"{name}: not in the corpus", None
            continue
        if error != theirs[name]["err"]:
            reason = None
            if error == 0 and "failed to initialize slot" in theirs[name]["log"]:
                reason = "libbpf wants the other programs of a program array loaded with it"
            said = f"{name}: {error}, not {theirs[name]['err']}: {program['error']}"
            yield "verdict", said, reason


def main(argv: list[str] | None = None) -> int:
    """The command; gives the exit status: 0 no difference of ours, 1 some, 2 no corpus."""
    import argparse

    parser = argparse.ArgumentParser(prog="tools/corpus", description=__doc__)
    parser.add_argument("corpus", nargs="?", help="the corpus' folder")
    parser.add_argument("--kernel", action="append", help="only this kernel")
    parser.add_argument("--no-load", action="store_true", help="do not load programs")
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    parser.add_argument(
        "--objects", type=Path, metavar="DIR",
        help="instead: the objects in DIR, against a libbpf that is asked now (--libbpf)",
    )  # fmt: skip
    parser.add_argument(
        "--libbpf", type=Path, metavar="PREFIX", help="where libbpf 1.6 or newer is installed"
    )
    parser.add_argument("--btf", type=Path, metavar="FILE", help="with --objects: a kernel's BTF")
    args = parser.parse_args(argv)
    if args.objects is not None:
        if args.libbpf is None:
            parser.error("--objects needs --libbpf PREFIX")
        return _live(args)
    corpus = find_corpus(args.corpus)
    if corpus is None:
        print(
            "tools/corpus: there is no corpus; give its folder, set RESTRICT_CORPUS, or put it in "
            "../shared/corpus beside the checkout.",
            file=sys.stderr,
        )
        return 2
    unable = "switched off" if args.no_load else host_matches()
    report = compare(corpus, kernels=args.kernel, load=unable is None)
    if unable is not None:
        report.notes.append(f"no load verdicts: {unable}")
    if args.json:
        print(json.dumps(report.as_json()))
    else:
        _print(report)
    return 1 if report.ours else 0


def _live(args: Any) -> int:
    from tools.corpus_yardstick import YardstickError

    able = not args.no_load and args.btf is None and os.geteuid() == 0
    try:
        report = compare_live(args.objects, args.libbpf, btf=args.btf, load=able)
    except (YardstickError, PybpfError, OSError) as error:
        print(f"tools/corpus: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(report.as_json()))
    else:
        _print(report)
    return 1 if report.ours else 0


def _print(report: Report) -> None:
    for found in report.differences:
        print(f"{found.kernel} {found.object}: {found.what} {found.detail}"
              f" [{found.reason or 'OURS'}]")  # fmt: skip
    for note in report.notes:
        print(note)
    print(
        f"{report.objects} objects, {report.listings} listings, {report.programs} programs, "
        f"{report.verdicts} verdicts: {len(report.differences)} differences, "
        f"{len(report.ours)} of them ours"
    )


if __name__ == "__main__":
    sys.exit(main())
