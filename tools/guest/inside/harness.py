# SPDX-License-Identifier: BSD-2-Clause
"""PID 1 after the set-up: runs what /run/vm/run.json asks for and reports how it ended."""

from __future__ import annotations

import json
import os
import select
import sys
import traceback

sys.path.insert(0, "/run/vm/lib")

from tools.guest.inside.channel import Channel
from tools.guest.inside.kernel import reboot


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


def main() -> None:
    """Do what the run asks for."""
    channel = Channel()
    with open("/run/vm/run.json") as file:
        run = json.load(file)
    os.makedirs("/run/vm/files", exist_ok=True)
    try:
        if run["mode"] == "script":
            _run_script(channel, run)
        elif run["mode"] == "shell":
            _run_shell(channel)
        else:
            raise ValueError(f"no such mode: {run['mode']}")
    except BaseException:
        text = traceback.format_exc()
        print(text, file=sys.stderr, flush=True)
        channel.send("crash", where="harness", traceback=text)


if __name__ == "__main__":
    try:
        main()
    finally:
        reboot()
