# SPDX-License-Identifier: BSD-2-Clause
"""What runs from an image that ``restrict initramfs`` made: its verbs, given by start programs.

    init            PID 1 of a whole initramfs: restrict.init boots the signed root
    first PROGRAM   PID 1 before another generator's: enforce, then execute PROGRAM (its /init)
    open            a child of that generator's: make the signed root's device, by /PREFIX/etc
    resume [--events] PROGRAM
                    PID 1 on the verified root: close the trust window, execute PROGRAM

``first`` leaves /sys as it has mounted it (the policy's status is pinned in its bpffs) and takes
/dev, /proc and /run away again: a generator mounts its own, and some of them take a refusal of
devtmpfs for a kernel without it.
"""

from __future__ import annotations

import os
import sys
import time

from pybpf.errors import PybpfError
from restrict import config, handover, init, mounts, resume
from restrict.disks import open_image, waiting
from restrict.errors import RestrictError, describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from restrict.config import InitConfig

__all__ = ["command", "first", "open_root", "take_over"]

_RECORD = "/memfd:restrict-handover (deleted)"
_TAKEN_AWAY = ("/run", "/dev", "/proc")


def first(
    settings: InitConfig,
    then: list[str],
    say: Callable[[str], None],
    state: init.State,
) -> NoReturn:
    """Enforce with the initramfs trusted, and execute ``then``, which inherits the policy."""
    started = time.monotonic()
    prepared = init.prepare(settings, say, state, segment=True)
    if not os.access(then[0], os.X_OK):
        raise RestrictError(
            "this initramfs has no such program.",
            hint="A segment is put before an initramfs, which brings it along.",
            program=then[0],
        )
    if prepared.keeping.name == "exec":
        handover.check_successor(then[0])
    policy = init.enforce(settings, prepared, say, state, started)
    state.step = "hand over"
    environment = prepared.keeping.hand_over(policy)
    state.step = "exec"
    say(f"executing {then[0]} after {time.monotonic() - started:.3f} s")
    for target in _TAKEN_AWAY:
        mounts.unmount(target, lazy=True)
    handover.execute(then, environment)


def open_root(path: str, say: Callable[[str], None]) -> str:
    """Make the device of the signed root that the configuration describes; gives its node.

    Links it as /dev/mapper/NAME, as udev's rules would. Raises what a step raised.
    """
    settings = config.read(path)
    image = open_image(settings, init.command_line(), waiting(settings.wait))
    for note in image.notes:
        say(note)
    name = settings.name or image.part
    node = init.activate(name, image)
    image.close()
    link = f"/dev/mapper/{name}"
    os.makedirs("/dev/mapper", exist_ok=True)
    try:
        os.symlink("../" + node.removeprefix("/dev/"), link)
    except FileExistsError:  # udev was first
        pass
    say(f"signed {image.part} {image.verity.root_hash[:16]}… of {image.where} is {link}")
    return link


def _find_record() -> None:
    """Name the record in the environment where a generator has cleaned that: the fds are there
    still. Nothing in it is believed before the kernel has confirmed it."""
    if handover.VARIABLE in os.environ:
        return
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == _RECORD:
                found.append(name)
        except OSError:  # the directory's own fd
            continue
    if len(found) == 1:
        os.environ[handover.VARIABLE] = found[0]


def take_over(then: list[str], plan: str, pins_plan: str, *, events: bool = False) -> int:
    """As ``restrict init --resume``, for a program that ``init=`` names and gives no arguments."""
    if not os.path.isdir("/proc/self/fd"):
        mounts.ensure("proc", "/proc", mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC)
    _find_record()
    return resume.resume(then, plan_path=plan, pins_plan=pins_plan, events=events)


def command(prefix: str, words: list[str]) -> int:
    """Do what the start program's words say; the exit status."""
    verb, rest = (words[0], words[1:]) if words else ("", [])
    path = f"{prefix}/etc/init.conf"
    if verb == "init":
        return init.main(path)
    if verb == "first" and rest:
        return init.as_pid_1(
            path,
            lambda settings, say, state: first(settings, rest, say, state),
            "It is started by rdinit= on the kernel command line.",
        )
    if verb == "resume" and rest:
        events = rest[0] == "--events"
        plans = f"{prefix}/etc/fsaccess.plan", f"{prefix}/etc/pins.plan"
        return take_over(rest[events:], *plans, events=events)
    if verb == "open" and not rest:
        try:
            open_root(path, lambda text: print(f"restrict: {text}", flush=True))
        except (PybpfError, OSError) as e:
            print(f"restrict: the signed root cannot be opened: {describe(e)}", file=sys.stderr)
            return 1
        return 0
    print("usage: init | first PROGRAM … | open | resume [--events] PROGRAM …", file=sys.stderr)
    return 2
