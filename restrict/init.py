# SPDX-License-Identifier: BSD-2-Clause
"""Early boot: what PID 1 does in an initramfs, from the first mount to the real init.

    mounts → modules → configuration's files → image found → certificates → check → seccomp filter
    → enable with the initramfs trusted → signed image by the device mapper → mount → trust window
    closed → switch root → exec

Everything is read and imported before the initramfs goes. A failure before the policy is armed
undoes the policy (a seccomp filter stays with its process); after it, enforcement stays on while
the process lives. Either is said on the console and in the kernel's log, and then ``on_failure``
decides.

``resume`` is the successor's side, for an init that is another run of this program on the
verified root.
"""

from __future__ import annotations

import os
import sys
import time

from restrict import (
    config,
    fsaccess,
    handover,
    keep_keeper,
    keyring,
    lockout,
    mounts,
    preflight,
    seccomp,
    serve,
)
from restrict.devmapper import DeviceMapper
from restrict.disks import Disk, open_image, waiting
from restrict.errors import ConfigError, KernelError, RestrictError, describe
from restrict.images import SIGNATURE_KEY, read_bytes, which_filesystem
from restrict.kmsg import Console
from restrict.modules import insmod

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from pybpf.plan.ops import Plan
    from restrict.config import InitConfig
    from restrict.disks import Image
    from restrict.fsaccess import Policy
    from restrict.pins import Pins

__all__ = ["activate", "boot", "command_line", "enforce", "main", "mount_basics", "resume"]

_NEW_ROOT = "/sysroot"
_CARRIER = "/run/restrict/carrier"
_NOSUID_NODEV_NOEXEC = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
_BASICS = (
    ("proc", "/proc", _NOSUID_NODEV_NOEXEC, ""),
    ("sysfs", "/sys", _NOSUID_NODEV_NOEXEC, ""),
    ("devtmpfs", "/dev", mounts.MS_NOSUID, "mode=0755"),
    ("tmpfs", "/run", mounts.MS_NOSUID | mounts.MS_NODEV, "mode=0755"),
    ("securityfs", "/sys/kernel/security", _NOSUID_NODEV_NOEXEC, ""),
    ("bpf", "/sys/fs/bpf", _NOSUID_NODEV_NOEXEC, "mode=0711"),
)
# What is said of ``keep``.
_KEPT = {
    "exec": "this process and what it executes",
    "pins": "pins",
    "ownerless": "the root cgroup",
    "keeper": "a process",
}
# reboot(2): LINUX_REBOOT_MAGIC1, MAGIC2 and two of its commands.
_REBOOT = {"reboot": 0x01234567, "poweroff": 0x4321FEDC}


def mount_basics() -> None:
    """Mount proc, sys, dev, run, securityfs and bpffs where they are not mounted yet."""
    for fstype, target, flags, data in _BASICS:
        mounts.ensure(fstype, target, flags, data)


def _certificates(found: list[tuple[str, bytes]]) -> str:
    """Fill and restrict the .dm-verity keyring; says what was done."""
    ring = keyring.find_keyring()
    if ring is None:
        # Before 7.0 the kernel itself must have the certificate (.platform from UEFI's db,
        # .secondary_trusted_keys, built in); a bad signature then fails at the table load.
        return f"no keyring {keyring.DM_VERITY}: relying on the kernel's own keyrings"
    for path, der in found:
        keyring.add_certificate(der, ring.serial, source=path)
    if found:
        keyring.restrict_keyring(ring.serial)
        return f"{len(found)} certificates in {keyring.DM_VERITY}, which is restricted now"
    return f"{keyring.DM_VERITY} left as it is"


def command_line() -> str:
    """The kernel's command line; "" where it cannot be read."""
    try:
        with open("/proc/cmdline", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:  # no root hash is chosen there then
        return ""


def activate(name: str, image: Image) -> str:
    """Make the signed image a mapped device; the path of its node. Raises KernelError."""
    key = keyring.add_user_key(SIGNATURE_KEY, image.signature)
    try:
        with DeviceMapper() as mapper:
            return mapper.activate(name, image.verity).path
    except KernelError as e:
        raise e.at(image=image.where, certificate=image.fingerprint or None) from None
    finally:
        keyring.unlink(key)  # the kernel has verified it by now; nothing needs it again


def _deactivate(name: str) -> None:
    with DeviceMapper() as mapper:
        mapper.remove(name)


def _mount_image(settings: InitConfig, image: Image, node: str) -> None:
    """The new root on _NEW_ROOT: the image itself, or, around a /usr image, what root= says."""
    kind = settings.filesystem
    if kind == "auto":
        with Disk(node) as disk:
            kind = which_filesystem(disk.read(0, 2048))
    if image.part == "root":
        mounts.mount(node, _NEW_ROOT, kind, mounts.MS_RDONLY, settings.options)
        return
    if settings.root is None:
        flags = mounts.MS_NOSUID | mounts.MS_NODEV
        mounts.mount("tmpfs", _NEW_ROOT, "tmpfs", flags, "mode=0755")
    else:
        device, root_kind, options = settings.root
        flags = 0
        if "ro" in options.split(","):
            flags = mounts.MS_RDONLY
            options = ",".join(word for word in options.split(",") if word != "ro")
        mounts.mount(device, _NEW_ROOT, root_kind, flags, options)
    try:
        mounts.usr_root(_NEW_ROOT)
        mounts.mount(node, f"{_NEW_ROOT}/usr", kind, mounts.MS_RDONLY, settings.options)
        mounts.usr_root(_NEW_ROOT, links=True)
    except BaseException:
        mounts.unmount(_NEW_ROOT, lazy=True)
        raise


def _preload() -> None:
    """Import what is otherwise imported on demand: names for errors, which are needed most when
    the initramfs, and the modules' files with it, is gone."""
    import pybpf.kernel.explain_map
    import pybpf.kernel.verifier_log
    import pybpf.plan.attach
    import pybpf.plan.run
    import pybpf.plan.variables
    import pybpf.sys.abi_names
    import pybpf.sys.bpf_more
    import pybpf.sys.diagnose  # noqa: F401


class _State:
    """How far the boot came, for the message of a failure.

    The last one is kept for ever: it holds the policy, whose handles would be closed with it.
    """

    kept: _State | None = None

    def __init__(self) -> None:
        _State.kept = self
        self.step = "start"
        self.policy: Policy | None = None
        self.filtered = False


def enforce(
    settings: InitConfig,
    plan: Plan,
    certificates: list[tuple[str, bytes]],
    say: Callable[[str], None],
    state: _State,
    started: float,
) -> Policy:
    """From the keyring to the armed policy, which trusts the initramfs this runs in.

    certificates: (where from, DER). started: time.monotonic() of the first step. The policy is
    ``state.policy``, too. Raises what the failing step raised; its name is in ``state.step``.
    """

    def step(name: str) -> None:
        state.step = name

    step("keyring")
    say(_certificates(certificates))
    step("check")
    _preload()
    preflight.require()
    if not settings.audit and settings.deny_poke:
        # No hook of the policy sees a tracer write its tracee's text. Before the policy is armed,
        # and before there is any other process: what is started later inherits the filter.
        step("seccomp filter")
        state.filtered = seccomp.install()
        say("PTRACE_POKETEXT and PTRACE_POKEDATA are refused from here on")
    trusted = fsaccess.initramfs_device()
    before_arm = None if settings.audit else lockout.before_arm(plan)
    if settings.keep == "pins":
        from restrict import keep_pins, pins

        guard = None
        if os.path.exists(settings.pins_plan):
            guard = pins.load_plan(settings.pins_plan)
        else:
            say(f"there is no {settings.pins_plan}: root can take the pins away")
        policy = keep_pins.enable(
            plan,
            audit=settings.audit,
            initramfs_dev=trusted,
            guard=guard,
            before_arm=before_arm,
            step=step,
        )
    elif settings.keep == "ownerless":
        from restrict import keep_ownerless

        policy = keep_ownerless.enable(
            plan,
            audit=settings.audit,
            initramfs_dev=trusted,
            status_pin=fsaccess.PIN if settings.status else None,
            before_arm=before_arm,
            step=step,
        )
    else:
        policy = fsaccess.enable(
            plan,
            audit=settings.audit,
            initramfs_dev=trusted,
            status_pin=fsaccess.PIN if settings.status else None,
            settings={"kept": 1} if settings.keep == "exec" else None,
            before_arm=before_arm,
            step=step,
        )
    state.policy = policy
    say(
        f"armed{' (audit: nothing is denied)' if settings.audit else ''}: "
        f"{len(policy.links) or 'all'} programs, kept by {_KEPT[settings.keep]}, initramfs "
        f"{trusted >> 20}:{trusted & 0xFFFFF} trusted, {time.monotonic() - started:.3f} s"
    )
    return policy


def boot(settings: InitConfig, say: Callable[[str], None], state: _State) -> NoReturn:
    """Do everything after the basic mounts; ends in exec of ``settings.init``.

    Raises what the failing step raised; ``state.policy`` tells whether enforcement is on.
    """
    started = time.monotonic()

    def step(name: str) -> None:
        state.step = name

    step("modules")
    for path, parameters in settings.modules:
        insmod(path, parameters)
    # Files of the initramfs are read now: a mistake in them is found before anything is armed.
    step("files")
    plan = fsaccess.load_plan(settings.plan)
    certificates = [(c, read_bytes(c, "certificate", 65536)) for c in settings.certificates]
    step("devices")
    wait = waiting(settings.wait)
    if settings.carrier is not None:
        device, kind, options = settings.carrier
        while not os.path.exists(device) and wait():
            pass
        os.makedirs(_CARRIER, exist_ok=True)
        mounts.mount(device, _CARRIER, kind, mounts.MS_RDONLY | _NOSUID_NODEV_NOEXEC, options)
    step("image")
    image = open_image(settings, command_line(), wait)
    for note in image.notes:
        say(note)
    say(f"{image.part} image on {image.where}, root hash {image.verity.root_hash}")
    policy = enforce(settings, plan, certificates, say, state, started)

    step("root")
    name = settings.name or image.part
    node = activate(name, image)
    image.close()
    try:
        os.makedirs(_NEW_ROOT, exist_ok=True)
        step("mount")
        _mount_image(settings, image, node)
        try:
            step("new root")
            mounts.check_new_root(_NEW_ROOT, settings.move)
            _check_program(_NEW_ROOT, settings.init[0])
        except BaseException:
            mounts.unmount(_NEW_ROOT, lazy=True)
            raise
    except BaseException:
        _deactivate(name)
        raise
    say(f"signed {image.part} {image.verity.root_hash[:16]}… is mounted from {node}")

    environment: dict[str, str] = {}
    if settings.keep == "exec":
        # The record asks the kernel for tags; do it while nothing irreversible has happened.
        step("hand over")
        environment, _record = handover.hand_over(policy)
    step("trust window")
    policy.close_window()
    guard = _pins_guard(settings)
    step("switch root")
    mounts.switch_root(_NEW_ROOT, moved=settings.move)
    # The guard lets none but the owner move the mounts that the pins are below: now they are moved.
    if settings.keep in ("pins", "ownerless"):
        _disown(policy, guard)
    step("exec")
    if settings.events:
        serve.spawn(policy)
    if settings.keep == "keeper":
        say(f"process {keep_keeper.spawn(policy)} keeps the policy")
    say(f"root switched, executing {settings.init[0]} after {time.monotonic() - started:.3f} s")
    os.execve(settings.init[0], settings.init, {**os.environ, **environment})


def _pins_guard(settings: InitConfig) -> Pins | None:
    """The pins policy over the policy's pins, opened; None where there is none."""
    if settings.keep != "pins" or not os.path.exists(settings.pins_plan):
        return None
    from restrict import pins

    return pins.open_pinned(plan=pins.load_plan(settings.pins_plan))


def _disown(policy: Policy, guard: Pins | None) -> None:
    """Take the ownership away from everybody until the next boot. The next PID 1 knows nothing of
    the policy, and root can make it act on files of his choice (systemd unlinks a service's
    PIDFile=): an owner that does as it is told is none."""
    if guard is not None:
        guard.disown()
        guard.close()
    with policy.globals() as values:
        values.set("owner_tgid", 0)


def _check_program(root: str, path: str) -> None:
    """The next PID 1 must exist on the new root (links are followed inside of it by exec)."""
    if not os.path.lexists(root + path):
        raise RestrictError(f"the new root has no {path}.", mount=root)


def _fail(console: Console, settings: InitConfig | None, state: _State, exc: BaseException) -> int:
    armed = state.policy is not None
    console.say(
        f"FAILED at step {state.step!r} "
        + (
            "after enforcement was switched on; it stays on while this process lives: "
            if armed
            else "before enforcement was switched on; everything was undone but the seccomp "
            "filter, which cannot be: "
            if state.filtered
            else "before enforcement was switched on; everything was undone: "
        )
        + describe(exc),
        priority=4,
    )
    action = settings.on_failure if settings is not None else "exit"
    if action in _REBOOT:
        from pybpf.sys.syscalls import syscall

        os.sync()
        syscall("reboot", 0xFEE1DEAD, 672274793, _REBOOT[action], 0)
    return 1


def main(path: str = config.DEFAULT_PATH) -> int:
    """``restrict init``: run the early boot as PID 1; returns only after a failure, with 1."""
    if os.getpid() != 1:
        print(
            f"restrict: init is for PID 1, and this is process {os.getpid()}. Use `restrict "
            "enable` on a running system.",
            file=sys.stderr,
        )
        return 1
    state = _State()
    settings: InitConfig | None = None
    console: Console | None = None
    try:
        state.step = "mounts"
        mount_basics()
        console = Console("restrict")
        state.step = "configuration"
        settings = config.read(path)
        boot(settings, console.say, state)
    except BaseException as e:  # PID 1 says what happened whatever it was, then gives up
        if console is None:
            console = Console("restrict")
        return _fail(console, settings, state, e)


def resume(arguments: list[str], *, plan_path: str | None = None, events: bool = False) -> int:
    """``restrict init --resume -- PROGRAM…``: the successor on the verified root.

    Validates what was inherited, closes the trust window again, and executes PROGRAM with the
    handles handed on. events: leave a process that serves ``restrict events``.
    Returns 1 after a failure; what was inherited then stays in force.
    """
    # Another process than PID 1 (tests, a supervisor of its own) has a stderr that is read.
    console = Console("restrict") if os.getpid() == 1 else None
    try:
        plan = fsaccess.load_plan(plan_path) if plan_path is not None else None
        policy = handover.adopt(plan=plan)
        if policy is None:
            raise RestrictError(
                f"nothing was handed over: {handover.VARIABLE} is not in the environment."
            )
        before = policy.close_window()
        number = f"{before >> 20}:{before & 0xFFFFF}"
        _say(
            console,
            f"took over {len(policy.links)} programs"
            + (f"; initramfs {number} was still trusted" if before else ""),
        )
        if not arguments:
            raise ConfigError("there is no program to execute.", hint="Add `-- PROGRAM …`.")
        if events:
            serve.spawn(policy)
        environment, record = handover.hand_over(policy)
        try:
            os.execve(arguments[0], arguments, {**os.environ, **environment})
        except OSError as e:
            handover.take_back(policy, record)
            raise KernelError(
                f"it cannot be executed: {e.strerror}.",
                errno=e.errno or 0,
                call="execve",
                program=arguments[0],
            ) from None
    except BaseException as e:
        _say(console, f"resume FAILED, what was inherited stays in force: {describe(e)}", 4)
        return 1


def _say(console: Console | None, text: str, priority: int = 5) -> None:
    if console is not None:
        console.say(text, priority=priority)
    else:
        print(f"restrict: {text}", file=sys.stderr)
