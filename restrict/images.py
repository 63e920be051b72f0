# SPDX-License-Identifier: BSD-2-Clause
"""Signed images as people have them: what they are made of, and which of a disk's parts is meant.

Three kinds (all with a dm-verity hash tree and a PKCS#7 signature of the root hash):

- a disk with a GPT, as systemd-repart and mkosi make it: data, hash and signature partitions by
  the Discoverable Partitions Specification. The data partition's UUID is the root hash's first 16
  bytes, the hash partition's its last 16; the signature partition holds a JSON object;
- a loose image with companions: IMAGE.verity, IMAGE.roothash and IMAGE.roothash.p7s (.usrhash…),
  or a GPT in the image itself;
- data and hash devices by name, with the superblock that ``veritysetup format`` writes.

Parsers here are functions of bytes. Nothing read from a disk is trusted: it only leads to a root
hash, and the kernel believes a root hash by its signature. What does not fit together is refused
here, because the kernel would only say EINVAL.
"""

from __future__ import annotations

import os
import struct
from binascii import Error as Base64Error
from binascii import a2b_base64

from restrict.errors import ConfigError, ImageError
from restrict.gpt import MACHINES, NO_AUTO, TYPES, Partition, Table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "FILESYSTEMS",
    "KEY_MOST",
    "SIGNATURE_KEY",
    "SIGNATURE_MOST",
    "SUPERBLOCK_SIZE",
    "Chosen",
    "Signature",
    "Superblock",
    "companions",
    "parse_flat_json",
    "parse_root_hash",
    "parse_signature",
    "parse_superblock",
    "read_bytes",
    "select",
    "types_for",
    "which_filesystem",
]

SIGNATURE_KEY = "restrict:root"  # description of the key that a verity target's table names
SIGNATURE_MOST = 4 << 20  # the specification's limit for the partition
_JSON_MOST = 1 << 16  # of it: a key's bytes in base64, and the other members
KEY_MOST = 32767  # what a "user" key can hold (security/keys/user_defined.c)

# cryptsetup, lib/verity/verity.c, struct verity_sb: signature version hash_type uuid algorithm
# data_block_size hash_block_size data_blocks salt_size padding[6] salt[256] padding[168].
_SUPERBLOCK = struct.Struct("<8s 2I 16s 32s 2I Q H 6x 256s 168x")
SUPERBLOCK_SIZE = _SUPERBLOCK.size

# Where each filesystem has its magic number, for those that the policy knows (restrict/abi.py).
FILESYSTEMS = (
    ("erofs", 1024, b"\xe2\xe1\xf5\xe0"),
    ("squashfs", 0, b"hsqs"),
    ("ext4", 1024 + 56, b"\x53\xef"),
    ("xfs", 0, b"XFSB"),
)


def _no_wait(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a FIFO would wait for a writer


def read_bytes(path: str, what: str, most: int) -> bytes:
    """A small file, whole. Raises ConfigError: unreadable, empty or larger than ``most``."""
    try:
        with open(path, "rb", opener=_no_wait) as file:
            data = file.read(most + 1)
    except OSError as e:
        raise ConfigError(f"the {what} cannot be read: {e.strerror}.", file=path) from None
    if not data or len(data) > most:
        raise ConfigError(f"the {what} has {len(data)} bytes; 1 to {most} are possible.", file=path)
    return data


class Superblock:
    """What ``veritysetup format`` wrote in front of a hash tree."""

    __slots__ = (
        "algorithm", "data_block_size", "data_blocks", "hash_block_size", "hash_type", "salt",
    )  # fmt: skip

    def __init__(
        self,
        hash_type: int,
        algorithm: str,
        data_block_size: int,
        hash_block_size: int,
        data_blocks: int,
        salt: str,
    ) -> None:
        self.hash_type = hash_type
        self.algorithm = algorithm
        self.data_block_size = data_block_size
        self.hash_block_size = hash_block_size
        self.data_blocks = data_blocks
        self.salt = salt

    def hash_start(self, offset: int) -> int:
        """The tree's first block, counted in hash blocks of the device, for a superblock at
        ``offset`` bytes: the first whole block after it."""
        return -(-(offset + SUPERBLOCK_SIZE) // self.hash_block_size)


def parse_superblock(raw: bytes) -> Superblock:
    """The superblock of a hash device. Raises ImageError."""
    if len(raw) < SUPERBLOCK_SIZE:
        raise ImageError(f"the verity superblock is cut short: {len(raw)} bytes.")
    (
        signature, version, hash_type, _uuid, algorithm, data_size, hash_size, blocks, salt_size,
        salt,
    ) = _SUPERBLOCK.unpack_from(raw)  # fmt: skip
    if signature != b"verity\0\0":
        raise ImageError(
            "there is no verity superblock.",
            hint="Give data_blocks, hash_start and salt if the tree was made without one.",
        )
    if version != 1 or hash_type not in (0, 1):
        raise ImageError(f"the verity superblock has version {version}, hash type {hash_type}.")
    for size in (data_size, hash_size):
        if size < 512 or size > 65536 or size & (size - 1):
            raise ImageError(f"the verity superblock has blocks of {size} bytes.")
    if not 0 < blocks < 1 << 54:
        raise ImageError(f"the verity superblock has {blocks} data blocks.")
    if salt_size > 256:
        raise ImageError(f"the verity superblock has a salt of {salt_size} bytes.")
    name = algorithm.split(b"\0", 1)[0]
    if not name or any(c not in b"abcdefghijklmnopqrstuvwxyz0123456789-_" for c in name):
        raise ImageError(f"the verity superblock's hash algorithm is {name!r}.")
    return Superblock(
        hash_type, name.decode(), data_size, hash_size, blocks, salt[:salt_size].hex() or "-"
    )


# ── the signature partition ──

_ESCAPES = {
    '"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t",
}  # fmt: skip


def parse_flat_json(text: str) -> dict[str, str]:
    """A JSON object (RFC 8259) whose values are all strings, and nothing after it but blanks.

    The standard library's parser needs ``re``, which costs PID 1 more than all else that this
    module does. Raises ImageError with the place.
    """
    at = 0

    def bad(expected: str) -> ImageError:
        found = f"{text[at]!r} at character {at}" if at < len(text) else "the end"
        return ImageError(f"it is no flat JSON object: {expected} is expected, not {found}.")

    def blanks() -> None:
        nonlocal at
        while at < len(text) and text[at] in " \t\r\n":
            at += 1

    def char(wanted: str) -> None:
        nonlocal at
        if text[at : at + 1] != wanted:
            raise bad(repr(wanted))
        at += 1

    def string() -> str:
        nonlocal at
        char('"')
        out = ""
        while True:
            end = at
            while end < len(text) and text[end] not in '"\\' and text[end] >= " ":
                end += 1
            out += text[at:end]
            at = end
            if at < len(text) and text[at] == '"':
                at += 1
                return out
            if text[at : at + 1] != "\\":
                raise bad("the end of a string")
            letter = text[at + 1 : at + 2]
            if letter in _ESCAPES:
                out += _ESCAPES[letter]
                at += 2
                continue
            digits = text[at + 2 : at + 6]
            if letter != "u" or len(digits) != 4 or not all(c in _HEX for c in digits.lower()):
                raise bad("an escape")
            out += chr(int(digits, 16))
            at += 6

    found: dict[str, str] = {}
    blanks()
    char("{")
    blanks()
    if text[at : at + 1] != "}":
        while True:
            blanks()
            key = string()
            if key in found:
                raise ImageError(f"it is no flat JSON object: {key!r} is there twice.")
            blanks()
            char(":")
            blanks()
            found[key] = string()
            blanks()
            if text[at : at + 1] != ",":
                break
            at += 1
    char("}")
    blanks()
    if at != len(text):
        raise bad("nothing")
    return found


_HEX = "0123456789abcdef"


def parse_root_hash(text: str) -> str:
    """A root hash as its .roothash file, a kernel parameter or JSON has it, in lower case.

    Raises ImageError: not 16 to 64 bytes in hexadecimal.
    """
    value = text.strip().lower()
    if len(value) % 2 or not 32 <= len(value) <= 128 or not all(c in _HEX for c in value):
        raise ImageError(f"{text[:140]!r} is no root hash: 32 to 128 hexadecimal digits are.")
    return value


class Signature:
    """The content of a signature partition. fingerprint: SHA-256 of the certificate, or ""."""

    __slots__ = ("der", "fingerprint", "root_hash")

    def __init__(self, root_hash: str, der: bytes, fingerprint: str) -> None:
        self.root_hash = root_hash
        self.der = der
        self.fingerprint = fingerprint


def parse_signature(raw: bytes) -> Signature:
    """The JSON object, padded with NULs, of a signature partition. Raises ImageError."""
    if len(raw) > SIGNATURE_MOST:
        raise ImageError(f"it has {len(raw)} bytes; {SIGNATURE_MOST} are possible.")
    end = raw.find(b"\0")
    data = raw if end < 0 else raw[:end]
    if end >= 0 and raw.count(0, end) != len(raw) - end:
        raise ImageError("there is more after the NULs that pad it.")
    if not data:
        raise ImageError("it is empty.")
    if len(data) > _JSON_MOST:
        raise ImageError(f"its JSON object has {len(data)} bytes; {_JSON_MOST} are possible.")
    try:
        found = parse_flat_json(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise ImageError("it is no flat JSON object: it is not UTF-8 text.") from None
    for key in ("rootHash", "signature"):
        if key not in found:
            raise ImageError(f"its JSON object has no {key!r}.")
    try:
        der = a2b_base64(found["signature"].encode("ascii"), strict_mode=True)
    except (Base64Error, UnicodeEncodeError):
        raise ImageError("its 'signature' is no base64.") from None
    if not der[:1] == b"\x30" or len(der) > KEY_MOST:
        raise ImageError(f"its 'signature' ({len(der)} bytes) is no PKCS#7 message in DER.")
    fingerprint = found.get("certificateFingerprint", "").lower()
    if len(fingerprint) != 64 or not all(c in _HEX for c in fingerprint):
        fingerprint = ""  # for people only: not worth a boot, nor any text on the console
    return Signature(parse_root_hash(found["rootHash"]), der, fingerprint)


# ── which partitions ──


def types_for(part: str, machine: str) -> tuple[str, str, str]:
    """Types of the data, hash and signature partitions. part: ``root`` or ``usr``."""
    if machine not in TYPES:
        raise ConfigError(
            f"no partition types are known for {machine}.",
            hint=f"Known: {', '.join(MACHINES)}. Name the partitions by data and hash instead.",
        )
    return TYPES[machine][part]


class Chosen:
    """The partitions of one image. signature: None where it comes from elsewhere."""

    __slots__ = ("data", "hash", "root_hash", "signature")

    def __init__(
        self, root_hash: str, data: Partition, hash: Partition, signature: Signature | None
    ) -> None:
        self.root_hash = root_hash
        self.data = data
        self.hash = hash
        self.signature = signature


def _uuids(partitions: list[Partition]) -> str:
    return ", ".join(f"{p.number}: {p.uuid}" for p in partitions) or "none"


def select(
    table: Table,
    types: tuple[str, str, str],
    content: Callable[[Partition], bytes],
    *,
    root_hash: str = "",
    data_uuid: str = "",
    signed_elsewhere: bool = False,
) -> Chosen:
    """The one image of these types that the table holds complete.

    content gives a partition's bytes (of signature partitions only). root_hash and data_uuid
    (32 digits) narrow the choice; with signed_elsewhere no signature partition is needed, but
    root_hash is. Partitions with the flag "no auto" are passed over.

    Raises ImageError: none, or more than one; it says what is missing or contradicts.
    """
    of_type = [
        [p for p in table.partitions if p.type == kind and not p.attributes & NO_AUTO]
        for kind in types
    ]
    data, hashes, holders = of_type
    if data_uuid:
        data = [p for p in data if p.uuid == data_uuid]
    if not data:
        raise ImageError(
            f"it has no data partition of type {types[0]}"
            + (f" with UUID {data_uuid}." if data_uuid else ".")
        )
    signatures: list[Signature] = []
    damaged: ImageError | None = None
    for holder in [] if signed_elsewhere else holders:
        try:
            signatures.append(parse_signature(content(holder)))
        except ImageError as e:
            damaged = damaged or ImageError(f"signature partition {holder.number}: {e.message}")
    wanted = [root_hash] if root_hash else [s.root_hash for s in signatures]
    by_uuid = {p.uuid: p for p in data}, {p.uuid: p for p in hashes}  # gpt.parse: each is once
    complete: list[Chosen] = []
    for value in dict.fromkeys(wanted):
        one, other = by_uuid[0].get(value[:32]), by_uuid[1].get(value[-32:])
        if one is not None and other is not None:
            if signed_elsewhere:
                complete.append(Chosen(value, one, other, None))
            complete += [Chosen(value, one, other, s) for s in signatures if s.root_hash == value]
    if len(complete) == 1:
        return complete[0]
    if complete:
        same = len({c.root_hash for c in complete}) == 1
        raise ImageError(
            "it has several signature partitions for one root hash."
            if same
            else "it has several signed images: root hashes "
            + ", ".join(c.root_hash for c in complete)
            + ".",
            hint=None if same else "Choose one by root_hash, or roothash= on the command line.",
        )
    if damaged is not None:
        raise damaged
    if not signatures and not signed_elsewhere:
        raise ImageError(
            f"it is not signed: there is no signature partition of type {types[2]}.",
            hint="Build it with Verity=signature, or give the signature's file.",
        )
    if root_hash and signatures and all(s.root_hash != root_hash for s in signatures):
        raise ImageError(
            f"no signature partition is for the root hash {root_hash}; there are signatures for "
            + ", ".join(s.root_hash for s in signatures)
            + "."
        )
    value = wanted[0]
    missing = "hash" if any(p.uuid == value[:32] for p in data) else "data"
    half, there = (value[-32:], hashes) if missing == "hash" else (value[:32], data)
    raise ImageError(
        f"the root hash {value} does not belong to its partitions: the {missing} partition's UUID "
        f"would be {half}, but there is {_uuids(there)}."
    )


# ── companions of a loose image, the filesystem inside ──


def companions(path: str, part: str) -> tuple[str, str, str]:
    """Files of the hash tree, root hash and signature that belong to an image's file, named as
    systemd names them: the suffix .raw is replaced, any other is kept."""
    stem = path.removesuffix(".raw")
    return f"{stem}.verity", f"{stem}.{part}hash", f"{stem}.{part}hash.p7s"


def which_filesystem(head: bytes) -> str:
    """The type of the filesystem that begins with ``head`` (2 KiB). Raises ImageError."""
    for name, at, magic in FILESYSTEMS:
        if head[at : at + len(magic)] == magic:
            return name
    raise ImageError(
        "its filesystem is none of " + ", ".join(name for name, _, _ in FILESYSTEMS) + ".",
        hint="The policy trusts files on these only.",
    )
