# SPDX-License-Identifier: BSD-2-Clause
"""The userns policy's life: namespaces put and reset, pins, the guard, its owner, commands."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import struct

from pybpf.kernel.map import Map
from restrict import release, userns_pins, userns_status
from restrict import userns as names_of
from tests.vm import probes_bpf, userns
from tests.vm.outcome import ALLOWED, Outcome, refusal, refused, trial
from tests.vm.probes import attempt
from tests.vm.scenario import Guest, Scenario
from tests.vm.userns_acts import create
from tests.vm.userns_commands import PROGRAMS, add_to, restrict
from tests.vm.userns_policy import (
    EXPEDITED,
    PLAN,
    PLANS,
    events,
    installed,
    plan_without,
    plans,
    prepare,
    put,
    reported,
    run_apart,
    the_namespace,
)
from tests.vm.waiting import WAIT_SECONDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from restrict.userns import Userns

CAP_SYS_ADMIN = 21

life = Scenario(
    "userns_life", memory=1024, append=EXPEDITED,
    drives={"plans": plans(shallow=lambda: plan_without(max_levels=5))},
)  # fmt: skip
life.setup(prepare)


# ── namespaces ──


@life.case()
def replace_and_extend(guest: Guest) -> None:
    namespace = the_namespace(guest)
    foreign, allowed = namespace.path(userns.FOREIGN), namespace.path(userns.ALLOWED_DIR)
    ids = [names_of.mount_id(foreign), names_of.mount_id(allowed)]
    assert len(set(ids)) == 2
    with installed() as policy:
        policy.put_by_inode(namespace.inode, [foreign], replace=True)
        policy.put_by_inode(namespace.inode, [allowed])
        assert [e.mounts for e in policy.namespaces()] == [sorted(ids)]
        policy.put_by_inode(namespace.inode, [allowed], replace=True)
        assert [e.mounts for e in policy.namespaces()] == [[ids[1]]]
        assert policy.reset_by_inode(namespace.inode)
        assert not policy.reset_by_inode(namespace.inode)
        assert policy.namespaces() == []


@life.case()
def a_list_that_grows(guest: Guest) -> None:
    """An inner map starts small; a larger one takes its place, with the mounts of before."""
    namespace = the_namespace(guest)
    allowed = namespace.path(userns.ALLOWED_DIR)
    fds, ids = [allowed], [names_of.mount_id(allowed)]
    for _ in range(70):
        fds.append(userns.call("open_tree", -100, userns.FOREIGN, 1 | os.O_CLOEXEC))
        ids.append(names_of.mount_id(fds[-1]))
    with installed() as policy:
        policy.put_by_inode(namespace.inode, fds[:16], replace=True)
        for fd in fds[16:]:
            policy.put_by_inode(namespace.inode, [fd])
        assert [e.mounts for e in policy.namespaces()] == [sorted(ids)]
        guest.expect(namespace.attempt(create, userns.ALLOWED_DIR, "grown"), ALLOWED)
        guest.expect(namespace.attempt(create, userns.FOREIGN, "grown"), refused())
        policy.reset_by_inode(namespace.inode)


@life.case()
def what_is_no_namespace_is_refused(guest: Guest) -> None:
    namespace = the_namespace(guest)
    with installed() as policy, open("/proc/self/ns/user") as own, open("/dev/null") as null:
        for fd, why in (
            (namespace.mnt, "not one of a user namespace"),
            (null.fileno(), "not one of a user namespace"),
            (own.fileno(), "the initial user namespace"),
        ):
            assert why in refusal(lambda fd=fd: policy.put_by_fd(fd))  # type: ignore[misc]
        for inode in (1 << 32, 0, -1):
            assert "32 bits" in refusal(lambda inode=inode: policy.put_by_inode(inode))  # type: ignore[misc]
        assert not policy.reset_by_inode(1 << 32)
        assert policy.namespaces() == []


@life.case()
def its_end_is_reported(guest: Guest) -> None:
    with installed() as policy:
        namespace = userns.Namespace(mount=False)
        policy.put_by_fd(namespace.user, deny_setgroups=True)
        assert [e.inode for e in policy.namespaces()] == [namespace.inode]
        assert policy.remove_ended() == []
        namespace.end()
        ended = select.poll()
        ended.register(policy.fileno(), select.POLLIN)
        assert ended.poll(WAIT_SECONDS * 1000)
        assert policy.remove_ended() == [namespace.inode]
        assert policy.namespaces() == []


@life.case()
def two_processes_put(guest: Guest) -> None:
    """Each adds other mounts to the same namespaces; nothing is lost."""
    sides = [os.open(path, os.O_PATH) for path in (userns.FOREIGN, userns.ALLOWED_DIR)]
    inodes = range(1000, 1200)
    children = []
    for fd in sides:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with installed() as policy:
                    for inode in inodes:
                        policy.put_by_inode(inode, [fd])
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    both = sorted(names_of.mount_id(fd) for fd in sides)
    with installed() as policy:
        found = policy.namespaces()
        assert [e.inode for e in found] == list(inodes)
        assert all(e.mounts == both for e in found)
        for inode in inodes:
            assert policy.reset_by_inode(inode)


def _used() -> int:
    """KiB of memory in use, all the guest does counted."""
    with open("/proc/meminfo") as file:
        values = {line.split(":")[0]: int(line.split()[1]) for line in file}
    return values["MemTotal"] - values["MemFree"] - values["Buffers"] - values["Cached"]


def _charged(ident: int) -> int:
    """Bytes that the kernel charges for the map with this id (fdinfo; exact since 6.4)."""
    with Map.from_id(ident) as found, open(f"/proc/self/fdinfo/{found.fileno()}") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("memlock:"))


@life.case()
def ten_thousand_namespaces(guest: Guest) -> None:
    """Each has a map of its own, and gives it back.

    The kernel's list of maps tells exactly whether one is left. Only then does the memory follow,
    from a work queue; and the allocators keep some of it, so that no more than half is asked for.
    """
    fd = os.open(userns.ALLOWED_DIR, os.O_PATH)
    inodes = range(0x10000, 0x10000 + 10000)
    with installed() as policy:
        policy.remove_ended()  # what it opens for that stays open
        maps, fds, before = set(probes_bpf.ids("map")), os.listdir("/proc/self/fd"), _used()
        for inode in inodes:
            policy.put_by_inode(inode, [fd])
        taken = _used() - before
        assert len(list(policy.maps["userns_mounts"].raw_keys())) == len(inodes)
        made = set(probes_bpf.ids("map")) - maps
        assert len(made) == len(inodes)
        # It was 70 KiB while each had room for 4,096 mounts from the start.
        charged = sorted(_charged(ident) for ident in sorted(made)[::100])
        assert charged[-1] < 8192, charged[-1]
        for inode in inodes:
            assert policy.reset_by_inode(inode)
        assert policy.namespaces() == []
        guest.wait(lambda: not made & set(probes_bpf.ids("map")), "every map is gone")
        assert sorted(os.listdir("/proc/self/fd")) == sorted(fds)
        guest.wait(lambda: _used() - before < taken // 2, "the maps' memory is given back")
        left = _used() - before
        guest.note(
            f"{charged[0]} to {charged[-1]} bytes each; {taken} KiB in all, {left} left over"
        )


# ── the guard ──


def _objects() -> dict[str, list[int]]:
    found = userns_status.read()
    assert found is not None
    assert found.in_force
    return found.guard


def _without(capability: int) -> None:
    """Give up one capability, and keep all others."""
    header = struct.pack("=Ii", 0x20080522, 0)
    data = bytearray(24)
    userns.call("capget", header, data)
    low = struct.unpack_from("=I", data)[0] & ~(1 << capability)
    for offset in (0, 4):
        struct.pack_into("=I", data, offset, low)
    userns.call("capset", header, data)


def _get(path: str) -> int:
    import ctypes

    text = ctypes.create_string_buffer(path.encode())
    return probes_bpf.bpf(7, struct.pack("<QII", ctypes.addressof(text), 0, 0))[0]


def _attempt(function: Callable[..., object], *arguments: object) -> Outcome:
    return attempt(lambda act: act(function, *arguments))


def _get_without_admin(path: str) -> Any:
    def body(act: Callable[..., int]) -> None:
        _without(CAP_SYS_ADMIN)
        act(_get, path)

    return attempt(body)


@contextlib.contextmanager
def _unarmed(policy: Userns) -> Iterator[None]:
    """Inside the block every program is attached and allows."""
    with policy.globals() as values:
        values.set("armed", 0)
    try:
        yield
    finally:
        with policy.globals() as values:
            values.set("armed", 1)


@life.case()
def maps_are_guarded(guest: Guest) -> None:
    """CAP_BPF and the right to read the pins are not enough; CAP_SYS_ADMIN outside is."""
    names = os.listdir(f"{userns_pins.PINS}/maps")
    assert len(names) == 6
    with userns_pins.install(userns_pins.load_plan(PLAN)) as policy:
        events(policy)
        for name in names:
            path = f"{userns_pins.PINS}/maps/{name}"
            with _unarmed(policy):
                guest.expect(_get_without_admin(path), ALLOWED)
            guest.expect(_get_without_admin(path), refused())
            (event,) = events(policy)
            assert (event.operation, event.reason) == ("bpf_map", "guard_map")
            assert event.object in _objects()["map"]
            guest.expect(_attempt(_get, path), ALLOWED)
            assert not events(policy)


@life.case()
def a_member_gets_nothing(guest: Guest) -> None:
    """The owner of the namespace has every capability in it: here a pin was even shown to it."""
    namespace = the_namespace(guest)
    fd = os.open(f"{userns_pins.PINS}/maps", os.O_RDONLY | os.O_DIRECTORY)
    path = f"/proc/self/fd/{fd}/bss"
    os.chmod(f"{userns_pins.PINS}/maps/bss", 0o666)
    os.chmod(f"{userns_pins.PINS}/maps", 0o755)
    try:
        with userns_pins.install(userns_pins.load_plan(PLAN)) as policy:
            with _unarmed(policy):
                guest.expect(namespace.attempt(_get, path), ALLOWED)
            events(policy)
            guest.expect(namespace.attempt(_get, path), refused())
            assert [e.operation for e in events(policy)] == ["bpf_map"]
    finally:
        os.chmod(f"{userns_pins.PINS}/maps", 0o700)
        os.chmod(f"{userns_pins.PINS}/maps/bss", 0o600)


@life.case()
def links_cannot_be_detached(guest: Guest) -> None:
    """No kernel detaches or updates a tracing link by command: only their pins hold them."""
    path = f"{userns_pins.PINS}/programs/mknod"
    fd = _get(path)
    update, detach = struct.pack("<4I", fd, fd, 0, 0), struct.pack("<I", fd)
    for number, attributes in ((29, update), (34, detach)):
        found = _attempt(probes_bpf.bpf_result, number, attributes)
        guest.note(str(found))
        assert found.kind == "refused"
    os.close(fd)


@life.case()
def one_owner(guest: Guest) -> None:
    """With --owner nobody else, root neither, gets at maps, inner maps, programs and links."""
    plan = userns_pins.load_plan(PLAN)
    namespace = the_namespace(guest)
    policy = userns_pins.install(plan, owner=os.getpid())
    put(guest, policy, userns.ALLOWED_DIR)
    inner = policy.maps["userns_mounts"][struct.pack("=I", namespace.inode)]
    ids = {**_objects()}
    ids["map"] = [*ids["map"], inner]
    assert len(ids["map"]) >= 8
    assert len(ids["link"]) == PROGRAMS
    try:
        for kind, numbers in ids.items():
            for number in numbers:
                with _unarmed(policy):
                    guest.expect(probes_bpf.fd_by_id(kind, number), ALLOWED)
                events(policy)
                guest.expect(probes_bpf.fd_by_id(kind, number), refused())
                found = [(e.operation, e.reason, e.object) for e in events(policy)]
                assert found == [(f"bpf_{kind}", f"guard_{kind}", number)]
                os.close(probes_bpf._open_by_id(kind, number))  # the owner itself
        # Nor by the pins, nor by the tool.
        for name in os.listdir(f"{userns_pins.PINS}/maps"):
            path = f"{userns_pins.PINS}/maps/{name}"
            guest.expect(_attempt(_get, path), refused())
        done = restrict("userns", "list")
        assert done.returncode == 1, done.stdout
        assert "owner" in done.stderr, done.stderr
        # Nor through the owner.
        with _unarmed(policy):
            guest.expect(_write_memory_of_owner(), ALLOWED)
        guest.expect(_write_memory_of_owner(), refused(errno.EACCES))
        # The state can be read all the same.
        state = userns_status.read()
        assert state is not None
        assert (state.owner, state.administrators) == (os.getpid(), False)
        # A program of somebody else may have maps of other names.
        guest.expect(probes_bpf.create_map(), ALLOWED)
    finally:
        policy.reset_by_inode(namespace.inode)
        userns_pins.install(plan).close()
        policy.close()


def _write_memory_of_owner() -> Any:
    owner = os.getpid()
    return attempt(lambda act: act(os.open, f"/proc/{owner}/mem", os.O_RDWR))


@life.case()
def an_owner_that_is_none(guest: Guest) -> None:
    """Installing again for a process that is not there changes nothing."""
    plan = userns_pins.load_plan(PLAN)
    before = userns_status.read()
    assert "no process 4194305" in refusal(lambda: userns_pins.install(plan, owner=(1 << 22) + 1))
    after = userns_status.read()
    assert before is not None
    assert after is not None
    for name in ("armed", "audit", "owner", "administrators", "guard"):
        assert getattr(after, name) == getattr(before, name), name
    installed().close()


@life.case()
def an_owner_that_is_gone(guest: Guest) -> None:
    """Nobody administers then; the policy goes on, and the pins can be removed by root."""
    namespace = the_namespace(guest)
    plan = userns_pins.load_plan(PLAN)

    def become_owner() -> None:
        with userns_pins.install(plan, owner=os.getpid()) as policy:
            put(guest, policy)

    run_apart(become_owner)
    guest.expect(namespace.attempt(create, userns.FOREIGN, "gone0"), refused())
    outcome = trial(userns_pins.open_pinned)
    guest.note(str(outcome))
    guest.expect(outcome, refused())
    assert userns_pins.uninstall()
    guest.expect(namespace.attempt(create, userns.FOREIGN, "gone1"), ALLOWED)
    run_apart(lambda: userns_pins.install(plan).close())
    with installed() as policy:
        put(guest, policy)
        guest.expect(namespace.attempt(create, userns.FOREIGN, "gone2"), refused())
        policy.reset_by_inode(namespace.inode)


# ── installing ──


@life.case()
def installed_again(guest: Guest) -> None:
    namespace = the_namespace(guest)
    plan = userns_pins.load_plan(PLAN)
    with installed() as policy:
        put(guest, policy)
        with userns_pins.install(plan) as again:
            assert sorted(again.reused) == sorted(again.links) == sorted(plan.programs)
            assert [e.inode for e in again.namespaces()] == [namespace.inode]
        guest.expect(namespace.attempt(create, userns.FOREIGN, "again0"), refused())
        # One link is gone: it alone is made anew.
        (link,) = [n for n in _objects()["link"] if n == _link_id("mknod")]
        before = set(_objects()["program"])
        os.unlink(f"{userns_pins.PINS}/programs/mknod")
        assert release.wait_released([link]) == []
        guest.wait(lambda: before - set(probes_bpf.ids("program")), "the program is gone")
        guest.expect(namespace.attempt(create, userns.FOREIGN, "again1"), ALLOWED)
        with userns_pins.install(plan) as again:
            assert set(again.links) - set(again.reused) == {"userns_mknod"}
        guest.expect(namespace.attempt(create, userns.FOREIGN, "again2"), refused())
        assert link not in _objects()["link"]
        assert _link_id("mknod") in _objects()["link"]
        policy.reset_by_inode(namespace.inode)


def _link_id(name: str) -> int:
    from pybpf.kernel.link import Link

    with Link.from_pin(f"{userns_pins.PINS}/programs/{name}") as link:
        return link.id


@life.case()
def what_fails_is_undone(guest: Guest) -> None:
    """A pin of another kind is in the way of the last link: nothing is left of the rest."""
    pins = "/sys/fs/bpf/restrict/other"
    os.makedirs(f"{pins}/programs", 0o700)
    os.chmod(pins, 0o711)
    plan = userns_pins.load_plan(PLAN)
    from pybpf.kernel.map import create as create_map

    last = list(plan.programs)[-1].removeprefix("userns_")
    with create_map(2, 4, 4, 1) as found:
        found.pin(f"{pins}/programs/{last}" if last != "status" else f"{pins}/status")
    before = {kind: probes_bpf.ids(kind) for kind in ("link", "program", "map")}
    assert "not a BPF link" in refusal(lambda: userns_pins.install(plan, pins=pins))
    left = [n for n in probes_bpf.ids("link") if n not in before["link"]]
    assert release.wait_released(left) == []
    assert sorted(os.listdir(pins)) == (
        ["programs"] if last != "status" else ["programs", "status"]
    )
    os.unlink(f"{pins}/programs/{last}" if last != "status" else f"{pins}/status")
    os.rmdir(f"{pins}/programs")
    os.rmdir(pins)
    guest.wait(
        lambda: set(probes_bpf.ids("program")) <= set(before["program"]), "programs are gone"
    )


@life.case()
def without_pins(guest: Guest) -> None:
    """It lasts as long as the handle."""
    namespace = the_namespace(guest)
    before = set(probes_bpf.ids("link"))
    with installed() as pinned:
        pinned.reset_by_inode(namespace.inode)
    policy = userns_pins.install(userns_pins.load_plan(PLAN), pins=None)
    links = [n for n in probes_bpf.ids("link") if n not in before]
    assert len(links) == PROGRAMS - 1  # no status without a pin
    policy.put_by_fd(namespace.user)
    guest.expect(namespace.attempt(create, userns.FOREIGN, "unpinned0"), refused())
    for number in links:
        guest.expect(probes_bpf.fd_by_id("link", number), refused())
    programs = [link.prog_id for link in policy.links.values()]
    policy.close()
    assert release.wait_released(links, programs=programs) == []
    guest.expect(namespace.attempt(create, userns.FOREIGN, "unpinned1"), ALLOWED)


@life.case()
def audit_allows_and_reports(guest: Guest) -> None:
    namespace = the_namespace(guest)
    plan = userns_pins.load_plan(PLAN)
    with userns_pins.install(plan, audit=True) as policy:
        put(guest, policy)
        events(policy)
        before = _counter("mknod")
        guest.expect(namespace.attempt(create, userns.FOREIGN, "audit0"), ALLOWED)
        assert [(e.verdict, e.path) for e in events(policy)] == [("audited", "audit0")]
        after = _counter("mknod")
        assert (after["audited"], after["denied"]) == (before["audited"] + 1, before["denied"])
        # The guard is not softened.
        guest.expect(_get_without_admin(f"{userns_pins.PINS}/maps/bss"), refused())
    with userns_pins.install(plan) as policy:
        guest.expect(namespace.attempt(create, userns.FOREIGN, "audit1"), refused())
        assert _counter("mknod")["denied"] == after["denied"] + 1
        policy.reset_by_inode(namespace.inode)


def _counter(operation: str) -> dict[str, int]:
    found = userns_status.read()
    assert found is not None
    return found.counters[operation]


@life.case()
def too_deep(guest: Guest) -> None:
    """No kernel lets chains grow to where the programs stop looking, so a plan that looks at five
    levels shows what comes then: refused, managed or not."""
    namespace = the_namespace(guest)
    guest.mount(guest.node("plans"), PLANS)
    with installed() as pinned:
        pinned.reset_by_inode(namespace.inode)
    guest.expect(namespace.attempt(create, userns.FOREIGN, "shallow0", nested=4), ALLOWED)
    with userns_pins.install(userns_pins.load_plan(f"{PLANS}/shallow"), pins=None) as policy:
        guest.expect(namespace.attempt(create, userns.FOREIGN, "shallow1", nested=3), ALLOWED)
        events(policy)
        guest.expect(namespace.attempt(create, userns.FOREIGN, "shallow2", nested=4), refused())
        (event,) = events(policy)
        assert (event.operation, event.reason, event.managed) == ("mknod", "too_deep", 0)
        policy.put_by_fd(namespace.user)
        guest.expect(namespace.attempt(create, userns.FOREIGN, "shallow3", nested=3), refused())
        assert [e.reason for e in events(policy)] == ["mount"]
        links = [link.id for link in policy.links.values()]
    assert release.wait_released(links) == []


add_to(life)


@life.case()
def somebody_else_holds_a_link(guest: Guest) -> None:
    """uninstall says so; without that it returns when nothing is attached any more."""
    plan = userns_pins.load_plan(PLAN)
    fd = _get(f"{userns_pins.PINS}/programs/mknod")
    held = _link_id("mknod")
    said = refusal(lambda: userns_pins.uninstall(timeout=2.0))
    guest.note(said)
    assert str(held) in said
    os.close(fd)
    assert release.wait_released([held]) == []
    run_apart(lambda: userns_pins.install(plan).close())


@life.case()
def uninstalled(guest: Guest) -> None:
    """Last: without the pins nothing is left of it."""
    namespace = the_namespace(guest)
    with installed() as policy:
        put(guest, policy)
        events(policy)
    guest.expect(namespace.attempt(create, userns.FOREIGN, "last0"), refused())
    with installed() as policy:
        reported(guest, policy, "mknod", "mount")
    links = _objects()["link"]
    assert userns_pins.uninstall()
    assert release.existing(links) == []
    guest.expect(namespace.attempt(create, userns.FOREIGN, "last1"), ALLOWED)
    assert userns_pins.open_pinned() is None
    assert userns_status.read() is None
    assert not os.path.exists(userns_pins.PINS)
