# SPDX-License-Identifier: BSD-2-Clause
"""The outcome of an attempt, and what a case expects it to be.

Four outcomes are told apart: allowed; refused, with its errno; killed by a signal; could not
be attempted, with the reason.  Only the exact outcome passes: an attempt that could not be
made is never taken for a refusal.
"""

from __future__ import annotations

import errno
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ALLOWED", "Expected", "Outcome", "killed", "refusal", "refused", "trial"]


def _errno_name(code: int) -> str:
    return errno.errorcode.get(code, str(code))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Outcome:
    """What came of one attempt.

    *kind* is ``allowed``, ``refused``, ``killed`` or ``impossible``; *code* the errno or the
    signal number; *detail* says more; *seconds* is how long the attempt itself took.
    """

    __slots__ = ("code", "detail", "kind", "seconds")

    def __init__(
        self, kind: str, code: int = 0, detail: str = "", seconds: float | None = None
    ) -> None:
        self.kind = kind
        self.code = code
        self.detail = detail
        self.seconds = seconds

    def __str__(self) -> str:
        more = f" ({self.detail})" if self.detail else ""
        if self.kind == "refused" and not self.code:
            return f"refused{more}"
        if self.kind == "refused":
            return f"refused with {_errno_name(self.code)}{more}"
        if self.kind == "killed":
            return f"killed by {_signal_name(self.code)}{more}"
        if self.kind == "impossible":
            return f"could not be attempted{more}"
        return f"allowed{more}"


class Expected:
    """The one outcome that passes; *detail*, if given, must be found in the outcome's."""

    __slots__ = ("code", "detail", "kind")

    def __init__(self, kind: str, code: int = 0, detail: str = "") -> None:
        self.kind = kind
        self.code = code
        self.detail = detail

    def matches(self, outcome: Outcome) -> bool:
        """Whether *outcome* is exactly this one."""
        return (
            outcome.kind == self.kind
            and outcome.code == self.code
            and self.detail in outcome.detail
        )

    def __str__(self) -> str:
        return str(Outcome(self.kind, self.code, self.detail))


ALLOWED = Expected("allowed")


def refused(code: int = errno.EPERM) -> Expected:
    """Refused with the errno *code*, and no other."""
    return Expected("refused", code)


def killed(number: int = signal.SIGKILL) -> Expected:
    """The process was killed by the signal *number*."""
    return Expected("killed", int(number))


def refusal(act: Callable[[], object]) -> str:
    """What pybpf or restrict says of an act that must be refused."""
    from pybpf.errors import PybpfError

    try:
        act()
    except PybpfError as error:
        return str(error)
    raise AssertionError("it was not refused")


def trial(function: Callable[..., object], *arguments: object) -> Outcome:
    """Call *function*: allowed if it returns, refused with the errno of its OSError or
    pybpf.KernelError.

    Any other exception is not caught.  Nothing is forked: what *function* does, it does in
    the calling process.
    """
    start = time.monotonic()
    try:
        value = function(*arguments)
    except Exception as error:
        code = getattr(error, "errno", None)
        if code is None:
            raise
        return Outcome("refused", code, str(error), time.monotonic() - start)
    return Outcome("allowed", 0, repr(value)[:200], time.monotonic() - start)
