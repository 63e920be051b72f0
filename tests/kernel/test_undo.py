# SPDX-License-Identifier: BSD-2-Clause
"""A Plan that fails leaves nothing behind: each bpf(2) call fails in turn, then all is counted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pybpf.errors import KernelError, PybpfError, VerifierError
from pybpf.plan import ops
from pybpf.plan.run import run
from pybpf.sys import abi, bpf
from tests.kernel.helpers import (
    EXIT,
    TRACING,
    array,
    btf_count,
    fds_to_begin_with,
    ldimm64,
    live_names,
    mov_reg,
    open_fds,
    plan,
    prog,
    returns,
    settle,
    small_btf,
)

pytestmark = pytest.mark.kernel


class Injector:
    """Replaces pybpf.sys.bpf.call: call number ``at`` fails with ``error`` before it is made."""

    def __init__(self, real: Any, at: int, error: type[BaseException] | int) -> None:
        self.real, self.at, self.error = real, at, error
        self.count = 0
        self.hit: str | None = None

    def __call__(self, cmd: int, attr: bytearray, **kw: Any) -> int:
        self.count += 1
        if self.count - 1 == self.at:
            self.hit = bpf.command_name(cmd)
            if isinstance(self.error, int):
                raise KernelError("injected", errno=self.error, call=self.hit)
            raise self.error("injected")
        result: int = self.real(cmd, attr, **kw)
        return result


def everything(prefix: str, bpffs: Path) -> ops.Plan:
    """A Plan with every kind of operation, which succeeds on this machine."""
    uses_map = ldimm64(1, abi.BPF_PSEUDO_MAP_IDX, 0) + returns(0)
    bad = mov_reg(0, 5) + EXIT  # R5 !read_ok
    return plan(
        ops.BtfLoad(dst=0, data=small_btf()),
        ops.Lookup(
            names=(
                (0, "btf_trace_sched_process_exit", abi.BTF_KIND_TYPEDEF, None, False),
                (1, "no_such_function_anywhere", abi.BTF_KIND_FUNC, None, True),
            )
        ),
        array(1, f"{prefix}_a", 4, 4, btf=0, key_type_id=1, value_type_id=1),
        array(2, f"{prefix}_ro", flags=abi.BPF_F_RDONLY_PROG),
        ops.MapFill(map=2, entries=((bytes(4), b"12345678"),)),
        ops.MapFreeze(map=2),
        ops.MapCreate(
            dst=3, name=f"{prefix}_out", type=abi.BPF_MAP_TYPE_ARRAY_OF_MAPS, key_size=4,
            value_size=4, max_entries=2, inner=1,
        ),
        ops.MapFill(map=3, entries=((bytes(4), 1),)),
        array(4, f"{prefix}_pin", pin_path=str(bpffs / "kept")),
        ops.Choose(
            label="variant",
            alternatives=(
                ("refused", (array(5, f"{prefix}_x"), prog(6, f"{prefix}_v", bad))),
                ("taken", (prog(6, f"{prefix}_v", uses_map, fd_array=(1,)),)),
            ),
        ),
        prog(7, f"{prefix}_tp", returns(0), TRACING, expected_attach_type=abi.BPF_TRACE_RAW_TP,
             attach_symbol=0),
        attach=(
            ops.LinkCreate(dst=8, name=f"{prefix}_tp", prog=7, how="link",
                           attach_type=abi.BPF_TRACE_RAW_TP),
            ops.Pin(src=8, path=str(bpffs / "link")),
            ops.LinkCreate(dst=9, name="second", prog=7, how="raw_tracepoint"),
        ),
        name="everything",
    )  # fmt: skip


@pytest.fixture
def injected(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    real = bpf.call

    def start(at: int, error: type[BaseException] | int) -> Injector:
        injector = Injector(real, at, error)
        monkeypatch.setattr(bpf, "call", injector)
        return injector

    yield start
    monkeypatch.setattr(bpf, "call", real)


def _count(prefix: str, bpffs: Path) -> tuple[list[str], int, set[str], list[str]]:
    return live_names(prefix), btf_count(), fds_to_begin_with(), sorted(os.listdir(bpffs))


@pytest.mark.parametrize("kind", ["EPERM", "ENOSPC", "KeyboardInterrupt", "MemoryError"])
def test_each_call_fails_in_turn(
    kind: str, prefix: str, bpffs: Path, injected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    error: Any = {"EPERM": 1, "ENOSPC": 28}.get(kind) or {
        "KeyboardInterrupt": KeyboardInterrupt,
        "MemoryError": MemoryError,
    }[kind]  # fmt: skip
    the_plan = everything(prefix, bpffs)
    real = bpf.call
    before = _count(prefix, bpffs)
    assert before[0] == []
    hits, failed, at = [], [], 0
    while True:
        injector = injected(at, error)
        obj = None
        try:
            obj = run(the_plan).attach()
        except (PybpfError, KeyboardInterrupt, MemoryError):
            # A failed attach leaves the loaded object to its owner; nobody holds this one.
            assert injector.hit is not None
            failed.append(injector.hit)
        finally:
            monkeypatch.setattr(bpf, "call", real)
        if injector.hit is None:
            assert obj is not None
            assert obj.attached
            obj.detach()
            obj.close()
            os.unlink(bpffs / "kept")
            break
        hits.append(injector.hit)
        if obj is not None:  # there was another way: retried without BTF, or by reading BTF
            obj.detach()
            obj.close()
            os.unlink(bpffs / "kept")
        else:
            # The pin made while loading is kept if only attaching failed: remove it by hand.
            obj_loaded = "kept" in os.listdir(bpffs)
            if obj_loaded:
                os.unlink(bpffs / "kept")
        del obj
        assert settle(lambda: live_names(prefix) == []), (at, injector.hit, live_names(prefix))
        assert sorted(os.listdir(bpffs)) == before[3], (at, injector.hit)
        assert open_fds() == before[2], (at, injector.hit)
        assert settle(lambda: btf_count() <= before[1]), (at, injector.hit)
        at += 1
    # Other calls may have another way round: the look-up's by reading BTF, loading and making
    # (7.x) by asking again with a log.
    assert set(hits) >= {"BPF_PROG_TEST_RUN", "BPF_PROG_LOAD", "BPF_BTF_LOAD", "BPF_MAP_CREATE"}
    if not isinstance(error, int):
        assert failed == hits
    assert set(failed) >= {
        "BPF_MAP_UPDATE_ELEM", "BPF_MAP_FREEZE",
        "BPF_LINK_CREATE", "BPF_RAW_TRACEPOINT_OPEN", "BPF_OBJ_PIN", "BPF_OBJ_GET",
    }  # fmt: skip


def test_a_failed_load_keeps_no_pin(prefix: str, bpffs: Path) -> None:
    broken = plan(
        array(0, f"{prefix}_p", pin_path=str(bpffs / "p")),
        prog(1, f"{prefix}_bad", mov_reg(0, 5) + EXIT),
    )
    with pytest.raises(VerifierError) as caught:
        run(broken)
    assert "p" not in os.listdir(bpffs)
    assert caught.value.where["program"] == f"{prefix}_bad"


def test_a_failed_attach_undoes_the_attach_alone(prefix: str, injected: Any) -> None:
    the_plan = plan(
        ops.Lookup(names=((0, "btf_trace_sched_process_exit", 8, None, False),)),
        prog(0, f"{prefix}_tp", returns(0), TRACING, expected_attach_type=abi.BPF_TRACE_RAW_TP,
             attach_symbol=0),
        attach=(
            ops.LinkCreate(dst=1, name="a", prog=0, how="link", attach_type=abi.BPF_TRACE_RAW_TP),
            ops.LinkCreate(dst=2, name="b", prog=0, how="link", attach_type=abi.BPF_TRACE_RAW_TP),
        ),
    )  # fmt: skip
    with run(the_plan) as obj:
        injected(1, 12)
        with pytest.raises(KernelError, match="injected"):
            obj.attach()
        assert not obj.attached
        assert obj.links == {}
        injected(10**9, 1)
        assert obj.programs[f"{prefix}_tp"].info()["name"] == f"{prefix}_tp"
        obj.attach()
        assert list(obj.links) == ["a", "b"]
