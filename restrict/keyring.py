# SPDX-License-Identifier: BSD-2-Clause
"""Keys: the ``.dm-verity`` keyring (7.0) and the root hash's signature as a ``user`` key.

Sources: add_key(2), keyctl(2), Documentation/security/keys/core.rst; since 7.0 dm-verity looks
at its own keyring too, once it holds a key and is restricted (dm_verity.keyring_unsealed=1 leaves
it open at load, so that early boot can fill it).
"""

from __future__ import annotations

import errno
import os

from pybpf.sys.syscalls import add_key, keyctl
from restrict.errors import KernelError, RestrictError, system_error

__all__ = [
    "Key",
    "add_certificate",
    "add_user_key",
    "find_keyring",
    "parse_keys",
    "restrict_keyring",
    "unlink",
]

SPEC_PROCESS_KEYRING = -2
_KEYCTL_UNLINK, _KEYCTL_RESTRICT_KEYRING = 9, 29
DM_VERITY = ".dm-verity"
_HEX = "0123456789abcdef"


class Key:
    """One line of /proc/keys."""

    __slots__ = ("description", "flags", "payload", "serial", "type")

    def __init__(self, serial: int, flags: str, type: str, description: str, payload: str) -> None:
        self.serial = serial
        self.flags = flags
        self.type = type
        self.description = description
        self.payload = payload


def parse_keys(text: str) -> list[Key]:
    """/proc/keys: serial flags usage timeout permissions uid gid type description: summary.

    A description, which any user gives, is shown as it is, line breaks and all: what is no line of
    the table is passed over, and one that looks like it may be a user's.
    """
    found = []
    for line in text.split("\n"):
        words = line.split(None, 8)
        if len(words) < 8 or len(words[0]) != 8 or any(c not in _HEX for c in words[0]):
            continue
        # The type column is nine wide and may run into the description ("asymmetri Debian…"),
        # so a description may contain colons: the summary is after the last one.
        rest = words[8] if len(words) > 8 else ""
        description, _, payload = rest.rpartition(":")
        found.append(
            Key(int(words[0], 16), words[1], words[7], description or rest, payload.strip())
        )
    return found


def _keys(proc: str = "/proc") -> list[Key]:
    path = f"{proc}/keys"
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return parse_keys(file.read())
    except OSError as e:
        hint = "The kernel needs CONFIG_KEYS and a mounted procfs."
        raise system_error(
            "the list of keys cannot be read", e, "open", hint=hint, file=path
        ) from None


def find_keyring(name: str = DM_VERITY, *, proc: str = "/proc") -> Key | None:
    """A system keyring by its name; None where the kernel has none (before 7.0: .dm-verity)."""
    for key in _keys(proc):
        if key.type == "keyring" and key.description == name:
            return key
    return None


def add_certificate(der: bytes, ring: int, *, source: str = "") -> int:
    """Put an X.509 certificate (DER) into a keyring; returns the key's serial."""
    if der[:2] != b"\x30\x82":
        raise RestrictError(
            "this is no X.509 certificate in DER form.",
            hint="Convert it: openssl x509 -in CERT.pem -outform DER.",
            certificate=source or None,
        )
    try:
        # An empty description: the kernel takes the certificate's own.
        return add_key("asymmetric", "", der, ring)
    except KernelError as e:
        code = e.errno
        raise KernelError(
            f"the kernel does not take the certificate: {os.strerror(code)}.",
            errno=code,
            call="add_key",
            certificate=source or None,
            keyring=ring,
            hint={
                errno.EPERM: "The keyring is restricted already, or does not let this process "
                "write.",
                errno.EACCES: "The keyring does not let this process write: load dm-verity with "
                "keyring_unsealed=1.",
                errno.EBADMSG: "It cannot be parsed as X.509.",
                errno.ENOPKG: "It uses an algorithm that this kernel lacks.",
            }.get(code),
        ) from None


def restrict_keyring(ring: int) -> bool:
    """Let nothing be added to the keyring any more (KEYCTL_RESTRICT_KEYRING, 4.12); False: it was
    so already."""
    try:
        keyctl(_KEYCTL_RESTRICT_KEYRING, ring, 0, 0)
    except KernelError as e:
        code = e.errno
        if code == errno.EEXIST:
            return False
        raise KernelError(
            f"the keyring cannot be restricted: {os.strerror(code)}.",
            errno=code,
            call="keyctl RESTRICT_KEYRING",
            keyring=ring,
        ) from None
    return True


def add_user_key(description: str, payload: bytes, ring: int = SPEC_PROCESS_KEYRING) -> int:
    """A ``user`` key that dm-verity finds by its description when this process loads a table."""
    try:
        return add_key("user", description, payload, ring)
    except KernelError as e:
        code = e.errno
        raise KernelError(
            f"{os.strerror(code)}.",
            errno=code,
            call="add_key",
            key=description,
            size=len(payload),
            hint="A user key holds 1 to 32767 bytes." if code == errno.EINVAL else None,
        ) from None


def unlink(serial: int, ring: int = SPEC_PROCESS_KEYRING) -> None:
    """Take a key out of a keyring."""
    try:
        keyctl(_KEYCTL_UNLINK, serial, ring)
    except KernelError as e:
        code = e.errno
        raise KernelError(
            f"{os.strerror(code)}.", errno=code, call="keyctl UNLINK", key=serial
        ) from None
