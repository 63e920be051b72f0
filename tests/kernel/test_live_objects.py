# SPDX-License-Identifier: BSD-2-Clause
"""Live objects on this machine: iteration, nested maps, typed runs, pins, ids, arenas, tokens."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

import pybpf
from pybpf import kernel
from pybpf.asm import Instruction, encode
from pybpf.btf.model import Btf
from pybpf.btf.write import BtfWriter
from pybpf.errors import KernelError, UsageError
from pybpf.kernel.arena import Arena
from pybpf.kernel.map import Map, create
from pybpf.kernel.program import XDP_MD, Program
from pybpf.kernel.token import Token
from pybpf.plan.live import Object
from pybpf.plan.run import run
from pybpf.spec import FunctionSpec, MapSpec, ObjectSpec, ProgramSpec
from pybpf.sys import abi, bpf, syscalls
from tests.kernel.helpers import ARRAY, HASH, plan, prog, returns
from tests.kernel.lacks import need

pytestmark = pytest.mark.kernel

FILE = Path(__file__).parent.parent / "objects" / "live.bpf.o"
U32 = ("int", 4, False)


def load(*programs: str) -> Object:
    spec = pybpf.read(FILE)
    for name in spec.programs:
        if name not in programs:
            spec = spec.with_program(name, autoload=False)
    if not {"make_list", "sum_list"} & set(programs):
        spec = spec.with_map("arena", autocreate=False)
    return pybpf.load(spec, export=("struct args",))


# --- iteration --------------------------------------------------------------------------------


def test_deleting_while_iterating(prefix: str) -> None:
    with create(HASH, 4, 4, 500, name=f"{prefix}_h", key_layout=U32, value_layout=U32) as m:
        m.update_batch((i, i) for i in range(300))
        seen = []
        for key in m:
            seen.append(key)
            del m[key]
        assert sorted(seen) == list(range(300))
        assert list(m) == []


def test_deleting_other_keys_while_iterating(prefix: str) -> None:
    """The key fetched ahead vanishes again and again: the kernel starts over each time."""
    with create(HASH, 4, 4, 100, name=f"{prefix}_h", key_layout=U32, value_layout=U32) as m:
        m.update_batch((i, i) for i in range(50))
        order = list(m)
        seen = []
        for key in m:
            seen.append(key)
            index = order.index(key)
            if index + 1 < len(order):
                m.delete(order[index + 1])  # it has been fetched already
        assert len(seen) == len(set(seen))
        assert set(m) <= set(seen)


def test_items_by_batches(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with create(HASH, 4, 4, 2000, name=f"{prefix}_h", key_layout=U32, value_layout=U32) as m:
        m.update_batch((i, 2 * i) for i in range(1500))
        commands: list[int] = []
        real = bpf.call

        def watch(cmd: int, attr: bytearray, **more: bytearray | None) -> int:
            commands.append(cmd)
            return real(cmd, attr, **more)

        monkeypatch.setattr(bpf, "call", watch)
        assert dict(m.items()) == {i: 2 * i for i in range(1500)}
        assert len(commands) < 50
        monkeypatch.undo()
        assert sorted(m.values()) == [2 * i for i in range(1500)]

        def old(cmd: int, attr: bytearray, **more: bytearray | None) -> int:
            if cmd == abi.BPF_MAP_LOOKUP_BATCH:
                raise syscalls.fail("BPF_MAP_LOOKUP_BATCH", 22)
            return real(cmd, attr, **more)

        monkeypatch.setattr(bpf, "call", old)
        assert dict(m.items()) == {i: 2 * i for i in range(1500)}


def test_values_of_every_cpu_by_name(prefix: str) -> None:
    point = ("struct", 8, (("x", 0, U32), ("y", 4, U32)))
    kind = abi.BPF_MAP_TYPE_PERCPU_HASH
    with create(kind, 4, 8, 8, name=f"{prefix}_p", key_layout=U32, value_layout=point) as m:
        m[1] = {"x": 5}
        m[2] = [{"x": i, "y": 9} for i in range(len(m[1]))]
        found = dict(m.items())
        assert found[1] == [{"x": 5, "y": 0}] * len(found[1])
        assert found[2] == [{"x": i, "y": 9} for i in range(len(found[1]))]


# --- maps of maps and programs, typed contexts ------------------------------------------------


def test_tail_calls_and_nested_maps(prefix: str) -> None:
    with load("first", "second") as obj, create(ARRAY, 4, 8, 1, name=f"{prefix}_i") as inner:
        packet = bytes(64)
        assert obj.programs["first"].test_run(packet).retval == 0
        obj.maps["jumps"][1] = obj.programs["second"]
        assert obj.programs["first"].test_run(packet).retval == 1  # no inner map yet
        inner[0] = 3
        obj.maps["outer"][7] = inner
        assert obj.programs["first"].test_run(packet).retval == 3
        with obj.maps["outer"].open(7) as again:
            assert isinstance(again, Map)
            assert again.id == inner.id
            again[0] = 4
        assert obj.programs["first"].test_run(packet).retval == 4
        with obj.maps["jumps"].open(1) as program:
            assert isinstance(program, Program)
            assert program.id == obj.programs["second"].id
        for key in (8, 9):
            with pytest.raises(KeyError):
                obj.maps["outer"].open(key)
        with pytest.raises(UsageError, match="neither maps nor programs"):
            inner.open(0)
        del obj.maps["outer"][7]


def test_runs_with_typed_contexts(prefix: str) -> None:
    with load("multiply", "first") as obj:
        layout = obj.layouts["struct args"]
        done = obj.programs["multiply"].test_run(ctx={"left": 6, "right": 7}, layout=layout)
        assert done.retval == 5
        assert done.ctx == {"left": 6, "right": 7, "result": 42}
        with pytest.raises(UsageError, match="no member"):
            obj.programs["multiply"].test_run(ctx={"middle": 6}, layout=layout)
        done = obj.programs["first"].test_run(
            bytes(64), ctx={"data_end": 64, "ingress_ifindex": 1}, layout=XDP_MD
        )
        assert obj.vars["sum"] == 1000
        assert done.ctx["ingress_ifindex"] == 1
        assert done.ctx["data_end"] - done.ctx["data"] == 64


# --- pins and ids -----------------------------------------------------------------------------


def test_pins_are_listed(prefix: str, bpffs: Path) -> None:
    (bpffs / "deep").mkdir()
    with (
        create(HASH, 4, 4, 1, name=f"{prefix}_m") as m,
        run(plan(prog(0, f"{prefix}_p", returns(0)))) as obj,
    ):
        program = obj.programs[f"{prefix}_p"]
        m.pin(str(bpffs / "deep" / "m"))
        program.pin(str(bpffs / "p"))
        (bpffs / "link").symlink_to("p")
        assert list(kernel.pins(str(bpffs))) == [
            (f"{bpffs}/deep/m", "map", m.id),
            (f"{bpffs}/p", "program", program.id),
        ]
        (bpffs / "link").unlink()
        (bpffs / "deep" / "m").unlink()
        (bpffs / "p").unlink()
        assert list(kernel.pins(str(bpffs))) == []
    with pytest.raises(KernelError, match="ENOENT"):
        list(kernel.pins("/no/such"))


def test_everything_by_id(prefix: str) -> None:
    with (
        create(HASH, 4, 4, 1, name=f"{prefix}_m") as m,
        run(plan(prog(0, f"{prefix}_p", returns(0)))) as obj,
    ):
        assert [x.id for x in kernel.maps() if x.name == f"{prefix}_m"] == [m.id]
        programs = [x.id for x in kernel.programs() if x.name == f"{prefix}_p"]
        assert programs == [obj.programs[f"{prefix}_p"].id]
        assert any(x.info()["name"] == "vmlinux" for x in kernel.btfs())
        assert all(x.id for x in kernel.links())


# --- arenas -----------------------------------------------------------------------------------


def test_an_arena(prefix: str) -> None:
    need("arenas")
    with load("make_list", "sum_list") as obj:
        address, size = obj.arenas["arena"]
        assert size == 4 * 4096
        with Arena(obj.maps["arena"], address) as arena:
            assert obj.programs["make_list"].test_run().retval == 0
            at = arena.offset(int(obj.vars["list"]))
            number, following = struct.unpack_from("=QQ", arena.view, at)
            assert number == 11
            assert following == obj.vars["list"] + 16
            second = arena.offset(following)
            assert struct.unpack_from("=QQ", arena.view, second) == (22, 0)
            # What is written here, the program sees; in a page that is touched here first too.
            struct.pack_into("=Q", arena.view, second, 1000)
            third = (at + 4096) % size
            struct.pack_into("=QQ", arena.view, third, 5, 0)
            struct.pack_into("=Q", arena.view, second + 8, address + third)
            obj.programs["sum_list"].test_run()
            assert obj.vars["sum"] == 11 + 1000 + 5
            with pytest.raises(UsageError, match="does not point"):
                arena.offset(address + size)
    with open("/proc/self/maps", encoding="ascii") as file:
        assert "bpf-map" not in file.read()


def test_an_arena_at_an_address_of_ours(prefix: str) -> None:
    where = 1 << 44
    kind, flags = abi.BPF_MAP_TYPE_ARENA, abi.BPF_F_MMAPABLE
    need("arenas")
    made = create(kind, 0, 0, 2, name=f"{prefix}_a", flags=flags, extra=where)
    with made as m, Arena(m) as arena:
        assert arena.address == where
        arena.view[4096] = 7
        assert bytes(arena.view[4095:4098]) == b"\0\7\0"
    with create(HASH, 4, 4, 1, name=f"{prefix}_h") as m, pytest.raises(UsageError):
        Arena(m)


def test_a_failed_load_unmaps_its_arena(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = bpf.call

    def refuse(cmd: int, attr: bytearray, **more: bytearray | None) -> int:
        if cmd == abi.BPF_PROG_LOAD:
            with open("/proc/self/maps", encoding="ascii") as file:
                seen.append("bpf-map" in file.read())
            raise syscalls.fail("BPF_PROG_LOAD", 12)
        return real(cmd, attr, **more)

    seen: list[bool] = []
    monkeypatch.setattr(bpf, "call", refuse)
    with pytest.raises(KernelError, match="ENOMEM"):
        load("make_list")
    assert seen[-1]  # it was mapped when the program was refused
    with open("/proc/self/maps", encoding="ascii") as file:
        assert "bpf-map" not in file.read()


# --- tokens -----------------------------------------------------------------------------------

NEWUSER, NEWNS = 0x10000000, 0x20000


def _child(pipe_in: int, pipe_out: int, name: str) -> str:
    """In a user namespace: a map by the token, and none without; what happened, in words."""
    syscalls.syscall("unshare", NEWUSER | NEWNS)
    context = syscalls.syscall("fsopen", "bpf", 0)
    os.write(pipe_out, struct.pack("=i", context))
    os.read(pipe_in, 1)  # the parent has set ids and options, and made the filesystem
    mount = syscalls.syscall("fsmount", context, 0, 0)
    try:
        create(HASH, 4, 4, 1, name=name).close()
        return "a map without a token"
    except KernelError as error:
        if error.errno != 1:
            return str(error)
    with Token.create(mount) as token:
        flags = abi.BPF_F_TOKEN_FD
        with create(HASH, 4, 4, 1, name=name, token_fd=token.fileno(), flags=flags) as m:
            m[1] = 2
            if m[1] != struct.pack("=I", 2):
                return "another value"
        try:
            create(ARRAY, 4, 4, 1, name=name, token_fd=token.fileno(), flags=flags).close()
        except KernelError as error:
            return _whole_object(token) if error.errno == 1 else str(error)
    return "a map that was not delegated"


def _whole_object(token: Token) -> str:
    """BTF, a map and a program of one object: not by our own rights, but by the token's."""
    w = BtfWriter()
    number = w.add_int("int", 4, signed=True)
    func = w.add_func("f", w.add_proto(number), 1)
    code = encode([Instruction(0, 0xB7, 0, 0, 0, 3), Instruction(1, 0x95, 0, 0, 0, 0)])
    table = MapSpec("table", HASH, 4, 4, 8, key_type_id=number, value_type_id=number)
    spec = ObjectSpec(
        "token", "little", "GPL", 0, {"table": table},
        (FunctionSpec("f", "socket", 0, code, type_id=func),),
        {"f": ProgramSpec("f", "socket", 0, abi.BPF_PROG_TYPE_SOCKET_FILTER)},
        {}, {}, Btf.parse(w.build(), name="made up"),
    )  # fmt: skip
    try:
        pybpf.load(spec).close()
        return "an object without a token"
    except KernelError as error:
        if error.errno != 1:
            return str(error)
    with pybpf.load(spec, token=token) as obj:
        obj.maps["table"][1] = 2
        there = obj.maps["table"][1] == 2 and obj.programs["f"].info()["btf_id"] != 0
    return "done" if there else "another object"


def test_a_token(prefix: str) -> None:
    """The parent delegates hash maps and socket filters to a child's user namespace, and nothing
    more."""
    with pytest.raises(KernelError) as caught:
        Token.create("/sys/fs/bpf" if os.path.ismount("/sys/fs/bpf") else "/")
    assert caught.value.errno in (22, 95)
    to_child, to_parent, result = os.pipe(), os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            told = _child(to_child[0], to_parent[1], f"{prefix}_t")
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(result[1], told.encode())
        os._exit(0)
    for fd in (to_child[0], to_parent[1], result[1]):
        os.close(fd)
    try:
        word = os.read(to_parent[0], 4)
        if word:
            pidfd = os.pidfd_open(pid)
            context = syscalls.syscall("pidfd_getfd", pidfd, struct.unpack("=i", word)[0], 0)
            for path, text in (
                ("setgroups", "deny"), ("uid_map", "0 0 1"), ("gid_map", "0 0 1"),
            ):  # fmt: skip
                Path(f"/proc/{pid}/{path}").write_text(text)
            for key, value in (
                ("delegate_cmds", hex(sum(
                    1 << n for n in (abi.BPF_MAP_CREATE, abi.BPF_BTF_LOAD, abi.BPF_PROG_LOAD)
                ))),
                ("delegate_maps", hex(1 << HASH)),
                ("delegate_progs", hex(1 << abi.BPF_PROG_TYPE_SOCKET_FILTER)),
                ("delegate_attachs", hex(1 << 0)),  # of programs without an attach type
            ):  # fmt: skip
                syscalls.syscall(
                    "fsconfig", context, 1, key.encode() + b"\0", value.encode() + b"\0", 0
                )
            syscalls.syscall("fsconfig", context, 6, None, None, 0)  # FSCONFIG_CMD_CREATE
            os.close(context)
            os.close(pidfd)
            os.write(to_child[1], b"x")
        told = os.read(result[0], 4096).decode()
    finally:
        os.waitpid(pid, 0)
        for fd in (to_child[1], to_parent[0], result[0]):
            os.close(fd)
    assert told == "done"
