# SPDX-License-Identifier: BSD-2-Clause
"""A filesystem in user space with one file: content that is not what the device holds.

``fuseblk`` takes a block device as its source, so a mount of it has that device's number,
while every byte comes from the process here (include/uapi/linux/fuse.h, version 7.31).
"""

from __future__ import annotations

import errno
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["serve"]

_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_LOOKUP, _FORGET, _GETATTR, _STATFS, _OPEN, _READ, _RELEASE = 1, 2, 3, 17, 14, 15, 18
_FLUSH, _INIT, _OPENDIR, _READDIR, _RELEASEDIR, _BATCH_FORGET = 25, 26, 27, 28, 29, 42


def _attributes(node: int, size: int) -> bytes:
    mode = 0o100755 if node == 2 else 0o40755
    return _ATTR.pack(node, size, 1, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def _answer(opcode: int, node: int, body: bytes, name: str, data: bytes) -> bytes | int:
    size = len(data) if node == 2 else 0
    if opcode == _INIT:
        return struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 0, 0, 4096, 1, 1, 0, 0)
    if opcode == _LOOKUP:
        if body.rstrip(b"\0").decode() != name:
            return errno.ENOENT
        return struct.pack("<QQQQII", 2, 0, 3600, 3600, 0, 0) + _attributes(2, len(data))
    if opcode == _GETATTR:
        return struct.pack("<QII", 3600, 0, 0) + _attributes(node, size)
    if opcode in (_OPEN, _OPENDIR):
        return struct.pack("<QII", 0, 0, 0)
    if opcode == _READ:
        _handle, offset, length = struct.unpack_from("<QQI", body)
        return data[offset : offset + length]
    if opcode in (_FLUSH, _RELEASE, _RELEASEDIR, _READDIR):
        return b""
    if opcode == _STATFS:
        return struct.pack("<QQQQQIIII24x", 1, 0, 0, 1, 0, 4096, 255, 4096, 0)
    return errno.ENOSYS


def _serve(fd: int, name: str, data: bytes) -> None:
    while True:
        request = os.read(fd, 1 << 17)
        _length, opcode, unique, node, *_rest = _IN.unpack_from(request)
        if opcode in (_FORGET, _BATCH_FORGET):
            continue
        answer = _answer(opcode, node, request[_IN.size :], name, data)
        if isinstance(answer, int):
            os.write(fd, _OUT.pack(_OUT.size, -answer, unique))
        else:
            os.write(fd, _OUT.pack(_OUT.size + len(answer), 0, unique) + answer)


def serve(
    mount: Callable[[str, str, str, int, str], None],
    source: str,
    where: str,
    name: str,
    data: bytes,
    kind: str = "fuseblk",
) -> int:
    """Mount *source* as *kind* on *where*, with the one file *name*; gives the server's pid.

    *mount* is mount(2): source, target, type, flags, options.
    """
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other"
    if kind == "fuseblk":
        options += ",blksize=4096"  # not below the device's own: dm-verity has 4096
    try:
        mount(source, where, kind, 1, options)
        # Requests can be read only after the mount, which does not wait for an answer.
        child = os.fork()
        if child == 0:
            try:
                _serve(fd, name, data)
            finally:
                os._exit(0)
    finally:
        os.close(fd)
    return child
