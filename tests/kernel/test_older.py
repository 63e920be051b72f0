# SPDX-License-Identifier: BSD-2-Clause
"""What is left out for kernels that lack it, and only there.

The running kernel lacks nothing of it: each call is refused in its place as an older kernel
would, and what is then asked for instead goes to the real one.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Iterator
from typing import Any

import pytest

import pybpf
from pybpf.asm import Instruction, encode
from pybpf.elf.sections import SECTIONS
from pybpf.errors import KernelError, VerifierError
from pybpf.kernel import features
from pybpf.plan import older
from pybpf.spec import FunctionSpec, MapSpec, ObjectSpec, ProgramSpec, Ref
from pybpf.sys import abi, bpf, diagnose
from tests.kernel.helpers import fds_to_begin_with, open_fds

pytestmark = pytest.mark.kernel

PROBE_READ_KERNEL = 113


class Older:
    """A kernel without ``lacking``; calls: what it was asked, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lacking: set[str]) -> None:
        self.lacking = lacking
        self.calls: list[tuple[str, str]] = []
        self._map_create, self._prog_load = bpf.map_create, bpf.prog_load
        monkeypatch.setattr(bpf, "map_create", self.map_create)
        monkeypatch.setattr(bpf, "prog_load", self.prog_load)
        monkeypatch.setattr(features, "_memory", {})

    def map_create(self, *shape: int, **more: Any) -> int:
        used = {
            "name": bool(more.get("name")),
            "mmapable": bool(more.get("flags", 0) & abi.BPF_F_MMAPABLE),
            "log": more.get("log") is not None,
        }
        code = errno.E2BIG if used["name"] and "name" in self.lacking else errno.EINVAL
        self._judge("map", used, code)
        return self._map_create(*shape, **more)

    def prog_load(self, fields: dict[str, int | bytes], log: bytearray | None = None) -> int:
        number = int(fields["insn_cnt"])
        code = ctypes.string_at(int(fields["insns"]), 8 * number)
        helpers = [
            struct.unpack_from("=i", code, at + 4)[0]
            for at in range(0, len(code), 8) if code[at] == 0x85
        ]  # fmt: skip
        used = {
            "name": bool(fields.get("prog_name")),
            "attach_type": bool(fields.get("expected_attach_type")),
            "probe_read": bool(set(helpers) & {112, 113, 114, 115}),
        }
        if used["probe_read"] and "probe_read" in self.lacking:
            if log is not None:
                words = b"0: (85) call unknown#113\ninvalid func unknown#113\n"
                log[: len(words)] = words
            code_of_it = errno.EINVAL
        else:
            code_of_it = errno.E2BIG
        self._judge("program", used, code_of_it)
        return self._prog_load(fields, log)

    def _judge(self, what: str, used: dict[str, bool], code: int) -> None:
        names = {name for name, there in used.items() if there}
        self.calls.append((what, ",".join(sorted(names))))
        if names & self.lacking:
            raise KernelError("refused", errno=code, call="in place of the kernel")


def make(section: str = "socket", *, flags: int = abi.BPF_F_MMAPABLE, map_name: str = ".data",
         code: bytes | None = None) -> ObjectSpec:  # fmt: skip
    """A program that returns the first word of a data map, and 1 if that is 0."""
    found = pybpf.elf.sections.find(section)
    assert found is not None
    definition = found[0]
    body = code or encode(
        [Instruction(0, 0x18, 1, 2, 0, 0, 0), Instruction(2, 0x61, 0, 1, 0, 0),
         Instruction(3, 0x95, 0, 0, 0, 0)]
    )  # fmt: skip
    refs = () if code else (Ref(0, "data", map_name),)
    data = MapSpec(map_name, abi.BPF_MAP_TYPE_ARRAY, 4, 8, 1, flags, data=struct.pack("=Q", 1),
                   kernel_name="older.data" if "." in map_name else None)  # fmt: skip
    return ObjectSpec(
        "older", "little", "GPL", 0, {map_name: data},
        (FunctionSpec("f", section, 0, body, refs),),
        {"f": ProgramSpec("f", section, 0, definition.type, definition.attach_type)}, {}, {},
    )  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = fds_to_begin_with()
    yield
    assert open_fds() == before


def test_a_new_kernel_is_asked_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Older(monkeypatch, set())
    with pybpf.load(make(), relocate="python") as obj:
        assert obj.notes == []
    assert kernel.calls == [("map", "mmapable,name"), ("program", "name")]


def test_data_that_cannot_be_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Older(monkeypatch, {"mmapable"})
    with pybpf.load(make(), relocate="python") as obj:
        (note,) = obj.notes
        assert "without BPF_F_MMAPABLE" in note
        assert "requires >= v5.5" in note
        assert not obj.maps[".data"].flags & abi.BPF_F_MMAPABLE
        assert obj.programs["f"].test_run(data=bytes(64)).retval == 1
    # The refusal, the same with a log, what explains errors, the probe, and then without.
    assert kernel.calls[0] == ("map", "mmapable,name")
    assert kernel.calls.count(("map", "mmapable")) == 1
    assert kernel.calls[-2:] == [("map", "name"), ("program", "name")]


def test_a_flag_of_the_objects_own_map_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    Older(monkeypatch, {"mmapable"})
    with pytest.raises(KernelError) as caught:
        pybpf.load(make(map_name="shared"), relocate="python")
    assert caught.value.errno == errno.EINVAL


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    Older(monkeypatch, {"name"})
    with pybpf.load(make(), relocate="python") as obj:
        assert obj.maps[".data"].info()["name"] == obj.programs["f"].info()["name"] == ""
        assert sum("object_names" in note for note in obj.notes) == 2


def test_attach_types(monkeypatch: pytest.MonkeyPatch) -> None:
    Older(monkeypatch, {"attach_type", "name"})
    with pybpf.load(make("xdp"), relocate="python") as obj:
        assert obj.programs["f"].type == abi.BPF_PROG_TYPE_XDP
        assert any("expected_attach_type (requires >= v4.17)" in note for note in obj.notes)
    # One that has to be told is not left out.
    with pytest.raises(KernelError) as caught:
        pybpf.load(make("cgroup/post_bind4"), relocate="python")
    assert caught.value.errno == errno.E2BIG


def test_optional_attach_types_are_the_sections_that_say_so() -> None:
    said = {(d.type, d.attach_type) for d in SECTIONS if d.optional_attach_type}
    assert said == older.OPTIONAL_ATTACH_TYPES


def test_probe_read_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    Older(monkeypatch, {"probe_read"})
    code = encode(
        [Instruction(0, 0xBF, 1, 10, 0, 0), Instruction(1, 0x07, 1, 0, 0, -8),
         Instruction(2, 0xB7, 2, 0, 0, 8), Instruction(3, 0xB7, 3, 0, 0, 0),
         Instruction(4, 0x85, 0, 0, 0, PROBE_READ_KERNEL), Instruction(5, 0xB7, 0, 0, 0, 0),
         Instruction(6, 0x95, 0, 0, 0, 0)]
    )  # fmt: skip
    with pybpf.load(make("tracepoint", code=code), relocate="python") as obj:
        assert any("probe_read_kernel (requires >= v5.5)" in note for note in obj.notes)


def test_a_refusal_for_another_reason_stays_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verifier's verdict leads to no probe and no second try."""
    kernel = Older(monkeypatch, set())
    code = encode([Instruction(0, 0xBF, 0, 5, 0, 0), Instruction(1, 0x95, 0, 0, 0, 0)])
    with pytest.raises(VerifierError, match="R5 !read_ok"):
        pybpf.load(make(code=code), relocate="python")
    assert [c for c in kernel.calls if c[0] == "program"] == 2 * [("program", "name")]


def test_memory_that_is_charged_to_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """EPERM with a finite RLIMIT_MEMLOCK on a kernel before 5.11."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 16, before[1]))
    try:
        real = bpf.map_create

        def charged(*shape: int, **more: Any) -> int:
            if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == 1 << 16:
                raise KernelError("refused", errno=errno.EPERM, call="BPF_MAP_CREATE")
            return real(*shape, **more)

        monkeypatch.setattr(bpf, "map_create", charged)
        with pytest.raises(KernelError, match="refused"):  # this kernel charges cgroups
            pybpf.load(make(), relocate="python")
        monkeypatch.setattr(diagnose, "memcg_accounting", lambda: False)
        with pybpf.load(make(), relocate="python") as obj:
            assert any("RLIMIT_MEMLOCK was raised" in note for note in obj.notes)
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)
