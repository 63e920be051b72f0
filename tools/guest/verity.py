# SPDX-License-Identifier: BSD-2-Clause
"""The dm-verity hash tree, as ``veritysetup format --no-superblock`` writes it.

Format 1 (Documentation/admin-guide/device-mapper/verity.rst): every digest is
``sha256(salt || block)``; 128 digests fill a 4096-byte hash block; levels are stored from the
root downwards.
"""

from __future__ import annotations

import hashlib

__all__ = ["BLOCK", "hash_tree"]

BLOCK = 4096
_DIGESTS = BLOCK // 32


def hash_tree(data: bytes, salt: bytes) -> tuple[bytes, str]:
    """The hash tree over *data* and its root hash, hexadecimal.

    Raises:
        ValueError: *data* is not a whole number of at least two 4096-byte blocks.
    """
    if len(data) % BLOCK or len(data) < 2 * BLOCK:
        raise ValueError(f"{len(data)} bytes are not two or more blocks of {BLOCK}")
    seed = hashlib.sha256(salt)

    def digests(level: bytes) -> bytes:
        view = memoryview(level)
        out = []
        for offset in range(0, len(level), BLOCK):
            digest = seed.copy()
            digest.update(view[offset : offset + BLOCK])
            out.append(digest.digest())
        raw = b"".join(out)
        return raw + bytes(-len(raw) % BLOCK)

    levels = [digests(data)]
    while len(levels[-1]) > BLOCK:
        levels.append(digests(levels[-1]))
    root = seed.copy()
    root.update(levels[-1])
    return b"".join(reversed(levels)), root.hexdigest()
