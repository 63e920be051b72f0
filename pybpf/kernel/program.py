# SPDX-License-Identifier: BSD-2-Clause
"""Live programs: information, statistics, test runs; and BPF_PROG_LOAD with its log."""

from __future__ import annotations

import struct
import sys

from pybpf.errors import KernelError, UsageError
from pybpf.kernel import layout as _layout
from pybpf.kernel.create import program_fd as load_fd
from pybpf.kernel.object import KernelObject, fd_of
from pybpf.sys import abi, bpf, layouts
from pybpf.sys.syscalls import Pointer, syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pybpf.kernel.map import Map

    Buffer = bytes | bytearray | memoryview

__all__ = ["XDP_MD", "Program", "RunResult", "load_fd"]

# Layout of struct xdp_md, the context of XDP programs (include/uapi/linux/bpf.h); for a test run
# data and data_end are offsets into the packet's buffer, and data must be that of data_meta's end.
XDP_MD = (
    "struct", 24,
    tuple(
        (name, 4 * i, ("int", 4, False))
        for i, name in enumerate(
            ("data", "data_end", "data_meta", "ingress_ifindex", "rx_queue_index",
             "egress_ifindex")
        )
    ),
)  # fmt: skip

_ETHERNET = 14  # ETH_HLEN: bpf_prog_test_run_skb and _xdp take nothing shorter
_ON_PACKETS = frozenset(
    (
        abi.BPF_PROG_TYPE_SOCKET_FILTER, abi.BPF_PROG_TYPE_SCHED_CLS, abi.BPF_PROG_TYPE_SCHED_ACT,
        abi.BPF_PROG_TYPE_XDP, abi.BPF_PROG_TYPE_CGROUP_SKB, abi.BPF_PROG_TYPE_LWT_IN,
        abi.BPF_PROG_TYPE_LWT_OUT, abi.BPF_PROG_TYPE_LWT_XMIT, abi.BPF_PROG_TYPE_FLOW_DISSECTOR,
    )
)  # fmt: skip


class RunResult:
    """What BPF_PROG_RUN gave: retval (unsigned 32 bits), duration (ns a run), data, and ctx
    (bytes, or Python values if a layout was given)."""

    __slots__ = ("ctx", "data", "duration", "retval")

    def __init__(self, retval: int, duration: int, data: bytes, ctx: Any) -> None:
        self.retval = retval
        self.duration = duration
        self.data = data
        self.ctx = ctx

    def __repr__(self) -> str:
        return f"RunResult(retval={self.retval}, duration={self.duration})"


class Program(KernelObject):
    """A loaded program."""

    __slots__ = ()
    KIND = "program"
    INFO = layouts.INFO_PROG
    INFO_SIZE = layouts.SIZE_INFO_PROG
    INFO_OMITTED = frozenset(
        (
            "jited_prog_insns", "xlated_prog_insns", "map_ids", "jited_ksyms", "jited_func_lens",
            "func_info", "line_info", "jited_line_info", "prog_tags",
        )
    )  # fmt: skip
    GET_FD = abi.BPF_PROG_GET_FD_BY_ID

    @property
    def type(self) -> int:
        """BPF_PROG_TYPE_… number."""
        return bpf.get(self._raw_info(), self.INFO, "type")

    @property
    def tag(self) -> str:
        """The kernel's tag: the first 8 bytes of a hash of the instructions, in hex. It leaves
        out map fds, so the same object has the same tag wherever it is loaded."""
        start, size = self.INFO["tag"]
        return self._raw_info()[start : start + size].hex()

    def _told(self, info: bytearray) -> dict[str, Any]:
        """struct bpf_prog_info (4.13) without the pointers; ``tag`` in hex."""
        out = super()._told(info)
        start, size = self.INFO["tag"]
        out["tag"] = info[start : start + size].hex()
        # A bit-field behind ifindex (struct bpf_prog_info: __u32 gpl_compatible:1).
        out["gpl_compatible"] = bool(info[self.INFO["ifindex"][0] + 4] & 1)
        return out

    def map_ids(self) -> list[int]:
        """Ids of the maps that the program uses (4.15)."""
        count = bpf.get(self._raw_info(), self.INFO, "nr_map_ids")
        if not count:
            return []
        ids = bytearray(4 * count)
        held = Pointer(ids)
        self._raw_info({"nr_map_ids": count, "map_ids": held.address})
        return list(struct.unpack(f"={count}I", ids))

    def xlated(self) -> bytes:
        """The instructions after verification, as the kernel rewrote them (4.13; empty where
        bpf_syscall hides them: no CAP_PERFMON, or kernel.kptr_restrict)."""
        size = bpf.get(self._raw_info(), self.INFO, "xlated_prog_len")
        if not size:
            return b""
        out = bytearray(size)
        held = Pointer(out)
        info = self._raw_info({"xlated_prog_len": size, "xlated_prog_insns": held.address})
        return bytes(out[: bpf.get(info, self.INFO, "xlated_prog_len")])

    def stats(self) -> tuple[int, int, int]:
        """(runs, nanoseconds, recursion misses), counted while statistics are on (5.1; turn them
        on with ``pybpf.sys.bpf.enable_stats``)."""
        info = self._raw_info()
        runs, time, missed = (
            bpf.get(info, self.INFO, field)
            for field in ("run_cnt", "run_time_ns", "recursion_misses")
        )
        return runs, time, missed

    def test_run(
        self,
        data: Buffer | None = None,
        *,
        ctx: Any = None,
        layout: Any = None,
        data_size: int = 0,
        ctx_size: int = 0,
        repeat: int = 1,
        flags: int = 0,
        cpu: int = 0,
    ) -> RunResult:
        """BPF_PROG_RUN (4.12; types differ, KernelError ENOTSUPP where there is none).

        data_size: room for what the program may have made of ``data`` (0: len(data) + 256).
        A BPF_PROG_TYPE_SYSCALL program (5.14) takes only ``ctx``, which it may change:
        the result's ctx.

        layout: of the context, where it is natural: an exported struct of a SYSCALL program
        (``obj.layouts["struct args"]``), or XDP_MD. ctx is then Python values, and so is the
        result's.
        """
        if layout is not None:
            ctx = _layout.encode(layout, {} if ctx is None else ctx, sys.byteorder)
            # A SYSCALL program changes the context in place; the others copy it out.
            if data is not None and not ctx_size:
                ctx_size = len(ctx)
        elif not isinstance(ctx, (bytes, bytearray, memoryview, type(None))):
            raise UsageError(
                f"without a layout the context is bytes, not {type(ctx).__name__}",
                program=self._name,
            )
        out = bytearray(data_size or len(data) + 256) if data is not None else None
        room = bytearray(ctx_size) if ctx_size else None
        plain = data is None and not ctx_size
        given = bytearray(ctx) if plain and ctx is not None else ctx
        try:
            retval, duration, got, got_ctx = bpf.prog_run(
                self.fileno(), data_in=data, data_out=out, ctx_in=given, ctx_out=room,
                repeat=0 if plain and repeat == 1 else repeat, flags=flags, cpu=cpu,
            )  # fmt: skip
        except KernelError as error:
            if error.errno == bpf.ENOTSUPP:
                error.hint = "The kernel runs no programs of this type by themselves."
            elif data is not None and len(data) < _ETHERNET and self.type in _ON_PACKETS:
                error.hint = f"A packet of {_ETHERNET} bytes or more is needed."
            elif data is None and self.type in _ON_PACKETS:
                error.hint = "It runs on a packet: give data."
            raise error.at(program=self._name)  # noqa: B904
        changed = bytes(given) if plain and given is not None else bytes((room or b"")[:got_ctx])
        after = changed if layout is None else _layout.decode(layout, changed, 0, sys.byteorder)
        return RunResult(retval, duration, bytes((out or b"")[:got]), after)

    def attach_socket(self, socket: Any, *, reuseport: bool = False) -> None:
        """Filter a socket (or its fd) with a program of section "socket" (SO_ATTACH_BPF, 3.19), or
        choose among its group with one of "sk_reuseport" (SO_ATTACH_REUSEPORT_EBPF, 4.19). The
        socket holds the program until it is closed or another one takes its place."""
        # SO_ATTACH_BPF 50, SO_ATTACH_REUSEPORT_EBPF 52 of SOL_SOCKET 1 (asm-generic/socket.h)
        option = 52 if reuseport else 50
        value = bytearray(struct.pack("=i", self.fileno()))
        fd = fd_of(socket)
        try:
            syscall("setsockopt", fd, 1, option, value, 4)
        except KernelError as error:
            raise error.at(program=self._name, socket=fd)  # noqa: B904

    def bind_map(self, bound: Map | int) -> None:
        """Keep a map (or that of an fd) alive as long as the program (5.10)."""
        bpf.prog_bind_map(self.fileno(), fd_of(bound))
