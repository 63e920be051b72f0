# SPDX-License-Identifier: BSD-2-Clause
"""Makes one pytest item of each case and lane; one boot serves all items of a scenario."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vm.scenario import Case, Scenario
from tools.guest.errors import GuestError
from tools.guest.scenarios import Boot, Queue, module_name

_BOOTS = pytest.StashKey[dict[tuple[str, str, str], Boot]]()
_QUEUE = pytest.StashKey[Queue]()
_IN_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lane", action="append", default=[], help="only this kernel lane")


class CaseFailed(Exception):
    """A case failed in the guest; the text is the guest's."""


class CaseItem(pytest.Item):
    """One case on one kernel lane."""

    def __init__(self, *, case: Case, lane: str, module: str, **rest: Any) -> None:
        super().__init__(**rest)
        self.case = case
        self.lane = lane
        self.module_name = module
        self.add_marker("vm")

    @property
    def boot_key(self) -> tuple[str, str, str]:
        return self.module_name, self.case.scenario.name, self.lane

    def runtest(self) -> None:
        boot = self.config.stash[_BOOTS][self.boot_key]
        result = boot.result(self.case.name)
        if boot.error is not None and result is None:
            if isinstance(boot.error, GuestError) and not _IN_CI:
                pytest.skip(str(boot.error))
            raise boot.error
        if result is None:
            assert boot.outcome is not None
            tail = "\n".join(boot.outcome.console.strip().splitlines()[-40:])
            raise CaseFailed(
                f"the guest gave no result for this case: {boot.outcome.reason}\n"
                f"--- end of its console ({boot.artifacts}/console.log)\n{tail}"
            )
        for key in ("expected", "observed", "seconds"):
            self.user_properties.append((key, result.get(key)))
        sections = [result["message"]] if result["outcome"] != "passed" else []
        for title, key in (("output", "output"), ("notes", "notes"), ("kernel", "kernel")):
            value = result.get(key)
            if value:
                text = value if isinstance(value, str) else "\n".join(map(str, value))
                sections.append(f"--- {title}\n{text}")
        if result["outcome"] != "passed":
            sections.append(f"--- console and events: {boot.artifacts}")
            raise CaseFailed("\n".join(sections))
        if sections:
            self.add_report_section("call", "guest", "\n".join(sections))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, (CaseFailed, GuestError)):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, self.case.line - 1, self.name


class ScenarioNode(pytest.Collector):
    """All cases of a scenario, on all its lanes."""

    def __init__(self, *, scenario: Scenario, **rest: Any) -> None:
        super().__init__(**rest)
        self.scenario = scenario

    def collect(self) -> Iterator[CaseItem]:
        wanted = self.config.getoption("--lane")
        for lane in self.scenario.lanes:
            if wanted and lane not in wanted:
                continue
            for case in self.scenario.cases.values():
                if lane in case.lanes:
                    yield CaseItem.from_parent(
                        self,
                        name=f"{case.name}[{lane}]",
                        case=case,
                        lane=lane,
                        module=module_name(self.path),
                    )


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: Any, name: str, obj: object) -> Any:
    if isinstance(obj, Scenario):
        if obj.name == getattr(collector, "_seen_scenarios", {}).get(id(obj)):
            return []
        seen = getattr(collector, "_seen_scenarios", {})
        seen[id(obj)] = obj.name
        collector._seen_scenarios = seen
        return ScenarioNode.from_parent(collector, name=obj.name, scenario=obj)
    # A case is a function of the guest: pytest must not take it for a test of its own.
    return [] if callable(obj) and _is_case(collector, obj) else None


def _is_case(collector: Any, obj: object) -> bool:
    return any(
        case.function is obj
        for value in vars(collector.obj).values()
        if isinstance(value, Scenario)
        for case in value.cases.values()
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    """Keep the items of one boot together; each boot is told the cases that are wanted."""
    firsts: dict[tuple[str, str, str], int] = {}
    order: dict[pytest.Item, int] = {}
    for index, item in enumerate(items):
        order[item] = index
        if isinstance(item, CaseItem):
            order[item] = firsts.setdefault(item.boot_key, index)
    items.sort(key=order.__getitem__)


def pytest_collection_finish(session: pytest.Session) -> None:
    """After all deselection: one boot for each scenario and lane that has items left."""
    boots: dict[tuple[str, str, str], Boot] = {}
    for item in session.items:
        if isinstance(item, CaseItem):
            boot = boots.get(item.boot_key)
            if boot is None:
                boot = boots[item.boot_key] = Boot(
                    item.module_name, item.case.scenario, item.lane, []
                )
            boot.cases.append(item.case.name)
    session.config.stash[_BOOTS] = boots
    session.config.stash[_QUEUE] = Queue(boots.values())


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The first case that is waited for starts the guests, of all scenarios."""
    if isinstance(item, CaseItem):
        item.config.stash[_QUEUE].start()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """All results are there, so all guests are about to end; not after an interrupt or -x."""
    whole = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    if (queue := session.config.stash.get(_QUEUE, None)) is not None:
        queue.end(at_once=not whole or bool(session.shouldfail or session.shouldstop))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Tell of every guest that had to be started twice: never silently; and of the time."""
    boots = config.stash.get(_BOOTS, {}).values()
    outcomes = [boot.outcome for boot in boots if boot.outcome is not None]
    for boot in boots:
        if boot.outcome is not None and boot.outcome.retried:
            terminalreporter.write_line(
                f"{boot.artifacts.name}: the guest was started twice: {boot.outcome.retried}"
            )
    if outcomes:
        terminalreporter.write_line(
            f"{len(outcomes)} guests ran for {sum(o.seconds for o in outcomes):.0f} s in all, "
            f"{sum(o.cpu_seconds for o in outcomes):.0f} s of processor time"
        )
