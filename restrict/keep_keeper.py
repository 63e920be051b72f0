# SPDX-License-Identifier: BSD-2-Clause
"""fsaccess kept by a process that does nothing else: the weakest way, for an init that leaves
processes alone and a system that has no other.

systemd spares processes of root's whose command line begins with "@" when it kills what is left at
a soft-reboot or a switch of roots (its document on root storage daemons). The policy's guard
lets nobody signal or trace the keeper, which is its owner. What the kernel itself kills does not
ask: cgroup.kill, or the OOM killer, which is told to spare it.
"""

from __future__ import annotations

import os
import time

from pybpf.sys.syscalls import Char
from restrict.errors import RestrictError, system_error
from restrict.guard import start_ticks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from restrict.fsaccess import Policy

__all__ = ["argument_start", "spawn"]


def argument_start(text: str) -> int:
    """Where a process' command line begins in its memory, from its /proc/PID/stat (field 48,
    Linux 3.5; proc_pid_stat(5)). Raises RestrictError."""
    words = text.rpartition(")")[2].split()
    if len(words) < 46 or not words[45].isdecimal() or int(words[45]) == 0:
        raise RestrictError("the command line's place in memory is not known.")
    return int(words[45])


def _mark() -> None:
    """Make the first character of this process' command line an "@"."""
    with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
        start = argument_start(file.read())
    Char.from_address(start).value = b"@"
    with open("/proc/self/cmdline", "rb") as raw:
        if raw.read(1) != b"@":
            raise RestrictError("the command line did not change.")


def spawn(policy: Policy) -> int:
    """Leave a process that holds the policy's handles and owns it; its pid.

    The handles of the caller may be closed then. Raises RestrictError or KernelError if it could
    not be made; the caller still is the owner then.
    """
    ready, tell = os.pipe()
    try:
        pid = os.fork()
    except OSError as e:
        os.close(ready)
        os.close(tell)
        raise system_error("no process can be made to keep the policy", e, "fork") from None
    if pid == 0:
        try:
            os.close(ready)
            os.setsid()
            os.chdir("/")
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            _mark()
            with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
                file.write("-1000")
            os.write(tell, b"x")
            os.close(tell)
            while True:
                time.sleep(1 << 20)
        finally:
            os._exit(1)
    os.close(tell)
    word = os.read(ready, 1)
    os.close(ready)
    if not word:
        os.waitpid(pid, 0)
        raise RestrictError("the process that was to keep the policy ended.")
    with policy.globals() as values:
        values.set("owner_start_ticks", start_ticks(pid))
        values.set("owner_tgid", pid)
    return pid
