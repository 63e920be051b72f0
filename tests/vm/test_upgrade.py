# SPDX-License-Identifier: BSD-2-Clause
"""The next generation of a policy that pins keep: no gap, no lower version, whole after a crash.

Each case starts with generation 1, version 1, owned by the case's own process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time

from tests.vm import probes, probes_bpf
from tests.vm.attempts import CONTENT, EXITS
from tests.vm.outcome import refusal, refused
from tests.vm.policy import build_plan, load_plan, plans_drive
from tests.vm.programs import program
from tests.vm.scenario import Drive, Guest, Scenario

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from pybpf.plan.ops import Plan

upgrade = Scenario(
    "upgrade",
    drives={
        "good": Drive(CONTENT),
        "late": Drive(CONTENT),
        "plans": plans_drive(
            no_mmap=lambda: build_plan("fsaccess_mmap", policy_version=9),
            old=lambda: build_plan(policy_version=1),
        ),
    },
)


@upgrade.setup
def prepare(guest: Guest) -> None:
    probes.write_file("/tmp/program", program())
    guest.mount(guest.verity("good"), "/run/good")


def of_version(plan: Plan, version: int) -> Plan:
    """The plan with another policy_version, as `restrict bundle --policy-version` makes it."""
    from pybpf.plan.ops import MapFill, Plan

    where, offset, size = plan.variables["policy_version"][:3]
    slot = plan.maps[where][0]
    ops = []
    for op in plan.ops:
        if isinstance(op, MapFill) and op.map == slot:
            (key, value), *rest = op.entries
            assert isinstance(value, bytes)
            assert not rest
            value = value[:offset] + version.to_bytes(size, "little") + value[offset + size :]
            op = MapFill(map=slot, entries=((key, value),))
        ops.append(op)
    fields = {name: getattr(plan, name) for name in plan.FIELDS}
    return Plan(**{**fields, "ops": tuple(ops)})


@contextlib.contextmanager
def generation_one(guest: Guest) -> Iterator[None]:
    """Version 1 in force and no handle open; afterwards all pins are removed."""
    from restrict import fsaccess, keep_pins, lockout

    plan = load_plan(guest)
    policy = keep_pins.enable(plan, before_arm=lockout.before_arm(plan, resumed=True))
    policy.release()
    try:
        yield
    finally:
        for generation in keep_pins.generations():
            generation.remove()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fsaccess.PIN)
        guest.wait(
            lambda: probes.execute("/tmp/program").kind == "allowed", "the end of enforcement"
        )


def paced(once: Callable[[], int]) -> Callable[[], int]:
    """For a Prober: at most forty attempts a second, which leaves the guest's one processor to
    what is being watched."""

    def attempt() -> int:
        time.sleep(0.025)
        return once()

    return attempt


@upgrade.case()
def twenty_upgrades_without_a_gap(guest: Guest) -> None:
    from restrict import keep_pins, status
    from restrict.upgrade import upgrade as replace

    plan = load_plan(guest)
    guest.expect(probes.execute("/tmp/program"), EXITS)
    with generation_one(guest):
        mappings = probes.Prober(paced(probes.anonymous_once))
        executions = probes.Prober(paced(probes.execute_once))
        try:
            for version in range(2, 22):
                done = replace(of_version(plan, version))
                assert (done.version_before, done.version) == (version - 1, version)
                assert done.generation == version
                assert len(done.tests) == 6, done.tests
                done.policy.release()
                executions.more(1)
        finally:
            # The one forked later has copies of the other's pipe: it goes first.
            executed = executions.stop()
            counts = mappings.stop(), executed
        guest.note(f"attempts by errno: mappings {counts[0]}, executions {counts[1]}")
        assert set(counts[0]) == {errno.EPERM}, counts
        assert set(counts[1]) == {errno.EPERM}, counts
        assert counts[1][errno.EPERM] >= 20
        assert [g.number for g in keep_pins.generations()] == [21]
        found = status.read()
        assert found is not None
        assert (found.in_force, found.version, found.generation) == (True, 21, 21)
        assert {d.name for d in found.devices if d.signed} >= {"system", "good"}
        guest.expect(probes.execute("/run/good/program"), EXITS)
        guest.expect(probes.execute("/tmp/program"), refused())


# ── who may, and to what ──


def _in_child(act: Callable[[], str]) -> str:
    """What a child, which is another process to the guard, says."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            os.write(writer, act().encode())
        finally:
            os._exit(0)
    os.close(writer)
    text = b""
    while piece := os.read(reader, 65536):
        text += piece
    os.close(reader)
    os.waitpid(pid, 0)
    return text.decode()


@upgrade.case()
def lower_versions_are_refused(guest: Guest) -> None:
    from restrict import keep_pins
    from restrict.upgrade import upgrade as replace

    plan = load_plan(guest)
    with generation_one(guest):
        replace(of_version(plan, 5)).policy.release()
        for version in (4, 1):
            text = refusal(lambda version=version: replace(of_version(plan, version)))  # type: ignore[misc]
            assert f"version {version}, and 5 is in force" in text, text
        text = refusal(lambda: replace(of_version(plan, 5)))
        assert "version 5 is in force already" in text
        assert "--reload" in text
        text = refusal(lambda: replace(of_version(plan, 4), reload=True))
        assert "lower version is refused" in text
        assert [g.number for g in keep_pins.generations()] == [2]
        done = replace(of_version(plan, 5), reload=True)
        done.policy.release()
        assert (done.generation, done.version) == (3, 5)
        guest.expect(probes.execute("/tmp/program"), refused())


@upgrade.case()
def only_the_owner_or_its_deputy_upgrades(guest: Guest) -> None:
    from restrict import keep_pins
    from restrict.upgrade import upgrade as replace

    plan = load_plan(guest)

    def stranger() -> str:
        text = refusal(lambda: replace(of_version(plan, 2)))
        (generation,) = keep_pins.generations()
        outcome = probes_bpf.object_get(f"{generation.folder}/map_bss")
        return f"{text}\n{outcome}"

    def deputy() -> str:
        os.read(go[0], 1)
        done = replace(of_version(plan, 2))
        done.policy.release()
        return f"version {done.version}"

    with generation_one(guest):
        text = _in_child(stranger)
        assert f"its owner is process {os.getpid()}" in text, text
        assert "refused with EPERM" in text, text
        go = os.pipe()
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.write(writer, deputy().encode())
            finally:
                os._exit(0)
        keep_pins.appoint(pid)
        os.write(go[1], b"x")
        assert os.read(reader, 100) == b"version 2"
        os.waitpid(pid, 0)
        keep_pins.appoint(None)
        assert "its owner is process" in _in_child(stranger)
        # The owner is still this process, in the generation that its deputy made too.
        replace(of_version(plan, 3)).policy.release()
        guest.expect(probes.execute("/tmp/program"), refused())


# ── plans that must not come into force ──


@upgrade.case()
def a_plan_that_does_not_enforce_is_refused(guest: Guest) -> None:
    """Its hook of mmap is left out: the rehearsal notices, and nothing is left of it."""
    from restrict import keep_pins
    from restrict.upgrade import upgrade as replace

    with generation_one(guest):
        before = {kind: probes_bpf.ids(kind) for kind in ("map", "program", "link")}
        text = refusal(lambda: replace(load_plan(guest, "no_mmap")))
        guest.note(text)
        assert "did not notice what it must refuse: mmap anonymous, mmap write_exec" in text
        assert "rehearsal" in text
        assert [g.number for g in keep_pins.generations()] == [1]
        guest.wait(
            lambda: all(set(probes_bpf.ids(k)) <= set(before[k]) for k in before), "all undone"
        )
        guest.expect(probes.map_anonymous(), refused())


@upgrade.case()
def without_the_seed_it_would_lock_out(guest: Guest) -> None:
    """The control of the seed: no record of the root's device, so nothing of it would run."""
    from restrict import upgrade as module

    plan = load_plan(guest)
    settle = module.Seed.settle
    with generation_one(guest):
        module.Seed.settle = lambda self: None  # type: ignore[method-assign]
        try:
            text = refusal(lambda: module.upgrade(of_version(plan, 2)))
        finally:
            module.Seed.settle = settle  # type: ignore[method-assign]
        assert "lock this machine out" in text, text
        assert "PID 1" in text
        done = module.upgrade(of_version(plan, 2))
        done.policy.release()
        assert done.devices >= 2


@upgrade.case()
def devices_that_come_and_go_meanwhile(guest: Guest) -> None:
    """Activated or removed after the records were copied: known to the new one, or gone."""
    from restrict import status
    from restrict.upgrade import upgrade as replace

    plan = load_plan(guest)
    for moment in ("rehearsal", "pins", "confirm"):
        with generation_one(guest):
            guest.mount(guest.verity("late", device="gone"), "/run/gone")
            guest.expect(probes.execute("/run/gone/program"), EXITS)

            def step(name: str, moment: str = moment) -> None:
                if name == moment:
                    guest.mount(guest.verity("late"), "/run/late")
                    guest.umount("/run/gone")
                    guest.remove("gone")

            try:
                replace(of_version(plan, 2), step=step).policy.release()
                guest.expect(probes.execute("/run/late/program"), EXITS)
                found = status.read()
                assert found is not None
                signed = {d.name for d in found.devices if d.signed}
                assert signed >= {"system", "good", "late"}, signed
                guest.wait(lambda: "gone" not in _names(), "the end of the record of gone")
            finally:
                guest.umount("/run/late")
                guest.remove("late")


def _names() -> list[str | None]:
    """Names of the devices in the status; of one that has gone, "gone"."""
    from restrict import status

    found = status.read()
    assert found is not None
    return [device.name or "gone" for device in found.devices]


@upgrade.case()
def nobody_takes_what_is_being_made(guest: Guest) -> None:
    """A thief asks for each next id as fast as he can: he gets maps of the first generation,
    which nothing guards before it is armed, and none of the next."""
    from restrict.upgrade import upgrade as replace

    names = {"verity_devices", "counters", "births", "events"}

    def thief(stop: int, answer: int) -> None:
        from pybpf.errors import PybpfError
        from pybpf.kernel.map import Map, create
        from pybpf.sys import abi

        taken = 0
        # Ids are given out cyclically: the next is behind the last one made, not the highest.
        with create(abi.BPF_MAP_TYPE_ARRAY, 4, 4, 1, name="thief") as own:
            last = own.id
        poll = select.poll()
        poll.register(stop, select.POLLIN | select.POLLHUP)
        os.write(answer, b"r")
        while not poll.poll(0):
            for ident in range(last + 1, last + 17):
                try:
                    found = Map.from_id(ident)
                except PybpfError as error:
                    if getattr(error, "errno", 0) == errno.EPERM:
                        last = ident
                    continue
                last = max(last, ident)
                taken += found.info()["name"] in names
                found.close()
        os.write(answer, str(taken).encode())

    def watched(act: Callable[[], object]) -> int:
        reader, writer = os.pipe()
        stop = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(stop[1])
                thief(stop[0], writer)
            finally:
                os._exit(0)
        try:
            assert os.read(reader, 1) == b"r", "the thief could not begin"
            act()
        finally:
            os.close(stop[1])
        taken = int(os.read(reader, 100))
        os.waitpid(pid, 0)
        for fd in (reader, writer, stop[0]):
            os.close(fd)
        return taken

    plan = load_plan(guest)
    stack = contextlib.ExitStack()
    with stack:
        control = watched(lambda: stack.enter_context(generation_one(guest)))
        taken = watched(lambda: replace(of_version(plan, 2)).policy.release())
        guest.note(f"maps taken: {control} of the first generation, {taken} of the second")
        assert control > 0
        assert taken == 0


# ── killed ──


class _Fuse:
    """Counts what this process does to the kernel from step ``since`` on (each bpf(2), each change
    of a name in bpffs, each store into a policy's globals), and ends it by SIGKILL right before
    number ``at``. Each step is told to ``writer`` with the number of what was done before it."""

    def __init__(self, since: str, at: int, writer: int) -> None:
        from pybpf.sys import bpf
        from restrict import guard

        self.since = since
        self.at = at
        self.writer = writer
        self.counts = False
        self.pid = os.getpid()  # not its children, which try what is to be refused
        self.done = 0
        bpf.call = self._counted(bpf.call)
        for name in ("mkdir", "unlink", "rename", "rmdir", "chmod"):
            setattr(os, name, self._counted(getattr(os, name)))
        for name in ("set", "set_ids"):
            setattr(guard.Globals, name, self._counted(getattr(guard.Globals, name)))

    def _counted(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if self.counts and os.getpid() == self.pid:
                self.done += 1
                if self.done == self.at:
                    os.kill(os.getpid(), signal.SIGKILL)
            return act(*arguments, **named)

        return call

    def step(self, name: str) -> None:
        self.counts = self.counts or name == self.since
        os.write(self.writer, f"{name}:{self.done},".encode())


def _deputised(plan: Plan, since: str, at: int) -> tuple[int, dict[str, int]]:
    """A deputy upgrades and is killed: (its wait status, {step: what was done before it})."""
    from restrict import keep_pins
    from restrict.upgrade import upgrade as replace

    go, answer = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.read(go[0], 1)
            fuse = _Fuse(since, at, answer[1])
            replace(plan, reload=True, step=fuse.step).policy.release()
            fuse.step("end")
            code = 0
        finally:
            os._exit(code)
    keep_pins.appoint(pid)
    os.write(go[1], b"x")
    status = os.waitpid(pid, 0)[1]
    os.close(answer[1])
    text = os.read(answer[0], 4096).decode()
    for fd in (*go, answer[0]):
        os.close(fd)
    words = [word.partition(":") for word in text.split(",") if word]
    return status, {name: int(count) for name, _, count in words}


#: Steps that do much of the same: killed before each so-manieth thing done in them.
SAMPLED = {
    "load": 60, "attach": 30, "lock-out": 20, "seed": 10, "rehearsal": 30, "pins": 9, "guard": 9,
    "confirm": 9, "drop": 5, "clean": 2,
}  # fmt: skip


@upgrade.case(timeout=1500)
def killed_at_each_step(guest: Guest) -> None:
    """kill -9 before the Nth thing done: one whole generation is in force at any moment, and the
    next upgrade removes the remains. In every step."""
    from restrict import keep_pins

    plan = of_version(load_plan(guest), 2)
    killed: dict[str, int] = {}

    def kill(since: str, at: int) -> str:
        status, steps = _deputised(plan, since, at)
        step = list(steps)[-1]
        assert status == (0 if step == "end" else signal.SIGKILL), (at, step, status)
        killed[step] = killed.get(step, 0) + 1
        alive = keep_pins.in_force()
        assert alive, f"nothing is in force after a kill at {at} ({step})"
        guest.expect(probes.execute("/tmp/program"), refused())
        return step

    with generation_one(guest):
        mappings = probes.Prober(paced(probes.anonymous_once))
        executions = probes.Prober(paced(probes.execute_once))
        try:
            status, steps = _deputised(plan, "version", -1)
            assert status == 0, (status, steps)
            guest.note(f"steps and what was done before each: {steps}")
            inside = dict.fromkeys(steps, 0)
            for at in range(1, steps["end"] + 1):
                step, before = [each for each in steps.items() if each[1] < at][-1]
                inside[step] += 1
                if (inside[step] - 1) % SAMPLED.get(step, 1) == 0:
                    # Counted from the step on: how much was done before it need not be the same.
                    assert kill(step, at - before) == step or at - before > 1
            # What is left here, a generation in force beside the next, is cleaned up by upgrades
            # that are killed at that, too.
            assert kill("confirm", 1) == "confirm"
            at = 1
            while kill("clean", at) == "clean":
                at += 3
            guest.note(f"kills by step: {killed}")
            assert set(killed) >= {
                "load", "attach", "status", "pins", "guard", "arm", "confirm", "publish", "drop",
                "clean",
            }, killed  # fmt: skip
            assert _deputised(plan, "version", -1)[0] == 0
        finally:
            # The one forked later has copies of the other's pipe: it goes first.
            executed = executions.stop()
            counts = mappings.stop(), executed
        guest.note(f"attempts by errno: mappings {counts[0]}, executions {counts[1]}")
        assert set(counts[0]) == {errno.EPERM}, counts
        assert set(counts[1]) == {errno.EPERM}, counts
        (generation,) = keep_pins.generations()
        found = generation.status()
        assert found is not None
        assert found.in_force

        def alone() -> bool:
            names = [n for n in map(_map_name, probes_bpf.ids("map")) if n == "verity_devices"]
            return len(names) == 1 and len(probes_bpf.ids("program")) < 40

        guest.wait(alone, "the end of all other generations")
        guest.expect(probes.execute("/run/good/program"), EXITS)


def _map_name(ident: int) -> str:
    from pybpf.errors import PybpfError
    from pybpf.kernel.map import Map

    try:
        with Map.from_id(ident) as found:
            return str(found.info()["name"])
    except PybpfError:
        return ""
