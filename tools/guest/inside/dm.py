# SPDX-License-Identifier: BSD-2-Clause
"""dm-verity devices by device-mapper ioctls (include/uapi/linux/dm-ioctl.h)."""

from __future__ import annotations

import fcntl
import os
import struct

from .kernel import add_key

__all__ = ["create", "load", "remove", "suspend", "verity", "verity_table"]

# version[3], data_size, data_start, target_count, open_count, flags, event_nr, padding, dev,
# name[128], uuid[129], data[7]
_HEADER = struct.Struct("<3I2I I i I I I Q 128s 129s 7x")
_TARGET = struct.Struct("<QQiI16s")
_DEV_CREATE, _DEV_REMOVE, _DEV_SUSPEND, _TABLE_LOAD, _DEV_STATUS = 3, 4, 6, 9, 7
_READONLY = 1 << 0
_PERSISTENT_DEV = 1 << 3
_SUSPEND = 1 << 1
_PROCESS_KEYRING = -2


def _call(
    number: int,
    name: str,
    flags: int = 0,
    payload: bytes = b"",
    targets: int = 0,
    device: int = 0,
) -> int:
    size = _HEADER.size + len(payload)
    header = _HEADER.pack(
        4, 0, 0, size, _HEADER.size, targets, 0, flags, 0, 0, device, name.encode(), b""
    )
    buffer = bytearray(header + payload)
    fd = os.open("/dev/mapper/control", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, 3 << 30 | _HEADER.size << 16 | 0xFD << 8 | number, buffer)
    except OSError as error:
        raise OSError(
            error.errno, f"device mapper call {number} on {name}: {error.strerror}"
        ) from None
    finally:
        os.close(fd)
    return int(_HEADER.unpack_from(buffer)[10])


def create(name: str, minor: int | None = None) -> str:
    """Make the empty mapped device *name*, with this minor number if given; gives its node."""
    # dm_ioctl.dev is encoded as dev_t is: minor in bits 0-7 and 20-31, major in bits 8-19.
    if minor is None:
        device = _call(_DEV_CREATE, name)
    else:
        device = _call(_DEV_CREATE, name, _PERSISTENT_DEV, device=minor)
    return f"/dev/dm-{os.minor(device)}"


def load(name: str, sectors: int, kind: str, table: str, read_only: bool = True) -> None:
    """Load a table of one target, from sector 0, into the inactive slot."""
    parameters = table.encode() + b"\0"
    parameters += bytes(-len(parameters) % 8)
    target = _TARGET.pack(0, sectors, 0, _TARGET.size + len(parameters), kind.encode())
    _call(_TABLE_LOAD, name, _READONLY if read_only else 0, target + parameters, 1)


def suspend(name: str, resume: bool = False) -> None:
    """Suspend the device, or resume it, which makes the inactive table live."""
    _call(_DEV_SUSPEND, name, 0 if resume else _SUSPEND)


def remove(name: str) -> None:
    """Remove the device; EBUSY while it is open or mounted."""
    _call(_DEV_REMOVE, name)


def verity_table(
    device: str, blocks: int, root_hash: str, salt: str, options: tuple[str, ...] = ()
) -> str:
    """The table line of a verity target whose hash tree follows its data."""
    line = f"1 {device} {device} 4096 4096 {blocks} {blocks} sha256 {root_hash} {salt}"
    return " ".join([line, str(len(options)), *options]) if options else line


def verity(
    name: str,
    device: str,
    blocks: int,
    root_hash: str,
    salt: str,
    signature: bytes | None,
    options: tuple[str, ...] = (),
    minor: int | None = None,
) -> str:
    """Activate a verity device and give its node; undone if a step fails.

    *signature* (PKCS#7, DER) goes as a user key into the process keyring, where the kernel
    looks it up by the description in the table.
    """
    words = options
    if signature is not None:
        description = f"guest-{name}"
        add_key("user", description, signature, _PROCESS_KEYRING)
        words = (*options, "root_hash_sig_key_desc", description)
    node = create(name, minor)
    try:
        load(name, blocks * 8, "verity", verity_table(device, blocks, root_hash, salt, words))
        suspend(name, resume=True)
    except OSError:
        remove(name)
        raise
    return node
