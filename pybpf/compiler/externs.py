# SPDX-License-Identifier: BSD-2-Clause
"""Whether a kernel has all that an object must have of it, and which program asks for it."""

from __future__ import annotations

from pybpf.compiler.target import Target
from pybpf.errors import RelocationError
from pybpf.reloc.externs import is_typeless

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pybpf.reloc.externs import Resolved
    from pybpf.spec import ExternSpec, ObjectSpec, ProgramSpec

__all__ = ["check_externs", "user_of_extern"]


def check_externs(
    spec: ObjectSpec, resolved: Callable[[ExternSpec], Resolved], target: Target
) -> None:
    """Raise RelocationError for the first extern that is not weak and that ``target`` lacks."""
    try:
        for extern in spec.externs.values():
            if extern.kind != "kconfig" and not extern.weak and not is_typeless(spec, extern):
                resolved(extern)
        for extern in spec.externs.values():
            if not extern.weak and is_typeless(spec, extern) and target.lacks(extern.name):
                from pybpf.reloc.near import nearest_addresses

                near = " or ".join(nearest_addresses(extern.name))
                raise RelocationError(
                    f"the kernel has no symbol {extern.name!r} (/proc/kallsyms)"
                    + (f"; did you mean {near}?" if near else "."),
                    hint="Load the module that has it, or declare it __weak and test for it.",
                    extern=extern.name,
                ).numbered(3)
    except RelocationError as exc:
        user = user_of_extern(spec, str(exc.where.get("extern")))
        if user is not None:
            exc.at(program=user.name, section=user.section)
        raise exc.at(object=spec.path or spec.name)  # noqa: B904


def user_of_extern(spec: ObjectSpec, extern: str) -> ProgramSpec | None:
    """The first program that refers to an extern, itself or in a subprogram; one that is loaded
    before one that is not."""
    for program in sorted(spec.programs.values(), key=lambda p: not p.autoload):
        seen = {program.function}
        todo = [program.function]
        while todo:
            for ref in spec.functions[todo.pop()].refs:
                if ref.kind == "extern" and ref.name == extern:
                    return program
                if ref.function >= 0 and ref.function not in seen:
                    seen.add(ref.function)
                    todo.append(ref.function)
    return None
