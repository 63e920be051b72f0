# SPDX-License-Identifier: BSD-2-Clause
"""A thousand loads, most of which fail in some way, leave no fd and no kernel object behind."""

from __future__ import annotations

import errno
import glob
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pybpf import kernel
from pybpf.cli.verify import sized, unpinned
from pybpf.compiler.compile import compile
from pybpf.compiler.target import Target
from pybpf.elf.reader import read
from pybpf.errors import KernelError, PybpfError, VerifierError
from pybpf.kernel.map import Map
from pybpf.plan.run import run
from pybpf.spec import ObjectSpec
from pybpf.sys import abi, bpf
from tests.kernel.helpers import fds_to_begin_with, open_fds, settle
from tests.kernel.test_undo import Injector
from tools.corpus_compare import TREE, find_corpus
from tools.fuzzing.binary import mutate_insns
from tools.fuzzing.elf import mutate_elf

pytestmark = pytest.mark.kernel

LOADS = 1000
LARGEST = 16 << 10  # object files; time is better spent on more of them
MEMORY = 16 << 20  # of the maps of one object: random sizes must not take the machine's
IDS: dict[str, Callable[[], Any]] = {
    "map_id": kernel.map_ids, "prog_id": kernel.program_ids,
    "link_id": kernel.link_ids, "btf_id": kernel.btf_ids,
}  # fmt: skip


def objects() -> list[bytes]:
    folders = [(TREE / "tests/objects").glob("*.o")]
    corpus = find_corpus()
    if corpus is not None:
        folders.append(corpus.glob("objects/*/*.o"))
    files = sorted(path for folder in folders for path in folder)
    return [data for data in map(Path.read_bytes, files) if len(data) <= LARGEST]


def living() -> dict[str, set[int]]:
    return {kind: set(ids()) for kind, ids in IDS.items()}


def of_others() -> dict[str, set[int]]:
    """Ids that other processes hold fds of: what runs beside this test is not its leak."""
    found: dict[str, set[int]] = {kind: set() for kind in IDS}
    for path in glob.glob("/proc/[0-9]*/fdinfo/*"):
        if path.startswith((f"/proc/{os.getpid()}/", "/proc/self/")):
            continue
        try:
            with open(path) as file:
                rows = [line.split() for line in file]
        except OSError:
            continue
        for row in rows:
            if len(row) == 2 and row[0][:-1] in found and row[1].isdigit():
                found[row[0][:-1]].add(int(row[1]))
    return found


def left(before: dict[str, set[int]]) -> dict[str, set[int]]:
    now, others = living(), of_others()
    new = {kind: now[kind] - before[kind] - others[kind] for kind in IDS}
    return {kind: ids for kind, ids in new.items() if ids}


def fits(spec: ObjectSpec) -> bool:
    """Whether its maps may be made here: neither huge nor a name in a file system."""
    cpus = os.cpu_count() or 1
    sizes = [(m.key_size + m.value_size * cpus + 64) * m.max_entries for m in spec.maps.values()]
    return sum(sizes) < MEMORY


def edited(spec: ObjectSpec, rng: Random) -> ObjectSpec:
    """Random edits through the public interface; some give programs the verifier refuses."""
    for name in spec.programs:
        if rng.randrange(3) == 0:
            spec = spec.with_program(name, autoload=rng.randrange(2) == 0)
    for name in list(spec.maps):
        if rng.randrange(6) == 0 and spec.maps[name].data is None:
            spec = spec.with_map(name, max_entries=rng.choice((0, 1, 2, 3, 4096)))
    for name, variable in spec.variables.items():
        if rng.randrange(3) == 0 and variable.map != ".kconfig":
            spec = spec.with_variables({name: rng.randbytes(variable.size)})
    return spec


def broken(spec: ObjectSpec, rng: Random) -> ObjectSpec:
    """Random instructions in one function."""
    from pybpf.record import replace

    functions = list(spec.functions)
    at = rng.randrange(len(functions))
    insns = mutate_insns(functions[at].insns, rng)[: len(functions[at].insns)]
    insns = insns.ljust(len(functions[at].insns), b"\0")
    functions[at] = replace(functions[at], insns=insns)
    return replace(spec, functions=tuple(functions))


def test_nothing_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = Random(20)
    pool = objects()
    assert len(pool) >= 4
    target = Target.of_running()
    _ = target.vmlinux
    with run(compile(read(TREE / "tests/objects/features.bpf.o"), target)):
        pass  # whatever is opened once and kept
    real = bpf.call
    before_fds, before = fds_to_begin_with(), living()
    outcomes: Counter[str] = Counter()
    for number in range(LOADS):
        data = rng.choice(pool)
        kind = ("plain", "edited", "broken", "mutated", "injected", "injected")[number % 6]
        how = rng.choice(("kernel", "python"))
        try:
            if kind == "mutated":
                data = mutate_elf(data, rng)
            spec = unpinned(sized(read(data, name="leaks"), []))
            if kind == "edited":
                spec = edited(spec, rng)
            elif kind == "broken" and spec.functions:
                spec = broken(spec, rng)
            if not fits(spec):
                outcomes["too large"] += 1
                continue
            plan = compile(spec, target, relocate=how)
            if kind == "injected":
                error: Any = rng.choice((1, 11, 12, 22, 28, KeyboardInterrupt, MemoryError))
                monkeypatch.setattr(bpf, "call", Injector(real, rng.randrange(12), error))
            with run(plan):
                outcomes["loaded"] += 1
        except (PybpfError, KeyboardInterrupt, MemoryError) as error_:
            outcomes[
                "refused by the verifier" if isinstance(error_, VerifierError)
                else "refused by the kernel" if isinstance(error_, KernelError)
                else f"{kind}: {type(error_).__name__}"
            ] += 1  # fmt: skip
        finally:
            monkeypatch.setattr(bpf, "call", real)
        if number % 100 == 99:
            assert open_fds() == before_fds, f"after load {number}: {open_fds() ^ before_fds}"
    print(dict(outcomes))
    assert outcomes["loaded"] > LOADS // 10, outcomes
    assert outcomes["refused by the verifier"] > LOADS // 50, outcomes
    assert outcomes["injected: KeyboardInterrupt"] > 10, outcomes
    assert open_fds() == before_fds
    if not settle(lambda: not left(before)):
        still = left(before)
        still["map_id"] = {n for n in still.get("map_id", ()) if not _lost_by_the_kernel(n)}
        assert not any(still.values()), still


def _lost_by_the_kernel(number: int) -> bool:
    """Whether a map is an emptied program array.

    When the last fd of one is closed, prog_array_map_clear (kernel/bpf/arraymap.c, v6.18) takes a
    reference for the work that empties it, also where that work is queued already, as it is if
    another process opens and closes the map by its id just then: that reference is never given
    back. Tests that list maps, running beside this one, do so.
    """
    try:
        with Map.from_id(number) as m:
            if m.info()["type"] != abi.BPF_MAP_TYPE_PROG_ARRAY:
                return False
            entries = range(m.info()["max_entries"])
            value = bytearray(4)
            return not any(bpf.map_lookup(m.fileno(), i.to_bytes(4, "little"), value)
                           for i in entries)
    except KernelError as error:
        return error.errno == errno.ENOENT  # gone meanwhile
