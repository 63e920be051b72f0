# SPDX-License-Identifier: BSD-2-Clause
"""Disks for the tests of images, made on the host: by systemd-repart and veritysetup, and then
damaged in ways that a careless check would not see (checksums are made right again)."""

from __future__ import annotations

import hashlib
import struct
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["damaged", "loose", "separate", "small", "system", "usr"]

SECTOR = 512
# PID 1 of a /usr image: the tests expect the project in /project.
_START = b"""\
import os
os.symlink("usr/project", "/project")
arguments = ["python3", "-s", "/project/tools/guest/inside/harness.py"]
os.execv("/usr/bin/python3", arguments)
"""


def system() -> Path:
    """The system with the project in it, as systemd-repart builds a root image."""
    from tools.guest.images import combined_image
    from tools.guest.packages import toolbox
    from tools.guest.repart import repart_system

    return repart_system(toolbox(), combined_image(toolbox()))


def usr() -> Path:
    """The same as a /usr image."""
    from tools.guest.packages import toolbox
    from tools.guest.repart import repart_usr

    return repart_usr(toolbox(), _START)


def small(*, signed: bool = True, key: str = "signer", name: str = "one") -> Path:
    """A root image with one program. name: goes into the content, so into the root hash."""
    from tests.vm.programs import program
    from tools.guest.packages import toolbox
    from tools.guest.repart import definitions, repart

    files = definitions("root", "CopyFiles=/work/content:/")
    if not signed:
        files = {k: v for k, v in files.items() if "-sig" not in k}
    content = {"program": program(), "name": name.encode()}
    return repart(toolbox(), "small", files, content=content, key=key)


def _published(name: str, make: Mapping[str, Callable[[], bytes]], inputs: list[str]) -> Path:
    from tools.guest.cache import cache_root, content_hash, publish

    def build(folder: Path) -> None:
        for item, function in make.items():
            (folder / item).write_bytes(function())

    target = cache_root() / "repart" / f"{name}-{content_hash(['2', *inputs])}"
    return publish(target, build, f"the disk {name}")


def separate(which: str) -> Path:
    """Data and hash devices as ``veritysetup format DATA HASH`` leaves them, of the system.

    which: data, hash, root_hash or signature.
    """
    import os
    import re
    import shutil
    import tempfile
    from pathlib import Path

    from tools.guest.images import combined_image
    from tools.guest.keys import signer
    from tools.guest.packages import toolbox

    tools = toolbox()
    image = combined_image(tools)
    found: dict[str, bytes] = {}

    def get(item: str) -> bytes:
        if not found:
            with tempfile.TemporaryDirectory() as scratch:
                data, tree = Path(scratch) / "data", Path(scratch) / "hash"
                shutil.copy(image.path, data)
                os.truncate(data, image.blocks * 4096)
                said = tools.run("veritysetup", "format", str(data), str(tree)).decode()
                match = re.search(r"^Root hash:\s*([0-9a-f]{64})$", said, re.MULTILINE)
                assert match is not None
                found["root_hash"] = match.group(1).encode()
                found["signature"] = signer(tools).sign(match.group(1))
                found["data"], found["hash"] = data.read_bytes(), tree.read_bytes()
                found["hash"] += bytes(-len(found["hash"]) % 4096)
        return found[item]

    make = {
        item: (lambda item=item: get(item)) for item in ("data", "hash", "root_hash", "signature")
    }
    return _published("separate", make, [image.root_hash]) / which


def loose() -> Path:
    """A filesystem (squashfs) with the loose image system.raw and its companions."""
    import shutil
    import tempfile
    from pathlib import Path

    from tools.guest.packages import toolbox

    names = {
        "data": "system.raw", "hash": "system.verity", "root_hash": "system.roothash",
        "signature": "system.roothash.p7s",
    }  # fmt: skip
    # Asked for once: the project, which is in it, may change meanwhile.
    folder = separate("data").parent
    parts = {name: folder / which for which, name in names.items()}

    def carrier() -> bytes:
        with tempfile.TemporaryDirectory() as scratch:
            tree = Path(scratch) / "tree"
            tree.mkdir()
            for name, path in parts.items():
                shutil.copy(path, tree / name)
            target = Path(scratch) / "image"
            toolbox().run(
                "mksquashfs", str(tree), str(target), "-noappend", "-all-root", "-no-progress",
                "-quiet", "-noI", "-noD", "-noF",
            )  # fmt: skip
            return target.read_bytes()

    return _published("loose", {"image": carrier}, [folder.name]) / "image"


# ── damage ──


def _seal(raw: bytearray) -> None:
    """Make the checksums of both copies of the table right."""
    last = len(raw) // SECTOR - 1
    for header in (1, last):
        at = header * SECTOR
        (entries,) = struct.unpack_from("<Q", raw, at + 72)
        count, size = struct.unpack_from("<2I", raw, at + 80)
        body = raw[entries * SECTOR : entries * SECTOR + count * size]
        struct.pack_into("<I", raw, at + 88, zlib.crc32(body))
        struct.pack_into("<I", raw, at + 16, 0)
        struct.pack_into("<I", raw, at + 16, zlib.crc32(raw[at : at + 92]))


def _entries(raw: bytearray) -> list[int]:
    """Where the first entry is, in both copies."""
    last = len(raw) // SECTOR - 1
    return [struct.unpack_from("<Q", raw, h * SECTOR + 72)[0] * SECTOR for h in (1, last)]


def _signature(raw: bytearray) -> tuple[int, int]:
    """Start and end of the JSON text."""
    at = struct.unpack_from("<Q", raw, _entries(raw)[0] + 2 * 128 + 32)[0] * SECTOR
    return at, raw.index(b"\0", at)


def _truncated_json(raw: bytearray) -> None:
    start, end = _signature(raw)
    middle = (start + end) // 2
    raw[middle:end] = bytes(end - middle)


def _other_root_hash(raw: bytearray) -> None:
    start, _ = _signature(raw)
    at = raw.index(b'"rootHash":"', start) + 12
    raw[at : at + 2] = b"00" if raw[at : at + 2] != b"00" else b"11"


def _foreign_uuid(raw: bytearray) -> None:
    for at in _entries(raw):
        raw[at + 128 + 16] ^= 1  # the hash partition's
    _seal(raw)


def _consistent_lie(raw: bytearray) -> None:
    """Another root hash everywhere but in the signature itself."""
    start, _ = _signature(raw)
    at = raw.index(b'"rootHash":"', start) + 12
    old = int(raw[at + 30 : at + 32], 16)  # the last byte of the first half: stored last, too
    raw[at + 30 : at + 32] = b"%02x" % (old ^ 1)
    for entry in _entries(raw):
        raw[entry + 16 + 15] ^= 1
    _seal(raw)


def _overlap(raw: bytearray) -> None:
    for at in _entries(raw):
        (last,) = struct.unpack_from("<Q", raw, at + 40)
        struct.pack_into("<Q", raw, at + 40, last + 8)
    _seal(raw)


def _no_header(raw: bytearray) -> None:
    raw[SECTOR + 56] ^= 1
    raw[len(raw) - SECTOR + 56] ^= 1


def _no_primary(raw: bytearray) -> None:
    raw[SECTOR + 56] ^= 1


def _no_superblock(raw: bytearray) -> None:
    at = struct.unpack_from("<Q", raw, _entries(raw)[0] + 128 + 32)[0] * SECTOR
    raw[at] ^= 1


def _short_data(raw: bytearray) -> None:
    at = struct.unpack_from("<Q", raw, _entries(raw)[0] + 128 + 32)[0] * SECTOR
    struct.pack_into("<Q", raw, at + 72, 1 << 40)


def _tampered_signature(raw: bytearray) -> None:
    """One letter in the middle of the signature's base64: the signed bytes themselves."""
    _, end = _signature(raw)
    at = end - 40
    raw[at] = ord("A") if raw[at] != ord("A") else ord("B")


_DAMAGE: dict[str, Callable[[bytearray], None]] = {
    "truncated-json": _truncated_json,
    "other-root-hash": _other_root_hash,
    "foreign-uuid": _foreign_uuid,
    "consistent-lie": _consistent_lie,
    "overlap": _overlap,
    "no-header": _no_header,
    "no-primary": _no_primary,
    "no-superblock": _no_superblock,
    "short-data": _short_data,
    "tampered": _tampered_signature,
}


def damaged(kind: str) -> Callable[[], Path]:
    """A function that gives the small image with a damage."""

    def make() -> Path:
        source = small()

        def bytes_of() -> bytes:
            raw = bytearray(source.read_bytes())
            before = hashlib.sha256(raw).digest()
            _DAMAGE[kind](raw)
            assert hashlib.sha256(raw).digest() != before
            return bytes(raw)

        return _published(f"damaged-{kind}", {"image": bytes_of}, [source.parent.name]) / "image"

    return make
