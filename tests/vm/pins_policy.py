# SPDX-License-Identifier: BSD-2-Clause
"""The pins policy in a guest, and an attack on a tree: outcome, events, what is left."""

from __future__ import annotations

import contextlib
import json
import os

from pybpf.errors import KernelError
from restrict import pins
from tests.vm import probes
from tests.vm.outcome import Outcome
from tests.vm.pins_tree import PINS, Tree, private
from tests.vm.waiting import wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from restrict.events import Event
    from restrict.pins import Pins
    from tests.vm.pins_attacks import Attack
    from tests.vm.scenario import Guest

__all__ = [
    "PLAN", "act", "as_deputy", "attack", "policy_of", "prepare", "prepare_toothless", "protect",
    "read_events", "toothless_plan", "unarmed",
]  # fmt: skip

PLAN = "/project/bpf/objects/pins.plan"
_KEPT_HOOKS = ("pins_learn", "pins_gone", "pins_status")


def toothless_plan() -> bytes:
    """The plan without what refuses; on the host only."""
    from pybpf import elf
    from pybpf.compiler import compile as compile_plan
    from pybpf.plan.frozen import to_bytes

    spec = elf.read("bpf/objects/pins.bpf.o")
    for name in spec.programs:
        spec = spec.with_program(name, autoload=name in _KEPT_HOOKS)
    return to_bytes(compile_plan(spec, relocate="kernel"))


def policy_of(guest: Guest) -> Pins:
    policy: Pins = guest.state["pins"]
    return policy


def prepare(guest: Guest, plan: str = PLAN) -> None:
    """Install, owned by PID 1."""
    from restrict.events import Reader
    from restrict.mounts import ensure

    ensure("bpf", "/sys/fs/bpf")
    policy = pins.install(pins.load_plan(plan))
    guest.state["pins"] = policy
    guest.state["reader"] = Reader(policy.events.fileno())


def prepare_toothless(guest: Guest) -> None:
    guest.mount(guest.node("plans"), "/run/plans")
    prepare(guest, "/run/plans/toothless")


def read_events(guest: Guest) -> list[Event]:
    """What waits in the ring buffer, but for filesystems of earlier attempts that have ended."""
    found: list[Event] = []
    guest.state["reader"].read(found.append)
    return [event for event in found if event.operation != "gone"]


@contextlib.contextmanager
def as_deputy(policy: Pins) -> Iterator[None]:
    """Inside the block this process has the owner's rights; afterwards it is nobody again."""
    policy.delegate(os.getpid())
    try:
        yield
    finally:
        policy.delegate(None)


@contextlib.contextmanager
def unarmed(policy: Pins) -> Iterator[None]:
    """Inside the block every program is attached and allows."""
    policy.disarm()
    try:
        yield
    finally:
        policy.arm()


def act(function: Callable[..., object], *arguments: object) -> Outcome:
    """What comes of root's act in a process that is not the owner."""

    def run() -> int:
        try:
            function(*arguments)
        except KernelError as error:
            raise OSError(error.errno, str(error)) from None
        return 0

    return probes.attempt(lambda begin: begin(run))


def protect(policy: Pins, tree: Tree) -> None:
    """Guard the tree and register its objects, as the owner would."""
    with as_deputy(policy):
        # The ends of earlier ones take an RCU grace period.
        wait(lambda: 0 in policy.filesystems(), "room for a filesystem")
        assert policy.protect(PINS)
        for kind in ("map", "program", "link"):
            policy.register(kind, getattr(tree, kind))


def attack(
    guest: Guest, tried: Attack, *, guard: bool, deputy: bool = False, survives: bool = True
) -> tuple[Outcome, list[list[str]], bool]:
    """Build a tree in a mount namespace of its own, attack it: the outcome, what was reported,
    and whether the pinned link is alive afterwards, as it should if it *survives*. deputy: the
    attacker is the owner's deputy."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found: list[object]
            try:
                private()
                tree = Tree(tried.keep)
                if guard:
                    protect(policy_of(guest), tree)
                read_events(guest)

                def run() -> int:
                    try:
                        tried.act(tree)
                    except KernelError as error:
                        raise OSError(error.errno, str(error)) from None
                    return 0

                def body(begin: probes.Act) -> None:
                    if deputy:
                        policy_of(guest).delegate(os.getpid())
                    begin(run)

                made = probes.attempt(body)
                seen = [[e.operation, e.reason, e.verdict] for e in read_events(guest)]
                if deputy:
                    policy_of(guest).delegate(None)
                found = [made.kind, made.code, made.detail, seen, tree.alive(survives)]
            except BaseException as error:
                found = ["impossible", 0, f"{type(error).__name__}: {error}", [], False]
            os.write(writer, json.dumps(found).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        kind, code, detail, seen, alive = json.loads(file.read())
    os.waitpid(child, 0)
    return Outcome(kind, code, detail), seen, alive
