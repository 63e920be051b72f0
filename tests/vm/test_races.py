# SPDX-License-Identifier: BSD-2-Clause
"""The three policies at once, on two processors: attackers that race each other and the owner.

On one processor an attack is interrupted at few places only; here hooks and what they judge
really run at the same time.
"""

from __future__ import annotations

import errno
import os

from restrict.devmapper import DeviceMapper
from tests.vm import pins_policy, policy, raw, userns, userns_policy
from tests.vm.attempts import CONTENT
from tests.vm.pins_attacks import BIND, DETACH
from tests.vm.pins_tree import (
    BASE,
    FREE,
    MID,
    PINS,
    PRIVATE,
    REC,
    SHARED,
    TOP,
    Tree,
    clone,
    in_namespace,
    mount,
    move_mount,
    private,
    propagation,
    umount,
)  # fmt: skip
from tests.vm.probes import Prober, anonymous_once
from tests.vm.scenario import Drive, Guest, Scenario

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WRAP = f"{BASE}/wrap"
_ROUNDS = 30  # of each side, at least

races = Scenario(
    "races",
    lanes=("7.3",),
    cpus=2,
    append=userns_policy.EXPEDITED,
    drives={"good": Drive(CONTENT), "other": Drive(CONTENT)},
)


@races.setup
def prepare(guest: Guest) -> None:
    """Both policies that are kept by pins, then the one that judges what runs."""
    assert os.cpu_count() == 2
    guest.mount(guest.verity("good"), "/run/good")
    pins_policy.prepare(guest)
    userns_policy.prepare(guest, apart=False)
    policy.enable(guest)


def _code(act: Callable[[], object]) -> int:
    try:
        act()
    except OSError as error:
        return error.errno or -1
    return 0


def _stop(probers: Sequence[Prober]) -> list[dict[int, int]]:
    """What each has seen. The last first: it holds the pipes of those before it."""
    return [prober.stop() for prober in reversed(probers)][::-1]


def _map(fd: int) -> None:
    address = raw.mmap(raw.PAGE, raw.PROT_READ | raw.PROT_EXEC, raw.MAP_PRIVATE, fd)
    raw.call("munmap", address, raw.PAGE)


def _in_turn(*acts: Callable[[], object]) -> Callable[[], int]:
    """For a prober: one of the acts each time."""
    count = 0

    def once() -> int:
        nonlocal count
        count += 1
        return _code(acts[count % len(acts)])

    return once


@races.case()
def executable_memory_while_devices_change(guest: Guest) -> None:
    """A trusted file maps and anonymous memory does not, whatever devices come and go."""

    def trusted() -> int:
        with open("/run/good/program", "rb") as file:
            return _code(lambda: _map(file.fileno()))

    probers = [Prober(anonymous_once), Prober(trusted)]
    for _ in range(_ROUNDS):
        guest.verity("other", device="changing")
        with DeviceMapper() as mapper:
            mapper.remove("changing")
    found = _stop(probers)
    guest.note(str(found))
    assert set(found[0]) == {errno.EPERM}, found
    assert set(found[1]) == {0}, found


@races.case()
def members_while_their_entry_changes(guest: Guest) -> None:
    """While mounts are put again and again, none that is not listed lets a member create."""
    members = userns_policy.the_namespace(guest)

    def creating(folder: str) -> Callable[[], int]:
        def once() -> int:
            if os.getuid() != 0 or os.stat("/proc/self/ns/user").st_ino != members.inode:
                members.enter()
            path = f"{folder}/race"
            code = _code(lambda: os.mkdir(path))
            if not code:
                os.rmdir(path)
            return code

        return once

    with pins_policy.as_deputy(pins_policy.policy_of(guest)):
        handle = userns_policy.installed()
    with handle as installed:
        userns_policy.put(guest, installed, userns.ALLOWED_DIR)
        probers = [Prober(creating(userns.FOREIGN)), Prober(creating(userns.ALLOWED_DIR))]
        for _ in range(_ROUNDS):
            userns_policy.put(guest, installed, userns.ALLOWED_DIR)
            for prober in probers:
                prober.more(1)
        found = _stop(probers)
        installed.reset_by_inode(members.inode)
    guest.note(str(found))
    assert set(found[0]) == {errno.EPERM}, found
    assert set(found[1]) == {0}, found


@races.case()
def pins_while_mounts_change(guest: Guest) -> None:
    """Two processes attack, two others change the mount tree around what is guarded."""
    private()
    tree = Tree()
    pins_policy.protect(pins_policy.policy_of(guest), tree)
    propagation(TOP, REC | SHARED)
    os.mkdir(WRAP)

    def around() -> None:
        mount(TOP, FREE, None, BIND)
        umount(FREE, DETACH)
        mount("tmpfs", WRAP, "tmpfs")
        umount(WRAP)

    attackers = [
        Prober(
            _in_turn(
                lambda: os.unlink(f"{PINS}/link"),
                lambda: os.rename(f"{PINS}/program", f"{PINS}/link"),
                lambda: os.mkdir(f"{PINS}/new"),
                lambda: os.chmod(f"{PINS}/link", 0o666),
            )
        ),
        Prober(
            _in_turn(
                lambda: umount(PINS, DETACH),
                lambda: umount(MID, DETACH),
                lambda: umount(TOP, DETACH),
                lambda: mount("tmpfs", MID, "tmpfs"),
            )
        ),
    ]
    others = [Prober(lambda: _code(around))]
    for prober in (*attackers, *others):
        prober.more(_ROUNDS)
    found = _stop([*attackers, *others])
    guest.note(str(found))
    assert set(found[0]) == {errno.EPERM}, found
    assert set(found[1]) == {errno.EPERM}, found
    assert set(found[2]) == {0}, found
    assert tree.alive()


def _at_once(*acts: Callable[[], object]) -> list[int]:
    """The acts, each in a process of its own, started together; what came of each."""
    reader, writer = os.pipe()
    children = []
    for act in acts:
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)  # until the other end is closed
            os._exit(_code(act))
        children.append(child)
    os.close(reader)
    os.close(writer)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _bind_below_while_unmounted(tries: int) -> tuple[int, dict[str, int]]:
    """The race of bpf/README.md: T is unmounted lazily, and while that waits for the kernel's lock
    a peer of the anchor's parents is bound below T. Gives the try that ended it (0: none did)."""
    counts: dict[str, int] = {}
    for number in range(1, tries + 1):
        mount("tmpfs", WRAP, "tmpfs")
        os.mkdir(f"{WRAP}/x")
        codes = _at_once(
            lambda: umount(WRAP, DETACH), lambda: mount(TOP, f"{WRAP}/x", None, BIND | REC)
        )
        key = "/".join(map(str, codes))
        counts[key] = counts.get(key, 0) + 1
        if not os.path.exists(f"{PINS}/link"):
            return number, counts
        if codes[0]:
            propagation(WRAP, REC | PRIVATE)
            copies = () if codes[1] else ("/x/mid/pins", "/x/mid", "/x")
            for place in (*copies, ""):
                umount(f"{WRAP}{place}")
    return 0, counts


def _lazily(guest: Guest, tries: int, strict: bool) -> tuple[int, dict[str, int]]:
    """The race, on a tree of its own, beside a process that keeps the kernel's lock busy."""
    private()
    tree = Tree()
    policy_now = pins_policy.policy_of(guest)
    pins_policy.protect(policy_now, tree)
    propagation(TOP, REC | SHARED)
    os.mkdir(WRAP)
    os.mkdir(f"{FREE}/a")

    def hog() -> int:
        def act() -> None:
            mount("tmpfs", f"{FREE}/a", "tmpfs")
            umount(f"{FREE}/a")

        return _code(act)

    with policy_now.globals() as values:
        values.set("strict", int(strict))
    prober = Prober(hog)
    try:
        mount("tmpfs", WRAP, "tmpfs")
        alone = _code(lambda: umount(WRAP, DETACH))  # with nobody to race
        assert alone == (errno.EPERM if strict else 0), alone
        if alone:
            umount(WRAP)
        number, counts = _bind_below_while_unmounted(tries)
    finally:
        prober.stop()
        with policy_now.globals() as values:
            values.set("strict", 0)
    guest.note(f"{number}; {counts}")
    assert tree.alive() == (not number)
    return number, counts


@races.case()
def limit_lazy_umount(guest: Guest) -> None:
    """Without `strict` a lazy umount is let pass, and then it is a matter of luck, which decides
    nothing here: about one try in fifty has ended it."""
    _lazily(guest, 200, strict=False)


@races.case()
def strict_lazy_umount(guest: Guest) -> None:
    """With it, no lazy umount is let pass here, so there is nothing to race."""
    number, counts = _lazily(guest, 30, strict=True)
    assert not number
    assert all(key.startswith(f"{errno.EPERM}/") for key in counts), counts


@races.case()
def limit_strict_elsewhere(guest: Guest) -> None:
    """`strict` looks for mounts that lazy unmounts spread from in the caller's namespace. Where
    there are none both halves of the race are let pass: a lazy umount, and a copy of such mounts
    by an fd (in 250 tries at once they ended the pins once). After the copy, it is refused."""
    private()
    tree = Tree()
    policy_now = pins_policy.policy_of(guest)
    pins_policy.protect(policy_now, tree)
    propagation(TOP, REC | SHARED)
    os.mkdir(WRAP)
    copy = clone(TOP, recursive=True)

    def elsewhere() -> int:
        mount("tmpfs", WRAP, "tmpfs")
        umount(WRAP, DETACH)
        mount("tmpfs", WRAP, "tmpfs")
        os.mkdir(f"{WRAP}/x")
        move_mount(copy, f"{WRAP}/x")
        assert _code(lambda: umount(WRAP, DETACH)) == errno.EPERM
        return 0

    with policy_now.globals() as values:
        values.set("strict", 1)
    try:
        assert in_namespace(private, elsewhere) == 0
    finally:
        with policy_now.globals() as values:
            values.set("strict", 0)
    assert tree.alive()
