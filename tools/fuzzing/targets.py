# SPDX-License-Identifier: BSD-2-Clause
"""What is fuzzed: each target takes bytes through one part of pybpf, offline.

Only pybpf's own errors may come out, and they must say something and name the object.
"""

from __future__ import annotations

import atexit
import io
import json
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from random import Random
from typing import NamedTuple

from pybpf import cli
from pybpf.asm.disasm import disasm
from pybpf.asm.insn import decode, encode
from pybpf.btf import cdecl, sanitize
from pybpf.btf.consts import ENUM_KINDS, KIND_FWD, KIND_INT
from pybpf.btf.dedup import dedup
from pybpf.btf.layout import layout
from pybpf.btf.model import SYSFS, Btf
from pybpf.cli import inspect
from pybpf.cli.common import plain
from pybpf.compiler.compile import compile
from pybpf.compiler.listing import listing
from pybpf.compiler.target import Target
from pybpf.elf.reader import read
from pybpf.errors import PybpfError
from pybpf.kernel.layout import decode as decode_value
from pybpf.kernel.layout import size_of
from pybpf.kernel.verifier_log import explain, summarize
from pybpf.plan import explain as plan_explain
from pybpf.plan.frozen import from_bytes, to_bytes
from tools.corpus_compare import TREE, find_corpus
from tools.fuzzing.binary import mutate_btf, mutate_bytes, mutate_insns, mutate_plan
from tools.fuzzing.elf import mutate_elf

__all__ = ["NAME", "TARGETS", "Finding", "FuzzTarget", "prepare"]

NAME = "fuzzed"  # what the input is called: errors must name it
# Seeds above this cost more than they find: objects and Plans; BTF, of which each type is read,
# written in C and merged with its like.
_LARGEST, _LARGEST_BTF = 64 << 10, 4 << 10


class Finding(Exception):
    """Something that is wrong although nothing was raised: an error that says too little."""


class FuzzTarget(NamedTuple):
    """run: takes an input; mutate: structured mutation; seeds: inputs to start from; largest:
    bytes that an input may have."""

    run: Callable[[bytes], None]
    mutate: Callable[[bytes, Random], bytes]
    seeds: Callable[[], Iterator[bytes]]
    largest: int


def _judge(error: PybpfError, *, named: bool = True) -> None:
    text = str(error)
    if not error.message.strip() or "\n\n" in text:
        raise Finding(f"the error is empty or more than a paragraph: {text!r}")
    if named and NAME not in text:
        raise Finding(f"the error does not name the object: {text}")


def _kernel_files() -> list[Path]:
    corpus = find_corpus()
    return sorted(corpus.glob("btf/*.btf.xz")) if corpus is not None else []


@cache
def _kernel() -> Target:
    files = _kernel_files()
    if not files:
        return Target(btf=Btf.vmlinux())
    with lzma.open(files[0]) as file:
        return Target(btf=Btf.parse(file.read(), name="kernel"), version=0x060C00)


def prepare() -> None:
    """Read what every input needs, so that no single one is charged for it."""
    _kernel()


# --- objects ----------------------------------------------------------------------------------


def _objects() -> Iterator[Path]:
    corpus = find_corpus()
    if corpus is not None:
        yield from sorted(corpus.glob("objects/*/*.o"))
    yield from sorted((TREE / "tests/objects").glob("*.o"))
    yield from sorted((TREE / "bpf/objects").glob("*.o"))


def _object_seeds() -> Iterator[bytes]:
    for path in _objects():
        if path.stat().st_size <= _LARGEST:
            yield path.read_bytes()
    from tests.unit.jump_table_object import build

    yield build()


def _small_object_seeds() -> Iterator[bytes]:
    return (data for data in _object_seeds() if len(data) <= _LARGEST // 4)


def _elf(data: bytes) -> None:
    """ELF → spec → Plans and instructions → bytes → Plan → words."""
    try:
        spec = read(data, name=NAME)
    except PybpfError as error:
        _judge(error)
        return
    try:
        json.dumps(plain(inspect._object(spec)))
    except PybpfError as error:
        _judge(error)
    for function in spec.functions:
        try:
            disasm(function.insns, spec.byteorder)
        except PybpfError as error:
            _judge(error, named=False)
    kernel = _kernel()
    for relocate in ("kernel", "python"):
        try:
            plan = compile(spec, kernel, relocate=relocate)
            frozen = to_bytes(plan)
        except PybpfError as error:
            _judge(error)
            continue
        again = from_bytes(frozen)
        if to_bytes(again) != frozen:
            raise Finding("a Plan is another one after freezing")
        plan_explain.to_text(again)
    try:
        found = listing(spec, kernel)
    except PybpfError as error:
        _judge(error)
        return
    for program in found.programs:
        if program.error is not None:
            _judge(program.error)
    json.dumps(found.as_json(NAME))


# --- frozen Plans -----------------------------------------------------------------------------


def _plan_seeds() -> Iterator[bytes]:
    for path in sorted((TREE / "bpf/objects").glob("*.plan")):
        yield path.read_bytes()
    for number, path in enumerate(_objects()):
        if path.stat().st_size > _LARGEST or number % 3:
            continue
        try:
            yield to_bytes(compile(read(path), _kernel(), relocate="kernel"))
        except PybpfError:
            pass  # of the other byte order


def _plan(data: bytes) -> None:
    try:
        plan = from_bytes(data)
    except PybpfError as error:
        _judge(error, named=False)
        return
    plan_explain.to_text(plan)
    json.dumps(plan_explain.to_json(plan))
    frozen = to_bytes(plan)
    if to_bytes(from_bytes(frozen)) != frozen:
        raise Finding("a Plan is another one after freezing")


# --- BTF --------------------------------------------------------------------------------------


def _btf_seeds() -> Iterator[bytes]:
    for path in _objects():
        try:
            spec = read(path)
        except PybpfError:
            continue
        if spec.btf is not None and len(spec.btf.data) <= _LARGEST_BTF:
            yield spec.btf.raw()


def _btf(data: bytes) -> None:
    try:
        btf = Btf.parse(data, name=NAME)
    except PybpfError as error:
        _judge(error)
        return
    for work in (_every_type, _whole, _once):
        try:
            work(btf)
        except PybpfError as error:
            _judge(error)


def _once(btf: Btf) -> None:
    """The types of two copies are those of one, but for variables."""
    data, (one, other) = dedup([btf, btf])
    found = Btf.parse(data, name=NAME)
    for old in range(1, btf.count):
        here, there = btf.type(old), found.type(one[old])
        if (here.kind, here.name) != (there.kind, there.name) and here.kind not in (
            KIND_FWD,
            *ENUM_KINDS,
        ):
            raise Finding(f"type [{old}] became another one")
        if one[old] != other[old] and here.kind == KIND_INT:
            raise Finding(f"type [{old}] is there twice")


def _every_type(btf: Btf) -> None:
    # Some of them, spread, others for inputs of another length: names are looked for in all of
    # the strings each time. One CDump for all: working the layout of nested types out anew for
    # each was half of the time.
    text = cdecl.CDump(btf)
    step = 1 + btf.count // 24
    for number in (0, *range(len(btf.data) // 4 % step, btf.count + 1, step)):
        try:
            found = btf.type(number)
            btf.candidates(btf.name(found.name_off))
            text.declare(number, "x")
            text.define(btf.type(number))
            form = layout(btf, number)
            size = size_of(form)
            if size <= 4096:
                decode_value(form, bytes(size))
        except PybpfError as error:
            _judge(error)


def _whole(btf: Btf) -> None:
    cdecl.dump(btf)
    sanitize.sanitize(btf, sanitize.needed(btf))


@cache
def _core_specs() -> tuple[object, ...]:
    wanted = ("features", "lsm", "module", "struct_ops")
    return tuple(read(TREE / "tests/objects" / f"{name}.bpf.o") for name in wanted)


def _core(data: bytes) -> None:
    """The input as the kernel's BTF: the target of CO-RE relocations."""
    try:
        kernel = Target(btf=Btf.parse(data, name=NAME))
    except PybpfError as error:
        _judge(error)
        return
    for spec in _core_specs():
        try:
            for program in listing(spec, kernel).programs:  # type: ignore[arg-type]
                if program.error is not None:
                    _judge(program.error, named=False)
        except PybpfError as error:
            _judge(error, named=False)


# --- text and instructions --------------------------------------------------------------------


def _log_seeds() -> Iterator[bytes]:
    for path in sorted((TREE / "tests/unit/verifier_logs").glob("*.json")):
        for _errno, log in json.loads(path.read_text())["logs"].values():
            yield log.encode()


def _log(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    found = summarize(text)
    if not found.strip() and text.strip():
        raise Finding("a log that says something has an empty summary")
    explain(text)


def _mutate_log(data: bytes, rng: Random) -> bytes:
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    how = rng.randrange(4)
    if how == 0:
        lines[at:at] = [rng.choice(lines)] * rng.choice((1, 1, 1000))
    elif how == 1:
        del lines[at]
    elif how == 2:
        lines[at] = mutate_bytes(lines[at], rng)
    else:
        other = rng.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    return b"\n".join(lines)


def _insn_seeds() -> Iterator[bytes]:
    for path in list(_objects())[::4]:
        try:
            spec = read(path)
        except PybpfError:
            continue
        for function in spec.functions[:3]:
            yield (b"\1" if spec.byteorder == "big" else b"\0") + function.insns


def _insns(data: bytes) -> None:
    order = "big" if data[:1] == b"\1" else "little"
    try:
        found = decode(data[1:], order)
        # The second half of a 64-bit load has unused fields, which need not survive.
        again = encode(found, order)
        if len(again) != len(data[1:]) or decode(again, order) != found:
            raise Finding("instructions are others after encoding")
        disasm(data[1:], order)
    except PybpfError as error:
        _judge(error, named=False)


def _mutate_insns(data: bytes, rng: Random) -> bytes:
    return data[:1] + mutate_insns(data[1:], rng)


# --- commands ---------------------------------------------------------------------------------


@cache
def _folder() -> Path:
    """For the input and the types of a kernel, which each command reads anew."""
    folder = Path(tempfile.mkdtemp(prefix="pybpf-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with (
        lzma.open(_kernel_files()[0]) if _kernel_files() else open(f"{SYSFS}/vmlinux", "rb") as file
    ):
        (folder / "vmlinux").write_bytes(file.read())
    objects = sorted(map(str, (TREE / "tests/objects").glob("*[!e].bpf.o")))
    status = cli.main(
        ["btf", "minimal", *objects, "-o", f"{folder}/kernel", "--btf", f"{folder}/vmlinux"]
    )
    if status:
        raise RuntimeError("the types of a kernel could not be made")
    return folder


# Behind the file's name; "FOLDER" holds the kernel's types and takes what is written.
_KERNEL = ("--btf", "FOLDER/kernel")
_LINES = (
    ("inspect",), ("inspect", "--json"), ("inspect", "--relocations", *_KERNEL),
    ("relocate", *_KERNEL), ("relocate", "--json", *_KERNEL), ("disasm", "--raw"),
    ("disasm", *_KERNEL), ("bundle", "-o", "FOLDER/plan"), ("btf dump",),
    ("btf dump", "--format", "c"), ("btf minimal", "-o", "FOLDER/minimal", *_KERNEL),
)  # fmt: skip


def _commands(data: bytes) -> None:
    """A file given to commands that read one: their exit status, and what they say.

    Three of them, others for another input: parsing the arguments alone takes milliseconds.
    """
    folder = _folder()
    (folder / NAME).write_bytes(data)
    for command, *more in _LINES[zlib.crc32(data) % 4 :: 4]:
        words = [*command.split(), f"FOLDER/{NAME}", *more]
        _command([word.replace("FOLDER", str(folder)) for word in words])


def _command(words: list[str]) -> None:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = cli.main(words)
    said = err.getvalue()
    if status not in (0, 1) or (status == 1 and not said and "--json" not in words):
        raise Finding(f"{words} ended with {status} and {said!r}")
    for line in said.splitlines():
        if not line.startswith("pybpf") or NAME not in line:
            raise Finding(f"{words}: a line that does not name command and file: {line!r}")
    if "--json" in words:
        for line in out.getvalue().splitlines():
            json.loads(line)


TARGETS = {
    "elf": FuzzTarget(_elf, mutate_elf, _object_seeds, 4 * _LARGEST),
    "commands": FuzzTarget(_commands, mutate_elf, _small_object_seeds, _LARGEST),
    "plan": FuzzTarget(_plan, mutate_plan, _plan_seeds, 4 * _LARGEST),
    "btf": FuzzTarget(_btf, mutate_btf, _btf_seeds, 4 * _LARGEST_BTF),
    "core": FuzzTarget(_core, mutate_btf, _btf_seeds, 4 * _LARGEST_BTF),
    "log": FuzzTarget(_log, _mutate_log, _log_seeds, _LARGEST),
    "disasm": FuzzTarget(_insns, _mutate_insns, _insn_seeds, _LARGEST),
}
