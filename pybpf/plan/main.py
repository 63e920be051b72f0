# SPDX-License-Identifier: BSD-2-Clause
"""What a bundle does when it is run: load, attach, stay, and take everything back.

``main`` is the program of a self-running bundle (``pybpf.pyz``); ``pybpf run`` shares
``execute``. Arguments are read by hand and JSON is written by hand: argparse, signal and json
would cost more than the loading itself.
"""

from __future__ import annotations

import sys

from pybpf.errors import FormatError, PybpfError, UsageError
from pybpf.plan.frozen import from_bytes
from pybpf.plan.run import run
from pybpf.sys import bpf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from pybpf.plan.live import Object
    from pybpf.plan.ops import Plan

__all__ = ["HELP", "Help", "arguments", "execute", "main"]

_INT, _TERM = 2, 15  # signal(7)

HELP = """\
usage: {name} [--no-attach] [--seconds S] [--pin DIR] [--json]

A BPF object and what loads it: loads its programs, attaches them, and stays until SIGINT or
SIGTERM; then everything is taken back.

  --no-attach  load only, and end at once (with --seconds: after that time)
  --seconds S  end after S seconds instead of on a signal
  --pin DIR    pin the links in this directory of a bpf filesystem, and end: programs stay attached
  --json       tell what is live as a line of JSON
"""


def execute(
    plan: Plan,
    *,
    attach: bool = True,
    seconds: float | None = None,
    pin: str | None = None,
    as_json: bool = False,
    leave: bool = False,
) -> int:
    """Run ``plan``, tell what is live, stay as asked, and take everything back; the exit status.

    attach False: load only, and return at once unless ``seconds`` are given. seconds: stay so
    long at most. pin: a directory of a bpf filesystem for the links; then, as where the Plan
    itself pins every link, there is nothing to stay for. SIGINT and SIGTERM end the stay.
    leave: this process ends right behind it, so that the kernel may close what is open.

    Raises KernelError, VerifierError, SymbolNotFoundError, PlanError or UsageError; nothing is
    left behind then, and no pin.
    """
    import _signal  # type: ignore[import-not-found, unused-ignore]  # signal imports enum

    if pin is not None and not attach:
        raise UsageError("--pin pins links, and --no-attach makes none.")
    wanted = (_INT, _TERM)
    before = _signal.pthread_sigmask(0, wanted)  # SIG_BLOCK: they wait until everything stands
    try:
        with _Left(run(plan)) if leave else run(plan) as live:
            pins: list[str] = []
            try:
                if attach:
                    live.attach()
                if pin is not None:
                    _pin(live, pin, pins)
                _tell(live, as_json)
            except BaseException:
                _unpin(pins)
                raise
            if seconds is not None:
                _signal.sigtimedwait(wanted, seconds)
            elif attach and not _stays(live, pins):
                _signal.sigwait(wanted)
    finally:
        _signal.pthread_sigmask(2, before)  # SIG_SETMASK
    return 0


class _Left:
    """What is live, never closed by this process."""

    kept: list[Object] = []

    def __init__(self, live: Object) -> None:
        self.kept.append(live)

    def __enter__(self) -> Object:
        return self.kept[-1]

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.kept.pop().close()


def _stays(live: Object, pins: list[str]) -> bool:
    """Whether what is attached stays without this process."""
    if pins:
        return True
    from pybpf.plan import ops as _ops

    pinned = {op.src for op in live.plan.attach if type(op) is _ops.Pin}
    slots = [live.plan.links[name] for name in live.links if name in live.plan.links]
    return bool(slots) and pinned.issuperset(slots)


def _pin(live: Object, folder: str, pins: list[str]) -> None:
    if not live.links:
        raise UsageError(
            "there is no link to pin: no program says in its section what it attaches to.",
            object=live.name,
        )
    for name, link in live.links.items():
        path = f"{folder}/{name.replace('.', '_')}"  # bpffs allows no dots
        link.pin(path)
        pins.append(path)


def _unpin(pins: Iterable[str]) -> None:
    from posix import unlink

    for path in pins:
        try:
            unlink(path)
        except OSError:
            continue


def _tell(live: Object, as_json: bool) -> None:
    if as_json:
        text = "".join(
            f', "{part}": {{'
            + ", ".join(f"{_quote(name)}: {_ident(fd)}" for name, fd in fds.items())
            + "}"
            for part, fds in live.fds().items()
        )
        text = f'{{"object": {_quote(live.name)}{text}}}\n'
    else:
        maps, programs, links = map(len, live.fds().values())
        text = f"{live.name}: {programs} programs loaded, {links} attached, {maps} maps\n"
    sys.stdout.write(text)
    sys.stdout.flush()


def _ident(fd: int) -> int:
    """The id of a map, program or link: the second word of each one's information (4.13)."""
    info = bytearray(8)
    bpf.obj_get_info(fd, info)
    return int.from_bytes(info[4:], sys.byteorder)


def _quote(text: str) -> str:
    """A string of JSON, in ASCII."""
    out = ['"']
    for char in text:
        code = ord(char)
        if char in '"\\':
            out.append("\\" + char)
        elif 32 <= code < 127:
            out.append(char)
        elif code < 1 << 16:
            out.append(f"\\u{code:04x}")
        else:
            code -= 1 << 16
            out.append(f"\\u{0xD800 | code >> 10:04x}\\u{0xDC00 | code & 0x3FF:04x}")
    out.append('"')
    return "".join(out)


class Help(Exception):
    """--help was asked for."""


def arguments(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """(keyword arguments of ``execute``, the words that are no options).

    Raises UsageError, and Help where that is asked for.
    """
    found: dict[str, Any] = {}
    others: list[str] = []
    rest = list(words)
    while rest:
        whole = rest.pop(0)
        word, equals, value = whole.partition("=")
        if word[:1] != "-":
            others.append(whole)
            continue
        if word in ("-h", "--help"):
            raise Help
        if word in ("--no-attach", "--json") and not equals:
            found.update({"attach": False} if word == "--no-attach" else {"as_json": True})
            continue
        if word not in ("--seconds", "--pin"):
            raise UsageError(f"unknown argument {word!r}.", hint="See --help.")
        if not equals:
            if not rest:
                raise UsageError(f"{word} needs a value.", hint="See --help.")
            value = rest.pop(0)
        if word == "--pin":
            found["pin"] = value
            continue
        try:
            seconds = found["seconds"] = float(value)
        except ValueError:
            raise UsageError(f"--seconds takes a number, not {value!r}.") from None
        if not 0 <= seconds < 1 << 31:  # also no NaN
            raise UsageError(f"--seconds takes a number of seconds, not {value!r}.")
    return found, others


def main(data: bytes, words: Sequence[str], name: str) -> int:
    """Run the frozen Plan ``data`` as ``words`` ask; messages begin with ``name``.

    The exit status: 0 done, 1 refused, 2 wrong usage. Raises nothing of pybpf.
    """
    try:
        found, others = arguments(words)
        if others:
            raise UsageError(f"unknown argument {others[0]!r}.", hint="See --help.")
        try:
            # The bundle's own check sum has been compared by its stub.
            plan = from_bytes(data, trusted=True)
        except FormatError as error:
            raise error.at(file=name)  # noqa: B904
        return execute(plan, leave=True, **found)
    except Help:
        sys.stdout.write(HELP.format(name=name))
        return 0
    except PybpfError as error:
        sys.stderr.write(f"{_printable(name)}: {_printable(str(error))}\n")
        for note in getattr(error, "__notes__", ()):
            sys.stderr.write(f"{_printable(note)}\n")
        return 2 if isinstance(error, UsageError) else 1
    except BrokenPipeError:
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"{_printable(name)}: {_printable(where)}{error.strerror}.\n")
        return 1
    except MemoryError:
        sys.stderr.write(f"{_printable(name)}: out of memory.\n")
        return 1


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
