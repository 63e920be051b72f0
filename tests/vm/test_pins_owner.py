# SPDX-License-Identifier: BSD-2-Clause
"""The pins policy's own life: owner, deputy, nobody; its own objects; what it cannot stop."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
import sys
import traceback

from pybpf.sys import bpf
from restrict import cli, pins, pins_status
from restrict.errors import RestrictError
from restrict.serve import SOCKETS
from tests.vm import probes_bpf
from tests.vm.outcome import ALLOWED, refused, trial
from tests.vm.pins_attacks import ATTACKS, Attack
from tests.vm.pins_policy import (
    PLAN,
    act,
    as_deputy,
    attack,
    policy_of,
    prepare,
    protect,
    read_events,
    unarmed,
)
from tests.vm.pins_tree import (
    _AT_FDCWD,
    BASE,
    FREE,
    MID,
    PINS,
    Tree,
    call,
    exists,
    in_namespace,
    mount,
    private,
    umount,
)
from tests.vm.scenario import Guest, Scenario
from tests.vm.waiting import ATTEMPT_SECONDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


owner = Scenario("pins_owner", append="rcupdate.rcu_expedited=1")
owner.setup(prepare)

DETACH = 2


def told(guest: Guest, *wanted: tuple[str, str]) -> None:
    """Exactly these events, all of them denials, wait in the ring buffer."""
    found = read_events(guest)
    assert [(e.operation, e.reason, e.verdict) for e in found] == [
        (*words, "denied") for words in wanted
    ], [e.text() for e in found]


def _at_home(guest: Guest) -> Tree:
    """A guarded tree, in a mount namespace of this case's own."""
    private()
    tree = Tree()
    protect(policy_of(guest), tree)
    read_events(guest)
    return tree


# ── its own objects ──


@owner.case()
def own_objects(guest: Guest) -> None:
    """Each map, program and link: an fd by id for nobody but the owner."""
    policy = policy_of(guest)
    with policy.globals() as values:
        ids = {kind: values.ids(f"guard_{kind}_ids") for kind in ("map", "program", "link")}
    assert [len(ids[kind]) for kind in ("map", "program", "link")] == [5, 26, 26]
    for kind, numbers in ids.items():
        for number in numbers:
            with unarmed(policy):
                guest.expect(probes_bpf.fd_by_id(kind, number), ALLOWED)
            read_events(guest)
            guest.expect(probes_bpf.fd_by_id(kind, number), refused())
            told(guest, (f"bpf_{kind}", f"guard_{kind}"))


@owner.case()
def own_pins(guest: Guest) -> None:
    policy = policy_of(guest)
    folder = f"{pins.FOLDER}/guard"
    names = sorted(os.listdir(folder))
    assert len(names) == 25 + 4, names  # links but the status' one; maps but .rodata
    for name in names:
        with unarmed(policy):
            guest.expect(act(bpf.obj_get, f"{folder}/{name}"), ALLOWED)
        read_events(guest)
        guest.expect(act(bpf.obj_get, f"{folder}/{name}"), refused())
        told(guest, ("open", "guarded"))
        guest.expect(act(os.unlink, f"{folder}/{name}"), refused())
        told(guest, ("unlink", "guarded"))


@owner.case()
def status_file(guest: Guest) -> None:
    """Readable by all; not to be opened as a link, whose program could be replaced."""
    path = f"{pins.FOLDER}/pins"

    def as_nobody() -> None:
        os.setgid(65534)
        os.setuid(65534)
        with open(path) as file:
            assert "armed 1" in file.read()

    guest.expect(act(as_nobody), ALLOWED)
    guest.expect(act(os.access, path, os.R_OK), ALLOWED)
    read_events(guest)
    with unarmed(policy_of(guest)):
        guest.expect(act(bpf.obj_get, path), ALLOWED)
    for flags in (0, 8):
        guest.expect(act(bpf.obj_get, path, flags), refused())
        told(guest, ("open", "guarded"))
    guest.expect(act(os.chmod, path, 0o600), refused())
    told(guest, ("attributes", "guarded"))


@owner.case()
def the_system_itself(guest: Guest) -> None:
    """Where it is installed: the ways that facts and tools know; all refused, nothing lost."""
    links = len(os.listdir(f"{pins.FOLDER}/guard"))
    for path, reason in (
        (pins.FOLDER, "mount"), ("/sys/fs/bpf", "ancestor"), ("/sys", "ancestor"),
        ("/", "ancestor"),
    ):  # fmt: skip
        guest.expect(act(umount, path, DETACH), refused())
        told(guest, ("umount", reason))
    os.makedirs("/run/a", exist_ok=True)
    guest.expect(act(mount, "/sys/fs/bpf", "/run/a", None, 8192), refused())
    told(guest, ("move", "unknown"))

    def without_mount() -> int:
        umount(pins.FOLDER, DETACH)
        os.rmdir(pins.FOLDER)
        return 0

    guest.expect(act(in_namespace, private, without_mount), refused())
    told(guest, ("rmdir", "mount_point"))
    # In a namespace of its own everybody may take it away, for that namespace.
    guest.expect(act(in_namespace, private, lambda: umount("/sys", DETACH)), ALLOWED)
    assert len(os.listdir(f"{pins.FOLDER}/guard")) == links
    assert pins_status.guarded(pins.FOLDER)


@owner.case()
def trace_the_owner(guest: Guest) -> None:
    def seize() -> None:
        call("ptrace", 0x4206, 1, None, None)

    with unarmed(policy_of(guest)):
        guest.expect(act(seize), ALLOWED)
    read_events(guest)
    guest.expect(act(seize), refused())
    told(guest, ("ptrace", "ptrace_owner"))


@owner.case()
def switch_tracing_off(guest: Guest) -> None:
    def write() -> None:
        fd = os.open("/proc/sys/kernel/ftrace_enabled", os.O_WRONLY)
        os.write(fd, b"1")

    with unarmed(policy_of(guest)):
        guest.expect(act(write), ALLOWED)
    read_events(guest)
    guest.expect(act(write), refused())
    told(guest, ("sysctl", "switches_off"))


@owner.case(lanes=["7.3"])
def label(guest: Guest) -> None:
    """Its root is marked, for whoever looks."""
    assert os.getxattr(pins.FOLDER, pins.LABEL) == b"pins"
    guest.expect(act(os.removexattr, pins.FOLDER, pins.LABEL), refused())
    told(guest, ("attributes", "guarded"))
    guest.expect(act(os.setxattr, pins.FOLDER, pins.LABEL, b"x"), refused())


# ── who may ──


def _add_deputy(tried: Attack) -> None:
    def case(guest: Guest) -> None:
        outcome, seen, alive = attack(guest, tried, guard=True, deputy=True)
        guest.expect(outcome, tried.control)
        assert not seen, seen
        assert alive != tried.kills

    owner.case(name=f"deputy_{tried.name}", lanes=tried.lanes)(case)


for _attack in ATTACKS:
    if _attack.name in (
        "unlink", "rename_away", "mkdir", "obj_pin", "chmod", "get_link", "get_map",
        "umount_lazy", "umount_parent", "spread_from_below", "move",
        "move_the_old_way", "pivot_root", "cover", "remount", "map_by_id", "link_by_id", "detach",
    ):  # fmt: skip
        _add_deputy(_attack)


@owner.case()
def not_the_same_process(guest: Guest) -> None:
    """The owner's number alone is not enough: one may be given out again."""
    policy = policy_of(guest)
    tree = _at_home(guest)
    with policy.globals() as values:
        values.set("deputy_start_ticks", 1)
        values.set("deputy_tgid", os.getpid())
    guest.expect(trial(lambda: os.unlink(f"{PINS}/link")), refused())
    policy.delegate(os.getpid())
    guest.expect(trial(lambda: os.unlink(f"{PINS}/map")), ALLOWED)
    policy.delegate(None)
    guest.expect(trial(lambda: os.unlink(f"{PINS}/link")), refused())
    assert tree.alive()


@owner.case()
def moved_by_the_owner(guest: Guest) -> None:
    """It is the filesystem that is guarded: where it goes, and what was above it before."""
    policy = policy_of(guest)
    tree = _at_home(guest)
    with as_deputy(policy):
        mount(PINS, FREE, None, 8192)
        mount("none", FREE, None, 32)
    read_events(guest)
    guest.expect(act(umount, FREE, DETACH), refused())
    told(guest, ("umount", "mount"))
    guest.expect(act(os.unlink, f"{FREE}/link"), refused())
    guest.expect(act(umount, BASE, DETACH), refused())
    guest.expect(act(umount, MID, DETACH), ALLOWED)
    assert tree.alive()


@owner.case()
def a_copy_takes_over(guest: Guest) -> None:
    """As at a soft reboot: the owner goes on with a copy, and the old mount goes."""
    policy = policy_of(guest)
    tree = _at_home(guest)
    mount(PINS, FREE, None, 4096)
    # Until then the copy may come and go.
    guest.expect(act(umount, FREE), ALLOWED)
    mount(PINS, FREE, None, 4096)
    with as_deputy(policy):
        umount(PINS)
    read_events(guest)
    guest.expect(act(umount, FREE), refused())
    told(guest, ("umount", "mount"))
    assert tree.alive()


@owner.case()
def only_reported(guest: Guest) -> None:
    policy = policy_of(guest)
    tree = _at_home(guest)
    policy.arm(audit=True)
    try:
        guest.expect(act(os.unlink, f"{PINS}/link"), ALLOWED)
        guest.expect(act(umount, PINS, DETACH), ALLOWED)
        seen = [(e.operation, e.reason, e.verdict) for e in read_events(guest)]
    finally:
        policy.arm()
    assert seen == [("unlink", "guarded", "audited"), ("umount", "mount", "audited")]
    assert not tree.alive(False)


@owner.case()
def strictly(guest: Guest) -> None:
    """With `strict` nobody else unmounts lazily, where it could spread."""
    policy = policy_of(guest)
    _at_home(guest)
    mount("tmpfs", FREE, "tmpfs")
    with policy.globals() as values:
        values.set("strict", 1)
    try:
        found = pins_status.read()
        assert found is not None
        assert found.strict
        assert "strict: nobody else" in found.text()
        guest.expect(act(umount, FREE, DETACH), refused())
        told(guest, ("umount", "race"))
        guest.expect(act(in_namespace, private, lambda: umount(BASE, DETACH)), ALLOWED)
        guest.expect(act(umount, FREE), ALLOWED)
    finally:
        with policy.globals() as values:
            values.set("strict", 0)


@owner.case()
def deeper_than_is_looked(guest: Guest) -> None:
    """Below 64 mounts nothing can be told any more, and everything is refused."""
    private()
    os.makedirs(BASE, exist_ok=True)
    mount("tmpfs", BASE, "tmpfs")
    os.mkdir(f"{BASE}/free")
    path = BASE
    for _ in range(70):
        path += "/d"
        os.mkdir(path)
        mount("tmpfs", path, "tmpfs")
    mount("bpf", path, "bpf")
    mount("tmpfs", f"{BASE}/free", "tmpfs")
    policy = policy_of(guest)
    with as_deputy(policy):
        assert policy.protect(path)
    read_events(guest)
    guest.expect(act(umount, f"{BASE}/free", 0), refused())
    told(guest, ("umount", "too_many"))
    with as_deputy(policy):
        umount(path)


# ── what cannot be stopped ──


@owner.case()
def limit_namespace_exit(guest: Guest) -> None:
    """The last process of a mount namespace ends: its mounts go, no hook is asked. A pin in a
    second filesystem, whose mount is in another namespace, keeps the link."""
    policy = policy_of(guest)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            private()
            twice = Tree(keep=True)
            protect(policy, twice)
            with as_deputy(policy):
                bpf.obj_pin(twice.link_fd, f"{pins.FOLDER}/second")
                lost = Tree()  # covers the other
            protect(policy, lost)
            os.write(writer, struct.pack("=2I", twice.link, lost.link))
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    answer = os.read(reader, 8)
    assert len(answer) == 8, "the filesystems could not be made"
    kept, lost_link = struct.unpack("=2I", answer)
    try:
        guest.wait(lambda: not exists("link", lost_link), "the end of the namespace's link")
        assert exists("link", kept), "it was pinned twice"
    finally:
        with as_deputy(policy):
            os.unlink(f"{pins.FOLDER}/second")


@owner.case()
def limit_mount_setattr(guest: Guest) -> None:
    """mount_setattr(2) has no hook: anybody makes the mount read-only. The pins stay; the owner
    makes it writable again."""
    policy = policy_of(guest)
    tree = _at_home(guest)

    def read_only(on: bool) -> int:
        words = struct.pack("=4Q", int(on), int(not on), 0, 0)
        return call("mount_setattr", _AT_FDCWD, PINS, 0, words, len(words))

    guest.expect(act(read_only, True), ALLOWED)
    with as_deputy(policy):
        guest.expect(trial(lambda: os.mkdir(f"{PINS}/x")), refused(errno.EROFS))
        read_only(False)
        os.mkdir(f"{PINS}/x")
    assert tree.alive()


# ── installing ──


@owner.case()
def undone(guest: Guest) -> None:
    """Whatever step fails, nothing is left: no mount, directory, link, map."""
    path = "/run/undone"
    before = {kind: probes_bpf.ids(kind) for kind in ("link", "map", "program")}

    def fail_at(wanted: str) -> Callable[[str], None]:
        def step(name: str) -> None:
            if name == wanted:
                raise RestrictError("stop")

        return step

    plan = pins.load_plan(PLAN)
    for name in ("filesystem", "load", "attach", "pins", "guard", "arm"):
        try:
            pins.install(plan, path=path, step=fail_at(name))
        except RestrictError as error:
            message = str(error)
        else:
            message = "it did not fail"
        assert name in message, message
        assert not os.path.exists(path), name
        # Nothing new; of what was there before, something may still have been about to go.
        guest.wait(
            lambda: all(set(probes_bpf.ids(kind)) <= set(before[kind]) for kind in before),
            f"nothing is left of {name}",
        )


def _command(*words: str) -> tuple[int, dict[str, object]]:
    reader, writer = os.pipe()
    saved = os.dup(1)
    os.dup2(writer, 1)
    try:
        code = cli.main(["pins", *words, "--json", "--path", "/run/commands"])
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(writer)
    with open(reader) as file:
        text = file.read()
    return code, json.loads(text) if text else {}


@owner.case()
def commands(guest: Guest) -> None:
    """The owner's commands, in one process: who ends is the owner no more."""
    code, found = _command("install", "--audit")
    assert code == 0
    assert (found["mode"], found["owner"]) == ("audit", os.getpid())
    code, found = _command("status")
    assert (code, found["in_force"]) == (0, True)
    assert found["owner"]["alive"] is True  # type: ignore[index]
    code, found = _command("register", "map", "12345")
    assert (code, found["found"]) == (0, True)
    assert _command("list")[1]["map"] == [12345]
    assert _command("unregister", "map", "12345")[0] == 0
    assert _command("unregister", "map", "12345")[0] == 1
    assert _command("delegate", "1")[0] == 0
    assert _command("status")[1]["deputy"]["pid"] == 1  # type: ignore[index]
    os.makedirs("/run/second", exist_ok=True)
    mount("bpf", "/run/second", "bpf")
    assert _command("protect", "/run/second")[1]["new"] is True
    assert _command("protect", "/run/second")[1]["new"] is False
    assert _command("protect", "/run")[0] == 1
    assert len(_command("status")[1]["filesystems"]) == 2  # type: ignore[arg-type]
    assert _command("install")[0] == 1
    code, found = _command("uninstall")
    assert (code, found["links_held"]) == (0, [])
    assert not os.path.exists("/run/commands")
    assert _command("status")[0] == 1
    umount("/run/second")


@owner.case()
def disowned(guest: Guest) -> None:
    """The owner gives up its rights: then it is as good as anybody."""
    path = "/run/disowned"
    with pins.install(pins.load_plan(PLAN), path=path) as policy:
        os.mkdir(f"{path}/x")
        policy.disown()
        guest.expect(trial(lambda: os.mkdir(f"{path}/y")), refused())
        guest.expect(trial(lambda: os.rmdir(f"{path}/x")), refused())
    found = pins_status.read(path)
    assert found is not None
    assert (found.in_force, found.owner, found.owner_alive) == (True, 0, False)


@owner.case()
def in_the_foreground(guest: Guest) -> None:
    """It prints denials and offers them to `restrict events`; its end is nobody's gain."""
    path = "/run/foreground"
    program = [sys.executable, "-s", "-m", "restrict"]
    process = subprocess.Popen(
        [*program, "pins", "install", "--path", path, "--foreground", "--json"],
        stdout=subprocess.PIPE, text=True, cwd="/project",
    )  # fmt: skip
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["owner"] == process.pid
    guest.wait(lambda: os.path.exists(SOCKETS["pins"]), "the reader listens")
    guest.expect(act(os.unlink, f"{path}/pins"), refused())
    line = json.loads(process.stdout.readline())
    assert (line["event"], line["policy"], line["operation"]) == ("denial", "pins", "unlink")
    done = subprocess.run(
        [*program, "events", "--policy", "pins", "--json"], capture_output=True, text=True,
        cwd="/project",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[0])["operation"] == "unlink"
    process.terminate()
    assert process.wait(ATTEMPT_SECONDS) == 0
    assert not os.path.exists(SOCKETS["pins"])
    guest.expect(act(os.unlink, f"{path}/pins"), refused())
    found = pins_status.read(path)
    assert found is not None
    assert (found.in_force, found.owner_alive) == (True, False)


@owner.case()
def nobody_owns_it(guest: Guest) -> None:
    """Last: the installer has ended; until reboot nobody unloads it."""
    path = "/run/nobody"
    program = [sys.executable, "-m", "restrict", "pins"]
    done = subprocess.run(
        [*program, "install", "--path", path], capture_output=True, text=True, cwd="/project"
    )
    assert done.returncode == 0, done.stderr
    assert "nobody can unload it" in done.stdout
    found = pins_status.read(path)
    assert found is not None
    assert (found.in_force, found.owner_alive) == (True, False)
    done = subprocess.run(
        [*program, "uninstall", "--path", path], capture_output=True, text=True, cwd="/project"
    )
    assert done.returncode == 1
    guest.note(done.stderr)
    assert "EPERM" in done.stderr
    guest.expect(act(umount, path, DETACH), refused())
    guest.expect(act(os.unlink, f"{path}/guard/link_pins_unlink"), refused())
    assert pins_status.guarded(path, folder=path)
