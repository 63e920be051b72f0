# SPDX-License-Identifier: BSD-2-Clause
"""Disk images: erofs with a dm-verity hash tree behind it and a signature of the root hash."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from .cache import cache_root, content_hash, publish, scratch, there
from .keys import signer
from .packages import Toolbox
from .trees import project_tree, system_tree
from .verity import SALT, add_hash_tree

__all__ = ["Image", "combined_image", "make_image"]


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

    @classmethod
    def open(cls, folder: Path) -> Image:
        """The image that was built in *folder*."""
        description = json.loads((folder / "image.json").read_text())
        signature = folder / "signature"
        return cls(
            folder / "image",
            description["blocks"],
            description["root_hash"],
            SALT,
            signature.read_bytes() if signature.is_file() else None,
        )

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
        blocks, root_hash = add_hash_tree(tools, image)
        description = {"blocks": blocks, "root_hash": root_hash}
        (folder / "image.json").write_text(json.dumps(description) + "\n")
        if key is not None:
            (folder / "signature").write_bytes(signer(tools, key).sign(root_hash))

    publish(target, build, what, keep=8)  # there is one for each state of the work tree
    return Image.open(target)


def combined_image(tools: Toolbox) -> Image:
    """The system with the project in it, as one signed image: the root of guests whose own
    initramfs knows of one root only."""
    system, project = system_tree(tools), project_tree(tools)
    target = cache_root() / "images" / f"root-{content_hash([project.name, system.name])}"
    if there(target):
        return Image.open(target)
    with scratch("root") as folder:
        tree = folder / "root"
        shutil.copytree(system, tree, symlinks=True, copy_function=os.link)
        shutil.copytree(project, tree / "project", dirs_exist_ok=True, copy_function=os.link)
        return make_image(tools, tree, target, "the image of the system with the project")
