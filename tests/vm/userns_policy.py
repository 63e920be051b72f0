# SPDX-License-Identifier: BSD-2-Clause
"""The userns policy in a guest: set up with pins, judged by outcome and event."""

from __future__ import annotations

import contextlib
import os

from restrict import userns_pins
from restrict.events import Event
from tests.vm import userns
from tests.vm.outcome import ALLOWED, refused
from tests.vm.scenario import Drive, Guest, Scenario
from tests.vm.userns_acts import ACTS, prepare_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from restrict.userns import Userns

__all__ = [
    "ENFORCING",
    "EXPEDITED",
    "PLAN",
    "PLANS",
    "add",
    "check",
    "events",
    "installed",
    "managed",
    "plan_without",
    "plans",
    "prepare",
    "put",
    "refused_once_managed",
    "reported",
    "run_apart",
    "the_namespace",
]

PLAN = "/project/bpf/objects/userns.plan"
PLANS = "/run/plans"
#: Each change of a map of maps waits for an RCU grace period: 2 ms on 7.3, longer on 6.12.
EXPEDITED = "rcupdate.rcu_expedited=1"

#: Every program that refuses something to members.
ENFORCING = (
    "userns_chown", "userns_mkdir", "userns_mknod", "userns_symlink", "userns_link",
    "userns_rename", "userns_open", "userns_ioctl", "userns_ioctl_compat", "userns_create_queue",
    "userns_shm", "userns_msg", "userns_sem", "userns_acl", "userns_capability", "userns_mount",
    "userns_setgroups",
)  # fmt: skip


def plan_without(*names: str, max_levels: int | None = None) -> bytes:
    """A frozen plan of the policy without some programs; on the host only."""
    from pathlib import Path

    from pybpf import elf
    from pybpf.compiler import compile as compile_plan
    from pybpf.plan.frozen import to_bytes

    objects = Path(__file__).resolve().parents[2] / "bpf/objects"
    spec = elf.read(objects / "userns.bpf.o").with_program("userns_status", autoload=True)
    for name in names:
        spec = spec.with_program(name, autoload=False)
    if max_levels is not None:
        spec = spec.with_variables(max_levels=max_levels)
    return to_bytes(compile_plan(spec, relocate="kernel"))


def plans(**found: object) -> Drive:
    """A disk of plans, which are made on the host."""
    return Drive(found, signature="none")  # type: ignore[arg-type]


def run_apart(function: object, *arguments: object) -> None:
    """Call it in a process of its own, which has ended when this returns."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function(*arguments)  # type: ignore[operator]
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def installed() -> Userns:
    found = userns_pins.open_pinned()
    assert found is not None
    return found


def the_namespace(guest: Guest) -> userns.Namespace:
    found: userns.Namespace = guest.state["namespace"]
    return found


@contextlib.contextmanager
def managed(guest: Guest) -> Iterator[tuple[Userns, userns.Namespace]]:
    """A handle of the policy, and the namespace: not managed at first, and afterwards."""
    namespace = the_namespace(guest)
    with installed() as policy:
        policy.reset_by_inode(namespace.inode)
        events(policy)
        try:
            yield policy, namespace
        finally:
            policy.reset_by_inode(namespace.inode)


def prepare(guest: Guest, plan: str = PLAN, *, apart: bool = True) -> None:
    """Filesystems and a namespace; then the policy, whose installer ends: the pins keep it.
    apart: install in a process of its own, not in this one."""
    with open("/proc/sys/kernel/core_pattern", "w") as file:
        file.write("core.%e")
    for path in (
        userns.FOREIGN, userns.ALLOWED_DIR, userns.OWN, userns.IDMAPPED, userns.IDMAPPED_SOURCE,
    ):  # fmt: skip
        os.makedirs(path)
        if path not in (userns.OWN, userns.IDMAPPED):
            guest.mount("tmpfs", path, "tmpfs", 0, "mode=0777")
    namespace = userns.Namespace()
    for folder in (userns.FOREIGN, userns.ALLOWED_DIR, userns.OWN):
        made = namespace.attempt(prepare_folder, folder)
        assert ALLOWED.matches(made), str(made)
    guest.state["namespace"] = namespace
    guest.state["idmapped"] = userns.idmapped(namespace)

    def install() -> None:
        userns_pins.install(userns_pins.load_plan(plan)).close()

    if apart:
        run_apart(install)
    else:
        install()


def events(policy: Userns) -> list[Event]:
    from pybpf.kernel.ringbuf import RingBuffer

    with RingBuffer(policy.maps["events"]) as ring:
        return [Event(record) for record in ring.read()]


def put(guest: Guest, policy: Userns, *paths: str, **options: bool) -> int:
    namespace = the_namespace(guest)
    fds = [namespace.path(path) for path in paths]
    try:
        return policy.put_by_fd(namespace.user, fds, replace=True, **options)
    finally:
        for fd in fds:
            os.close(fd)


def reported(guest: Guest, policy: Userns, operation: str, reason: str) -> Event:
    """Exactly one event came, and it is right in every word."""
    found = events(policy)
    for event in found:
        guest.note(event.text())
    inode = the_namespace(guest).inode
    assert [(e.policy, e.operation, e.reason, e.verdict, e.managed) for e in found] == [
        ("userns", operation, reason, "denied", inode)
    ]
    return found[0]


def refused_once_managed(
    guest: Guest,
    policy: Userns,
    operation: str,
    name: str,
    act: Callable[..., int],
    *words: str,
    listed: Sequence[str] = (),
) -> None:
    """An act on a foreign mount: allowed unmanaged, refused and reported managed (which it stays).
    It is called with *words* and a name that is new."""
    namespace = the_namespace(guest)
    policy.reset_by_inode(namespace.inode)
    guest.expect(namespace.attempt(act, *words, f"{name}0"), ALLOWED)
    put(guest, policy, *listed)
    events(policy)
    guest.expect(namespace.attempt(act, *words, f"{name}1"), refused())
    reported(guest, policy, operation, "mount")


def check(guest: Guest, name: str, foreign: str = userns.FOREIGN) -> None:
    """Allowed where it is not managed; managed, only where the list or the owner says."""
    entry = ACTS[name]
    act = entry.function
    with managed(guest) as (policy, namespace):
        guest.expect(namespace.attempt(act, foreign, f"{name}0"), ALLOWED)
        put(guest, policy, userns.ALLOWED_DIR)
        assert not events(policy)
        guest.expect(namespace.attempt(act, foreign, f"{name}1"), refused())
        event = reported(guest, policy, entry.operation, entry.reason)
        assert event.userns == namespace.inode
        assert bool(event.mount) == (entry.reason == "mount")
        assert not entry.disk or not os.path.lexists(f"{foreign}/{name}1")
        if entry.nested:
            # A nested namespace is no way round, and has what the one above has.
            nested = namespace.attempt(act, foreign, f"{name}2", nested=2)
            guest.expect(nested, refused())
            event = reported(guest, policy, entry.operation, entry.reason)
            assert event.userns not in (0, namespace.inode)
        if foreign == userns.FOREIGN:
            _check_elsewhere(guest, policy, name)
        # Processes outside are none of its business.
        if entry.outside:
            act(foreign, f"{name}6")
        policy.reset_by_inode(namespace.inode)
        guest.expect(namespace.attempt(act, foreign, f"{name}7"), ALLOWED)


def _check_elsewhere(guest: Guest, policy: Userns, name: str) -> None:
    """The same act on the listed mount and on the namespace's own."""
    namespace = the_namespace(guest)
    entry = ACTS[name]
    act = entry.function
    if entry.listed:
        if entry.nested:
            nested = namespace.attempt(act, userns.ALLOWED_DIR, f"{name}3", nested=2)
            guest.expect(nested, ALLOWED)
        guest.expect(namespace.attempt(act, userns.ALLOWED_DIR, f"{name}4"), ALLOWED)
    else:
        guest.expect(namespace.attempt(act, userns.ALLOWED_DIR, f"{name}4"), refused())
        reported(guest, policy, entry.operation, entry.reason)
    guest.expect(namespace.attempt(act, userns.OWN, f"{name}5"), ALLOWED)
    assert not events(policy)


def check_toothless(guest: Guest, name: str) -> None:
    """Without the enforcing hooks the check must fail, by what it expects to be refused."""
    try:
        check(guest, name)
    except AssertionError as error:
        said = str(error)
    else:
        raise AssertionError("the check passed with nothing that enforces")
    guest.note(said)
    assert "but: allowed" in said, said


def add(scenario: Scenario, *, toothless: bool = False) -> None:
    """Each act as a case."""
    for name in ACTS:

        def case(guest: Guest, name: str = name) -> None:
            (check_toothless if toothless else check)(guest, name)

        scenario.case(name=name)(case)
