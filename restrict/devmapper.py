# SPDX-License-Identifier: BSD-2-Clause
"""The device mapper by its ioctls: create, load, resume, suspend, remove, table, list.

Source: include/uapi/linux/dm-ioctl.h (interface 4, unchanged since 2.6) and
Documentation/admin-guide/device-mapper/verity.rst. No libdevmapper, no udev: node names come
from devtmpfs (/dev/dm-MINOR).

Everything here needs CAP_SYS_ADMIN in the initial user namespace and the dm-mod module.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from restrict.errors import ConfigError, KernelError, RestrictError, system_error
from restrict.kmsg import KernelLog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

__all__ = [
    "CONTROL",
    "HEADER",
    "SPEC",
    "Device",
    "DeviceMapper",
    "Target",
    "Verity",
]

CONTROL = "/dev/mapper/control"

# struct dm_ioctl: version[3] data_size data_start target_count open_count flags event_nr
# padding dev name[128] uuid[129] data[7]; struct dm_target_spec: sector_start length status
# next target_type[16].
HEADER = struct.Struct("=3I 2I I i I I I Q 128s 129s 7s")
SPEC = struct.Struct("=Q Q i I 16s")

DM_LIST_DEVICES, DM_DEV_CREATE, DM_DEV_REMOVE = 2, 3, 4
DM_DEV_SUSPEND, DM_TABLE_LOAD, DM_TABLE_STATUS = 6, 9, 12
_VERBS = {
    2: "DM_LIST_DEVICES", 3: "DM_DEV_CREATE", 4: "DM_DEV_REMOVE", 6: "DM_DEV_SUSPEND",
    9: "DM_TABLE_LOAD", 12: "DM_TABLE_STATUS",
}  # fmt: skip

READONLY_FLAG, SUSPEND_FLAG, STATUS_TABLE_FLAG = 1 << 0, 1 << 1, 1 << 4
BUFFER_FULL_FLAG, SKIP_LOCKFS_FLAG, NOFLUSH_FLAG = 1 << 8, 1 << 10, 1 << 11
# DM_UDEV_PRIMARY_SOURCE_FLAG of libdevmapper, where DM_UDEV_FLAGS_SHIFT puts it. The kernel hands
# it to udev as DM_COOKIE (dm_kobject_uevent); without a number below it nobody waits for udev.
_UDEV_PRIMARY_SOURCE = 0x0040 << 16

_MAX_BUFFER = 1 << 20  # ample for every list and table; the kernel's own limit is higher


def _command(number: int) -> int:
    """_IOWR(0xfd, number, struct dm_ioctl), as on x86-64 and aarch64 (asm-generic/ioctl.h)."""
    return (3 << 30) | (HEADER.size << 16) | (0xFD << 8) | number


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace")


def _check_name(name: str) -> bytes:
    raw = name.encode()
    if not 0 < len(raw) < 128 or b"\0" in raw or b"/" in raw:
        raise ConfigError(f"{name!r} is no device-mapper name: 1 to 127 bytes without '/' are.")
    return raw


class Target:
    """One line of a table: sectors of 512 bytes, the target type and its parameters."""

    __slots__ = ("length", "params", "start", "type")

    def __init__(self, start: int, length: int, type: str, params: str) -> None:
        self.start = start
        self.length = length
        self.type = type
        self.params = params

    def __repr__(self) -> str:
        return f"Target({self.start}, {self.length}, {self.type!r}, {self.params!r})"


class Device:
    """What an ioctl says about a mapped device."""

    __slots__ = ("dev", "name", "target_count")

    def __init__(self, fields: tuple[object, ...]) -> None:
        self.target_count = int(fields[5])  # type: ignore[call-overload]
        self.dev = int(fields[10])  # type: ignore[call-overload]
        self.name = _text(fields[11])  # type: ignore[arg-type]

    @property
    def path(self) -> str:
        """The node that devtmpfs makes."""
        return f"/dev/dm-{os.minor(self.dev)}"


def _hex(value: str, what: str, *, least: int = 0, most: int = 256) -> str:
    text = value.lower()
    if len(text) % 2 or any(c not in "0123456789abcdef" for c in text):
        raise ConfigError(f"the {what} {value!r} is not an even number of hexadecimal digits")
    if not least <= len(text) // 2 <= most:
        raise ConfigError(f"the {what} has {len(text) // 2} bytes; {least} to {most} are possible")
    return text


def _word(value: str, what: str) -> str:
    if not value or any(c.isspace() or not c.isprintable() for c in value):
        raise ConfigError(f"the {what} {value!r} must be one word without blanks")
    return value


class Verity:
    """The parameters of one dm-verity target, checked.

    data, hash: paths of the block devices, or "MAJOR:MINOR". data_blocks: number of data
    blocks; hash_start: first block of the hash tree on ``hash``, in hash blocks. root_hash and
    salt are hexadecimal ("" or "-" for no salt). signature_key: description of the ``user`` key
    that holds the PKCS#7 signature of the root hash (CONFIG_DM_VERITY_VERIFY_ROOTHASH_SIG, 5.4).

    Optional targets that weaken verification (ignore_corruption, check_at_most_once …) cannot
    be expressed here: a policy that trusts a signed device must not be given a device on which
    the signature means nothing.
    """

    __slots__ = (
        "algorithm", "data", "data_block_size", "data_blocks", "hash", "hash_block_size",
        "hash_start", "hash_type", "root_hash", "salt", "signature_key",
    )  # fmt: skip

    def __init__(
        self,
        *,
        data: str,
        hash: str,
        data_blocks: int,
        hash_start: int,
        root_hash: str,
        salt: str = "-",
        algorithm: str = "sha256",
        data_block_size: int = 4096,
        hash_block_size: int = 4096,
        hash_type: int = 1,
        signature_key: str | None = None,
    ) -> None:
        for size, what in ((data_block_size, "data"), (hash_block_size, "hash")):
            if size < 512 or size > 65536 or size & (size - 1):
                raise ConfigError(f"the {what} block size {size} is no power of 2 in 512…65536")
        if not 0 < data_blocks < 1 << 54:
            raise ConfigError(f"the number of data blocks {data_blocks} is not above 0")
        if not 0 <= hash_start < 1 << 54:
            raise ConfigError(f"the hash tree cannot start at block {hash_start}")
        if hash_type not in (0, 1):
            raise ConfigError(f"dm-verity has hash types 0 and 1, not {hash_type}")
        self.data = _word(data, "data device")
        self.hash = _word(hash, "hash device")
        self.data_blocks = data_blocks
        self.hash_start = hash_start
        self.root_hash = _hex(root_hash, "root hash", least=16, most=64)
        self.salt = "-" if salt in ("", "-") else _hex(salt, "salt")
        self.algorithm = _word(algorithm, "hash algorithm")
        self.data_block_size = data_block_size
        self.hash_block_size = hash_block_size
        self.hash_type = hash_type
        self.signature_key = None if signature_key is None else _word(signature_key, "key name")

    def target(self) -> Target:
        """The table line (Documentation/admin-guide/device-mapper/verity.rst)."""
        words = [
            str(self.hash_type), self.data, self.hash, str(self.data_block_size),
            str(self.hash_block_size), str(self.data_blocks), str(self.hash_start),
            self.algorithm, self.root_hash, self.salt,
        ]  # fmt: skip
        if self.signature_key is not None:
            words += ["2", "root_hash_sig_key_desc", self.signature_key]
        sectors = self.data_blocks * (self.data_block_size // 512)
        return Target(0, sectors, "verity", " ".join(words))


# What dm-verity's constructor answers after verify_pkcs7_signature(), from the kernel's
# crypto/asymmetric_keys: facts about these errnos, said only for DM_TABLE_LOAD of a verity target.
_SIGNATURE = {
    errno.ENOKEY: "No key that the kernel trusts for dm-verity made this signature, or the table "
    "names no signature although require_signatures is on: put the certificate into the "
    ".dm-verity keyring (7.0+) or into the platform or secondary keyring.",
    errno.EKEYREJECTED: "The signature does not belong to this root hash, or a trusted key "
    "rejected it: sign the hexadecimal root hash without a newline again.",
    errno.EBADMSG: "The signature is not a PKCS#7 message in DER.",
    errno.ENOPKG: "The kernel lacks an algorithm that the signature uses.",
}


class DeviceMapper:
    """The control node, open. Methods raise KernelError; the object is a context manager."""

    def __init__(self, path: str = CONTROL) -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as e:
            hint = None
            if e.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
                hint = "Load the module dm-mod and mount devtmpfs on /dev."
            raise system_error(
                "the device mapper cannot be opened", e, "open", hint=hint, file=path
            ) from None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _call(
        self,
        number: int,
        *,
        name: bytes = b"",
        dev: int = 0,
        flags: int = 0,
        event: int = 0,
        targets: int = 0,
        payload: bytes = b"",
        room: int = 0,
        hints: dict[int, str] | None = None,
    ) -> tuple[Device, bytes]:
        """One ioctl; grows the buffer while the kernel says that it was too small."""
        size = HEADER.size + max(len(payload), room)
        while True:
            size = (size + 7) & ~7
            buffer = bytearray(size)
            HEADER.pack_into(
                buffer, 0, 4, 0, 0, size, HEADER.size, targets, 0, flags, event, 0, dev, name, b"",
                b"",
            )  # fmt: skip
            buffer[HEADER.size : HEADER.size + len(payload)] = payload
            with KernelLog() as log:
                try:
                    fcntl.ioctl(self._fd, _command(number), buffer, True)
                except OSError as e:
                    code = e.errno or 0
                    said = log.said("device-mapper", "verity")
                    raise KernelError(
                        f"{os.strerror(code)}.",
                        errno=code,
                        call=_VERBS.get(number, str(number)),
                        hint=" ".join(h for h in ((hints or {}).get(code), said) if h) or None,
                        device=name.decode() or f"{os.major(dev)}:{os.minor(dev)}",
                        ioctl=_VERBS.get(number, number),
                    ) from None
            fields = HEADER.unpack_from(buffer)
            if not fields[7] & BUFFER_FULL_FLAG:
                return Device(fields), bytes(buffer[fields[4] : fields[3]])
            if size >= _MAX_BUFFER:
                raise RestrictError(f"the answer to {_VERBS[number]} exceeds {_MAX_BUFFER} bytes")
            size *= 4

    # ── devices ──

    def create(self, name: str) -> Device:
        """A new device without a table."""
        return self._call(
            DM_DEV_CREATE,
            name=_check_name(name),
            hints={errno.EBUSY: "A device of this name exists: remove it first."},
        )[0]

    def remove(self, name: str) -> None:
        """Remove a device that nobody has open."""
        self._call(
            DM_DEV_REMOVE,
            name=_check_name(name),
            hints={errno.EBUSY: "It is mounted or open: unmount it first."},
        )

    def load(self, name: str, targets: Sequence[Target], *, readonly: bool = True) -> Device:
        """Put a table into the inactive slot; ``resume`` makes it live."""
        payload = b""
        for target in targets:
            params = target.params.encode() + b"\0"
            length = (SPEC.size + len(params) + 7) & ~7
            payload += (
                SPEC.pack(target.start, target.length, 0, length, target.type.encode()) + params
            ).ljust(length, b"\0")
        return self._call(
            DM_TABLE_LOAD,
            name=_check_name(name),
            flags=READONLY_FLAG if readonly else 0,
            targets=len(targets),
            payload=payload,
            hints=_SIGNATURE if any(t.type == "verity" for t in targets) else None,
        )[0]

    def resume(self, name: str, *, udev: bool = False) -> Device:
        """Make the loaded table live.

        udev: tell udev's rules for device-mapper (lvm2's 10-dm.rules) that the device is there to
        be used: they pass over it otherwise, and systemd waits for it for ever.
        """
        return self._call(
            DM_DEV_SUSPEND,
            name=_check_name(name),
            event=_UDEV_PRIMARY_SOURCE if udev else 0,
            hints={errno.EPERM: "A security module refused the device (bdev_setintegrity)."},
        )[0]

    def suspend(self, name: str) -> Device:
        """Stop I/O to the device at once: nothing is flushed, its filesystem is not frozen."""
        flags = SUSPEND_FLAG | NOFLUSH_FLAG | SKIP_LOCKFS_FLAG
        return self._call(DM_DEV_SUSPEND, name=_check_name(name), flags=flags)[0]

    def table(self, name: str = "", *, dev: int = 0) -> list[Target]:
        """The live table, of a device told by its name or by its number."""
        raw = _check_name(name) if name else b""
        device, data = self._call(
            DM_TABLE_STATUS, name=raw, dev=dev, flags=STATUS_TABLE_FLAG, room=4096
        )
        found = []
        offset = 0
        for _ in range(device.target_count):
            if offset + SPEC.size > len(data):
                raise RestrictError(f"the kernel's table of {device.name!r} is cut short")
            start, length, _status, following, kind = SPEC.unpack_from(data, offset)
            params = data[offset + SPEC.size :].split(b"\0", 1)[0].decode("utf-8", "replace")
            found.append(Target(start, length, _text(kind), params))
            offset = following  # counted from the start of the data, unlike in DM_TABLE_LOAD
        return found

    def list(self) -> list[tuple[str, int]]:
        """(name, device number) of every mapped device."""
        _, data = self._call(DM_LIST_DEVICES, room=4096)
        found: list[tuple[str, int]] = []
        offset = 0
        if len(data) < 12:
            return found  # there is none
        while True:
            dev, following = struct.unpack_from("=QI", data, offset)
            if dev == 0 and not found:
                return found  # an empty list is one record of zeros
            found.append((_text(data[offset + 12 :]), dev))
            if following == 0:
                return found
            offset += following
            if offset + 12 > len(data):
                raise RestrictError("the kernel's list of mapped devices is cut short")

    def activate(self, name: str, verity: Verity) -> Device:
        """Create, load and resume a read-only verity device; removed again if a step fails."""
        self.create(name)
        try:
            self.load(name, [verity.target()], readonly=True)
            return self.resume(name, udev=True)
        except BaseException:
            try:
                self.remove(name)
            except KernelError:  # report the first failure, not the tidying up
                pass
            raise
