# SPDX-License-Identifier: BSD-2-Clause
"""Runs the cases of a scenario in PID 1 and its children; one result event for each."""

from __future__ import annotations

import importlib
import json
import os
import re
import select
import signal
import sys
import time
import traceback

from tools.guest.inside.channel import Channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["KernelLog", "run_cases"]

TROUBLE = re.compile(
    r"BUG: |Oops\b|WARNING: |Kernel panic|general protection fault|unable to handle"
    r"|INFO: task .* blocked|rcu: INFO: |soft lockup|Internal error"
)


class KernelLog:
    """New records of the kernel's log, from /dev/kmsg."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._fd, 0, os.SEEK_END)

    def lines(self) -> list[str]:
        """The texts that came since the last call."""
        found: list[str] = []
        while True:
            try:
                record = os.read(self._fd, 8192)
            except BlockingIOError:
                return found
            except BrokenPipeError:  # records were overwritten before we came
                found.append("(records of the kernel's log were lost)")
                continue
            head, _, text = record.decode("utf-8", "replace").partition(";")
            # Only what the kernel itself says: facility 0. Programs may write there too.
            if int(head.split(",", 1)[0]) >> 3 == 0:
                found.append(text.split("\n", 1)[0])


def _explain(error: BaseException) -> str:
    """The traceback from the case on, and the local variables of its last frame."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.endswith("inside/cases.py")]
    lines = ["Traceback (in the guest):\n", *traceback.format_list(own)]
    lines += traceback.format_exception_only(type(error), error)
    chain = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if chain is not None:
        lines += ["caused by: ", *traceback.format_exception_only(type(chain), chain)]
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is not None and isinstance(error, AssertionError):
        for name, value in last.tb_frame.f_locals.items():
            try:
                lines.append(f"    {name} = {repr(value)[:300]}\n")
            except Exception as broken:
                lines.append(f"    {name}: {broken!r}\n")
    return "".join(lines)


def _perform(case: Any, guest: Any) -> dict[str, Any]:
    start = time.monotonic()
    result: dict[str, Any] = {"outcome": "passed", "message": ""}
    try:
        case.function(guest)
    except BaseException as error:
        result = {"outcome": "failed", "message": _explain(error)}
    result.update(
        seconds=round(time.monotonic() - start, 4),
        act_seconds=guest.act_seconds,
        expected=guest.expected,
        observed=guest.observed,
        attempt=case.attempt,
        notes=guest.notes,
    )
    return result


def _in_child(case: Any, guest: Any) -> dict[str, Any]:
    """Run the case in a forked child of its own session; kill what it leaves behind."""
    result_reader, result_writer = os.pipe()
    output_reader, output_writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            os.close(result_reader)
            os.close(output_reader)
            os.dup2(output_writer, 1)
            os.dup2(output_writer, 2)
            done = _perform(case, guest)
            sys.stdout.flush()
            sys.stderr.flush()
            data = json.dumps(done).encode()
            while data:
                data = data[os.write(result_writer, data) :]
        finally:
            os._exit(0)
    os.close(result_writer)
    os.close(output_writer)
    answer, output, ended = _collect(child, result_reader, output_reader, case.timeout)
    if answer:
        result: dict[str, Any] = json.loads(answer)
    else:
        result = {"outcome": "failed", "message": ended, "seconds": case.timeout}
    result["output"] = output
    return result


def _collect(child: int, results: int, output: int, timeout: float) -> tuple[bytes, str, str]:
    collected = {results: b"", output: b""}
    poll = select.poll()
    for fd in collected:
        poll.register(fd, select.POLLIN)
    end = time.monotonic() + timeout
    ended = ""
    waiting = {results, output}
    # A grandchild may hold the output open: the result's pipe alone tells that the case is over.
    while results in waiting:
        left = end - time.monotonic()
        if left <= 0:
            ended = f"the case did not end within {timeout:.0f} s and was killed"
            os.kill(child, signal.SIGKILL)
            break
        for fd, _events in poll.poll(left * 1000):
            data = os.read(fd, 65536)
            if data:
                collected[fd] += data
            else:
                poll.unregister(fd)
                waiting.discard(fd)
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    _, code = os.waitpid(child, 0)
    if not ended and not collected[results]:
        ended = f"the case's process ended without a result: wait status {code:#x}"
    if output in waiting:
        os.set_blocking(output, False)
        try:
            while data := os.read(output, 65536):
                collected[output] += data
        except BlockingIOError:
            pass
    os.close(results)
    os.close(output)
    return collected[results], collected[output].decode("utf-8", "backslashreplace"), ended


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def run_cases(channel: Channel, run: dict[str, Any], drives: dict[str, str]) -> None:
    """Run the cases that *run* names; every one gives a ``result`` event."""
    from tests.vm.scenario import Guest, Scenario

    log = KernelLog()
    module = importlib.import_module(run["module"])
    scenario = next(
        value
        for value in vars(module).values()
        if isinstance(value, Scenario) and value.name == run["scenario"]
    )
    tolerate = re.compile(scenario.tolerate) if scenario.tolerate else None
    guest = Guest(run, drives)
    start = time.monotonic()
    failure = ""
    try:
        scenario.run_setup(guest)
    except BaseException as error:
        failure = "the scenario's set-up failed: " + _explain(error)
    channel.send("setup", seconds=round(time.monotonic() - start, 4), failure=failure)
    for name in run["cases"]:
        case = scenario.cases[name]
        channel.send("start", case=name)
        if failure:
            result: dict[str, Any] = {"outcome": "failed", "message": failure, "seconds": 0}
        elif case.where == "pid1":
            guest.notes, guest.expected, guest.observed = [], "", ""
            guest.act_seconds = None
            result = _perform(case, guest)
        else:
            result = _in_child(case, guest)
        _reap()
        kernel_lines = log.lines()
        trouble = [
            line
            for line in kernel_lines
            if TROUBLE.search(line) and not (tolerate and tolerate.search(line))
        ]
        if trouble and result["outcome"] == "passed":
            result["outcome"] = "failed"
            result["message"] = "the kernel complained during this case:\n" + "\n".join(trouble)
        if result["outcome"] == "failed":
            result["kernel"] = kernel_lines[-60:]
        channel.send("result", case=name, trouble=trouble, **result)
    channel.send("end", status=0)
