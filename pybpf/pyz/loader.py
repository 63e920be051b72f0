# SPDX-License-Identifier: BSD-2-Clause
"""The second stage of a self-running bundle: gives its modules to the interpreter, and goes.

It travels in the bundle, before any other module of pybpf is there, and imports none itself.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType
    from typing import Any, NoReturn

    Body = CodeType | str

__all__ = ["start"]


def start(
    modules: tuple[tuple[str, bool, Body], ...],
    section: Callable[[int], Any],
    later: tuple[int, ...],
    plan: bytes,
    name: str,
) -> NoReturn:
    """Run the Plan and end the process.

    modules: (name, whether it is a package, code or source), in the order in which they import
    each other; the first is this one. section(n) for n in later: {name: code or source} of those
    that are imported on demand. name: the bundle's file, for messages.
    """
    from posix import _exit

    if sys.version_info < (3, 11):
        sys.stderr.write(f"{name}: a bundle needs Python 3.11 or newer.\n")
        _exit(1)
    known = sys.modules
    kind = type(sys)
    finder = _Finder(section, later)
    for full, package, body in modules[1:]:
        module = known[full] = kind(full)
        parent, _, last = full.rpartition(".")
        if package:
            module.__path__ = []
        if parent:
            setattr(known[parent], last, module)
        exec(body, module.__dict__)
        if not package:
            module.__dict__["__getattr__"] = _rest_of(finder, module)
    sys.meta_path.insert(0, finder)
    status = known["pybpf.plan.main"].main(plan, sys.argv[1:], name)
    # The interpreter is not torn down: its end takes as long as loading a small object.
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = status or 1
    _exit(status)


def _rest_of(finder: _Finder, module: Any) -> Callable[[str], Any]:
    """A module's __getattr__ (PEP 562), which brings what was set apart from it, before the
    module's own."""
    own = module.__dict__.get("__getattr__")

    def find(name: str) -> Any:
        if name[:2] != "__" and "__rest__" not in module.__dict__:
            module.__rest__ = body = finder.body(module.__name__ + ":rest")
            if body is not None:
                exec(body, module.__dict__)
        if name in module.__dict__:
            return module.__dict__[name]
        if own is None:
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        return own(name)

    return find


class _Finder:
    """Finds the modules that are imported on demand (importlib's protocol of finder and loader)."""

    def __init__(self, section: Callable[[int], Any], sections: tuple[int, ...]) -> None:
        self._section = section
        self._sections = list(sections)
        self._bodies: dict[str, Body] = {}

    def body(self, name: str) -> Body | None:
        while name not in self._bodies:
            if not self._sections:
                return None
            # What an earlier section has stays: it is byte code.
            self._bodies = {**self._section(self._sections.pop(0)), **self._bodies}
        return self._bodies[name]

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> Any:
        if not name.startswith("pybpf.") or self.body(name) is None:
            return None
        from _frozen_importlib import ModuleSpec  # type: ignore[import-not-found, unused-ignore]

        return ModuleSpec(name, self)  # type: ignore[arg-type, unused-ignore]

    def create_module(self, _spec: object) -> None:
        return None

    def exec_module(self, module: Any) -> None:
        exec(self._bodies[module.__name__], module.__dict__)
