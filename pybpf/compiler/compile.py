# SPDX-License-Identifier: BSD-2-Clause
"""ObjectSpec + kernel → Plan."""

from __future__ import annotations

import errno
import os
import sys

from pybpf.btf.consts import (
    ENUM_KINDS,
    KIND_FUNC_PROTO,
    KIND_STRUCT,
    KIND_TYPEDEF,
    KIND_UNION,
)
from pybpf.btf.layout import layout
from pybpf.btf.model import Btf
from pybpf.btf.sanitize import FEATURES, needed, sanitize
from pybpf.compiler import attach, maps
from pybpf.compiler.externs import check_externs
from pybpf.compiler.places import Places, SymbolRequest
from pybpf.compiler.programs import ProgramCompiler
from pybpf.compiler.struct_ops import fit
from pybpf.compiler.target import Target
from pybpf.elf.fixup import loadable
from pybpf.errors import CompileError, FormatError, PybpfError, UsageError
from pybpf.plan import ops
from pybpf.plan.kconfig import contents
from pybpf.reloc.externs import Resolved, kconfig_values, resolve
from pybpf.spec import ExternSpec, ObjectSpec
from pybpf.sys import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

__all__ = ["compile", "compile_alternatives"]

RELOCATE = ("kernel", "python")
_OTHER_BYTE_ORDER = 4003  # libbpf's LIBBPF_ERRNO__ENDIAN; no errno says it
# What kernels that relocate themselves (5.17) may yet lack in BTF.
_NEWER_THAN_CORE = frozenset(("enum64", "qmark_datasec"))
# What a kernel answers to BTF that it does not take (kernel/bpf/btf.c); 524: ENOTSUPP.
_REFUSED_BTF = (errno.EINVAL, errno.E2BIG, 524)


def compile(
    spec: ObjectSpec,
    kernel: Target | None = None,
    *,
    relocate: str = "kernel",
    pin_root: str | None = None,
    export: Iterable[str] = (),
) -> ops.Plan:
    """Turn a spec into a Plan. The same input gives the same Plan, byte for byte.

    kernel: the kernel to compile for; None is the running one. relocate: "kernel" hands CO-RE
    relocations to the kernel and has BTF ids looked up there when the Plan runs (Linux 5.17; no
    kernel BTF is read here, so that one Plan fits every such kernel); "python" decides
    everything here. pin_root: directory for maps pinned by name (default /sys/fs/bpf).
    export: names of further types ("struct event") whose layout the Plan is to carry.
    Raises CompileError, RelocationError or UsageError, with object and program.
    """
    places = Places()
    compiled = _Compiled(spec, kernel, relocate, pin_root, places)
    return compiled.plan(places, tuple(compiled.operations()), export)


def compile_alternatives(
    alternatives: Sequence[tuple[str, ObjectSpec]],
    kernel: Target | None = None,
    *,
    label: str = "alternative",
    relocate: str = "kernel",
    pin_root: str | None = None,
    export: Iterable[str] = (),
) -> ops.Plan:
    """A Plan that tries each (label, spec) in turn and keeps the first that loads.

    The specs are variants of one object: maps and variables must be the same in all. An
    alternative that cannot be compiled for the kernel at hand is an error, not skipped.
    """
    if not alternatives:
        raise UsageError("there are no alternatives to compile.")
    places = Places()
    compiled = [
        (name, _Compiled(s, kernel, relocate, pin_root, places)) for name, s in alternatives
    ]
    choices = tuple((name, tuple(one.operations())) for name, one in compiled)
    plans = [one.plan(places, (), export) for _, one in compiled]
    first = plans[0]
    for (name, _), plan in zip(compiled[1:], plans[1:], strict=True):
        for what in ("maps", "variables", "layouts", "programs", "attach", "links"):
            if getattr(plan, what) != getattr(first, what):
                raise CompileError(
                    f"alternatives {alternatives[0][0]!r} and {name!r} differ in their {what}.",
                    hint="Alternatives must have the same maps, variables and loaded programs.",
                    object=first.name,
                )
    return ops.Plan(
        name=first.name,
        slots=places.slots,
        symbols=places.symbols,
        ops=(ops.Choose(label=label, alternatives=choices),),
        attach=first.attach,
        maps=first.maps,
        programs=first.programs,
        links=first.links,
        variables=first.variables,
        layouts=first.layouts,
    )


class _Compiled:
    """One spec on its way into a Plan."""

    def __init__(
        self,
        spec: ObjectSpec,
        kernel: Target | None,
        relocate: str,
        pin_root: str | None,
        places: Places,
    ) -> None:
        if relocate not in RELOCATE:
            raise UsageError(f"relocate={relocate!r}; it must be one of {', '.join(RELOCATE)}.")
        if spec.byteorder != sys.byteorder:
            flavour = "bpfel" if sys.byteorder == "little" else "bpfeb"
            raise CompileError(
                f"the object is {spec.byteorder}-endian, this machine is {sys.byteorder}-endian; "
                "it can be inspected and relocated here, but not loaded.",
                hint=f"Compile it with -target {flavour}.",
                object=spec.path or spec.name,
            ).numbered(_OTHER_BYTE_ORDER)
        self.target = kernel if kernel is not None else Target.of_running()
        self.in_python = relocate == "python"
        self.places = places
        self.pin_root = pin_root
        # Its layout is the kernel's, and the kernel does not relocate it: decided here.
        self.struct_ops = fit(spec, self.target)
        self.spec = self.struct_ops.spec
        self.resolver = self._resolver() if self.in_python else None

    def _value_symbols(self) -> tuple[list[SymbolRequest], dict[str, int]]:
        """Lookups of the kernel's types of struct_ops maps, and map → symbol."""
        for error in self.struct_ops.errors.values():
            raise error
        requests: list[SymbolRequest] = []
        symbols = {}
        for name, fitted in self.struct_ops.maps.items():
            request = (fitted.value_type, KIND_STRUCT, fitted.module, False)
            requests.append(request)
            symbols[name] = self.places.symbol(request)
        return requests, symbols

    def _whole(self, name: str) -> bool:
        """Whether all programs of a struct_ops map are in the spec: one that was cut down to
        verify a program alone has nothing to put into force."""
        members = self.spec.maps[name].members
        return all(program in self.spec.programs for _, program in members)

    def _struct_ops_fill(self, *, linked: bool) -> list[ops.Op]:
        """Setting the values of the maps that have a link, or of those that have none."""
        loaded = set(self._loaded())
        out: list[ops.Op] = []
        for name, fitted in self.struct_ops.maps.items():
            if not self._whole(name) or linked != self._has_link(name):
                continue
            places = tuple(
                (offset, self.places.slot("program", program))
                for program, offset, _ in fitted.programs
                if program in loaded
            )
            out.append(
                ops.StructOpsFill(
                    map=self.places.slot("map", name), data=fitted.data, programs=places,
                    register=not linked,
                )
            )  # fmt: skip
        return out

    def _has_link(self, name: str) -> bool:
        return bool(self.spec.maps[name].flags & abi.BPF_F_LINK)

    def _kconfig(self) -> list[ops.Op]:
        """Filling the map of kconfig values: now, or by the executor where the Plan may run on
        another kernel."""
        spec, target = self.spec, self.target
        if ".kconfig" not in spec.maps or not spec.maps[".kconfig"].autocreate:
            return []
        slot = self.places.slot("map", ".kconfig")
        values = kconfig_values(spec)
        if not self.in_python and target.running and not target.config_given:
            fill: ops.Op = ops.KconfigFill(map=slot, values=values)
        else:
            config = target.config if target.has_config else None
            data = contents(values, target.version, config, spec.byteorder)
            fill = ops.MapFill(map=slot, entries=((bytes(4), data),))
        return [fill, ops.MapFreeze(map=slot)]

    def operations(self) -> list[ops.Op]:
        """The operations up to loaded programs. Errors name the object."""
        try:
            return self._operations()
        except PybpfError as exc:
            raise exc.at(object=self.spec.path or self.spec.name) from None

    def _operations(self) -> list[ops.Op]:
        spec, places = self.spec, self.places
        out: list[ops.Op] = []
        if self.resolver is not None:
            # As with libbpf, what the kernel must have and has not ends the load, whichever
            # programs refer to it.
            check_externs(spec, self.resolver, self.target)
        if self.target.running and (self.in_python or self.struct_ops.maps):
            here = os.uname()
            out.append(ops.RequireKernel(release=here.release, version=here.version))
        btf = None
        if spec.btf is not None:
            btf = places.slot("btf", "")
            out.append(self._btf_load(btf))
        requests, value_symbols = self._value_symbols()
        if requests:
            out.append(self._lookup(requests))
        out += maps.create(spec, places, btf, self.pin_root, value_symbols)
        out += maps.fill(spec, places, arena_at_end=maps.arena_at_end(spec, self.target))
        out += self._kconfig()
        loads, lookups = self._programs(btf)
        out = maps.exclusive(spec, out, loads)
        if lookups:
            out.append(self._lookup(lookups))
        out += loads
        out += maps.late_fill(spec, places, frozenset(self._loaded()))
        out += self._struct_ops_fill(linked=True)
        return out

    def _btf(self) -> bytes:
        spec = self.spec
        assert spec.btf is not None
        kept = spec.btf.loadable
        hidden = tuple(f.type_id for f in spec.functions if f.type_id and not f.global_)
        if hidden not in kept:
            kept[hidden] = loadable(spec.btf, static_functions=hidden)
        return kept[hidden]

    def _btf_load(self, slot: int) -> ops.Op:
        """Loading the BTF; where it has what some kernels that the Plan may run on do not know,
        a choice of plainer versions, tried one after the other once the kernel refused it."""
        data, optional = self._btf(), self._btf_optional()
        assert self.spec.btf is not None
        used = needed(self.spec.btf)
        missing = [
            (feature, version)
            for feature, version in reversed(FEATURES.items())
            if feature in used
            # Kernels without functions in BTF take no func_info either: none is better then.
            and feature != "func"
            and (self.in_python or feature in _NEWER_THAN_CORE)
        ]
        if not missing:
            return ops.BtfLoad(dst=slot, data=data, optional=optional)
        whole = Btf.parse(data, name=self.spec.btf.label)
        choices: list[tuple[str, tuple[ops.Op, ...]]] = [
            ("complete", (ops.BtfLoad(dst=slot, data=data),))
        ]
        for count, (_, version) in enumerate(missing, 1):
            plainer = sanitize(whole, {name for name, _ in missing[:count]})
            last = optional and count == len(missing)
            choices.append(
                (
                    f"for Linux before {version}",
                    (ops.BtfLoad(dst=slot, data=plainer, optional=last),),
                )
            )
        return ops.Choose(label="BTF", alternatives=tuple(choices), on=_REFUSED_BTF)

    def _btf_optional(self) -> bool:
        """Where the kernel has nothing to relocate BTF makes things legible, no more; only the
        programs and maps of struct_ops need it (libbpf's rule)."""
        relocates = not self.in_python and any(f.core for f in self.spec.functions)
        return not relocates and not self.struct_ops.maps

    def _loaded(self) -> list[str]:
        return [p.name for p in self.spec.programs.values() if p.autoload]

    def _programs(self, btf: int | None) -> tuple[list[ops.Op], list[SymbolRequest]]:
        spec = self.spec
        compiler = ProgramCompiler(
            spec,
            self.places,
            self.target if self.in_python else None,
            self.resolver,
            btf,
            {
                program: self.struct_ops.maps[name]
                for program, name in self.struct_ops.users.items()
                if name in self.struct_ops.maps
            },
            arena_at_end=maps.arena_at_end(spec, self.target),
        )
        loads: list[ops.Op] = []
        lookups: list[SymbolRequest] = []
        for program in spec.programs.values():
            if not program.autoload:
                continue
            try:
                load, requests = compiler.compile(program)
            except PybpfError as exc:
                raise exc.at(program=program.name, section=program.section) from None
            if program.when_module is None:
                lookups += requests
                loads += load
            else:
                then: list[ops.Op] = [self._lookup(requests)] if requests else []
                loads.append(
                    ops.When(condition=("module", program.when_module), then=(*then, *load))
                )
        return loads, lookups

    def _resolver(self) -> Any:
        done: dict[str, Resolved] = {}

        types = self.target.types()

        def resolver(extern: ExternSpec) -> Resolved:
            if extern.name not in done:
                done[extern.name] = resolve(self.spec, extern, types)
            return done[extern.name]

        return resolver

    def _lookup(self, requests: Iterable[SymbolRequest]) -> ops.Lookup:
        return ops.Lookup(names=tuple((self.places.symbol(r), *r) for r in dict.fromkeys(requests)))

    def plan(
        self, places: Places, operations: tuple[ops.Op, ...], export: Iterable[str]
    ) -> ops.Plan:
        """The whole Plan around ``operations``."""
        spec = self.spec
        links: dict[str, int] = {}
        attaching: list[ops.Op] = []
        for program in spec.programs.values():
            if not program.autoload:
                continue
            slot = places.slot("program", program.name)
            op = attach.link_operation(program, slot, places.slot("link", program.name))
            if op is None:
                continue
            links[program.name] = op.dst
            if program.when_module is not None:
                attaching.append(ops.When(condition=("module", program.when_module), then=(op,)))
            else:
                attaching.append(op)
        attaching += self._struct_ops_fill(linked=False)
        for name in self.struct_ops.maps:
            if not self._whole(name) or not self._has_link(name):
                continue
            links[name] = places.slot("link", name)
            attaching.append(
                ops.LinkCreate(
                    dst=links[name],
                    name=name,
                    prog=places.slot("map", name),
                    how="struct_ops",
                    attach_type=abi.BPF_STRUCT_OPS,
                )
            )
        return ops.Plan(
            name=spec.name,
            slots=places.slots,
            symbols=places.symbols,
            ops=operations,
            attach=tuple(attaching),
            maps={
                m.name: (
                    places.slot("map", m.name),
                    _layout(spec.btf, m.key_type_id),
                    None if m.data is not None else _layout(spec.btf, m.value_type_id),
                )
                for m in spec.maps.values()
                if m.autocreate
            },
            programs={name: places.slot("program", name) for name in self._loaded()},
            links=links,
            variables={
                v.name: (v.map, v.offset, v.size, _layout(spec.btf, v.type_id))
                for v in spec.variables.values()
                # An arena's are in Object.arenas' memory, not in a value of the map.
                if spec.maps[v.map].autocreate
                and spec.maps[v.map].type != abi.BPF_MAP_TYPE_ARENA
            },
            layouts={name: _named_layout(spec, name) for name in export},
        )


def _layout(btf: Btf | None, type_id: int) -> Any:
    """A type's layout, or None where it has none that says more than its size."""
    if btf is None or type_id == 0:
        return None
    try:
        found = btf.skip(type_id)
        if found.kind == KIND_FUNC_PROTO:
            return None
        return layout(btf, type_id)
    except FormatError:
        return None


_TAGS = {
    "struct": (KIND_STRUCT,),
    "union": (KIND_UNION,),
    "enum": tuple(sorted(ENUM_KINDS)),
}


def _named_layout(spec: ObjectSpec, name: str) -> Any:
    """Layout of "struct x", "union x", "enum x" or a typedef's name."""
    tag, _, rest = name.rpartition(" ")
    if spec.btf is None:
        raise CompileError(f"the object has no BTF that could describe {name!r}.", object=spec.name)
    ids = spec.btf.find(rest, _TAGS.get(tag, (KIND_TYPEDEF,)))
    if not ids or (tag and tag not in _TAGS):
        raise CompileError(
            f"the object's BTF has no type {name!r}.",
            hint='Name it as in C ("struct event"), and make sure that the object uses it.',
            object=spec.name,
        )
    return layout(spec.btf, ids[0])
