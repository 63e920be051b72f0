# SPDX-License-Identifier: BSD-2-Clause
"""Objects of the other byte order: the same in every way that does not depend on it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pybpf.asm import Instruction, decode
from pybpf.asm.consts import LDIMM64
from pybpf.btf.model import Btf
from pybpf.btf.write import swapped
from pybpf.cli import main
from pybpf.compiler import Target, compile
from pybpf.compiler.listing import listing
from pybpf.elf import read
from pybpf.errors import CompileError
from pybpf.spec import FunctionSpec, MapSpec, ObjectSpec

OBJECTS = Path(__file__).parent.parent / "objects"
NAMES = sorted(path.name.removesuffix("-be.bpf.o") for path in OBJECTS.glob("*-be.bpf.o"))
VMLINUX = Path("/sys/kernel/btf/vmlinux")
Pair = tuple[ObjectSpec, ObjectSpec]


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest) -> Pair:
    little = read(OBJECTS / f"{request.param}.bpf.o")
    big = read(OBJECTS / f"{request.param}-be.bpf.o", name=little.name)
    assert (little.byteorder, big.byteorder) == ("little", "big")
    return little, big


def test_there_is_one_for_each() -> None:
    assert sorted(path.name.removesuffix(".bpf.c") for path in OBJECTS.glob("*.bpf.c")) == NAMES


def _shape(found: MapSpec | None) -> tuple[object, ...] | None:
    if found is None:
        return None
    return (
        found.name, found.type, found.key_size, found.value_size, found.max_entries, found.flags,
        found.extra, found.pin, found.frozen, found.autocreate, found.members,
        [value for _, value in found.initial], _shape(found.inner),
    )  # fmt: skip


def _code(insns: bytes, byteorder: str) -> list[Instruction]:
    """Instructions without the numbers of plain 64-bit loads: two words side by side, which the
    compiler stores at once, and addresses, which only the running kernel's own BTF gives."""
    return [
        ins._replace(imm=0, high=0) if ins.opcode == LDIMM64 and not ins.src else ins
        for ins in decode(insns, byteorder)
    ]


def _function(found: FunctionSpec, byteorder: str) -> tuple[object, ...]:
    return (
        found.name, found.section, found.offset, _code(found.insns, byteorder), found.refs,
        found.global_, [(r.insn, r.access, r.kind) for r in found.core],
        [(row.insn, row.line_col) for row in found.lines],
    )  # fmt: skip


def test_reading(pair: Pair) -> None:
    little, big = pair
    assert [_shape(m) for m in big.maps.values()] == [_shape(m) for m in little.maps.values()]
    assert big.programs == little.programs
    assert list(big.externs) == list(little.externs)
    assert (big.license, big.kern_version) == (little.license, little.kern_version)
    for one, other in zip(big.functions, little.functions, strict=True):
        assert _function(one, "big") == _function(other, "little")
    assert set(big.variables) == set(little.variables)
    for name in little.variables:
        assert big.value(name) == little.value(name)


@pytest.fixture(scope="module")
def kernels() -> tuple[Target, Target]:
    """The running kernel, and the same one of the other byte order."""
    if not VMLINUX.exists():
        pytest.skip("no kernel BTF to relocate against")
    vmlinux = Btf.vmlinux()
    return Target(btf=vmlinux), Target(btf=Btf.parse(swapped(vmlinux), name="swapped"))


def test_relocating(pair: Pair, kernels: tuple[Target, Target]) -> None:
    """CO-RE, calls, maps and externs give the same instructions."""
    little, big = (
        listing(spec, kernel) for spec, kernel in zip(pair, kernels, strict=True)
    )
    for one, other in zip(big.programs, little.programs, strict=True):
        assert (one.error is None) == (other.error is None), (one.error, other.error)
        assert _code(one.insns, "big") == _code(other.insns, "little"), one.program.name


def test_loading_it_here_is_refused(pair: Pair) -> None:
    foreign = pair[1] if sys.byteorder == "little" else pair[0]
    with pytest.raises(CompileError, match="but not loaded") as caught:
        compile(foreign)
    assert "-target bpf" in str(caught.value)


@pytest.mark.parametrize("command", ["inspect", "disasm"])
def test_commands(command: str, pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--raw"] if command == "disasm" else []
    assert main([command, str(pair[1].path), *more]) == 0
    out = capsys.readouterr().out
    assert "big-endian" in out or command == "disasm"
    assert all(name in out for name in pair[1].programs)
