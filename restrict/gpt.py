# SPDX-License-Identifier: BSD-2-Clause
"""GUID partition tables, and the partition types of verified images.

Sources: UEFI specification 2.10, section 5.3 (GPT disk layout); Discoverable Partitions
Specification (UAPI group) for the types and flags. ``parse`` is a function of bytes; nothing here
makes a system call.

What is read is not trusted: a root hash and its signature decide what may run. The checks are
there so that damage is told as what it is, where it is.
"""

from __future__ import annotations

import struct
from binascii import crc32

from restrict.errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Read = Callable[[int, int], bytes]

__all__ = ["MACHINES", "NO_AUTO", "TYPES", "Partition", "Table", "guid_text", "parse"]

# UEFI 2.10, table 5.5: signature revision header_size crc reserved my_lba alternate_lba
# first_usable last_usable disk_guid entries_lba entries entry_size entries_crc.
_HEADER = struct.Struct("<8s 4I 4Q 16s Q 3I")
# Table 5.6: type, unique, first, last, attributes, name (36 UTF-16 units).
_ENTRY = struct.Struct("<16s 16s 3Q 72s")
_SIGNATURE = b"EFI PART"
_REVISION = 0x00010000
_MOST_ENTRIES = 1024  # tools make 128; the kernel has no bound, but a table is read into memory
NO_AUTO = 1 << 63  # "do not use without being told to"

# uname(2)'s machine → (data, verity, signature) partition types, as lower-case hexadecimal.
TYPES = {
    "x86_64": {
        "root": (
            "4f68bce3e8cd4db196e7fbcaf984b709",
            "2c7357edebd246d9aec123d437ec2bf5",
            "41092b059fc84523994f2def0408b176",
        ),
        "usr": (
            "8484680c952148c69c11b0720656f69e",
            "77ff5f63e7b64633acf41565b864c0e6",
            "e7bb33fb06cf4e818273e543b413e2e2",
        ),
    },
    "aarch64": {
        "root": (
            "b921b0451df041c3af444c6f280d3fae",
            "df3300ced69f4c92978c9bfb0f38d820",
            "6db69de629f44758a7a5962190f00ce3",
        ),
        "usr": (
            "b0e01050ee5f4390949a9101b17104e9",
            "6e11a4e7fbca4dedb9e9e1a512bb664e",
            "c23ce4ff44bd4b00b2d4b41b3419e02a",
        ),
    },
}
MACHINES = tuple(TYPES)


def guid_text(raw: bytes) -> str:
    """A GUID of the table, whose first three fields are little-endian, as 32 hexadecimal digits
    in the order in which it is written."""
    return (raw[3::-1] + raw[5:3:-1] + raw[7:5:-1] + raw[8:16]).hex()


class Partition:
    """One used entry.

    number: as in /dev/vda3 (the entry's index, from 1). first, sectors: in logical blocks of
    the disk. type, uuid: 32 hexadecimal digits.
    """

    __slots__ = ("attributes", "first", "name", "number", "sectors", "type", "uuid")

    def __init__(
        self,
        number: int,
        type: str,
        uuid: str,
        first: int,
        sectors: int,
        attributes: int,
        name: str,
    ) -> None:
        self.number = number
        self.type = type
        self.uuid = uuid
        self.first = first
        self.sectors = sectors
        self.attributes = attributes
        self.name = name

    def __repr__(self) -> str:
        return f"Partition({self.number}, {self.name!r}, {self.first}+{self.sectors})"


class Table:
    """A checked partition table.

    partitions: the used entries by their numbers. warnings: what is wrong with the copy that was
    not used, one sentence each. backup: the primary header was not usable.
    """

    __slots__ = ("backup", "partitions", "sector_size", "uuid", "warnings")

    def __init__(
        self,
        uuid: str,
        sector_size: int,
        partitions: list[Partition],
        backup: bool,
        warnings: list[str],
    ) -> None:
        self.uuid = uuid
        self.sector_size = sector_size
        self.partitions = partitions
        self.backup = backup
        self.warnings = warnings


def _copy(read: Read, sectors: int, sector_size: int, where: int) -> tuple[str, bytes, int, int]:
    """One checked copy of header and entries: (disk GUID, entries, entry size, alternate)."""
    if not 0 < where < sectors:
        raise ImageError(
            f"a header in sector {where} would be outside of the disk's {sectors} sectors"
        )
    block = read(where * sector_size, sector_size)
    if len(block) != sector_size:
        raise ImageError(f"sector {where} cannot be read whole")
    (
        signature, revision, size, crc, _reserved, mine, alternate, first, last, disk, entries_at,
        count, entry_size, entries_crc,
    ) = _HEADER.unpack_from(block)  # fmt: skip
    if signature != _SIGNATURE:
        raise ImageError(f"sector {where} does not begin with {_SIGNATURE.decode()!r}")
    if revision != _REVISION or not _HEADER.size <= size <= sector_size:
        raise ImageError(f"the header in sector {where} has revision {revision:#x} and size {size}")
    if crc32(block[:16] + bytes(4) + block[20:size]) != crc:
        raise ImageError(f"the checksum of the header in sector {where} is wrong")
    if mine != where:
        raise ImageError(f"the header in sector {where} says that it is the one of sector {mine}")
    if entry_size < _ENTRY.size or entry_size > 4096 or entry_size & (entry_size - 1):
        raise ImageError(f"the header in sector {where} has entries of {entry_size} bytes")
    if not 0 < count <= _MOST_ENTRIES:
        raise ImageError(
            f"the header in sector {where} has {count} entries, not 1 to {_MOST_ENTRIES}"
        )
    if not first <= last < sectors:
        raise ImageError(f"the usable sectors {first} to {last} do not lie on a disk of {sectors}")
    length = count * entry_size
    taken = -(-length // sector_size)
    if entries_at < 2 or entries_at + taken > sectors:
        raise ImageError(f"the entries in sector {entries_at} do not lie on the disk")
    if entries_at <= last and first < entries_at + taken:
        raise ImageError(f"the entries in sector {entries_at} lie among the usable sectors")
    entries = read(entries_at * sector_size, length)
    if len(entries) != length:
        raise ImageError(f"the entries in sector {entries_at} cannot be read whole")
    if crc32(entries) != entries_crc:
        raise ImageError(f"the checksum of the entries in sector {entries_at} is wrong")
    # What goes out says where partitions may lie, too: in front of the entries.
    return guid_text(disk), struct.pack("<QQ", first, last) + entries, entry_size, alternate


def _partitions(usable: bytes, entry_size: int) -> list[Partition]:
    """The used entries; refuses those that overlap, lie outside, or share a GUID."""
    lowest, highest = struct.unpack_from("<QQ", usable)
    found: list[Partition] = []
    for index, at in enumerate(range(16, len(usable), entry_size), 1):
        kind, unique, first, last, attributes, raw = _ENTRY.unpack_from(usable, at)
        if kind == bytes(16):
            continue
        if not lowest <= first <= last <= highest:
            raise ImageError(
                f"partition {index} takes sectors {first} to {last}, but {lowest} to {highest} "
                "are usable"
            )
        name = raw.decode("utf-16-le", "replace").split("\0", 1)[0]
        found.append(
            Partition(
                index, guid_text(kind), guid_text(unique), first, last - first + 1, attributes, name
            )
        )
    by_place = sorted(found, key=lambda one: one.first)
    for index, other in enumerate(by_place[1:]):
        one = by_place[index]
        if one.first + one.sectors > other.first:
            raise ImageError(f"partitions {one.number} and {other.number} overlap")
    seen: dict[str, int] = {}
    for one in found:
        if one.uuid in seen:
            raise ImageError(f"partitions {seen[one.uuid]} and {one.number} have the same UUID")
        seen[one.uuid] = one.number
    return found


def parse(read: Read, size: int, sector_size: int = 512) -> Table:
    """The partition table of a disk of ``size`` bytes; ``read(offset, length)`` gives its bytes.

    The primary copy counts. The backup copy is used if the primary one is damaged; a damaged or
    different backup is a warning only, as it is when an image was written to a larger disk.

    Raises ImageError: there is no usable copy (it says what is wrong with both), or the
    partitions contradict each other.
    """
    if sector_size < 512 or sector_size > 65536 or sector_size & (sector_size - 1):
        raise ImageError(f"a disk cannot have sectors of {sector_size} bytes")
    sectors = size // sector_size
    warnings: list[str] = []
    try:
        primary = _copy(read, sectors, sector_size, 1)
    except ImageError as first_error:
        try:
            backup = _copy(read, sectors, sector_size, sectors - 1)
        except ImageError as second_error:
            raise ImageError(
                f"there is no usable partition table: {first_error.message}, and for the backup, "
                f"{second_error.message}.",
                hint="Write the image again; it may be cut short, or no disk image with a GPT.",
            ) from None
        warnings.append(f"the backup partition table is used: {first_error.message}")
        chosen, from_backup = backup, True
    else:
        chosen, from_backup = primary, False
        try:
            if _copy(read, sectors, sector_size, primary[3])[:3] != primary[:3]:
                warnings.append("the backup partition table differs and is not used")
        except ImageError as e:
            warnings.append(f"the backup partition table is not usable: {e.message}")
    uuid, usable, entry_size, _alternate = chosen
    try:
        partitions = _partitions(usable, entry_size)
    except ImageError as e:
        raise ImageError(f"the partition table contradicts itself: {e.message}.") from None
    return Table(uuid, sector_size, partitions, from_backup, warnings)
