# SPDX-License-Identifier: BSD-2-Clause
"""Running a scenario of tests/vm: one boot, a result for each case, as they come.

pytest (tests/vm/conftest.py) and ``tools/demo`` both stand on this.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.vm.scenario import Scenario

from .drives import build_drive
from .errors import GuestError
from .lanes import LANES, Lane
from .machine import Guest, Outcome
from .trees import PROJECT

__all__ = ["ARTIFACTS", "Boot", "load_scenario", "module_name", "scenarios_of"]

ARTIFACTS = PROJECT / "artifacts" / "vm"


def module_name(path: Path) -> str:
    """The name under which the guest imports the project's file *path*."""
    return ".".join(path.resolve().relative_to(PROJECT).with_suffix("").parts)


def scenarios_of(module: object) -> list[Scenario]:
    """The scenarios that a module defines, in its order."""
    return [value for value in vars(module).values() if isinstance(value, Scenario)]


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
        self._thread: threading.Thread | None = None

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
                timeout=self.scenario.timeout,
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

    def start(self) -> None:
        """Boot in the background."""
        if self._thread is None:
            self._thread = threading.Thread(target=self.run, daemon=True)
            self._thread.start()

    def join(self) -> None:
        """Wait for the end of a boot that was started."""
        if self._thread is not None:
            self._thread.join()

    def result(self, case: str) -> dict[str, Any] | None:
        """The result of *case*, waited for; None if the guest ended without one."""
        self.start()
        with self._changed:
            while case not in self._results and self.outcome is None and self.error is None:
                self._changed.wait(1.0)
            return self._results.get(case)


def load_scenario(path: Path, name: str = "") -> tuple[str, Scenario]:
    """The module name and the scenario *name* (or the only one) of the file *path*.

    Raises:
        GuestError: the module has no such scenario, or several and no name was given.
    """
    module = module_name(path)
    found = [
        scenario
        for scenario in scenarios_of(importlib.import_module(module))
        if name in ("", scenario.name)
    ]
    if len(found) != 1:
        raise GuestError(
            f"{os.path.relpath(path)} has {len(found)} scenarios"
            + (f" named {name}" if name else "; name one")
        )
    return module, found[0]
