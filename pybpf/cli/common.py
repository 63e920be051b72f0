# SPDX-License-Identifier: BSD-2-Clause
"""What several commands share: reading objects, editing specs from options, printing.

What reads objects is imported when there is one to read: running a Plan needs none of it.
"""

from __future__ import annotations

import sys

from pybpf.errors import FormatError, PybpfError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping
    from typing import Any

    from pybpf.compiler.target import Target
    from pybpf.spec import ObjectSpec

__all__ = [
    "add_edits",
    "add_target",
    "edit",
    "emit",
    "error_text",
    "legible",
    "plain",
    "read_object",
    "target_of",
    "warn",
]


def emit(value: Mapping[str, Any]) -> None:
    """One line of JSON."""
    import json

    print(json.dumps(value, ensure_ascii=False), flush=True)


def plain(value: Any) -> Any:
    """JSON has no bytes: they become hex."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def legible(value: Any) -> Any:
    """As ``plain``, for people: an array of char that holds text is told as text."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        text = bytes(value).rstrip(b"\0").decode("latin-1")
        return text if text and text.isascii() and text.isprintable() else bytes(value).hex()
    if isinstance(value, dict):
        return {str(k): legible(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [legible(v) for v in value]
    return value


def warn(command: str, text: str) -> None:
    """One paragraph on standard error."""
    print(f"pybpf {command}: {text}", file=sys.stderr)


def error_text(error: PybpfError | OSError) -> str:
    """An error as one paragraph."""
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    return str(error)


def read_object(path: str) -> ObjectSpec:
    """The object at ``path``; what is damaged and left out goes to standard error. Raises
    FormatError, also where the file cannot be read."""
    from pybpf.cli.quick import import_pyelftools

    import_pyelftools()
    from pybpf.elf.reader import read

    try:
        spec = read(path)
    except OSError as exc:
        raise FormatError(f"cannot be read: {exc.strerror}.", object=path) from exc
    for damage in spec.notes["damaged"]:
        print(f"pybpf: {path}: {damage}", file=sys.stderr)
    return spec


def add_target(parser: argparse.ArgumentParser) -> None:
    """--btf FILE and --config FILE: a kernel other than the running one."""
    parser.add_argument(
        "--btf", metavar="FILE", help="raw vmlinux BTF of the kernel (default: the running one)"
    )
    parser.add_argument(
        "--config", metavar="FILE", help="that kernel's configuration, for __kconfig externs"
    )


def target_of(args: argparse.Namespace) -> Target:
    """The kernel that --btf names, or the running one."""
    from pybpf.compiler.target import Target

    if args.btf is None:
        if args.config is not None:
            raise UsageError("--config goes with --btf: the running kernel's own is read.")
        return Target.of_running()
    return Target.from_btf(args.btf, config=args.config)


def add_edits(parser: argparse.ArgumentParser) -> None:
    """Options that edit the spec before it is compiled."""
    parser.add_argument(
        "--set-max-entries",
        metavar="MAP=N",
        action="append",
        default=[],
        help="change a map's size",
    )
    parser.add_argument(
        "--set",
        metavar="VAR=VALUE",
        action="append",
        default=[],
        help="set a global variable (.rodata, .data, .bss): a number, true, false, text for an "
        "array of char, or JSON for arrays and structs",
    )
    parser.add_argument(
        "--disable",
        metavar="PROGRAM",
        action="append",
        default=[],
        help="do not load a program",
    )


def _pairs(options: Iterable[str], what: str) -> list[tuple[str, str]]:
    out = []
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise UsageError(f"{what} takes NAME=VALUE, not {option!r}.")
        out.append((name, value))
    return out


def edit(spec: ObjectSpec, args: argparse.Namespace) -> ObjectSpec:
    """Apply the options of ``add_edits``. Raises UsageError."""
    for name, text in _pairs(args.set_max_entries, "--set-max-entries"):
        try:
            number = int(text, 0)
        except ValueError:
            raise UsageError(f"--set-max-entries {name}: {text!r} is no number.") from None
        if not 0 <= number < 1 << 32:
            raise UsageError(f"--set-max-entries {name}: {number} does not fit into 32 bits.")
        spec = spec.with_map(name, max_entries=number)
    for name in args.disable:
        spec = spec.with_program(name, autoload=False)
    values = {name: _value(spec, name, text) for name, text in _pairs(args.set, "--set")}
    return spec.with_variables(values) if values else spec


def _value(spec: ObjectSpec, name: str, text: str) -> object:
    from pybpf.btf.consts import KIND_ARRAY, KIND_INT

    variable = spec.variable(name)
    if text in ("true", "false"):
        return text == "true"
    try:
        return int(text, 0)
    except ValueError:
        pass
    if spec.btf is not None and variable.type_id:
        found = spec.btf.skip(variable.type_id)
        if found.kind == KIND_ARRAY:
            element = spec.btf.skip(found.array.type)
            if element.kind == KIND_INT and element.size_or_type == 1 and text[:1] != "[":
                return text.encode()
    if text[:1] in "[{":
        import json

        try:
            return json.loads(text)
        except ValueError as exc:
            raise UsageError(f"--set {name}: {text!r} is no JSON: {exc}.") from None
    return text
