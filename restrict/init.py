# SPDX-License-Identifier: BSD-2-Clause
"""Early boot: what PID 1 does in an initramfs, from the first mount to the real init.

    mounts → modules → configuration's files → image found → certificates → check → seccomp filter
    → enable with the initramfs trusted → signed image by the device mapper → mount → trust window
    closed → switch root → exec

Everything is read and imported before the initramfs goes. A failure before the policy is armed
undoes the policy (a seccomp filter stays with its process); after it, enforcement stays on while
the process lives. Either is said on the console and in the kernel's log, and then ``on_failure``
decides. What keeps the policy afterwards: restrict/keep_init.py; the successor on the verified
root: restrict/resume.py.
"""

from __future__ import annotations

import os
import sys
import time

from restrict import (
    config,
    fsaccess,
    handover,
    keep_init,
    keyring,
    lockout,
    mounts,
    preflight,
    seccomp,
    serve,
)
from restrict.devmapper import DeviceMapper
from restrict.disks import Disk, open_image, waiting
from restrict.errors import KernelError, RestrictError, describe
from restrict.images import SIGNATURE_KEY, read_bytes, which_filesystem
from restrict.kmsg import Console
from restrict.modules import insmod
from restrict.policy import load_plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from pybpf.plan.ops import Plan
    from restrict.config import InitConfig
    from restrict.disks import Image
    from restrict.fsaccess import Policy
    from restrict.keep_init import Keeping

__all__ = [
    "Prepared", "activate", "as_pid_1", "boot", "command_line", "enforce", "main",
    "mount_basics", "prepare",
]  # fmt: skip

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
    # Without a certificate, too: left open (keyring_unsealed=1) it would take one of root's later.
    now = keyring.restrict_keyring(ring.serial)
    return f"{len(found)} certificates in {keyring.DM_VERITY}, which " + (
        "is restricted now" if now else "was restricted already"
    )


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


class State:
    """How far the boot came, for the message of a failure.

    The last one is kept for ever: it holds the policy, whose handles would be closed with it.
    """

    kept: State | None = None

    def __init__(self) -> None:
        State.kept = self
        self.step = "start"
        self.policy: Policy | None = None
        self.filtered = False


class Prepared:
    """What was read of the initramfs before anything is armed. certificates: (where from, DER)."""

    __slots__ = ("certificates", "keeping", "plan")

    def __init__(self, plan: Plan, certificates: list[tuple[str, bytes]], keeping: Keeping) -> None:
        self.plan = plan
        self.certificates = certificates
        self.keeping = keeping


def prepare(
    settings: InitConfig, say: Callable[[str], None], state: State, *, segment: bool = False
) -> Prepared:
    """Load the modules and read the files: a mistake in them is found before anything is armed."""
    state.step = "modules"
    for path, parameters in settings.modules:
        insmod(path, parameters)
    state.step = "files"
    plan = load_plan(settings.plan)
    certificates = [(c, read_bytes(c, "certificate", 65536)) for c in settings.certificates]
    return Prepared(plan, certificates, keep_init.choose(settings, plan, say, segment=segment))


def enforce(
    settings: InitConfig,
    prepared: Prepared,
    say: Callable[[str], None],
    state: State,
    started: float,
) -> Policy:
    """From the keyring to the armed policy, which trusts the initramfs this runs in.

    started: time.monotonic() of the first step. The policy is ``state.policy``, too. Raises what
    the failing step raised; its name is in ``state.step``.
    """

    def step(name: str) -> None:
        state.step = name

    step("keyring")
    say(_certificates(prepared.certificates))
    step("check")
    _preload()
    preflight.require()
    if not settings.audit and settings.deny_poke:
        # No hook of the policy sees a tracer write its tracee's text. Before the policy is armed,
        # and before there is any other process: what is started later inherits the filter.
        step("seccomp filter")
        implied_exec = prepared.keeping.name == "ownerless"  # where no program refuses that
        state.filtered = seccomp.install(implied_exec=implied_exec)
        more = " (and READ_IMPLIES_EXEC)" if implied_exec else ""
        say(f"PTRACE_POKETEXT and PTRACE_POKEDATA{more} are refused from here on")
    trusted = fsaccess.initramfs_device()
    policy = prepared.keeping.enable(
        prepared.plan,
        audit=settings.audit,
        initramfs_dev=trusted,
        status=settings.status,
        before_arm=None if settings.audit else lockout.before_arm(prepared.plan),
        step=step,
    )
    state.policy = policy
    say(
        f"armed{' (audit: nothing is denied)' if settings.audit else ''}: "
        f"{len(policy.links) or 'all'} programs, kept by {prepared.keeping.said}, initramfs "
        f"{trusted >> 20}:{trusted & 0xFFFFF} trusted, {time.monotonic() - started:.3f} s"
    )
    return policy


def boot(settings: InitConfig, say: Callable[[str], None], state: State) -> NoReturn:
    """Do everything after the basic mounts; ends in exec of ``settings.init``.

    Raises what the failing step raised; ``state.policy`` tells whether enforcement is on.
    """
    started = time.monotonic()

    def step(name: str) -> None:
        state.step = name

    prepared = prepare(settings, say, state)
    keeping = prepared.keeping
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
    policy = enforce(settings, prepared, say, state, started)

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

    # The record asks the kernel for tags; do it while nothing irreversible has happened.
    step("hand over")
    environment = keeping.hand_over(policy)
    step("trust window")
    policy.close_window()
    keeping.before_switch()
    step("switch root")
    mounts.switch_root(_NEW_ROOT, moved=settings.move)
    keeping.after_switch(policy, say)
    step("exec")
    if settings.events and serve.spawn(policy) is None:
        say("nobody offers events: their reader could not be started")
    if keeping.name == "exec":
        handover.check_successor(settings.init[0])
    say(f"root switched, executing {settings.init[0]} after {time.monotonic() - started:.3f} s")
    handover.execute(settings.init, environment)


def _check_program(root: str, path: str) -> None:
    """The next PID 1 must exist on the new root (links are followed inside of it by exec)."""
    if not os.path.lexists(root + path):
        raise RestrictError(f"the new root has no {path}.", mount=root)


def _fail(console: Console, settings: InitConfig | None, state: State, exc: BaseException) -> int:
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


def as_pid_1(
    path: str,
    act: Callable[[InitConfig, Callable[[str], None], State], NoReturn],
    hint: str,
) -> int:
    """Do ``act`` with the configuration in ``path``; returns only after a failure, with 1.

    hint: what to say to another process than PID 1.
    """
    if os.getpid() != 1:
        print(f"restrict: this is for PID 1, and this is process {os.getpid()}. {hint}",
              file=sys.stderr)  # fmt: skip
        return 1
    state = State()
    settings: InitConfig | None = None
    console: Console | None = None
    try:
        state.step = "mounts"
        mount_basics()
        console = Console("restrict")
        state.step = "configuration"
        settings = config.read(path)
        act(settings, console.say, state)
    except BaseException as e:  # PID 1 says what happened whatever it was, then gives up
        if console is None:
            console = Console("restrict")
        return _fail(console, settings, state, e)


def main(path: str = config.DEFAULT_PATH) -> int:
    """``restrict init``: run the early boot as PID 1; returns only after a failure, with 1."""
    return as_pid_1(path, boot, "Use `restrict enable` on a running system.")
