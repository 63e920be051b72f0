# SPDX-License-Identifier: BSD-2-Clause
"""Disks for scenarios: contents, filesystem, hash tree, signature, and damage done on purpose."""

from __future__ import annotations

import json
import os
import stat
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path

from tests.vm.scenario import Drive, Node, Symlink

from .cache import cache_root, content_hash, publish
from .errors import GuestError
from .images import Image
from .keys import signer
from .packages import Toolbox
from .verity import BLOCK, add_hash_tree

__all__ = ["build_drive"]

_FORMAT = "3"


def _resolve(drive: Drive) -> dict[str, bytes | Symlink | Node]:
    return {
        name: content() if callable(content) else content for name, content in drive.content.items()
    }


def _key(drive: Drive, content: Mapping[str, bytes | Symlink | Node], certificate: bytes) -> str:
    parts: list[bytes | str] = [
        _FORMAT, drive.filesystem, drive.signature, str(drive.corrupt), certificate,
    ]  # fmt: skip
    for name, value in sorted(content.items()):
        parts.append(name)
        if isinstance(value, bytes):
            parts.append(value)
        else:
            parts.append(f"{type(value).__name__} {sorted(vars(value).items())}")
    return content_hash(parts)


def _fill(folder: Path, content: Mapping[str, bytes | Symlink | Node]) -> None:
    for name, value in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(value, Symlink):
            path.symlink_to(value.target)
        elif isinstance(value, Node):
            kind = stat.S_IFBLK if value.kind == "b" else stat.S_IFCHR
            try:
                os.mknod(path, kind | 0o666, os.makedev(value.major, value.minor))
            except PermissionError:
                raise GuestError(f"root is needed to make the device node {name}") from None
            path.chmod(0o666)
        else:
            path.write_bytes(value)
            path.chmod(0o755)


def _filesystem(tools: Toolbox, kind: str, tree: Path, image: Path, identity: str) -> None:
    number = str(uuid.uuid5(uuid.NAMESPACE_OID, identity))
    if kind == "erofs":
        tools.run("mkfs.erofs", "-T0", "-U", number, "--all-root", "--quiet", str(image), str(tree))
    elif kind == "squashfs":
        tools.run(
            "mksquashfs", str(tree), str(image), "-noappend", "-all-root", "-no-progress",
            "-all-time", "0", "-mkfs-time", "0", "-processors", "1", "-quiet", "-comp", "gzip",
        )  # fmt: skip
    else:
        size = sum(path.lstat().st_size for path in tree.rglob("*"))
        image.touch()
        os.truncate(image, max(4 << 20, size * 2) // BLOCK * BLOCK)
        tools.run(
            "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-U", number, "-O", "^has_journal",
            "-E", f"root_owner=0:0,hash_seed={number}", "-d", str(tree), str(image),
        )  # fmt: skip


def build_drive(tools: Toolbox, drive: Drive) -> Image:
    """The image of *drive*, made on first use and kept by its content."""
    content = _resolve(drive)
    key = _key(drive, content, signer(tools).der())
    target = cache_root() / "drives" / key

    def build(folder: Path) -> None:
        image = folder / "image"
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            tree = Path(scratch)
            tree.chmod(0o755)
            _fill(tree, content)
            _filesystem(tools, drive.filesystem, tree, image, key)
        blocks, root_hash = add_hash_tree(tools, image)
        if drive.corrupt:
            with open(image, "r+b") as file:
                file.seek(blocks * BLOCK - 1)
                (last,) = file.read(1)
                file.seek(blocks * BLOCK - 1)
                file.write(bytes([last ^ 1]))
        if drive.signature != "none":
            name = "foreign" if drive.signature == "foreign" else "signer"
            signature = bytearray(signer(tools, name).sign(root_hash))
            if drive.signature == "tampered":
                signature[-1] ^= 1  # the last byte of the RSA signature itself
            (folder / "signature").write_bytes(signature)
        description = {"blocks": blocks, "root_hash": root_hash}
        (folder / "image.json").write_text(json.dumps(description) + "\n")

    publish(target, build, "a drive", keep=200)
    return Image.open(target)
