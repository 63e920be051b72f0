# SPDX-License-Identifier: BSD-2-Clause
"""User namespaces whose members leave no inode behind: real namespaces, real mounts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

from restrict import userns as names_of
from restrict import userns_pins as policy_of
from restrict.errors import RestrictError
from restrict.events import Event
from tests.vm import userns
from tests.vm.outcome import ALLOWED, refused
from tests.vm.scenario import Guest, Scenario

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from restrict.userns import Userns

PLAN = "/project/bpf/objects/userns.plan"
PROGRAMS = 24  # with the status

# Each change of a map of maps waits for an RCU grace period: 2 ms on 7.3, longer on 6.12.
namespaces = Scenario("userns", memory=2048, append="rcupdate.rcu_expedited=1", timeout=600)


def installed() -> Userns:
    found = policy_of.open_pinned()
    assert found is not None
    return found


@namespaces.setup
def prepare(guest: Guest) -> None:
    for path in (
        userns.FOREIGN, userns.ALLOWED_DIR, userns.OWN, userns.IDMAPPED, userns.IDMAPPED_SOURCE,
    ):  # fmt: skip
        os.makedirs(path)
        if path not in (userns.OWN, userns.IDMAPPED):
            guest.mount("tmpfs", path, "tmpfs", 0, "mode=0777")
    namespace = userns.Namespace()
    for folder in (userns.FOREIGN, userns.ALLOWED_DIR, userns.OWN):
        made = namespace.attempt(userns.prepare_folder, folder)
        assert ALLOWED.matches(made), str(made)
    guest.state["namespace"] = namespace
    guest.state["idmapped"] = userns.idmapped(namespace)
    # The installer ends; the pins keep the policy.
    child = os.fork()
    if child == 0:
        status = 1
        try:
            policy_of.install(policy_of.load_plan(PLAN)).close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def events(policy: Userns) -> list[Event]:
    from pybpf.kernel.ringbuf import RingBuffer

    with RingBuffer(policy.maps["events"]) as ring:
        return [Event(record) for record in ring.read()]


def put(guest: Guest, policy: Userns, *paths: str, **options: bool) -> int:
    namespace: userns.Namespace = guest.state["namespace"]
    fds = [namespace.path(path) for path in paths]
    try:
        return policy.put_by_fd(namespace.user, fds, replace=True, **options)
    finally:
        for fd in fds:
            os.close(fd)


def reported(guest: Guest, policy: Userns, operation: str, reason: str) -> None:
    found = events(policy)
    for event in found:
        guest.note(event.text())
    inode = guest.state["namespace"].inode
    assert [(e.operation, e.reason, e.verdict, e.managed) for e in found] == [
        (operation, reason, "denied", inode)
    ]


def check(guest: Guest, name: str) -> None:
    """Allowed where it is not managed; managed, only where the list or the owner says."""
    namespace: userns.Namespace = guest.state["namespace"]
    act, operation = userns.ACTS[name]
    overlay = operation == "overlay"
    with installed() as policy:
        policy.reset_by_inode(namespace.inode)
        events(policy)
        guest.expect(namespace.attempt(act, userns.FOREIGN, f"{name}0"), ALLOWED)
        put(guest, policy, userns.ALLOWED_DIR)
        assert not events(policy)
        guest.expect(namespace.attempt(act, userns.FOREIGN, f"{name}1"), refused())
        reported(guest, policy, operation, "upper" if overlay else "mount")
        assert overlay or not os.path.exists(f"{userns.FOREIGN}/{name}1")
        if not overlay:
            # A nested namespace is no way round, and has what the one above has.
            if name != "chown":
                nested = namespace.attempt(act, userns.FOREIGN, f"{name}2", nested=2)
                guest.expect(nested, refused())
                reported(guest, policy, operation, "mount")
                nested = namespace.attempt(act, userns.ALLOWED_DIR, f"{name}3", nested=2)
                guest.expect(nested, ALLOWED)
            guest.expect(namespace.attempt(act, userns.ALLOWED_DIR, f"{name}4"), ALLOWED)
        guest.expect(namespace.attempt(act, userns.OWN, f"{name}5"), ALLOWED)
        assert not events(policy)
        # Processes outside are none of its business.
        if name not in userns._NEED_FILE and not overlay:
            act(userns.FOREIGN, f"{name}6")
        policy.reset_by_inode(namespace.inode)
        guest.expect(namespace.attempt(act, userns.FOREIGN, f"{name}7"), ALLOWED)


def _add(name: str) -> None:
    def case(guest: Guest) -> None:
        check(guest, name)

    namespaces.case(name=name)(case)


for _name in userns.ACTS:
    _add(_name)


@namespaces.case()
def message_queue(guest: Guest) -> None:
    namespace: userns.Namespace = guest.state["namespace"]
    with installed() as policy:
        policy.reset_by_inode(namespace.inode)
        events(policy)
        guest.expect(namespace.attempt(userns.QUEUE, "", "queue0"), ALLOWED)
        put(guest, policy)
        guest.expect(namespace.attempt(userns.QUEUE, "", "queue1"), refused())
        reported(guest, policy, "mqueue", "mount")
        policy.reset_by_inode(namespace.inode)


@namespaces.case()
def set_groups(guest: Guest) -> None:
    namespace: userns.Namespace = guest.state["namespace"]

    def act() -> int:
        os.setgroups([5])
        return 0

    with installed() as policy:
        put(guest, policy)
        events(policy)
        guest.expect(namespace.attempt(act), ALLOWED)
        put(guest, policy, deny_setgroups=True)
        guest.expect(namespace.attempt(act), refused())
        reported(guest, policy, "setgroups", "setgroups")
        assert [e.deny_setgroups for e in policy.namespaces()] == [True]
        put(guest, policy, deny_setgroups=False)
        guest.expect(namespace.attempt(act), ALLOWED)
        policy.reset_by_inode(namespace.inode)


@namespaces.case()
def idmapped_mount(guest: Guest) -> None:
    namespace: userns.Namespace = guest.state["namespace"]
    act = userns.ACTS["create"][0]
    with installed() as policy:
        put(guest, policy)
        guest.expect(namespace.attempt(act, userns.IDMAPPED, "idmapped0"), refused())
        policy.put_by_fd(namespace.user, [guest.state["idmapped"]])
        guest.expect(namespace.attempt(act, userns.IDMAPPED, "idmapped1"), ALLOWED)
        # What is left on the disk belongs to no transient id.
        assert os.stat(f"{userns.IDMAPPED_SOURCE}/idmapped1").st_uid == 0
        policy.reset_by_inode(namespace.inode)


@namespaces.case()
def replace_and_extend(guest: Guest) -> None:
    namespace: userns.Namespace = guest.state["namespace"]
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


@namespaces.case()
def what_is_no_namespace_is_refused(guest: Guest) -> None:
    namespace: userns.Namespace = guest.state["namespace"]
    with installed() as policy, open("/proc/self/ns/user") as own, open("/dev/null") as null:
        for fd in (namespace.mnt, null.fileno(), own.fileno()):
            try:
                policy.put_by_fd(fd)
            except RestrictError as error:
                guest.note(str(error))
            else:
                raise AssertionError(f"fd {fd} was taken")
        for inode in (1 << 32, 0, -1):
            try:
                policy.put_by_inode(inode)
            except RestrictError:
                continue
            raise AssertionError(f"inode {inode} was taken")
        assert not policy.reset_by_inode(1 << 32)
        assert policy.namespaces() == []


@namespaces.case()
def its_end_is_reported(guest: Guest) -> None:
    with installed() as policy:
        namespace = userns.Namespace(mount=False)
        policy.put_by_fd(namespace.user, deny_setgroups=True)
        assert [e.inode for e in policy.namespaces()] == [namespace.inode]
        assert policy.remove_ended() == []
        namespace.end()
        for _ in range(100):
            gone = policy.remove_ended()
            if gone:
                break
            time.sleep(0.05)
        assert gone == [namespace.inode]
        assert policy.namespaces() == []


@namespaces.case()
def installed_again(guest: Guest) -> None:
    namespace: userns.Namespace = guest.state["namespace"]
    act = userns.ACTS["create"][0]
    plan = policy_of.load_plan(PLAN)
    with installed() as policy:
        put(guest, policy)
        with policy_of.install(plan) as again:
            assert sorted(again.reused) == sorted(again.links) == sorted(plan.programs)
            assert [e.inode for e in again.namespaces()] == [namespace.inode]
        guest.expect(namespace.attempt(act, userns.FOREIGN, "again0"), refused())
        # One link is gone: it alone is made anew.
        os.unlink(f"{policy_of.PINS}/programs/mknod")
        guest.expect(namespace.attempt(act, userns.FOREIGN, "again1"), ALLOWED)
        with policy_of.install(plan) as again:
            assert set(again.links) - set(again.reused) == {"userns_mknod"}
        guest.expect(namespace.attempt(act, userns.FOREIGN, "again2"), refused())
        policy.reset_by_inode(namespace.inode)


@namespaces.case()
def audit_allows_and_reports(guest: Guest) -> None:
    namespace: userns.Namespace = guest.state["namespace"]
    act = userns.ACTS["create"][0]
    plan = policy_of.load_plan(PLAN)
    with policy_of.install(plan, audit=True) as policy:
        put(guest, policy)
        events(policy)
        guest.expect(namespace.attempt(act, userns.FOREIGN, "audit0"), ALLOWED)
        assert [(e.verdict, e.path) for e in events(policy)] == [("audited", "audit0")]
    with policy_of.install(plan) as policy:
        guest.expect(namespace.attempt(act, userns.FOREIGN, "audit1"), refused())
        policy.reset_by_inode(namespace.inode)


@namespaces.case()
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
    """KiB of memory in use."""
    with open("/proc/meminfo") as file:
        values = {line.split(":")[0]: int(line.split()[1]) for line in file}
    return values["MemTotal"] - values["MemFree"] - values["Buffers"] - values["Cached"]


@namespaces.case(timeout=400)
def ten_thousand_namespaces(guest: Guest) -> None:
    fd = os.open(userns.ALLOWED_DIR, os.O_PATH)
    first, count = 0x10000, 10000
    with installed() as policy:
        for inode in range(first, first + 100):  # what is made once is not counted
            policy.put_by_inode(inode, [fd])
            policy.reset_by_inode(inode)
        time.sleep(1)
        before = _used()
        start = time.monotonic()
        for inode in range(first, first + count):
            policy.put_by_inode(inode, [fd])
        full = _used() - before
        assert len(list(policy.maps["userns_mounts"].raw_keys())) == count
        for inode in range(first, first + count):
            assert policy.reset_by_inode(inode)
        guest.note(f"{time.monotonic() - start:.1f} s; {full} KiB while all were there")
        assert 10_000 < full < 200_000, f"{full} KiB: either the measure shows nothing, or much is wasted"
        for _ in range(60):
            left = _used() - before
            if left < full // 20:
                break
            time.sleep(0.5)
        guest.note(f"{left} KiB left over")
        assert left < full // 20
        assert policy.namespaces() == []


@namespaces.case()
def another_mount_namespace_has_other_mounts(guest: Guest) -> None:
    """A member that copies its mount namespace has copies of the mounts, which are not listed."""
    namespace: userns.Namespace = guest.state["namespace"]

    def act(name: str) -> int:
        userns.call("unshare", userns.NEWNS)
        return userns.ACTS["create"][0](userns.ALLOWED_DIR, name)

    with installed() as policy:
        policy.reset_by_inode(namespace.inode)
        guest.expect(namespace.attempt(act, "copied0"), ALLOWED)
        put(guest, policy, userns.ALLOWED_DIR)
        events(policy)
        guest.expect(namespace.attempt(act, "copied1"), refused())
        reported(guest, policy, "mknod", "mount")
        policy.reset_by_inode(namespace.inode)


@namespaces.case()
def opening_what_exists_is_allowed(guest: Guest) -> None:
    """open(O_CREAT) asks path_mknod before it looks; the kernel drops the answer if the file
    is there. The event of such a refusal is about nothing."""
    namespace: userns.Namespace = guest.state["namespace"]
    path = f"{userns.FOREIGN}/exists"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o666))
    os.chmod(path, 0o666)

    def act() -> int:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o666))
        return 0

    with installed() as policy:
        put(guest, policy)
        guest.expect(namespace.attempt(act), ALLOWED)
        policy.reset_by_inode(namespace.inode)


RESTRICT = [sys.executable, "-s", "-m", "restrict", "userns"]


def command(*words: str) -> Any:
    done = subprocess.run(
        [*RESTRICT, *words, "--json"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@namespaces.case()
def commands(guest: Guest) -> None:
    again = command("install")
    assert (again["attached"], len(again["reused"])) == ([], PROGRAMS)
    namespace = userns.Namespace(mount=False)
    path = f"/proc/{namespace.pid}/ns/user"
    fd = os.open(userns.ALLOWED_DIR, os.O_PATH)
    entry = {
        "inode": namespace.inode, "mounts": [names_of.mount_id(fd)], "deny_setgroups": True
    }  # fmt: skip
    os.close(fd)
    put_words = ("put", path, "--mount", userns.ALLOWED_DIR, "--deny-setgroups")
    assert command(*put_words) == {"inode": namespace.inode}
    found = command("list")
    assert found["namespaces"] == [entry]
    assert len(found["programs"]) == PROGRAMS - 1
    assert command("reset", str(namespace.inode))["removed"]
    assert command("list")["namespaces"] == []
    command(*put_words)
    watch = subprocess.Popen(
        [*RESTRICT, "watch", "--json"], stdout=subprocess.PIPE, text=True
    )
    assert watch.stdout is not None
    namespace.end()
    line: dict[str, Any] = {}
    while line.get("event") != "ended":
        line = json.loads(watch.stdout.readline())
    assert line["inode"] == namespace.inode
    watch.terminate()
    assert watch.wait(20) == 0
    assert command("list")["namespaces"] == []


@namespaces.case()
def uninstalled(guest: Guest) -> None:
    """Last: without the pins nothing is left of it."""
    namespace: userns.Namespace = guest.state["namespace"]
    act = userns.ACTS["create"][0]
    with installed() as policy:
        put(guest, policy)
    guest.expect(namespace.attempt(act, userns.FOREIGN, "last0"), refused())
    assert policy_of.uninstall()
    guest.expect(namespace.attempt(act, userns.FOREIGN, "last1"), ALLOWED)
    assert policy_of.open_pinned() is None
    assert not os.path.exists(policy_of.PINS)
