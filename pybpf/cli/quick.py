# SPDX-License-Identifier: BSD-2-Clause
"""Importing pyelftools without what reading an object never uses.

pyelftools' parser brings along ``typing`` (and ``re`` and ``enum`` beneath it) for its type hints,
which nothing evaluates, and its debugger's and printer's modules. They are more than half of what
importing it costs, and a quarter of the time from an object to its programs in the kernel. So
stand-ins take their places in ``sys.modules`` while it is imported, and only then: whoever imports
one of them afterwards gets the module itself, and so does pyelftools when it calls something of
one. Of pyelftools nothing is replaced.

Only for a process that is the command's own: other threads would see the stand-ins.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any
else:
    ModuleType = type(sys)

__all__ = ["import_pyelftools"]

#: Of these it calls functions, in debugging, printing and warning only.
_CALLED = ("inspect", "pdb", "pprint", "traceback", "warnings")

own_process = False  # set by pybpf.cli.console


def _real(name: str) -> Any:
    from importlib import import_module

    if isinstance(sys.modules.get(name), _StandIn):
        del sys.modules[name]
    return import_module(name)


class _StandIn(ModuleType):
    """A module whose functions import it when they are called."""

    def __getattr__(self, name: str) -> Any:
        if name[:2] == "__":  # the import statement itself asks for some
            raise AttributeError(name)
        return self._get(name)

    def _get(self, name: str) -> Any:
        def later(*args: Any, **options: Any) -> Any:
            return getattr(_real(self.__name__), name)(*args, **options)

        return later


class _Hint:
    """What stands in type hints only, or is subscripted for them as a base class."""

    __slots__ = ()

    def __class_getitem__(cls, item: object) -> type[_Hint]:
        return cls

    def __init_subclass__(cls, total: bool = True) -> None:
        """total: as of a TypedDict."""


class _Typing(_StandIn):
    """typing as far as the hints of pyelftools 0.33 go; all else of it is the real one's."""

    def __init__(self) -> None:
        super().__init__("typing")
        for name in ("Any", "Final", "Generic", "IO", "Literal", "NoReturn", "TypedDict"):
            setattr(self, name, _Hint)
        self.TYPE_CHECKING = False
        self.TypeVar = str
        self.overload = lambda function: function

    def _get(self, name: str) -> Any:
        return getattr(_real(self.__name__), name)


def import_pyelftools() -> None:
    """Import what ``pybpf.elf.image`` needs of pyelftools, as quickly as this process allows.

    Where it cannot be done so nothing is imported, and the import in that module tells why.
    """
    if not own_process or "elftools" in sys.modules:
        return
    stand_ins = {"typing": _Typing(), **{name: _StandIn(name) for name in _CALLED}}
    missing = stand_ins.keys() - sys.modules.keys()
    sys.modules.update((name, stand_ins[name]) for name in missing)
    try:
        import elftools.common.utils
        import elftools.elf.structs  # noqa: F401
    except Exception:
        # There is none, or one that does more with these modules: then as everybody imports it.
        for name in [name for name in sys.modules if name.partition(".")[0] == "elftools"]:
            del sys.modules[name]
    finally:
        for name in missing:
            if isinstance(sys.modules.get(name), _StandIn):
                del sys.modules[name]
