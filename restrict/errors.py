# SPDX-License-Identifier: BSD-2-Clause
"""The exceptions of restrict, on top of those of pybpf.

Imports nothing but pybpf.errors: PID 1 in an initramfs uses it.
"""

from __future__ import annotations

from pybpf.errors import KernelError, PybpfError

__all__ = [
    "ConfigError",
    "HandoverError",
    "ImageError",
    "KernelError",
    "LockoutError",
    "PreflightError",
    "RestrictError",
    "describe",
    "printable",
    "system_error",
]


class RestrictError(PybpfError):
    """Base of what restrict itself raises (kernel refusals are KernelError)."""


class ConfigError(RestrictError):
    """A configuration file or an option says something that cannot be used."""


class ImageError(RestrictError):
    """A disk or an image is not what it must be: its partition table, hash tree or signature."""


class PreflightError(RestrictError):
    """A prerequisite of enforcement is missing; nothing was loaded."""


class LockoutError(RestrictError):
    """Enforcement would take the machine's own programs away; nothing was armed."""


class HandoverError(RestrictError):
    """Inherited file descriptors are not the complete policy that was handed over."""


def system_error(
    words: str, error: OSError, call: str, *, hint: str | None = None, **where: object
) -> KernelError:
    """The KernelError of a call that the standard library made: "``words``: its reason."."""
    return KernelError(
        f"{words}: {error.strerror or error}.",
        errno=error.errno or 0,
        call=call,
        hint=hint,
        **where,
    )


def printable(text: str) -> str:
    """A name that somebody else chose, for people: without what a terminal obeys."""
    return text if text.isprintable() else repr(text)[1:-1]


def describe(exc: BaseException) -> str:
    """One line for the console: ours says everything itself, others get their type's name."""
    if isinstance(exc, PybpfError):
        return str(exc)
    if isinstance(exc, OSError):
        name = f" {exc.filename!r}" if exc.filename is not None else ""
        return f"{exc.strerror or exc}{name}"
    return f"{type(exc).__name__}: {exc}"
