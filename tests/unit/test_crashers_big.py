# SPDX-License-Identifier: BSD-2-Clause
"""Large objects in bounded time and memory, and small ones that claim to be large.

Limits are those of the fuzzer, 2 s of processor time and 256 MB, in a process of its own.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest

from pybpf.btf.write import BtfWriter
from pybpf.cli import inspect
from pybpf.compiler.compile import compile
from pybpf.compiler.listing import listing
from pybpf.compiler.target import Target
from pybpf.elf.reader import read
from pybpf.errors import FormatError, RelocationError
from pybpf.plan import ops
from pybpf.plan.frozen import from_bytes, to_bytes
from tests.unit.elfwriter import EXIT, NOBITS, REL, RETURN_0, ElfWriter, call, insn, load

# SECONDS only tells a hang from work: how long an input takes is judged by tools/fuzz.
SECONDS, MEMORY = 60.0, 256 << 20


def programs() -> bytes:
    """5,000 programs in one section, which call 200 subprograms."""
    elf = ElfWriter()
    text = elf.code(".text", RETURN_0 * 200)
    for i in range(200):
        elf.function(f"sub{i}", text, 16 * i, 16)
    section = elf.code("xdp", (call() + RETURN_0) * 5000)
    for i in range(5000):
        elf.function(f"p{i}", section, 24 * i, 24)
        elf.relocate(section, 24 * i, 1 + i % 200)
    return elf.build()


def calls() -> bytes:
    """500 programs, each of which calls all of 1,000 subprograms: 12 MB, 500,000 relocations."""
    elf = ElfWriter()
    text = elf.code(".text", RETURN_0 * 1000)
    for i in range(1000):
        elf.function(f"sub{i}", text, 16 * i, 16)
    section = elf.code("xdp", (call() * 1000 + RETURN_0) * 500)
    for i in range(500):
        elf.function(f"p{i}", section, 8016 * i, 8016)
        for k in range(1000):
            elf.relocate(section, 8016 * i + 8 * k, 1 + k)
    return elf.build()


def sections() -> bytes:
    """5,000 programs, a section each."""
    elf = ElfWriter()
    for i in range(5000):
        elf.function(f"p{i}", elf.code(f"kprobe/f{i}", RETURN_0), 0, 16)
    return elf.build()


def one_program() -> bytes:
    """1 MB of instructions with 65,000 references to data."""
    elf = ElfWriter()
    variable = elf.symbol("v", elf.section(".data", bytes(64), flags=3), 0, 8)
    section = elf.code("xdp", load() * 65_000 + RETURN_0)
    elf.function("f", section, 0, 16 * 65_000 + 16)
    for i in range(65_000):
        elf.relocate(section, 16 * i, variable)
    return elf.build()


def types() -> bytes:
    """40,000 types and a .bss of 10,000 variables."""
    writer = BtfWriter("little")
    integer = writer.add_int("int", 4)
    variables = []
    for i in range(10_000):
        struct_id = writer.add_struct(f"s{i}", 8, [("a", integer, 0), ("b", integer, 32)])
        writer.add_typedef(f"t{i}", writer.add_ptr(struct_id))
        variables.append((writer.add_var(f"v{i}", integer), 4 * i, 4))
    writer.add_datasec(".bss", 4 * len(variables), variables)
    elf = ElfWriter()
    bss = elf.section(".bss", type=NOBITS, flags=3, size=40_000)
    for i in range(10_000):
        elf.symbol(f"v{i}", bss, 4 * i, 4)
    elf.function("f", elf.code("xdp", RETURN_0), 0, 16)
    elf.section(".BTF", writer.build(), flags=0)
    return elf.build()


def names() -> bytes:
    """10,000 weak kernel symbols and one program that loads them all."""
    writer = BtfWriter("little")
    integer = writer.add_int("int", 4)
    elf = ElfWriter()
    section = elf.code("xdp", load() * 10_000 + RETURN_0)
    elf.function("f", section, 0, 160_016)
    variables = []
    for i in range(10_000):
        variables.append((writer.add_var(f"e{i}", integer, 2), 0, 4))
        elf.relocate(section, 16 * i, elf.extern(f"e{i}", 2))
    writer.add_datasec(".ksyms", 0, variables)
    elf.section(".BTF", writer.build(), flags=0)
    return elf.build()


def ring(count: int, size: int) -> bytes:
    """Subprograms of ``size`` instructions that call each the next; a program for each."""
    body = call() + insn(0xB7) * (size - 2) + EXIT
    elf = ElfWriter()
    text = elf.code(".text", body * count)
    section = elf.code("xdp", (call() + RETURN_0) * count)
    for i in range(count):
        elf.relocate(text, 8 * size * i, elf.function(f"s{i}", text, 8 * size * i, 8 * size))
    rows = elf.parts[text - 1].relocations
    rows[:] = [(at, 1 + (symbol % count)) for at, symbol in rows]
    for i in range(count):
        elf.function(f"p{i}", section, 24 * i, 24)
        elf.relocate(section, 24 * i, 1 + i)
    return elf.build()


def rings() -> bytes:
    """400 programs that reach all of 400 subprograms, each in an order of its own."""
    return ring(400, 3)


def callbacks() -> bytes:
    """1,500 programs with exception callbacks."""
    writer = BtfWriter("little")
    proto = writer.add_proto(writer.add_int("int", 4))
    elf = ElfWriter()
    text, section = elf.code(".text", RETURN_0 * 1500), elf.code("xdp", RETURN_0 * 1500)
    for i in range(1500):
        elf.function(f"cb{i}", text, 16 * i, 16)
        elf.function(f"p{i}", section, 16 * i, 16)
        writer.add_decl_tag(f"exception_callback:cb{i}", writer.add_func(f"p{i}", proto))
    elf.section(".BTF", writer.build(), flags=0)
    return elf.build()


def zeroes() -> bytes:
    """A variable of 4 GB less a page in .bss, in a file of 900 bytes."""
    size = (1 << 32) - 4096
    writer = BtfWriter("little")
    char = writer.add_int("char", 1, char=True)
    variable = writer.add_var("v", writer.add_array(char, char, size))
    writer.add_datasec(".bss", size, [(variable, 0, size)])
    elf = ElfWriter()
    bss = elf.section(".bss", type=NOBITS, flags=3, size=size)
    elf.section(".BTF", writer.build(), flags=0)
    section = elf.code("xdp", load() + RETURN_0)
    elf.function("f", section, 0, 32)
    elf.relocate(section, 0, elf.symbol("v", bss, 0, 8))
    return elf.build()


def aliases() -> bytes:
    """5,000 names for the same 2,000 instructions: 80 MB if each had its copy."""
    elf = ElfWriter()
    text = elf.code(".text", insn(0xB7) * 2000 + RETURN_0)
    for i in range(5000):
        elf.function(f"f{i}", text, 8 * (i % 1000), 8 * (2002 - i % 1000))
    elf.function("main", elf.code("xdp", RETURN_0), 0, 16)
    return elf.build()


def overlapping() -> bytes:
    """2,000 section headers for the same 2,000 relocations."""
    elf = ElfWriter()
    variable = elf.symbol("v", elf.section(".data", bytes(64), flags=3), 0, 8)
    section = elf.code("xdp", load() * 2000 + RETURN_0)
    elf.function("f", section, 0, 16 * 2001)
    for i in range(2000):
        elf.relocate(section, 16 * i, variable)
    data = bytearray(elf.build())
    (start,), (count,) = struct.unpack_from("<Q", data, 40), struct.unpack_from("<H", data, 60)
    heads = [start + 64 * i for i in range(count)]
    (found,) = [at for at in heads if struct.unpack_from("<I", data, at + 4)[0] == REL]
    data += data[found : found + 64] * 2000
    struct.pack_into("<H", data, 60, count + 2000)
    return bytes(data)


def _status(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(field))


def _measured(data: bytes, answers: Any) -> None:
    kernel = BtfWriter("little")
    kernel.add_int("int", 4)
    target = Target(btf=kernel.btf(name="kernel"), version=0x060C00)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize:") + MEMORY,) * 2)
    started = time.process_time()
    try:
        spec = read(data, name="big")
        json.dumps(inspect._object(spec))
        for how in ("kernel", "python"):
            from_bytes(to_bytes(compile(spec, target, relocate=how)))
        loaded = len([p for p in listing(spec, target).programs if p.error is None])
        answers.send((time.process_time() - started, loaded, None))
    except FormatError as error:
        answers.send((time.process_time() - started, 0, str(error)))


def measured(make: Callable[[], bytes]) -> tuple[float, int, str | None]:
    """(seconds, programs relocated, error) of reading and compiling in a bounded process."""
    context = multiprocessing.get_context("fork")
    answers, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_measured, args=(make(), theirs))
    child.start()
    theirs.close()
    try:
        found: tuple[float, int, str | None] = answers.recv()
    finally:
        child.join()
    return found


@pytest.mark.parametrize(
    ("make", "number"),
    [(programs, 5000), (calls, 500), (sections, 5000), (one_program, 1), (types, 1),
     (callbacks, 1500), (zeroes, 1), (names, 1), (rings, 400)],
)  # fmt: skip
def test_large_objects(make: Callable[[], bytes], number: int) -> None:
    seconds, loaded, error = measured(make)
    assert error is None
    assert loaded == number
    assert seconds < SECONDS


@pytest.mark.parametrize(
    ("make", "said"), [(aliases, "functions overlap"), (overlapping, "sections overlap")]
)
def test_objects_that_claim_more_than_they_hold(make: Callable[[], bytes], said: str) -> None:
    seconds, _, error = measured(make)
    assert error is not None
    assert said in error
    assert "object big" in error
    assert seconds < SECONDS


def test_programs_that_are_too_many_instructions_together() -> None:
    # 600 times 120,000 instructions, 580 MB, from an object of 1 MB.
    spec = read(ring(600, 200), name="x")
    found = listing(spec, Target(btf=BtfWriter("little").btf(name="kernel"))).programs
    assert sum(len(p.insns) for p in found) < 64 << 20
    assert found[0].error is None
    assert "have more than 4000000 instructions" in str(found[-1].error)
    assert "program p599" in str(found[-1].error)
    with pytest.raises(RelocationError, match="have more than"):
        compile(spec, Target())


def test_a_variable_of_a_bss_that_is_not_written_out() -> None:
    writer = BtfWriter("little")
    integer = writer.add_int("int", 4)
    variables = [(writer.add_var(f"v{i}", integer), 4 * i, 4) for i in range(3)]
    writer.add_datasec(".bss", 12, variables)
    elf = ElfWriter()
    bss = elf.section(".bss", type=NOBITS, flags=3, size=12)
    for i in range(3):
        elf.symbol(f"v{i}", bss, 4 * i, 4)
    elf.section(".BTF", writer.build(), flags=0)
    spec = read(elf.build(), name="x")
    assert spec.value("v1") == 0
    changed = spec.with_variables({"v1": 7})
    assert [changed.value(f"v{i}") for i in range(3)] == [0, 7, 0]
    (fill,) = [op for op in compile(changed, Target()).ops if isinstance(op, ops.MapFill)]
    assert fill.entries == ((bytes(4), struct.pack("<3I", 0, 7, 0)),)
