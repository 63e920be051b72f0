# SPDX-License-Identifier: BSD-2-Clause
"""Running a scenario of tests/vm: one boot, a result for each case, as they come.

pytest (tests/vm/conftest.py) and ``tools/demo`` both stand on this.
"""

from __future__ import annotations

import importlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.vm.scenario import Scenario

from .cache import guests_at_once
from .drives import build_drive
from .errors import GuestError
from .lanes import LANES, Lane
from .machine import Guest, Outcome, end_guests
from .trees import PROJECT

__all__ = ["ARTIFACTS", "Boot", "Queue", "load_scenario", "module_name"]

ARTIFACTS = PROJECT / "artifacts" / "vm"


def module_name(path: Path) -> str:
    """The name under which the guest imports the project's file *path*."""
    return ".".join(path.resolve().relative_to(PROJECT).with_suffix("").parts)


class Boot:
    """One boot of a scenario on a lane; results can be waited for while it runs."""

    def __init__(
        self,
        module: str,
        scenario: Scenario,
        lane: str,
        cases: Sequence[str],
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.module = module
        self.scenario = scenario
        self.lane: Lane = LANES[lane]
        self.cases = list(cases)
        self.artifacts = ARTIFACTS / f"{module.rsplit('.', 1)[-1]}-{scenario.name}-{lane}"
        self.outcome: Outcome | None = None
        self.error: Exception | None = None
        self._on_event = on_event
        self._results: dict[str, dict[str, Any]] = {}
        self._changed = threading.Condition()

    def _event(self, event: dict[str, Any]) -> None:
        with self._changed:
            if event.get("event") == "result":
                self._results[str(event["case"])] = event
                self._changed.notify_all()
        if self._on_event is not None:
            self._on_event(event)

    def _guest(self) -> Guest:
        scenario = self.scenario
        guest = Guest(
            self.lane,
            root=scenario.root,
            append=scenario.append if isinstance(scenario.append, str) else scenario.append(),
            drives={name: make() for name, make in scenario.disks.items()},
            memory=scenario.memory,
            cpus=scenario.cpus,
            keyring=scenario.keyring and self.lane.dm_verity_keyring,
            initramfs=scenario.initramfs,
        )
        for name, drive in scenario.drives.items():
            guest.add_image(name, build_drive(guest.tools, drive))
        return guest

    def run(self) -> None:
        """Boot, run the cases, and be done; errors are kept in ``error``."""
        try:
            guest = self._guest()
            request = {
                "mode": "cases",
                "module": self.module,
                "scenario": self.scenario.name,
                "cases": self.cases,
            }
            self.outcome = guest.run(
                request,
                # A case is ended by the guest itself: the guest must not be, before that.
                timeout=max(case.timeout for case in self.scenario.cases.values()) + 300,
                artifacts=self.artifacts,
                on_event=self._event,
            )
        except Exception as error:
            self.error = error
        finally:
            with self._changed:
                if self.outcome is None and self.error is None:
                    self.error = GuestError("the boot was interrupted")
                self._changed.notify_all()

    def result(self, case: str) -> dict[str, Any] | None:
        """The result of *case*, waited for; None if the guest ended without one."""
        with self._changed:
            while case not in self._results and self.outcome is None and self.error is None:
                self._changed.wait(1.0)
            return self._results.get(case)


class Queue:
    """Boots in the background, in their order, :func:`guests_at_once`.

    One more is prepared meanwhile, so that no processor waits for images to be built.
    """

    def __init__(self, boots: Iterable[Boot]) -> None:
        self._left = deque(boots)
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin; nothing happens if that was done."""
        if not self._threads:
            for _ in range(guests_at_once() + 1):
                self._threads.append(threading.Thread(target=self._work, daemon=True))
                self._threads[-1].start()

    def _work(self) -> None:
        while self._left:
            try:
                boot = self._left.popleft()
            except IndexError:
                return
            boot.run()

    def end(self, *, at_once: bool) -> None:
        """Wait until all boots are over; *at_once*: begin no more, and end the guests that run."""
        if at_once:
            self._left.clear()
            end_guests()
        # One that waits for a processor still ends with this process, and leaves nothing.
        deadline = time.monotonic() + 2
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()) if at_once else None)


def load_scenario(path: Path, name: str = "") -> tuple[str, Scenario]:
    """The module name and the scenario *name* (or the only one) of the file *path*.

    Raises:
        GuestError: the module has no such scenario, or several and no name was given.
    """
    module = module_name(path)
    found = [
        value
        for value in vars(importlib.import_module(module)).values()
        if isinstance(value, Scenario) and name in ("", value.name)
    ]
    if len(found) != 1:
        raise GuestError(
            f"{os.path.relpath(path)} has {len(found)} scenarios"
            + (f" named {name}" if name else "; name one")
        )
    return module, found[0]
