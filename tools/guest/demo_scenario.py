# SPDX-License-Identifier: BSD-2-Clause
"""What ``tools/demo`` boots: ``restrict init`` as PID 1, and what is tried against its policy.

initramfs: restrict init → signed root: the harness takes the policy over as the next PID 1
"""

from __future__ import annotations

import errno
import os
import re

from tests.vm import attempts, probes, restrict_boot
from tests.vm.outcome import refused, trial
from tests.vm.policy import Attempt, Denial, add, adopt
from tests.vm.scenario import Drive, Guest, Scenario

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from tests.vm.outcome import Outcome

__all__ = ["BOOT", "NEVER_OFF", "demo"]

BOOT, NEVER_OFF = "boot", "never_off"

#: Names of tests/vm/attempts.py, in the order of the table.
_FIRST = (
    "exec_root", "exec_signed", "exec_shell", "exec_memfd", "exec_script", "limit_shell",
    "check_tmpfs", "exec_interpreter", "exec_fuse",
    "map_anonymous", "map_write_exec", "map_tmpfs", "map_node", "protect_tmpfs",
    "protect_modified", "shm", "heap_implied", "dlopen", "dlopen_signed",
    "overlay_lower", "overlay_lower_denied", "overlay_new", "overlay_new_denied",
    "overlay_copied", "overlay_copied_denied",
)  # fmt: skip
_LAST = (
    "steal_map", "steal_program", "steal_link", "forge_device", "foreign_map", "list_programs",
    "attach_owner", "read_owner", "get_fd_of_owner", "status_of_owner",
    "peek", "poke_text", "poke_data",
)  # fmt: skip


def _initramfs(run: Mapping[str, Any]) -> dict[str, bytes]:
    return restrict_boot.files(run)


demo = Scenario(
    "demo",
    initramfs=_initramfs,
    drives={
        **{name: drive for name, drive in attempts.drives().items() if name != "plans"},
        "unsigned": Drive(attempts.CONTENT, signature="none"),
        "foreign": Drive(attempts.CONTENT, signature="foreign"),
        "bare": Drive(attempts.CONTENT, signature="none"),
        "plain": Drive(attempts.CONTENT, signature="none"),
    },
)


@demo.setup
def take_over(guest: Guest) -> None:
    """Own the policy, stop what was started before it, and make what the attempts need."""
    from restrict import fsaccess, handover

    policy = handover.adopt(plan=fsaccess.load_plan(restrict_boot.PLAN))
    if policy is None:
        raise RuntimeError("no policy was handed over")
    adopt(guest, policy)
    restrict_boot.Prober.stop()
    guest.state["seen"] = restrict_boot.Prober()
    guest.mount("tmpfs", "/tmp", "tmpfs", 0)
    attempts.write_files()
    attempts.foreign_objects(guest)
    attempts.finish(guest)
    guest.mount(guest.node("bare"), "/run/bare")
    guest.mount(guest.verity("good", device="swapped"), "/run/swapped")
    for name, kind in (("good", "error"), ("plain", "linear")):
        outcome = attempts.replace_table(guest, "swapped", name, kind)
        if outcome.kind != "allowed":
            raise RuntimeError(f"the table of type {kind} could not be loaded: {outcome}")


def _unescaped(text: str) -> str:
    """/dev/kmsg escapes what is not ASCII (kernel/printk/printk.c)."""
    return re.sub(r"\\x([0-9a-f]{2})", lambda m: chr(int(m[1], 16)), text).encode(
        "latin-1", "replace"
    ).decode("utf-8", "replace")  # fmt: skip


@demo.case(name=BOOT)
def said_by_init(guest: Guest) -> None:
    """What restrict said on its way from the initramfs to here."""
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        while True:
            head, _, text = os.read(fd, 8192).decode().partition(";")
            if text.startswith("restrict: "):
                seconds = int(head.split(",")[2]) / 1e6
                guest.note(f"{seconds:7.3f} s  {_unescaped(text.splitlines()[0])}")
    except BlockingIOError:
        os.close(fd)
    assert guest.notes, "restrict said nothing"


def _activate(guest: Guest, name: str) -> Outcome:
    return trial(guest.verity, name)


_ATTEMPTS = {attempt.name: attempt for attempt in attempts.ATTEMPTS}


def _untrusted(name: str, words: str, where: str, reason: str) -> Attempt:
    path = f"{where}/program"
    return Attempt(
        name, words, probes.execute, path, control=attempts.EXITS,
        denied=Denial("exec", reason, file=path, filesystem="erofs"),
    )  # fmt: skip


def _refused_by_verity(name: str, words: str) -> Attempt:
    # The kernel's own answer (dm_verity.require_signatures), with or without the policy.
    return Attempt(
        f"activate_{name}", words, lambda guest: _activate(guest, name), _same,
        control=refused(errno.ENOKEY),
    )  # fmt: skip


def _same(guest: Guest) -> Guest:
    return guest


add(
    demo,
    [
        *(_ATTEMPTS[name] for name in _FIRST),
        _refused_by_verity("unsigned", "activating an unsigned verity image"),
        _refused_by_verity("foreign", "activating an image that another key signed"),
        _untrusted("unverified", "an unsigned image mounted without verity",
                   "/run/bare", "untrusted_device"),
        _untrusted("swapped", "a signed device whose table was swapped",
                   "/run/swapped", "table_changed"),
        *(_ATTEMPTS[name] for name in _LAST),
    ],
)  # fmt: skip


@demo.case(name=NEVER_OFF)
def enforcement_was_never_off(guest: Guest) -> None:
    """The process that was started before the policy and tried to execute all the time."""
    seen = guest.state["seen"]
    guest.note(str(seen))
    assert seen.before > 0
    assert seen.denied > 0
    assert (seen.after, seen.other) == (0, 0)
