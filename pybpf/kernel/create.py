# SPDX-License-Identifier: BSD-2-Clause
"""Making maps, programs and BTF objects: fds, without the live objects around them.

The executor needs these and not the classes, whose modules are imported when somebody asks for
an object.
"""

from __future__ import annotations

from pybpf.errors import KernelError, UsageError, VerifierError
from pybpf.sys import abi, bpf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = ["MAPS_WITHOUT_BTF", "btf_fd", "map_fd", "program_fd"]

# Types that have no map_check_btf in the kernel, or refuse any key or value BTF: MAP_CREATE
# then fails with ENOTSUPP (524) (kernel/bpf/syscall.c: map_check_btf).
MAPS_WITHOUT_BTF = frozenset(
    (
        abi.BPF_MAP_TYPE_PERF_EVENT_ARRAY, abi.BPF_MAP_TYPE_CGROUP_ARRAY,
        abi.BPF_MAP_TYPE_STACK_TRACE, abi.BPF_MAP_TYPE_ARRAY_OF_MAPS,
        abi.BPF_MAP_TYPE_HASH_OF_MAPS, abi.BPF_MAP_TYPE_DEVMAP, abi.BPF_MAP_TYPE_DEVMAP_HASH,
        abi.BPF_MAP_TYPE_CPUMAP, abi.BPF_MAP_TYPE_XSKMAP, abi.BPF_MAP_TYPE_SOCKMAP,
        abi.BPF_MAP_TYPE_SOCKHASH, abi.BPF_MAP_TYPE_QUEUE, abi.BPF_MAP_TYPE_STACK,
        abi.BPF_MAP_TYPE_ARENA, abi.BPF_MAP_TYPE_RINGBUF, abi.BPF_MAP_TYPE_USER_RINGBUF,
        abi.BPF_MAP_TYPE_PROG_ARRAY, abi.BPF_MAP_TYPE_REUSEPORT_SOCKARRAY,
    )
)  # fmt: skip


def _text(log: bytearray) -> str:
    """The text before the first NUL of a log, undecodable bytes as surrogates."""
    return bytes(log).split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def map_fd(
    map_type: int, key_size: int, value_size: int, max_entries: int, **attributes: Any
) -> int:
    """BPF_MAP_CREATE: the new map's fd; ``attributes`` as ``pybpf.sys.bpf.map_create`` takes them.

    A refusal carries the kernel's own words where it has any (7.x). Raises KernelError.
    """
    sizes = (key_size, value_size, max_entries)
    if not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise UsageError(
            f"key_size, value_size and max_entries are numbers from 0 on, not {sizes}",
            map=attributes.get("name") or None,
        )
    try:
        return bpf.map_create(map_type, key_size, value_size, max_entries, **attributes)
    except KernelError as error:
        refused = error
    from pybpf.kernel import explain_map

    if refused.errno not in (bpf.EPERM, bpf.ENOTSUPP):
        # Once more, with room for the kernel's words.
        log = bytearray(1024)
        try:
            return bpf.map_create(
                map_type, key_size, value_size, max_entries, **attributes, log=log
            )
        except KernelError:
            said = " ".join(_text(log).split())
        if said:
            refused.message += f" The kernel says: {said}"
    refused.hint = refused.hint or explain_map.hint(
        refused.errno, map_type, key_size, value_size, max_entries, attributes
    )
    raise refused.at(map=attributes.get("name") or None)


_STATS = 4  # BPF_LOG_STATS


def program_fd(
    fields: dict[str, int | bytes],
    *,
    log_level: int = 0,
    log_size: int = bpf.LOG_START,
    log_out: list[str] | None = None,
) -> int:
    """BPF_PROG_LOAD: the program's fd; ``fields`` as in ``layouts.ATTR_PROG_LOAD``.

    log_level 0: the first attempt asks for no log; a refused program is loaded again with a log.
    1, 2 and 4 (BPF_LOG_LEVEL1, LEVEL2, STATS): the log of an accepted program is appended to
    ``log_out``. The buffer grows until the log fits, so that it is always whole. 4 alone costs no
    more than no log at all; a refused program is then loaded again with 1, which says why.

    Raises VerifierError with the whole log where the kernel wrote one, else KernelError.
    """
    if not log_level:
        try:
            return bpf.prog_load(fields)
        except KernelError as error:
            first = error
    else:
        first = None
    size = log_size
    while True:
        log = bytearray(size)
        try:
            fd = bpf.prog_load({**fields, "log_level": log_level or 1}, log)
        except KernelError as error:
            # ENOSPC: the log did not fit (up to 6.3 this hides the verdict, and from 6.4 on the
            # log rotates instead: kernel commit 1216640938035). Memory for the log itself may
            # lack too: then the first errno is the honest answer.
            if error.errno == bpf.ENOSPC and size < bpf.LOG_LIMIT:
                size = min(4 * size, bpf.LOG_LIMIT)
                continue
            if log_level == _STATS and _text(log).strip():
                first, log_level = error, _STATS | 1
                continue
            _refused(first or error, log)
        if log_out is not None:
            log_out.append(_text(log))
        return fd


def _refused(error: KernelError, log: bytearray) -> NoReturn:
    """Raise the error of a refused program; with a log it is the verifier's."""
    text = _text(log)
    if not text.strip():
        raise error
    from pybpf.kernel.verifier_log import explain
    from pybpf.sys.syscalls import errno_name

    found = explain(text)
    reason = (found.reason or "the verifier gave no reason").rstrip(".")
    message = f"the kernel refused the program with {errno_name(error.errno)}: {reason}."
    if found.detail:
        message += f" {found.detail}"
        message += "" if found.detail.endswith(".") else "."
    raise VerifierError(
        message,
        errno=error.errno,
        log=text,
        summary=found.paragraph(),
        hint=found.suggestion or error.hint,
        insn=found.insn,
        source=found.source,
    ).at(**error.where)


def btf_fd(data: bytes | bytearray | memoryview, token: int = 0) -> int:
    """BPF_BTF_LOAD (4.18): the BTF's fd. token: fd of a BPF token (6.9), 0: none.

    The KernelError of a refusal ends with the kernel's last words on it.
    """
    more: dict[str, Any] = {"token_fd": token} if token else {}
    try:
        return bpf.btf_load(data, **more)
    except KernelError as error:
        first = error
    size = bpf.LOG_START
    while True:
        log = bytearray(size)
        try:
            return bpf.btf_load(data, log, **more)
        except KernelError as error:
            if error.errno == bpf.ENOSPC and size < bpf.LOG_LIMIT:
                size = min(4 * size, bpf.LOG_LIMIT)
                continue
        lines = [line for line in _text(log).splitlines() if line.strip()]
        if lines:
            first.message += f" The kernel says: {lines[-1].strip()}"
        raise first
