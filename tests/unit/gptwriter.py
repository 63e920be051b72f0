# SPDX-License-Identifier: BSD-2-Clause
"""Writes disks with a GUID partition table, as systemd-repart lays them out, for tests."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

from restrict.gpt import TYPES

__all__ = [
    "ROOT_HASH", "Entry", "disk", "guid", "header", "image_disk", "reseal", "signature",
    "superblock",
]  # fmt: skip

SECTOR = 512
ENTRIES = 128
ROOT_HASH = "24546f4fcdbf2ccd36c4348d9ca00a16d02908b1a33da15468f358b65e2c41f1"
DER = b"\x30\x82\x01\x00" + bytes(range(256))


def guid(text: str) -> bytes:
    """32 hexadecimal digits as they are stored."""
    raw = bytes.fromhex(text)
    return raw[3::-1] + raw[5:3:-1] + raw[7:5:-1] + raw[8:]


class Entry:
    """A partition to write: where, and what is in it."""

    def __init__(
        self, kind: str, uuid: str, first: int, sectors: int, data: bytes = b"", flags: int = 0
    ) -> None:
        self.kind = kind
        self.uuid = uuid
        self.first = first
        self.sectors = sectors
        self.data = data
        self.flags = flags

    def pack(self) -> bytes:
        name = "part".encode("utf-16-le")
        last = self.first + self.sectors - 1
        return struct.pack(
            "<16s16s3Q72s", guid(self.kind), guid(self.uuid), self.first, last, self.flags, name
        )


def header(
    mine: int, other: int, sectors: int, entries_at: int, entries: bytes, size: int = 92,
) -> bytes:  # fmt: skip
    """One sector with a header whose checksums are right."""
    raw = struct.pack(
        "<8s4I4Q16sQ3I", b"EFI PART", 0x10000, size, 0, 0, mine, other, 34, sectors - 34,
        bytes(range(16)), entries_at, len(entries) // 128, 128, zlib.crc32(entries),
    )  # fmt: skip
    return reseal(raw.ljust(SECTOR, b"\0"))


def reseal(sector: bytes) -> bytes:
    """A header's sector with the right checksum of its own."""
    (size,) = struct.unpack_from("<I", sector, 12)
    body = sector[:16] + bytes(4) + sector[20:]
    return body[:16] + struct.pack("<I", zlib.crc32(body[:size])) + body[20:]


def disk(partitions: Sequence[Entry], sectors: int = 2048) -> bytes:
    """The bytes of a disk."""
    out = bytearray(sectors * SECTOR)
    entries = b"".join(p.pack() for p in partitions).ljust(ENTRIES * 128, b"\0")
    taken = len(entries) // SECTOR
    last = sectors - 1
    out[SECTOR : 2 * SECTOR] = header(1, last, sectors, 2, entries)
    out[2 * SECTOR : (2 + taken) * SECTOR] = entries
    out[(last - taken) * SECTOR : last * SECTOR] = entries
    out[last * SECTOR :] = header(last, 1, sectors, last - taken, entries)
    for p in partitions:
        out[p.first * SECTOR : p.first * SECTOR + len(p.data)] = p.data
    return bytes(out)


def superblock(blocks: int = 10, salt: bytes = b"\x5e" * 32) -> bytes:
    """What veritysetup writes."""
    return struct.pack(
        "<8s2I16s32s2IQH6x256s168x", b"verity\0\0", 1, 1, bytes(16), b"sha256", 4096, 4096,
        blocks, len(salt), salt,
    )  # fmt: skip


def signature(root_hash: str = ROOT_HASH, der: bytes = DER) -> bytes:
    """A signature partition's text, without padding."""
    text = base64.b64encode(der).decode()
    return (
        f'{{"rootHash":"{root_hash}","certificateFingerprint":"{"68" * 32}","signature":"{text}"}}'
    ).encode()


def image_disk(
    root_hash: str = ROOT_HASH, part: str = "root", machine: str = "x86_64"
) -> list[Entry]:
    """Data, hash and signature partitions of one image."""
    data, hashes, signed = TYPES[machine][part]
    return [
        Entry(data, root_hash[:32], 40, 200),
        Entry(hashes, root_hash[-32:], 240, 100, superblock()),
        Entry(signed, "de" * 16, 340, 32, signature(root_hash)),
    ]
