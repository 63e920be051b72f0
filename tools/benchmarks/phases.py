# SPDX-License-Identifier: BSD-2-Clause
"""Where loading spends its time: the phases, and a stopwatch that one of them holds at a time.

The functions at the borders between phases are wrapped. Entering one stops the clock of the
phase that called it and starts its own; leaving it turns that round, so that each millisecond
counts once, for the innermost phase. The wrappers cost some microseconds a call: for shares, not
for the ratios, which are measured without them.

This module runs in the measured process too and imports nothing heavy.
"""

from __future__ import annotations

import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["BORDERS", "PHASES", "Stopwatch", "install", "resolve"]

#: Phases in the order of a load; "rest" is what no border covers.
PHASES = ("thaw", "ELF", "BTF", "relocation", "compile", "run", "bpf(2)")

#: "module:name" or "module:class.name" → the phase that it begins.
BORDERS = {
    "pybpf.plan.frozen:from_bytes": "thaw",
    "pybpf.elf.reader:read": "ELF",
    "pybpf.btf.model:Btf.__init__": "BTF",
    "pybpf.btf.model:Btf.open": "BTF",
    "pybpf.btf.model:Btf.candidates": "BTF",
    "pybpf.btf.model:Btf.find": "BTF",
    "pybpf.btf.ext:BtfExt.parse": "BTF",
    "pybpf.btf.layout:layout": "BTF",
    "pybpf.elf.fixup:complete": "BTF",
    "pybpf.elf.fixup:loadable": "BTF",
    "pybpf.compiler.core:Bodies.body": "relocation",
    "pybpf.reloc.externs:resolve": "relocation",
    "pybpf.reloc.finish:finish": "relocation",
    "pybpf.reloc.link:link": "relocation",
    "pybpf.compiler.compile:compile": "compile",
    "pybpf.plan.run:run": "run",
    "pybpf.sys.bpf:call": "bpf(2)",
}


class Stopwatch:
    """Nanoseconds and calls by phase, of nested phases the inner ones only.

    clock: gives nanoseconds; a test gives its own.
    """

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self.nanoseconds: dict[str, int] = {}
        self.calls: dict[str, int] = {}
        self._clock = clock
        self._stack = ["rest"]
        self._since = clock()

    def enter(self, phase: str) -> None:
        """The phase begins, inside the present one."""
        self._charge()
        self._stack.append(phase)
        self.calls[phase] = self.calls.get(phase, 0) + 1

    def leave(self) -> None:
        """The present phase ends; the one around it goes on."""
        self._charge()
        self._stack.pop()

    def stop(self) -> None:
        """Charge what has passed since the last change."""
        self._charge()

    def _charge(self) -> None:
        now = self._clock()
        phase = self._stack[-1]
        self.nanoseconds[phase] = self.nanoseconds.get(phase, 0) + now - self._since
        self._since = now

    def wrap(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        """The function, as the phase."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.enter(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return timed


def resolve(border: str) -> tuple[object, str, Any]:
    """(what holds it, its name there, the function as it is held) of a border; imports its module.

    Raises ImportError or KeyError where the product has no such function any more.
    """
    module_name, _, path = border.partition(":")
    __import__(module_name)
    holder: object = sys.modules[module_name]
    *outer, name = path.split(".")
    for part in outer:
        holder = vars(holder)[part]
    return holder, name, vars(holder)[name]


def install(stopwatch: Stopwatch, borders: dict[str, str]) -> None:
    """Wrap the borders, in their modules and wherever else they were imported to.

    All modules that the measured code needs must have been imported before.
    """
    replaced: dict[int, Callable[..., Any]] = {}
    for border, phase in borders.items():
        holder, name, held = resolve(border)
        if isinstance(held, (classmethod, staticmethod)):
            setattr(holder, name, type(held)(stopwatch.wrap(held.__func__, phase)))
        else:
            setattr(holder, name, stopwatch.wrap(held, phase))
            replaced[id(held)] = getattr(holder, name)
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] == "pybpf":
            for name, value in list(vars(module).items()):
                if id(value) in replaced:
                    setattr(module, name, replaced[id(value)])
