# SPDX-License-Identifier: BSD-2-Clause
"""Two policies together: userns is pinned inside what the pins policy guards.

By itself, userns can be administered and removed by root (CAP_SYS_ADMIN in the initial user
namespace). Pinned in the guarded filesystem, only the owner of the pins can; everybody reads its
state, and members are judged as before. A case is the owner's deputy where it acts for the owner.
"""

from __future__ import annotations

import json
import os

from pybpf.kernel.link import Link
from pybpf.sys import bpf
from restrict import pins_status, userns_pins
from tests.vm import pins_policy, probes_bpf, userns, userns_policy
from tests.vm.outcome import ALLOWED, refused
from tests.vm.pins_policy import act, as_deputy, policy_of, read_events, unarmed
from tests.vm.scenario import Guest, Scenario
from tests.vm.userns_acts import create
from tests.vm.userns_commands import restrict
from tests.vm.userns_policy import EXPEDITED, installed, put, the_namespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass

together = Scenario("pins_userns", memory=1024, append=EXPEDITED)


@together.setup
def _prepare(guest: Guest) -> None:
    pins_policy.prepare(guest)
    userns_policy.prepare(guest, apart=False)


def _pins() -> list[str]:
    return [
        f"{userns_pins.PINS}/{folder}/{name}"
        for folder in ("maps", "programs")
        for name in sorted(os.listdir(f"{userns_pins.PINS}/{folder}"))
    ]


@together.case()
def it_lies_where_pins_guard(guest: Guest) -> None:
    assert pins_status.guarded(userns_pins.PINS)
    assert not pins_status.guarded("/sys/fs/bpf")
    assert len(_pins()) > 15, _pins()


@together.case()
def nobody_opens_its_pins(guest: Guest) -> None:
    """Control: the same opening while the pins policy is off."""
    policy = policy_of(guest)
    for path in _pins():
        with unarmed(policy):
            guest.expect(act(bpf.obj_get, path), ALLOWED)
        read_events(guest)
        guest.expect(act(bpf.obj_get, path), refused())
        assert [(e.policy, e.operation, e.reason) for e in read_events(guest)] == [
            ("pins", "open", "guarded")
        ]


@together.case()
def nobody_removes_it(guest: Guest) -> None:
    """Control: with the pins policy off, a hook goes with its pin, and its owner makes it anew."""
    policy, namespace = policy_of(guest), the_namespace(guest)
    for path in _pins():
        guest.expect(act(os.unlink, path), refused())
        guest.expect(act(os.rename, path, f"{path}_"), refused())
    done = restrict("userns", "uninstall")
    assert done.returncode == 1, done.stdout
    guest.note(done.stderr)
    assert "EPERM" in done.stderr or "not permitted" in done.stderr, done.stderr
    with as_deputy(policy), installed() as found:
        put(guest, found)
        guest.expect(namespace.attempt(create, userns.FOREIGN, "kept0"), refused())
        found.reset_by_inode(namespace.inode)

        path = f"{userns_pins.PINS}/programs/open"
        with unarmed(policy):
            guest.expect(act(os.unlink, path), ALLOWED)
        assert not os.path.exists(path)
        with userns_pins.install(userns_pins.load_plan(userns_policy.PLAN)) as again:
            assert set(again.links) - set(again.reused) == {"userns_open"}
        guest.expect(act(os.unlink, path), refused())
    read_events(guest)


@together.case()
def only_the_owner_administers(guest: Guest) -> None:
    """Control: the same command, with the pins policy off."""
    policy, namespace = policy_of(guest), the_namespace(guest)
    user = f"/proc/{namespace.pid}/ns/user"
    words = ("userns", "put", user)
    policy.disarm()
    done = restrict(*words)
    assert done.returncode == 0, done.stderr
    with as_deputy(policy), installed() as found:
        assert found.reset_by_inode(namespace.inode)
        policy.arm()
        done = restrict(*words)
        assert done.returncode == 1, done.stdout
        guest.note(done.stderr)
        assert found.namespaces() == []
        # The owner can, without turning anything off.
        put(guest, found)
        guest.expect(namespace.attempt(create, userns.FOREIGN, "owner0"), refused())
        found.reset_by_inode(namespace.inode)
        guest.expect(namespace.attempt(create, userns.FOREIGN, "owner1"), ALLOWED)
    read_events(guest)


@together.case()
def everybody_reads_the_state(guest: Guest) -> None:
    done = restrict("userns", "status", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["in_force"] is True
    done = restrict("pins", "status", "--json")
    assert done.returncode == 0, done.stderr


@together.case()
def members_gain_nothing(guest: Guest) -> None:
    """A member is root in its namespace, and no more to the pins than anybody else."""
    namespace = the_namespace(guest)
    with as_deputy(policy_of(guest)), installed() as found:
        put(guest, found)
        (path, *_) = _pins()
        guest.expect(namespace.attempt(_unlink, path), refused(13))  # 0700 folders: EACCES
        found.reset_by_inode(namespace.inode)


def _unlink(path: str) -> int:
    os.unlink(path)
    return 0


@together.case()
def its_ids_stay_guarded(guest: Guest) -> None:
    """userns' own guard lets administrators pass; registered with pins, only the owner passes."""
    policy = policy_of(guest)
    with as_deputy(policy), Link.from_pin(f"{userns_pins.PINS}/programs/open") as link:
        number = link.id
    guest.expect(probes_bpf.fd_by_id("link", number), ALLOWED)
    policy.register("link", number)
    guest.expect(probes_bpf.fd_by_id("link", number), refused())
    policy.unregister("link", number)
    guest.expect(probes_bpf.fd_by_id("link", number), ALLOWED)
    read_events(guest)


@together.case()
def the_owner_uninstalls(guest: Guest) -> None:
    namespace = the_namespace(guest)
    with as_deputy(policy_of(guest)):
        assert userns_pins.uninstall()
    guest.expect(namespace.attempt(create, userns.FOREIGN, "gone0"), ALLOWED)
    assert not os.path.exists(f"{userns_pins.PINS}/programs")
