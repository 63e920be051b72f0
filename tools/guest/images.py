# SPDX-License-Identifier: BSD-2-Clause
"""Disk images: erofs with a dm-verity hash tree behind it and a signature of the root hash."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from pathlib import Path

from .cache import publish
from .keys import signer
from .packages import Toolbox
from .verity import BLOCK, hash_tree

__all__ = ["Image", "make_image"]

_SALT = bytes.fromhex("5e" * 32)


@dataclass(frozen=True)
class Image:
    """An image and what activates it.

    *blocks* is the number of 4096-byte data blocks; the hash tree starts at that block.
    """

    path: Path
    blocks: int
    root_hash: str
    salt: str
    signature: bytes | None

    def describe(self) -> dict[str, object]:
        """What the guest must know to activate the image, ready for JSON."""
        return {
            "blocks": self.blocks,
            "root_hash": self.root_hash,
            "salt": self.salt,
            "signature": self.signature.hex() if self.signature is not None else None,
        }


def make_image(
    tools: Toolbox, tree: Path, target: Path, what: str, key: str | None = "signer"
) -> Image:
    """Make the image of *tree* in the folder *target*, signed by *key* (None: unsigned).

    Deterministic: equal trees give equal images and root hashes.
    """

    def build(folder: Path) -> None:
        image = folder / "image"
        tools.run(
            "mkfs.erofs", "-T0", "-U", str(uuid.uuid5(uuid.NAMESPACE_OID, target.name)),
            "--all-root", "--quiet", str(image), str(tree),
        )  # fmt: skip
        data = image.read_bytes()
        data += bytes(-len(data) % BLOCK)
        tree_bytes, root_hash = hash_tree(data, _SALT)
        with open(image, "wb") as out:
            out.write(data)
            out.write(tree_bytes)
        description = {"blocks": len(data) // BLOCK, "root_hash": root_hash}
        (folder / "image.json").write_text(json.dumps(description) + "\n")
        if key is not None:
            (folder / "signature").write_bytes(signer(tools, key).sign(root_hash))

    publish(target, build, what)
    description = json.loads((target / "image.json").read_text())
    signature = target / "signature"
    return Image(
        target / "image",
        description["blocks"],
        description["root_hash"],
        _SALT.hex(),
        signature.read_bytes() if signature.is_file() else None,
    )
