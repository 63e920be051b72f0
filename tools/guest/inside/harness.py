# SPDX-License-Identifier: BSD-2-Clause
"""PID 1 after the set-up: runs what /run/vm/run.json asks for and reports how it ended."""

from __future__ import annotations

import json
import os
import select
import sys

if "/project" not in sys.path:
    sys.path.insert(0, "/project")

from tools.guest.inside.channel import Channel  # noqa: E402
from tools.guest.inside.kernel import disks, reboot  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _run_script(channel: Channel, run: dict[str, object]) -> None:
    """Run a script as a child; its output goes out as events, then its status."""
    arguments = run["arguments"]
    assert isinstance(arguments, list)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        os.setsid()
        os.chdir("/run/vm/files")
        try:
            os.execv(arguments[0], arguments)
        except OSError as error:
            os.write(2, f"{arguments[0]}: {error}\n".encode())
            os._exit(127)
    os.close(writer)
    status: int | None = None
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    while True:
        ready = poll.poll(100)
        if ready:
            data = os.read(reader, 65536)
            if data:
                channel.send("output", text=data.decode("utf-8", "backslashreplace"))
                continue
            # Every holder of the pipe is gone; the child is about to be.
        while True:
            try:
                pid, code = os.waitpid(-1, 0 if ready else os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == child:
                status = os.waitstatus_to_exitcode(code)
                break
        if status is not None:
            break
    os.set_blocking(reader, False)
    try:
        while data := os.read(reader, 65536):
            channel.send("output", text=data.decode("utf-8", "backslashreplace"))
    except BlockingIOError:
        pass
    channel.send("end", status=status)


def _run_shell(channel: Channel) -> None:
    """A shell on the console."""
    child = os.fork()
    if child == 0:
        os.setsid()
        fd = os.open("/dev/ttyS0", os.O_RDWR)
        import fcntl
        import termios

        fcntl.ioctl(fd, termios.TIOCSCTTY, 1)
        for target in (0, 1, 2):
            os.dup2(fd, target)
        os.chdir("/run/vm/files")
        os.execve("/bin/sh", ["-sh"], {**os.environ, "PS1": "guest:\\w# "})
    while True:
        pid, code = os.waitpid(-1, 0)
        if pid == child:
            channel.send("end", status=os.waitstatus_to_exitcode(code))
            return


def load() -> tuple[dict[str, Any], dict[str, str]]:
    """The run's description, and the disks by serial number.

    Where another program was PID 1 before and has not carried /run over, the run's files are
    taken from the disk ``vmrun``.
    """
    drives = disks()
    if not os.path.exists("/run/vm/run.json") and "vmrun" in drives:
        import base64

        with open(drives["vmrun"], "rb") as disk:
            size = int.from_bytes(disk.read(8), "little")
            files = json.loads(disk.read(size))
        for name, text in files.items():
            path = f"/run/vm/{name}"
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as out:
                out.write(base64.b64decode(text))
    os.makedirs("/run/vm/files", exist_ok=True)
    with open("/run/vm/run.json") as file:
        run: dict[str, Any] = json.load(file)
    return run, drives


def main() -> None:
    """Do what the run asks for."""
    channel = Channel()
    channel.send("harness", kernel=os.uname().release)
    try:
        run, drives = load()
        if run["mode"] == "cases":
            from tools.guest.inside.cases import run_cases

            run_cases(channel, run, drives)
        elif run["mode"] == "script":
            _run_script(channel, run)
        elif run["mode"] == "shell":
            _run_shell(channel)
        else:
            raise ValueError(f"no such mode: {run['mode']}")
    except BaseException:
        channel.crash("harness")


if __name__ == "__main__":
    try:
        main()
    finally:
        reboot()
