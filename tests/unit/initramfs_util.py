# SPDX-License-Identifier: BSD-2-Clause
"""A reader of newc archives for tests, written from the format's description."""

from __future__ import annotations

__all__ = ["unpack"]

Found = tuple[int, bytes, tuple[int, int], int]


def unpack(raw: bytes) -> dict[str, Found]:
    """{name: (mode, data, device, mtime)}; fails unless owner is root and the end is right."""
    found: dict[str, Found] = {}
    at = 0
    while True:
        assert raw[at : at + 6] == b"070701"
        fields = [int(raw[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        _inode, mode, uid, gid, _links, mtime, size, _ma, _mi, major, minor, length, check = fields
        assert (uid, gid, check) == (0, 0, 0)
        name = raw[at + 110 : at + 110 + length]
        assert name[-1:] == b"\0"
        start = at + 110 + length + -(110 + length) % 4
        data = raw[start : start + size]
        at = start + size + -size % 4
        if name == b"TRAILER!!!\0":
            assert not any(raw[at:])
            return found
        found[name[:-1].decode()] = mode, data, (major, minor), mtime
