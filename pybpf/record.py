# SPDX-License-Identifier: BSD-2-Clause
"""Records: tuples with named fields, and frozen objects, made without generating code.

``typing.NamedTuple`` and ``dataclasses`` compile the methods of every class from source text
when it is defined, which took a third of the time that reading an object's module took
(25 of 70 ms CPU). The two bases here do the same with methods that all classes share. Classes are
written as with the standard ones, and type checkers take them for those: modules write

    if TYPE_CHECKING:
        from typing import NamedTuple
    else:
        from pybpf.record import NamedTuple

This module imports nothing but what the interpreter has loaded anyway.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self, TypeVar, dataclass_transform

    T = TypeVar("T", bound="Frozen")

    def _tuplegetter(index: int, doc: str) -> Any: ...
else:
    from _collections import _tuplegetter  # what namedtuple() uses: a C descriptor


    def dataclass_transform(**_options):  # noqa: ANN003, ANN201
        """For type checkers only: leaves the class alone."""
        return lambda found: found


__all__ = ["Frozen", "NamedTuple", "replace"]


def _arrange(
    name: str, fields: tuple[str, ...], defaults: dict[str, Any], args: tuple[Any, ...],
    named: dict[str, Any],
) -> tuple[Any, ...]:
    """The values of ``fields`` in order, from a call's arguments. Raises TypeError."""
    if len(args) > len(fields):
        raise TypeError(f"{name} takes {len(fields)} values, {len(args)} were given")
    values = list(args)
    for field in fields[len(args) :]:
        if field in named:
            values.append(named.pop(field))
        elif field in defaults:
            values.append(defaults[field])
        else:
            raise TypeError(f"{name} needs a value for {field}")
    if named:
        raise TypeError(f"{name} has no field {', '.join(named)} left to set")
    return tuple(values)


class NamedTuple(tuple):  # type: ignore[type-arg]
    """A tuple whose fields have names: those annotated in the class, in order.

    Calls, defaults, ``_fields``, ``_replace`` and ``_make`` are as in typing.NamedTuple.
    """

    __slots__ = ()
    _fields: tuple[str, ...] = ()
    _defaults: dict[str, Any] = {}

    def __init_subclass__(cls) -> None:
        # Texts, in every Python, where annotations are imported from __future__.
        own = tuple(cls.__dict__.get("__annotations__", ()))  # noqa: RUF063
        if not own:
            return
        cls._fields = own
        cls._defaults = {name: cls.__dict__[name] for name in own if name in cls.__dict__}
        for index, name in enumerate(own):
            setattr(cls, name, _tuplegetter(index, name))

    def __new__(cls, *args: Any, **named: Any) -> Self:
        """A record of these values."""
        if named or len(args) != len(cls._fields):
            args = _arrange(cls.__name__, cls._fields, cls._defaults, args, named)
        return tuple.__new__(cls, args)

    @classmethod
    def _make(cls, values: Any) -> Self:
        """A record of the values of an iterable."""
        found = tuple.__new__(cls, values)
        if len(found) != len(cls._fields):
            raise TypeError(f"{cls.__name__} has {len(cls._fields)} values, not {len(found)}")
        return found

    def _replace(self, **changes: Any) -> Self:
        """A copy with other values."""
        values = [changes.pop(name, value) for name, value in zip(self._fields, self, strict=True)]
        if changes:
            raise ValueError(f"{type(self).__name__} has no field {', '.join(changes)}")
        return type(self)(*values)

    def _asdict(self) -> dict[str, Any]:
        """{field: value}."""
        return dict(zip(self._fields, self, strict=True))

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self)

    def __repr__(self) -> str:
        inner = ", ".join(f"{n}={v!r}" for n, v in zip(self._fields, self, strict=True))
        return f"{type(self).__name__}({inner})"


@dataclass_transform(frozen_default=True)
class _FrozenType(type):
    """Annotated names of a class become its slots, what they are set to their defaults."""

    def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> _FrozenType:
        own = tuple(body.get("__annotations__", ()))
        body["__slots__"] = own
        body["_defaults"] = {field: body.pop(field) for field in own if field in body}
        return super().__new__(cls, name, bases, body)


class Frozen(metaclass=_FrozenType):
    """An object whose fields cannot be set after it was made; equal to one with equal fields.

    ``replace`` makes a changed copy.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        cls: Any = type(self)
        fields = cls.__slots__
        if named or len(args) != len(fields):
            args = _arrange(cls.__name__, fields, cls._defaults, args, named)
        put = object.__setattr__
        for name, value in zip(fields, args, strict=True):
            put(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: make a copy with another {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in type(self).__slots__)  # type: ignore[attr-defined]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        fields = type(self).__slots__  # type: ignore[attr-defined]
        inner = ", ".join(f"{n}={v!r}" for n, v in zip(fields, self._values(), strict=True))
        return f"{type(self).__name__}({inner})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._values()

    def __replace__(self, **changes: Any) -> Self:
        """For copy.replace (Python 3.13)."""
        return replace(self, **changes)


def replace(found: T, **changes: Any) -> T:
    """A copy of a frozen object with other fields. Raises TypeError for a name it has not."""
    fields = type(found).__slots__  # type: ignore[attr-defined]
    values = [changes.pop(name) if name in changes else getattr(found, name) for name in fields]
    if changes:
        raise TypeError(f"{type(found).__name__} has no field {', '.join(changes)}")
    return type(found)(*values)
