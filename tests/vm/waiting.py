# SPDX-License-Identifier: BSD-2-Clause
"""Waiting for what must come.

The limits here are guards against hanging, far above what the slowest takes: no case is to fail
because the machine is slow, or does something else as well.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ATTEMPT_SECONDS", "CASE_SECONDS", "WAIT_SECONDS", "wait"]

CASE_SECONDS = 600.0  # a case
WAIT_SECONDS = 240.0  # one condition in it
ATTEMPT_SECONDS = 240.0  # one attempt, or command, in it


def wait(condition: Callable[[], object], what: str) -> None:
    """Wait until *condition* is true.

    Raises:
        TimeoutError: it did not become so.
    """
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {WAIT_SECONDS:.0f} s")
        time.sleep(0.02)
