# SPDX-License-Identifier: BSD-2-Clause
"""fsaccess kept by pins: the owner ends, enforcement, guard and events go on.

What is pinned cannot be taken away in these cases by anybody but PID 1, who is the owner.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys

from pybpf.errors import KernelError
from restrict import mounts
from restrict.policy import default_plan
from tests.vm import probes, probes_bpf
from tests.vm.attempts import CONTENT, EXITS
from tests.vm.outcome import ALLOWED, refused
from tests.vm.policy import build_plan, plans_drive
from tests.vm.programs import program
from tests.vm.scenario import Drive, Guest, Scenario
from tests.vm.waiting import ATTEMPT_SECONDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

RESTRICT = [sys.executable, "-s", "-m", "restrict"]

keep = Scenario("keep", drives={"good": Drive(CONTENT)})


@keep.setup
def prepare(guest: Guest) -> None:
    probes.write_file("/tmp/program", program())
    guest.mount(guest.verity("good"), "/run/good")


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RESTRICT, *words], capture_output=True, text=True, timeout=ATTEMPT_SECONDS
    )


@contextlib.contextmanager
def kept(guest: Guest, *words: str) -> Iterator[dict[str, Any]]:
    """``restrict enable --keep pins``, which has ended when the block begins. Afterwards this
    process removes the pins, as root may where no pins policy is over them."""
    from restrict import fsaccess, keep_pins

    done = command("enable", "--keep", "pins", "--unguarded", "--json", *words)
    assert done.returncode == 0, done.stderr
    state = json.loads(done.stdout)
    try:
        yield state
    finally:
        if state["events"]:
            os.kill(state["events"]["reader"], signal.SIGKILL)
        for generation in keep_pins.generations():
            generation.remove()
        os.unlink(fsaccess.PIN)
        guest.wait(
            lambda: probes.execute("/tmp/program").kind == "allowed", "the end of enforcement"
        )


@keep.case()
def enforcement_outlives_the_owner(guest: Guest) -> None:
    guest.expect(probes.execute("/tmp/program"), EXITS)
    with kept(guest) as state:
        assert not os.path.exists(f"/proc/{state['owner']}")
        guest.expect(probes.execute("/tmp/program"), refused())
        guest.expect(probes.map_anonymous(), refused())
        guest.expect(probes.execute("/run/good/program"), EXITS)
    guest.expect(probes.map_anonymous(), ALLOWED)


@keep.case()
def status_finds_it_again(guest: Guest) -> None:
    with kept(guest) as state:
        guest.expect(probes.execute("/tmp/program"), refused())
        done = command("status", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        found = json.loads(done.stdout)
        assert found["in_force"] is True
        assert found["owner"]["pid"] == state["owner"]
        assert found["counters"]["exec"]["denied"] == 1
        assert {d["name"] for d in found["devices"]} >= {"system", "good"}
        assert set(state["links"].values()) < set(found["guard"]["links"])


@keep.case()
def guard_outlives_the_owner(guest: Guest) -> None:
    """No fd for anybody: by id, and by the maps' pins."""
    from restrict import keep_pins, status

    with kept(guest):
        found = status.read()
        assert found is not None
        for kind in ("map", "program", "link"):
            for ident in found.guard[kind]:
                guest.expect(probes_bpf.fd_by_id(kind, ident), refused())
        (generation,) = keep_pins.generations()
        for name in generation.names():
            if name.startswith("map_"):
                outcome = probes_bpf.object_get(f"{generation.folder}/{name}")
                guest.expect(outcome, refused())


@keep.case()
def events_outlive_the_owner(guest: Guest) -> None:
    with kept(guest):
        guest.expect(probes.execute("/tmp/program"), refused())
        done = command("events", "--json")
        assert done.returncode == 0, done.stderr
        (event,) = [json.loads(line) for line in done.stdout.splitlines()]
        assert (event["operation"], event["reason"], event["path"]) == (
            "exec", "filesystem", "/tmp/program",
        )  # fmt: skip


@keep.case()
def a_second_one_is_refused(guest: Guest) -> None:
    with kept(guest):
        for words in (("--keep", "pins"), ("--foreground",), ()):
            done = command("enable", *words)
            assert done.returncode == 1
            assert "in force already" in done.stderr, done.stderr


@keep.case()
def killed_before_its_status_is_shown(guest: Guest) -> None:
    """Armed and pinned is in force, and root's `restrict status` finds it."""
    from restrict import fsaccess, keep_pins, lockout

    plan = fsaccess.load_plan(default_plan("fsaccess"))
    pid = os.fork()
    if pid == 0:
        keep_pins.publish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        try:
            keep_pins.enable(plan, before_arm=lockout.before_arm(plan, resumed=True))
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    try:
        assert not os.path.exists(fsaccess.PIN)
        guest.expect(probes.execute("/tmp/program"), refused())
        done = command("status", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)["keep"]["method"] == "pins"
    finally:
        for generation in keep_pins.generations():
            generation.remove()
    guest.wait(lambda: probes.execute("/tmp/program").kind == "allowed", "the end")


@keep.case()
def killed_before_it_is_armed(guest: Guest) -> None:
    """What is pinned is inert, is no hindrance, and is cleaned up by the next."""
    from restrict import fsaccess, keep_pins, lockout

    plan = fsaccess.load_plan(default_plan("fsaccess"))

    def step(name: str) -> None:
        if name == "arm":
            os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        try:
            keep_pins.enable(plan, before_arm=lockout.before_arm(plan, resumed=True), step=step)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert [g.number for g in keep_pins.generations()] == [1]
    assert keep_pins.in_force() == []
    guest.expect(probes.execute("/tmp/program"), EXITS)
    assert command("status").returncode == 1
    with kept(guest):
        guest.expect(probes.execute("/tmp/program"), refused())


# ── under the pins policy ──

EXEC = """
set -e
restrict() { "$PYTHON" -s -m restrict "$@"; }
restrict enable --json --owner $$ > /run/enabled
restrict status --json > /run/status
exec "$PYTHON" -s -m restrict pins upgrade --json --plan /run/plans/next
"""

guarded = Scenario(
    "guarded",
    drives={
        "good": Drive(CONTENT),
        "plans": plans_drive(next=lambda: build_plan(policy_version=2)),
    },
)


@guarded.setup
def enable_and_upgrade(guest: Guest) -> None:
    """A shell is the owner: it enables, and its process upgrades by exec. Then nobody is
    the owner any more."""
    prepare(guest)
    guest.mount(guest.node("plans"), "/run/plans")
    guest.state["control"] = probes.execute("/tmp/program")
    done = subprocess.run(
        ["/usr/bin/busybox", "sh", "-c", EXEC],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=ATTEMPT_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    guest.state["upgraded"] = json.loads(done.stdout)


@guarded.case()
def it_is_in_force(guest: Guest) -> None:
    guest.expect(guest.state["control"], EXITS)
    guest.expect(probes.execute("/tmp/program"), refused())
    guest.expect(probes.map_anonymous(), refused())
    guest.expect(probes.execute("/run/good/program"), EXITS)


@guarded.case()
def the_status_says_what_keeps_it(guest: Guest) -> None:
    with open("/run/enabled") as file:
        enabled = json.load(file)
    with open("/run/status") as file:
        before = json.load(file)
    assert enabled["kept"] == "pins"
    assert enabled["guarded"] is True
    assert before["keep"]["method"] == "pins"
    assert before["keep"]["removers"] == [f"process {enabled['owner']}, its owner"]
    assert (before["version"], before["generation"]) == (1, 1)
    done = command("status", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["in_force"] is True
    assert found["owner"]["pid"] == enabled["owner"]
    assert (found["version"], found["generation"]) == (2, 2)
    assert found["keep"] == {
        "method": "pins", "holds": "pins in a bpf filesystem", "guarded": True, "removers": [],
    }  # fmt: skip
    text = subprocess.run(
        [*RESTRICT, "status"], capture_output=True, text=True, user=65534, group=65534,
        extra_groups=[],
    ).stdout  # fmt: skip
    assert "kept by: pins" in text
    assert "could be ended by: a reboot" in text


@guarded.case()
def the_upgrade_told_what_it_did(guest: Guest) -> None:
    done = guest.state["upgraded"]
    assert (done["generation"], done["version_before"], done["version"]) == (2, 1, 2)
    assert done["devices"] >= 2
    assert len(done["tests"]) == 6


@guarded.case()
def root_takes_nothing_away(guest: Guest) -> None:
    """The control is `keep`, whose cases end by unlinking the same pins without the guard."""
    from restrict import fsaccess, keep_pins

    (generation,) = keep_pins.generations()
    names = generation.names()
    assert len(names) > 20
    acts: list[tuple[str, Callable[[], object]]] = [
        ("unlink status", lambda: os.unlink(fsaccess.PIN)),
        ("rename status", lambda: os.rename(fsaccess.PIN, f"{fsaccess.PIN}_")),
        ("rename folder", lambda: os.rename(keep_pins.FOLDER, f"{keep_pins.FOLDER}_")),
        ("chmod", lambda: os.chmod(keep_pins.FOLDER, 0o777)),
        ("umount", lambda: mounts.unmount("/sys/fs/bpf/restrict")),
        ("lazy umount", lambda: mounts.unmount("/sys/fs/bpf/restrict", lazy=True)),
        ("lazy umount above", lambda: mounts.unmount("/sys/fs/bpf", lazy=True)),
    ]
    for name in names:
        path = f"{generation.folder}/{name}"
        acts.append((f"unlink {name}", lambda path=path: os.unlink(path)))  # type: ignore[misc]
    for what, act in acts:
        code = 0
        try:
            act()
        except (OSError, KernelError) as error:
            code = error.errno or -1
        assert code == errno.EPERM, (what, code)
    for name in names:
        outcome = probes_bpf.object_get(f"{generation.folder}/{name}")
        guest.expect(outcome, refused())
    guest.expect(probes.execute("/tmp/program"), refused())


@guarded.case()
def an_owner_that_has_ended_upgrades_nothing(guest: Guest) -> None:
    done = command("pins", "upgrade", "--plan", "/run/plans/next", "--reload")
    assert done.returncode == 1
    assert "which has ended" in done.stderr, done.stderr
    assert "until the next boot" in done.stderr


@guarded.case()
def events_come_from_the_new_generation(guest: Guest) -> None:
    guest.expect(probes.execute("/tmp/program"), refused())
    done = command("events", "--json")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert ("exec", "filesystem", "/tmp/program") in [
        (e["operation"], e["reason"], e.get("path")) for e in found
    ]
