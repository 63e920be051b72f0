# SPDX-License-Identifier: BSD-2-Clause
"""Find the ids of kernel types by name: in the kernel, or by reading its BTF.

``resolve`` asks the kernel: a BPF_PROG_TYPE_SYSCALL program, put together here instruction by
instruction, calls bpf_btf_find_by_name_kind (helper 167; Linux 5.14) for every name and leaves
the answers in an array map. That takes 0.02 to 2.5 ms a name on Linux 6.18, against 30 ms for
reading all of vmlinux BTF here. Where such a program is refused, ``scan`` reads the BTF.

The helper searches vmlinux first and then every module. For a type of a module it returns a new
fd of the module's BTF in the upper half of its result; the fds belong to the caller.
"""

from __future__ import annotations

import posix
import struct
import sys

from pybpf.errors import FormatError, KernelError
from pybpf.sys import abi, bpf, layouts
from pybpf.sys.syscalls import Pointer, fail

__all__ = ["KIND_NAMES", "Query", "module_btf_fd", "resolve", "scan"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Query = tuple[str, int, str | None]  # (name, BTF kind, module or None)
    Answer = tuple[int, int] | None  # (fd of the module's BTF or 0, type id)
    Buffer = bytes | bytearray | memoryview

BTF_DIR = "/sys/kernel/btf"
HELPER_BTF_FIND_BY_NAME_KIND = 167
KIND_NAMES = {
    1: "int", 4: "struct", 5: "union", 6: "enum", 7: "fwd", 8: "typedef", 12: "func", 14: "var",
    15: "datasec", 16: "float", 19: "enum64",
}  # fmt: skip
_CHUNK = 1024  # names a program: results must lie within the 32 KiB that a store's offset reaches
# Bytes behind struct btf_type by kind: (fixed, each of vlen) (Documentation/bpf/btf.rst).
_EXTRA = {
    1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0),
    15: (0, 12), 17: (4, 0), 19: (0, 12),
}  # fmt: skip
_PLAIN = frozenset((2, 7, 8, 9, 10, 11, 12, 16, 18))


def resolve(queries: Sequence[Query]) -> list[Answer]:
    """The answer to each query, None where the kernel has no such type.

    Raises KernelError (what the kernel said to the look-up program) if the kernel can neither be
    asked nor its BTF be read. Opened fds are closed again on any failure.
    """
    try:
        raw = _ask(queries)
    except KernelError as error:
        try:
            posix.stat(f"{BTF_DIR}/vmlinux")
        except OSError:
            error.hint = (
                f"{BTF_DIR}/vmlinux is not there either: the kernel has no BTF "
                "(CONFIG_DEBUG_INFO_BTF) or sysfs is not mounted."
            )
            raise error.at(step="look-up of kernel types")  # noqa: B904
        return scan(queries)
    answers: list[Answer] = [(n >> 32, n & 0xFFFFFFFF) if n > 0 else None for n in raw]
    try:
        wrong = []
        for i, (_, _, module) in enumerate(queries):
            answer = answers[i]
            if module is None or answer is None:
                continue  # None: neither vmlinux nor any module has it
            if not answer[0] or _btf_name(answer[0]) != module:
                # vmlinux or another module has a type of that name too: look in the right one.
                wrong.append(i)
        if wrong:
            for i in wrong:
                wrong_answer, answers[i] = answers[i], None
                _close([wrong_answer])
            for i, answer in zip(wrong, scan([queries[i] for i in wrong]), strict=True):
                answers[i] = answer
    except BaseException:
        _close(answers)
        raise
    return answers


def _close(answers: Sequence[Answer]) -> None:
    for answer in answers:
        if answer is not None and answer[0]:
            posix.close(answer[0])


def _ask(queries: Sequence[Query]) -> list[int]:
    """What the helper returned for each query: fd << 32 | id, or a negative errno."""
    raw: list[int] = []
    try:
        for start in range(0, len(queries), _CHUNK):
            raw += _ask_some(queries[start : start + _CHUNK])
    except BaseException:
        _close([(n >> 32, 0) for n in raw if n > 0])
        raise
    return raw


def _ask_some(queries: Sequence[Query]) -> list[int]:
    """One program for up to ``_CHUNK`` names.

    The names lie in a map's value: the helper takes no memory of the context. The results go to
    the context, which BPF_PROG_RUN copies back, so that no further call stands between the fds
    in them and us.
    """
    names = bytearray()
    program = bytearray()

    def insn(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> None:
        program.extend(struct.pack("=BBhi", code, _registers(dst, src), off, imm))

    insn(0xBF, 7, 1)  # r7 = ctx
    insn(0x18, 6, abi.BPF_PSEUDO_MAP_VALUE)  # r6 = &value; the map's fd is put in below
    insn(0)
    for i, (text, kind, _) in enumerate(queries):
        name = text.encode() + b"\0"
        insn(0xBF, 1, 6)  # r1 = r6
        insn(0x07, 1, imm=len(names))  # r1 += offset of the name
        insn(0xB7, 2, imm=len(name))  # r2 = its size with the NUL
        insn(0xB7, 3, imm=kind)  # r3 = kind
        insn(0xB7, 4)  # r4 = flags, 0
        insn(0x85, imm=HELPER_BTF_FIND_BY_NAME_KIND)
        insn(0x7B, 7, 0, off=8 * i)  # *(u64 *)(r7 + 8 i) = r0
        names += name
    insn(0xB7, 0)
    insn(0x95)
    results = bytearray(8 * len(queries))
    opened: list[int] = []
    try:
        map_fd = bpf.map_create(abi.BPF_MAP_TYPE_ARRAY, 4, len(names), 1, name="btf_names")
        opened.append(map_fd)
        bpf.map_update(map_fd, bytes(4), names)
        struct.pack_into("=i", program, 12, map_fd)
        insns, licence = Pointer(program), Pointer(b"Dual BSD/GPL\0")
        prog_fd = bpf.prog_load(
            {
                "prog_type": abi.BPF_PROG_TYPE_SYSCALL,
                "insn_cnt": len(program) // 8,
                "insns": insns.address,
                "license": licence.address,
                "prog_flags": abi.BPF_F_SLEEPABLE,
                "prog_name": b"btf_names",
            }
        )
        opened.append(prog_fd)
        bpf.prog_run(prog_fd, ctx_in=results)
    finally:
        for fd in reversed(opened):
            posix.close(fd)
    return list(struct.unpack(f"={len(queries)}q", results))


def _registers(dst: int, src: int) -> int:
    return dst | src << 4 if sys.byteorder == "little" else dst << 4 | src


def _btf_name(fd: int) -> str:
    name = bytearray(64)
    held = Pointer(name)
    info = bytearray(layouts.SIZE_INFO_BTF)
    bpf.put(info, layouts.INFO_BTF, "name", held.address)
    bpf.put(info, layouts.INFO_BTF, "name_len", len(name))
    bpf.obj_get_info(fd, info)
    return name.split(b"\0", 1)[0].decode()


def module_btf_fd(module: str) -> int | None:
    """A new fd of the BTF of kernel module ``module`` (5.11), None if it is not loaded."""
    ident: int | None = 0
    while (ident := bpf.next_id(abi.BPF_BTF_GET_NEXT_ID, ident or 0)) is not None:
        try:
            fd = bpf.fd_by_id(abi.BPF_BTF_GET_FD_BY_ID, ident)
        except KernelError as error:
            if error.errno == bpf.ENOENT:
                continue  # went away meanwhile
            raise
        try:
            found = _btf_name(fd) == module
        except BaseException:
            posix.close(fd)
            raise
        if found:
            return fd
        posix.close(fd)
    return None


# --- reading BTF ------------------------------------------------------------------------------


def _read(name: str) -> bytes | None:
    try:
        with open(f"{BTF_DIR}/{name}", "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise fail("read", error.errno or 5, path=f"{BTF_DIR}/{name}") from None


def scan(queries: Sequence[Query]) -> list[Answer]:
    """As ``resolve``, by reading /sys/kernel/btf/vmlinux and, for what is not in it, modules."""
    answers: list[Answer] = [None] * len(queries)
    vmlinux = _read("vmlinux")
    if vmlinux is None:
        raise fail("open", bpf.ENOENT, path=f"{BTF_DIR}/vmlinux")
    plain = [i for i, query in enumerate(queries) if query[2] is None]
    count, found = find_ids(vmlinux, [queries[i][:2] for i in plain])
    for i, ident in zip(plain, found, strict=True):
        answers[i] = (0, ident) if ident else None
    missing = [i for i in range(len(queries)) if answers[i] is None]
    if not missing:
        return answers
    try:
        for module in sorted(posix.listdir(BTF_DIR)):
            asked = [i for i in missing if answers[i] is None and queries[i][2] in (None, module)]
            if module == "vmlinux" or not asked:
                continue
            data = _read(module)
            if data is None:
                continue
            base = (count, _header(vmlinux)[4], _strings(vmlinux))
            _, found = find_ids(data, [queries[i][:2] for i in asked], base)
            for i, ident in zip(asked, found, strict=True):
                if ident and (fd := module_btf_fd(module)) is not None:
                    answers[i] = (fd, ident)
    except BaseException:
        _close(answers)
        raise
    return answers


def _header(data: bytes) -> tuple[int, int, int, int, int]:
    """(length of the header, type offset and length, string offset and length)."""
    if len(data) < 24:
        raise FormatError("BTF is shorter than its header")
    magic, _, _, hdr_len, toff, tlen, soff, slen = struct.unpack_from("=HBBIIIII", data)
    if magic != abi.BTF_MAGIC:
        raise FormatError(f"BTF starts with {magic:#x}, not {abi.BTF_MAGIC:#x}")
    if max(hdr_len + toff + tlen, hdr_len + soff + slen) > len(data):
        raise FormatError("BTF is cut short")
    return hdr_len, toff, tlen, soff, slen


def _strings(data: bytes) -> bytes:
    hdr_len, _, _, soff, slen = _header(data)
    return data[hdr_len + soff : hdr_len + soff + slen]


def find_ids(
    data: bytes,
    wanted: Sequence[tuple[str, int]],
    base: tuple[int, int, bytes] | None = None,
) -> tuple[int, list[int]]:
    """(number of types, first id of each (name, kind), 0 if there is none) in one walk.

    base: (number of types, bytes of strings, strings) of vmlinux, for a module's split BTF.
    """
    hdr_len, toff, tlen, _, _ = _header(data)
    base_types, base_len, base_strings = base or (0, 0, b"")
    strings = _strings(data)
    targets: dict[tuple[int, int], list[int]] = {}
    for i, (name, kind) in enumerate(wanted):
        needle = b"\0" + name.encode() + b"\0"
        for part, start in ((base_strings, 0), (strings, base_len)):
            # Split BTF's strings need not start with an empty one (libbpf: btf_new_empty).
            at = 0 if part.startswith(needle[1:]) else part.find(needle) + 1
            if not at and not part.startswith(needle[1:]):
                continue
            targets.setdefault((at + start, kind), []).append(i)
    found = [0] * len(wanted)
    pos, end = hdr_len + toff, hdr_len + toff + tlen
    ident = base_types or 0
    unpack, extra = struct.unpack_from, _EXTRA
    while pos < end:
        ident += 1
        name_off, info = unpack("=II", data, pos)
        kind = info >> 24 & 0x7F
        if (name_off, kind) in targets:
            for i in targets[name_off, kind]:
                found[i] = found[i] or ident
        pos += 12
        if kind in extra:
            fixed, each = extra[kind]
            pos += fixed + each * (info & 0xFFFFFF)
        elif kind not in _PLAIN:
            raise FormatError(f"type {ident} of the BTF has kind {kind}, which is not known here")
    return ident, found
