# SPDX-License-Identifier: BSD-2-Clause
"""Objects load on kernels that do not know all of BTF.

The running kernel knows it all; its ignorance is made by refusing kinds before it is asked, as
an older one would: with EINVAL. What it is then given instead is loaded for real.
"""

from __future__ import annotations

import errno

import pytest

import pybpf
from pybpf.asm import Instruction, encode
from pybpf.btf.model import Btf
from pybpf.btf.sanitize import FEATURES, needed
from pybpf.btf.write import BtfWriter
from pybpf.errors import KernelError
from pybpf.plan import ops
from pybpf.spec import FunctionSpec, ObjectSpec, ProgramSpec
from pybpf.sys import bpf

pytestmark = pytest.mark.kernel


def spec() -> ObjectSpec:
    """A socket filter in whose BTF there is something of every age."""
    w = BtfWriter()
    i32 = w.add_int("int", 4, signed=True)
    func = w.add_func("f", w.add_proto(i32), 1)
    w.add_float("float", 4)
    w.add_decl_tag("note", func)
    w.add_ptr(w.add_type_tag("user", i32))
    w.add_enum64("big", [("HUGE", 1 << 40)])
    w.add_datasec("?.data.x", 4, [(w.add_var("counter", i32, 1), 0, 4)])
    code = encode([Instruction(0, 0xB7, 0, 0, 0, 0), Instruction(1, 0x95, 0, 0, 0, 0)])
    function = FunctionSpec("f", "socket", 0, code, type_id=func)
    return ObjectSpec(
        "aged", "little", "GPL", 0, {}, (function,), {"f": ProgramSpec("f", "socket", 0, 1)},
        {}, {}, Btf.parse(w.build(), name="aged"),
    )  # fmt: skip


def forget(monkeypatch: pytest.MonkeyPatch, features: set[str]) -> list[set[str]]:
    """Let the kernel not know ``features``; gives what each BTF that was tried makes use of."""
    real = bpf.btf_load
    tried: list[set[str]] = []

    def btf_load(data: bytes, log: bytearray | None = None) -> int:
        used = set(needed(Btf.parse(bytes(data), name="tried")))
        if log is None:
            tried.append(used)
        if used & features:
            raise KernelError("refused", errno=errno.EINVAL, call="BPF_BTF_LOAD")
        return real(data) if log is None else real(data, log)

    monkeypatch.setattr(bpf, "btf_load", btf_load)
    return tried


@pytest.mark.parametrize(
    "features", [{"enum64", "qmark_datasec"}, {"type_tag", "enum64", "qmark_datasec"},
                 set(FEATURES) - {"func"}]
)  # fmt: skip
def test_what_the_kernel_lacks_is_replaced(
    monkeypatch: pytest.MonkeyPatch, features: set[str]
) -> None:
    tried = forget(monkeypatch, features)
    with pybpf.load(spec(), relocate="python") as obj:
        assert obj.programs["f"].info()["btf_id"]
    assert len(tried) == len(features) + 1
    assert not tried[-1] & features


def test_nothing_is_tried_where_the_kernel_knows_all(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = forget(monkeypatch, set())
    pybpf.load(spec(), relocate="python").close()
    assert len(tried) == 1


def test_no_btf_at_all_is_the_last_resort(monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch, set(FEATURES))
    with pybpf.load(spec(), relocate="python") as obj:
        assert not obj.programs["f"].info()["btf_id"]


def test_other_errors_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def btf_load(data: bytes, log: bytearray | None = None) -> int:
        tried.append(data)
        raise KernelError("refused", errno=errno.EPERM, call="BPF_BTF_LOAD")

    monkeypatch.setattr(bpf, "btf_load", btf_load)
    with pytest.raises(KernelError) as caught:
        pybpf.load(spec(), relocate="kernel")
    assert caught.value.errno == errno.EPERM
    assert len(set(tried)) == 1


def test_the_plan_holds_only_what_its_kernels_may_lack() -> None:
    def versions(relocate: str) -> int:
        op = pybpf.compile(spec(), relocate=relocate).ops[relocate == "python"]
        return len(op.alternatives) if isinstance(op, ops.Choose) else 1

    # A kernel that relocates itself knows type tags, floats and the like.
    assert versions("kernel") == 3
    assert versions("python") == len(FEATURES)
