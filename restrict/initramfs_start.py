# SPDX-License-Identifier: BSD-2-Clause
"""What runs from an image that ``restrict initramfs`` made: its verbs, given by start programs.

    init            PID 1 of a whole initramfs: restrict.init boots the signed root
    first PROGRAM   PID 1 before another generator's: enforce, then execute PROGRAM (its /init)
    open            a child of that generator's: make the signed root's device, by /PREFIX/etc
    resume PROGRAM  PID 1 on the verified root: close the trust window, execute PROGRAM

``first`` leaves /sys as it has mounted it (the policy's status is pinned in its bpffs) and takes
/dev, /proc and /run away again: a generator mounts its own, and some of them take a refusal of
devtmpfs for a kernel without it.
"""

from __future__ import annotations

import os
import sys
import time

from pybpf.errors import PybpfError
from restrict import config, fsaccess, handover, init, mounts
from restrict.disks import open_image, waiting
from restrict.errors import ConfigError, KernelError, RestrictError, describe
from restrict.images import read_bytes
from restrict.kmsg import Console
from restrict.modules import insmod

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from restrict import keep_pins
    from restrict.config import InitConfig

__all__ = ["command", "first", "open_root", "resume"]

_RECORD = "/memfd:restrict-handover (deleted)"
_TAKEN_AWAY = ("/run", "/dev", "/proc")


def first(
    settings: InitConfig,
    then: list[str],
    say: Callable[[str], None],
    state: init._State,
) -> NoReturn:
    """Enforce with the initramfs trusted, and execute ``then``, which inherits the policy."""
    started = time.monotonic()

    def step(name: str) -> None:
        state.step = name

    step("modules")
    for path, parameters in settings.modules:
        insmod(path, parameters)
    step("files")
    plan = fsaccess.load_plan(settings.plan)
    certificates = [(c, read_bytes(c, "certificate", 65536)) for c in settings.certificates]
    if not os.access(then[0], os.X_OK):
        raise RestrictError(
            "this initramfs has no such program.",
            hint="A segment is put before an initramfs, which brings it along.",
            program=then[0],
        )
    if settings.keep == "ownerless":
        # Its guard is sealed when the window is closed, by whoever has the handles.
        raise ConfigError(
            "keep = ownerless is for `restrict init` alone: before another generator the policy "
            "is kept by exec or pins.",
            key="keep",
        )
    policy = init.enforce(settings, plan, certificates, say, state, started)
    environment: dict[str, str] = {}
    if settings.keep == "exec":
        step("hand over")
        environment, _record = handover.hand_over(policy)
    step("exec")
    say(f"executing {then[0]} after {time.monotonic() - started:.3f} s")
    for target in _TAKEN_AWAY:
        mounts.unmount(target, lazy=True)
    try:
        os.execve(then[0], then, {**os.environ, **environment})
    except OSError as e:
        raise KernelError(
            f"it cannot be executed: {e.strerror}.",
            errno=e.errno or 0,
            call="execve",
            program=then[0],
        ) from None


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
    if not os.path.lexists(link):
        os.makedirs("/dev/mapper", exist_ok=True)
        os.symlink("../" + node.removeprefix("/dev/"), link)
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


def resume(plan: str, then: list[str]) -> int:
    """As ``restrict init --resume``, for a program that ``init=`` names and gives no arguments."""
    if not os.path.isdir("/proc/self/fd"):
        mounts.ensure("proc", "/proc", mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC)
    _find_record()
    if handover.VARIABLE not in os.environ and os.getpid() == 1:
        from restrict import keep_pins

        kept = keep_pins.in_force()
        if kept:
            return _resume_kept(kept, then)
    return init.resume(then, plan_path=plan)


def _resume_kept(kept: list[keep_pins.Generation], then: list[str]) -> int:
    """The same where pins keep the policy: PID 1 is its owner, and may open what is pinned."""
    console = Console("restrict")
    try:
        for generation in kept:
            with generation.globals() as values:
                before = values.get("initramfs_dev")
                values.set("initramfs_dev", 0)
            console.say(
                f"took over generation {generation.number}, kept by pins"
                + (f"; initramfs {before >> 20}:{before & 0xFFFFF} was still trusted" if before
                   else "")
            )  # fmt: skip
        os.execve(then[0], then, dict(os.environ))
    except BaseException as e:
        console.say(f"resume FAILED, what is kept stays in force: {describe(e)}", priority=4)
        return 1


def _main(path: str, then: list[str]) -> int:
    if os.getpid() != 1:
        print(
            f"restrict: this is for PID 1, and this is process {os.getpid()}. It is started by "
            "rdinit= on the kernel command line.",
            file=sys.stderr,
        )
        return 1
    state = init._State()
    settings: InitConfig | None = None
    console: Console | None = None
    try:
        state.step = "mounts"
        init.mount_basics()
        console = Console("restrict")
        state.step = "configuration"
        settings = config.read(path)
        init._preload()
        first(settings, then, console.say, state)
    except BaseException as e:  # PID 1 says what happened whatever it was, then gives up
        if console is None:
            console = Console("restrict")
        return init._fail(console, settings, state, e)


def command(prefix: str, words: list[str]) -> int:
    """Do what the start program's words say; the exit status."""
    verb, rest = (words[0], words[1:]) if words else ("", [])
    path = f"{prefix}/etc/init.conf"
    if verb == "init":
        return init.main(path)
    if verb == "first" and rest:
        return _main(path, rest)
    if verb == "resume" and rest:
        return resume(f"{prefix}/etc/fsaccess.plan", rest)
    if verb == "open" and not rest:
        try:
            open_root(path, lambda text: print(f"restrict: {text}", flush=True))
        except (PybpfError, OSError) as e:
            print(f"restrict: the signed root cannot be opened: {describe(e)}", file=sys.stderr)
            return 1
        return 0
    print("usage: init | first PROGRAM … | open | resume PROGRAM …", file=sys.stderr)
    return 2
