# SPDX-License-Identifier: BSD-2-Clause
"""Values of ``__kconfig`` externs, from the running kernel or from a configuration given.

A value is (name, offset, size, form, weak); offset and size are bytes in the .kconfig map. Forms:

    version    LINUX_KERNEL_VERSION: KERNEL_VERSION(major, minor, patch)
    cookie     LINUX_HAS_BPF_COOKIE: bpf_get_attach_cookie() is there (5.15)
    wrapper    LINUX_HAS_SYSCALL_WRAPPER: system calls have __x64_sys_ names (4.17)
    bool       y 1, n 0           tristate   n 0, y 1, m 2 (enum libbpf_tristate)
    char       the letter         int, uint  a number, signed or not         text  a string

What is not set in the configuration is missing: 0 for a weak extern, an error for a strong one.
"""

from __future__ import annotations

import posix
import sys

from pybpf.errors import PlanError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Value = tuple[str, int, int, str, bool]

__all__ = ["FORMS", "config_text", "contents", "parse_config", "parse_release", "running_config"]

FORMS = ("version", "cookie", "wrapper", "bool", "tristate", "char", "int", "uint", "text")
_LARGEST = 16 << 20  # bytes; a configuration has some 300,000
_LETTERS = {"n": 0, "y": 1, "m": 2}


def parse_config(text: str) -> dict[str, str]:
    """CONFIG_ names and values of a kernel configuration; comments are left out."""
    out = {}
    for line in text.splitlines():
        if line.startswith("CONFIG_"):
            name, found, value = line.partition("=")
            if found:
                out[name] = value.strip()
    return out


def config_text(raw: bytes) -> str:
    """A configuration's text, also that of /proc/config.gz. Raises PlanError."""
    if raw[:2] == b"\x1f\x8b":
        import zlib

        try:
            raw = zlib.decompressobj(31).decompress(raw, _LARGEST)  # 31: with a gzip header
        except zlib.error as error:
            raise PlanError(f"the kernel's configuration cannot be unpacked: {error}.") from None
    return raw.decode("utf-8", "surrogateescape")


def parse_release(release: str) -> int:
    """ "6.12.107-amd64" → KERNEL_VERSION(6, 12, 107); the last number is at most 255."""
    numbers = []
    for part in release.split(".")[:3]:
        digits = ""
        for char in part:
            if not char.isdigit():
                break
            digits += char
        numbers.append(int(digits or 0))
    major, minor, patch = (*numbers, 0, 0, 0)[:3]
    return major << 16 | minor << 8 | min(patch, 255)


def running_config() -> dict[str, str]:
    """The running kernel's configuration. Raises PlanError if it is nowhere to be had."""
    release = posix.uname().release
    for path in (f"/boot/config-{release}", "/proc/config.gz"):
        try:
            with open(path, "rb") as file:
                raw = file.read()
        except OSError:
            continue
        return parse_config(config_text(raw))
    raise PlanError(
        f"the kernel's configuration is neither in /boot/config-{release} nor in "
        "/proc/config.gz.",
        hint="Give its file when compiling, or make the __kconfig externs __weak.",
    )


def contents(
    values: Sequence[Value],
    version: int | None,
    config: Callable[[], Mapping[str, str]] | None,
    byteorder: str = sys.byteorder,
) -> bytes:
    """The bytes of the .kconfig map.

    version: KERNEL_VERSION number or None; config: gives the configuration when it is first
    needed; None where no kernel is known: its values are then 0. Raises PlanError.
    """
    data = bytearray(max((offset + size for _, offset, size, _, _ in values), default=0))
    loaded: Mapping[str, str] | None = None
    for name, offset, size, form, weak in values:
        if form == "version":
            raw = _number(name, version or 0, size, byteorder, False)
        elif form in ("cookie", "wrapper"):
            need = 0x050F00 if form == "cookie" else 0x041100
            raw = _number(name, int((version or 0) >= need), size, byteorder, False)
        elif config is None:
            continue
        else:
            if loaded is None:
                try:
                    loaded = config()
                except PlanError:
                    if not weak:
                        raise
                    continue
            text = loaded.get(name)
            if text is None:
                if weak:
                    continue
                raise PlanError(
                    "this kernel's configuration has no such value.",
                    hint="Declare it __weak, or give the configuration's file.",
                    extern=name,
                )
            raw = _convert(name, text, size, form, byteorder)
        data[offset : offset + size] = raw
    return bytes(data)


def _convert(name: str, text: str, size: int, form: str, byteorder: str) -> bytes:
    if text[:1] == '"':
        if form != "text":
            raise _misfit(name, text, "no array of char")
        inner = text[1:-1] if text[-1:] == '"' else text[1:]
        return inner.encode("utf-8", "surrogateescape")[: size - 1].ljust(size, b"\0")
    if text in _LETTERS:
        if form == "char":
            return _number(name, ord(text), size, byteorder, False)
        if form == "bool" and text == "m":
            raise _misfit(name, text, "a bool, which cannot say m")
        if form not in ("bool", "tristate"):
            raise _misfit(name, text, "neither bool, char nor enum libbpf_tristate")
        return _number(name, _LETTERS[text], size, byteorder, False)
    try:
        number = int(text, 0)
    except ValueError:
        raise _misfit(name, text, "of no type that could hold it") from None
    if form not in ("int", "uint", "char"):
        raise _misfit(name, text, "no integer")
    return _number(name, number, size, byteorder, form != "uint")


def _number(name: str, number: int, size: int, byteorder: str, signed: bool) -> bytes:
    try:
        return number.to_bytes(size, "little" if byteorder == "little" else "big", signed=signed)
    except OverflowError:
        raise _misfit(name, str(number), f"only {size} bytes wide") from None


def _misfit(name: str, text: str, why: str) -> PlanError:
    return PlanError(f"the kernel's value {text} does not fit: the variable is {why}.", extern=name)
