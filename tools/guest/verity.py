# SPDX-License-Identifier: BSD-2-Clause
"""A dm-verity hash tree behind the data of an image, by veritysetup."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .errors import GuestError
from .packages import Toolbox

__all__ = ["BLOCK", "SALT", "add_hash_tree"]

BLOCK = 4096
SALT = "5e" * 32  # fixed: equal data must give equal root hashes


def add_hash_tree(tools: Toolbox, image: Path) -> tuple[int, str]:
    """Pad *image* to whole blocks and append its hash tree, without a superblock.

    Gives the number of data blocks, which is also where the tree starts, and the root hash.

    Raises:
        GuestError: veritysetup failed.
    """
    blocks = max(2, -(-image.stat().st_size // BLOCK))
    os.truncate(image, blocks * BLOCK)
    answer = tools.run(
        "veritysetup", "format", "--no-superblock", f"--salt={SALT}", "--hash=sha256",
        f"--data-block-size={BLOCK}", f"--hash-block-size={BLOCK}", f"--data-blocks={blocks}",
        f"--hash-offset={blocks * BLOCK}", str(image), str(image),
    ).decode()  # fmt: skip
    match = re.search(r"^Root hash:\s*([0-9a-f]{64})$", answer, re.MULTILINE)
    if match is None:
        raise GuestError(f"veritysetup gave no root hash: {answer.strip()}")
    return blocks, match.group(1)
