# SPDX-License-Identifier: BSD-2-Clause
"""Scenarios: what a guest is like, what is set up in it, and the cases that run there.

A module is read on the host, to collect its cases, and in the guest, to run them.  So nothing
may happen when it is imported, and only the standard library, tests.vm and the project may be
imported at its top.
"""

from __future__ import annotations

import os

from tests.vm.outcome import Expected, Outcome
from tests.vm.waiting import CASE_SECONDS, wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import Any

__all__ = ["ALL_LANES", "Case", "Content", "Drive", "Guest", "Node", "Scenario", "Symlink"]

ALL_LANES = ("7.3", "6.12")


class Symlink:
    """A symbolic link as the content of a drive."""

    def __init__(self, target: str) -> None:
        self.target = target


class Node:
    """A character or block device node as the content of a drive."""

    def __init__(self, kind: str, major: int, minor: int) -> None:
        self.kind = kind
        self.major = major
        self.minor = minor


if TYPE_CHECKING:
    Content = bytes | Symlink | Node | Callable[[], bytes]
else:
    Content = object


class Drive:
    """A read-only disk of the guest.

    *content* maps names to bytes (mode 0755), a :class:`Symlink`, a :class:`Node`, or a
    function that gives the bytes, called on the host only.  *filesystem* is ``erofs``,
    ``squashfs`` or ``ext4``.  *signature* is what comes along with the dm-verity root hash:
    ``signer`` (the key the guest trusts), ``foreign`` (another key), ``tampered`` (one bit of
    the right signature changed) or ``none``.  With *corrupt* one bit of the last data block is
    changed after the root hash was computed.  The hash tree follows the data.
    """

    def __init__(
        self,
        content: Mapping[str, Content],
        *,
        filesystem: str = "erofs",
        signature: str = "signer",
        corrupt: bool = False,
    ) -> None:
        if filesystem not in ("erofs", "squashfs", "ext4"):
            raise ValueError(f"no such filesystem for a drive: {filesystem}")
        if signature not in ("signer", "foreign", "tampered", "none"):
            raise ValueError(f"no such signature for a drive: {signature}")
        self.content = dict(content)
        self.filesystem = filesystem
        self.signature = signature
        self.corrupt = corrupt


class Case:
    """One case of a scenario: a function of the guest, with a name and the lanes it is for."""

    def __init__(
        self,
        scenario: Scenario,
        name: str,
        function: Callable[[Guest], object],
        lanes: Sequence[str],
        where: str,
        timeout: float,
        line: int,
        attempt: str = "",
    ) -> None:
        self.scenario = scenario
        self.name = name
        self.function = function
        self.lanes = tuple(lanes)
        self.where = where
        self.timeout = timeout
        self.line = line
        self.attempt = attempt


class Scenario:
    """One guest: its options, its set-up and its cases.

    Each lane boots once and serves all cases of the scenario that are selected, in the order
    in which they stand.  A case runs in a child that PID 1 forks for it, so it sees what the
    set-up has left and cannot disturb another case's memory; ``where="pid1"`` runs it in PID 1
    itself.  The set-up runs in PID 1.

    *append* goes on the kernel command line.  *root* is ``signed`` (the system's signed erofs
    image; PID 1 has switched root) or ``initramfs``.  *keyring* false leaves 7.3's
    ``.dm-verity`` keyring empty and open, which needs ``root="initramfs"``.  *initramfs*, if
    given, is called on the host as ``initramfs(context)`` and gives the files of the initramfs
    with an ``init`` of its own among them, or the whole initramfs as bytes; what it boots in the
    end must execute ``/project/tools/guest/inside/harness.py`` as PID 1.  *disks* are further
    read-only disks, by their serial numbers: functions that make a file on the host; one named
    ``root`` takes the place of the signed system that an *initramfs* of one's own gets.  *append*
    and *disks* are called on the host only.  *tolerate* is a regular expression for lines
    of kernel trouble (WARNING, BUG …) that do not make a case fail.
    """

    def __init__(
        self,
        name: str,
        *,
        lanes: Sequence[str] = ALL_LANES,
        append: str | Callable[[], str] = "",
        drives: Mapping[str, Drive] | None = None,
        memory: int = 1024,
        cpus: int = 1,
        root: str = "signed",
        keyring: bool = True,
        initramfs: Callable[..., Mapping[str, bytes] | bytes] | None = None,
        disks: Mapping[str, Callable[[], Path]] | None = None,
        tolerate: str = "",
    ) -> None:
        self.name = name
        self.lanes = tuple(lanes)
        self.append = append
        self.drives = dict(drives or {})
        self.disks = dict(disks or {})
        self.memory = memory
        self.cpus = cpus
        self.root = root
        self.keyring = keyring
        self.initramfs = initramfs
        self.tolerate = tolerate
        self.cases: dict[str, Case] = {}
        self._setup: list[Callable[[Guest], object]] = []

    def setup(self, function: Callable[[Guest], object]) -> Callable[[Guest], object]:
        """Decorator: *function* runs in PID 1 before the first case; several run in order."""
        self._setup.append(function)
        return function

    def run_setup(self, guest: Guest) -> None:
        """Run the set-up functions (in the guest)."""
        for function in self._setup:
            function(guest)

    def _add(self, case: Case) -> None:
        if case.name in self.cases:
            raise ValueError(f"scenario {self.name} has two cases named {case.name}")
        self.cases[case.name] = case

    def case(
        self,
        *,
        name: str = "",
        lanes: Sequence[str] | None = None,
        where: str = "child",
        timeout: float = CASE_SECONDS,
    ) -> Callable[[Callable[[Guest], object]], Callable[[Guest], object]]:
        """Decorator: *function* is a case; it passes unless it raises."""

        def add(function: Callable[[Guest], object]) -> Callable[[Guest], object]:
            self._add(
                Case(
                    self,
                    name or function.__name__.removeprefix("test_"),
                    function,
                    self.lanes if lanes is None else lanes,
                    where,
                    timeout,
                    function.__code__.co_firstlineno,
                )
            )
            return function

        return add

    def probe(
        self,
        name: str,
        expected: Expected,
        function: Callable[..., Outcome],
        *arguments: object,
        attempt: str = "",
        lanes: Sequence[str] | None = None,
        timeout: float = CASE_SECONDS,
    ) -> None:
        """Add the case *name*: ``function(*arguments)`` must have exactly the *expected* outcome.

        An argument that is a function is called with the guest first and replaced by what it
        gives, for values that only the set-up knows.  *attempt* says in words what is tried,
        for the demonstration's table.
        """

        def run(guest: Guest) -> None:
            given = [value(guest) if callable(value) else value for value in arguments]
            guest.expect(function(*given), expected)

        self._add(
            Case(
                self, name, run, self.lanes if lanes is None else lanes, "child", timeout,
                function.__code__.co_firstlineno, attempt or name,
            )
        )  # fmt: skip


class Guest:
    """What a case can use: the lane, the drives, what the set-up has left, notes."""

    def __init__(self, run: dict[str, Any], drives: dict[str, str]) -> None:
        self.lane: str = run["lane"]
        self.release = os.uname().release
        self.images: dict[str, dict[str, Any]] = run["images"]
        self.nodes = drives
        self.state: dict[str, Any] = {}
        self.notes: list[str] = []
        self.expected = ""
        self.observed = ""
        self.act_seconds: float | None = None

    def note(self, text: str) -> None:
        """Keep *text* with the case's result."""
        self.notes.append(text)

    def expect(self, outcome: Outcome, expected: Expected) -> None:
        """Require that *outcome* is exactly the *expected* one.

        Raises:
            AssertionError: it is not; the message tells the four outcomes apart.
        """
        self.expected = str(expected)
        self.observed = str(outcome)
        self.act_seconds = outcome.seconds
        if not expected.matches(outcome):
            raise AssertionError(f"expected {expected}, but: {outcome}")

    def node(self, name: str) -> str:
        """The device node of the drive *name*."""
        return self.nodes[name]

    def verity(
        self,
        name: str,
        *,
        device: str = "",
        options: Sequence[str] = (),
        signed: bool = True,
    ) -> str:
        """Make the dm-verity device *device* (default: *name*) of the drive *name*.

        Gives the node ``/dev/dm-N``.  *signed* false leaves the signature out; *options* are
        further words of the table, those that weaken it included.

        Raises:
            pybpf.errors.KernelError: a step failed; nothing is left of the device.
        """
        from restrict.devmapper import DeviceMapper, Target
        from restrict.keyring import add_user_key

        image, node, words = self.images[name], self.nodes[name], [*options]
        if signed and image["signature"] is not None:
            key = f"guest-{device or name}"
            add_user_key(key, bytes.fromhex(image["signature"]))
            words += ["root_hash_sig_key_desc", key]
        blocks = image["blocks"]
        table = f"1 {node} {node} 4096 4096 {blocks} {blocks} sha256 "
        table += f"{image['root_hash']} {image['salt']}"
        if words:
            table += f" {len(words)} {' '.join(words)}"
        with DeviceMapper() as mapper:
            mapper.create(device or name)
            try:
                mapper.load(device or name, [Target(0, blocks * 8, "verity", table)])
                return mapper.resume(device or name).path
            except BaseException:
                mapper.remove(device or name)
                raise

    def linear(self, name: str, device: str) -> str:
        """Map the drive *name* as it is, without verification; gives the node."""
        from restrict.devmapper import DeviceMapper, Target

        sectors = self.images[name]["blocks"] * 8
        with DeviceMapper() as mapper:
            mapper.create(device)
            try:
                mapper.load(device, [Target(0, sectors, "linear", f"{self.nodes[name]} 0")])
                return mapper.resume(device).path
            except BaseException:
                mapper.remove(device)
                raise

    def remove(self, device: str) -> None:
        """Remove a mapped device."""
        from restrict.devmapper import DeviceMapper

        with DeviceMapper() as mapper:
            mapper.remove(device)

    def mount(
        self, node: str, where: str, kind: str = "erofs", flags: int = 1, options: str = ""
    ) -> None:
        """Mount *node*, read-only unless *flags* say otherwise; *where* is made."""
        from restrict.mounts import mount

        os.makedirs(where, exist_ok=True)
        mount(node, where, kind, flags, options)

    def umount(self, where: str, *, lazy: bool = False) -> None:
        """Unmount *where*."""
        from restrict.mounts import unmount

        unmount(where, lazy=lazy)

    def overlay(self, where: str, lower: str, upper: str = "") -> None:
        """Mount an overlay of *lower*; *upper* is a directory of a writable filesystem."""
        options = f"lowerdir={lower}"
        if upper:
            os.makedirs(f"{upper}/upper", exist_ok=True)
            os.makedirs(f"{upper}/work", exist_ok=True)
            options += f",upperdir={upper}/upper,workdir={upper}/work"
        self.mount("overlay", where, "overlay", 0 if upper else 1, options)

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Wait until *condition* is true (``waiting.wait``)."""
        wait(condition, what)
