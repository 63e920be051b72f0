# SPDX-License-Identifier: BSD-2-Clause
"""One run of qemu: its command line, its two serial ports, its end."""

from __future__ import annotations

import atexit
import base64
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .cache import cache_root, processor_slot, scratch
from .errors import GuestError
from .images import Image, combined_image, make_image
from .initramfs import base_segment, given_segment, module_list, run_segment
from .keys import signer
from .lanes import Lane
from .packages import Toolbox, kernel, toolbox, uncompressed
from .trees import project_tree, system_tree
from .uefi import add_db_certificate

__all__ = ["COMMAND_LINE", "Guest", "Outcome", "end_guests", "kernel_trouble"]

COMMAND_LINE = (
    "console=ttyS0 loglevel=5 panic=-1 mitigations=off random.trust_cpu=on "
    # The emulator may be kept from running for seconds: no check that expects otherwise.
    "init_on_alloc=0 no_timer_check nowatchdog rcupdate.rcu_cpu_stall_timeout=200 "
    # The kernel's tests of its own ciphers are a fifth of a boot.
    "cryptomgr.notests "
    "proc_mem.force_override=never"
)
# Without the features that make kernel and C library copy memory by `rep movsb`: the emulator does
# that byte by byte.
_PROCESSOR = "max,-erms,-fsrm,-fzrm,-fsrs,-fsrc"
_TROUBLE = re.compile(
    r"^.*(?:BUG: |Oops: |Oops\b.*\[#|WARNING: |Kernel panic|general protection fault"
    r"|unable to handle|INFO: task .* blocked|rcu: INFO: |soft lockup|Internal error).*$",
    re.MULTILINE,
)

# What comes before a case or a script has said anything.
_BEFORE_RESULTS = {"python", "ready", "harness", "garbled"}
_running: set[subprocess.Popen[bytes]] = set()
_ending = threading.Event()


@atexit.register
def end_guests() -> None:
    """End the guests of this process that run, and start no more of them."""
    _ending.set()
    for process in list(_running):
        process.kill()


def kernel_trouble(console: str) -> list[str]:
    """Lines of the console that tell of an oops, BUG, WARNING, panic or hang of the kernel."""
    return [match.group(0).strip() for match in _TROUBLE.finditer(console)]


@dataclass
class Outcome:
    """How a run of the guest ended.

    *events* are all lines that came over the results port; *status* is the exit status the
    guest reported, None if there was no explicit end; *reason* says in words why the run is
    over.  *seconds* is how long qemu ran, *cpu_seconds* what it used of a processor meanwhile.
    """

    events: list[dict[str, object]]
    console: str
    status: int | None
    reason: str
    seconds: float
    cpu_seconds: float
    trouble: list[str] = field(default_factory=list)
    retried: str = ""

    def first(self, event: str) -> dict[str, object] | None:
        """The first event of a kind."""
        return next((item for item in self.events if item.get("event") == event), None)


class Guest:
    """A guest to be run: lane, what its PID 1 does, drives, extra kernel parameters."""

    def __init__(
        self,
        lane: Lane,
        *,
        root: str = "signed",
        append: str = "",
        memory: int = 1024,
        cpus: int = 1,
        drives: Mapping[str, Path] | None = None,
        files: Mapping[str, bytes] | None = None,
        keyring: bool | None = None,
        initramfs: Callable[..., Mapping[str, bytes] | bytes] | None = None,
    ) -> None:
        self.lane = lane
        self.tools: Toolbox = toolbox()
        self.kernel = kernel(lane)
        self.root = root
        self.append = append
        self.memory = memory
        self.cpus = cpus
        self.drives = dict(drives or {})
        self.files = dict(files or {})
        self.keyring = lane.dm_verity_keyring if keyring is None else keyring
        self.initramfs = initramfs
        self.images: dict[str, Image] = {}

    def add_image(self, name: str, image: Image) -> None:
        """Add a disk whose description the guest gets too."""
        self.images[name] = image

    def _signed_images(self) -> dict[str, Image]:
        images = cache_root() / "images"
        system = system_tree(self.tools)
        project = project_tree(self.tools)
        return {
            "system": make_image(self.tools, system, images / system.name, "the system image"),
            "project": make_image(self.tools, project, images / project.name, "the project image"),
        }

    def _initrd(self, folder: Path, run: dict[str, object]) -> Path:
        path = folder / "initrd"
        files: Mapping[str, bytes] = {}
        if self.initramfs is not None:
            given = self.initramfs({**run, "certificate": signer(self.tools).der()})
            if isinstance(given, bytes):  # the whole of it, made by somebody else
                path.write_bytes(given)
                return path
            files = given
        with open(path, "wb") as out:
            with open(base_segment(self.tools, self.lane, self.kernel), "rb") as base:
                shutil.copyfileobj(base, out)
            if self.initramfs is not None:
                out.write(given_segment(files, project_tree(self.tools)))
            else:
                out.write(run_segment(self.tools, run, self.files, project_tree(self.tools)))
        return path

    def _run_disk(self, folder: Path, run: dict[str, object]) -> Path:
        """The run's files as a disk, for a PID 1 that does not find them in the initramfs."""
        files = {f"files/{name}": data for name, data in self.files.items()}
        files["run.json"] = json.dumps(run).encode()
        text = json.dumps({name: base64.b64encode(data).decode() for name, data in files.items()})
        raw = len(text).to_bytes(8, "little") + text.encode()
        path = folder / "vmrun"
        path.write_bytes(raw + bytes(-len(raw) % 4096))
        return path

    def command(
        self, folder: Path, request: Mapping[str, object], interactive: bool = False
    ) -> list[str]:
        """The qemu command line; writes what it names into *folder*."""
        if self.initramfs is not None:
            if "root" not in self.drives:
                self.images["root"] = combined_image(self.tools)
        elif self.root == "signed":
            self.images.update(self._signed_images())
        disks = {name: image.path for name, image in self.images.items()}
        disks.update(self.drives)
        run = {
            "lane": self.lane.name,
            "root": self.root,
            "keyring": self.keyring,
            "modules": module_list(self.lane, self.kernel),
            "images": {name: image.describe() for name, image in self.images.items()},
            **request,
        }
        if self.initramfs is not None:
            disks["vmrun"] = self._run_disk(folder, run)
        # OVMF starts the kernel as an EFI program, which only the bzImage is.
        image = self.kernel.image if self.lane.firmware else uncompressed(self.tools, self.kernel)
        arguments = [
            *[word for folder in self.tools.qemu_data for word in ("-L", str(folder))],
            "-machine", "q35", "-accel", f"tcg,thread={'multi' if self.cpus > 1 else 'single'}",
            "-smp", str(self.cpus), "-cpu", _PROCESSOR,
            "-m", str(self.memory), "-display", "none", "-nodefaults", "-no-reboot",
            "-no-user-config",
            "-kernel", str(image),
            "-initrd", str(self._initrd(folder, run)),
            "-append", f"{COMMAND_LINE} {self.append}".strip(),
        ]  # fmt: skip
        if interactive:
            arguments += ["-serial", "mon:stdio"]
        else:
            arguments += ["-serial", f"file:{folder / 'console.log'}"]
        arguments += ["-serial", f"file:{folder / 'results.jsonl'}"]
        if self.lane.firmware:
            arguments += self._firmware(folder)
        for name, path in disks.items():
            if "," in str(path):
                raise GuestError(f"qemu takes no comma in a drive's path: {path}")
            arguments += [
                "-drive", f"file={path},if=none,id={name},format=raw,readonly=on",
                "-device", f"virtio-blk-pci,drive={name},serial={name}",
            ]  # fmt: skip
        return self.tools.command("qemu-system-x86_64", *arguments)

    def _firmware(self, folder: Path) -> list[str]:
        template = self.tools.firmware("OVMF_VARS_4M.fd").read_bytes()
        variables = folder / "vars.fd"
        variables.write_bytes(add_db_certificate(template, signer(self.tools).der()))
        code = self.tools.firmware("OVMF_CODE_4M.fd")
        return [
            "-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={code}",
            "-drive", f"if=pflash,format=raw,unit=1,file={variables}",
        ]  # fmt: skip

    def run(
        self,
        request: Mapping[str, object],
        *,
        timeout: float = 900.0,
        artifacts: Path | None = None,
        on_event: Callable[[dict[str, object]], None] | None = None,
    ) -> Outcome:
        """Run the guest to its end; never raises for what it does.

        One that says nothing for *timeout* seconds hangs, and is ended. How long it may take in
        all has no bound: that would tell how fast the machine is, and what else runs on it.

        A guest that hung, or whose kernel or qemu died, before it had any result is started
        once more; ``retried`` then says why.
        """
        outcome = self._run(request, timeout, artifacts, on_event)
        early = {event.get("event") for event in outcome.events} <= _BEFORE_RESULTS
        if outcome.status is not None or not early:
            return outcome
        if artifacts is not None:
            (artifacts / "console.log").rename(artifacts / "console.first-try.log")
        again = self._run(request, timeout, artifacts, on_event)
        trouble = "; ".join(outcome.trouble[:2])
        again.retried = outcome.reason + (f" ({trouble})" if trouble else "")
        return again

    def _run(
        self,
        request: Mapping[str, object],
        timeout: float,
        artifacts: Path | None,
        on_event: Callable[[dict[str, object]], None] | None,
    ) -> Outcome:
        with scratch("guest") as folder:
            command = self.command(folder, request)  # before a slot is held: it builds images
            with processor_slot():
                if _ending.is_set():
                    raise GuestError("the run was ended before this guest was started")
                return self._watch(command, folder, timeout, artifacts, on_event)

    def _watch(
        self,
        command: Sequence[str],
        folder: Path,
        timeout: float,
        artifacts: Path | None,
        on_event: Callable[[dict[str, object]], None] | None,
    ) -> Outcome:
        start = time.monotonic()
        process = subprocess.Popen(
            # The kernel ends it with us, however we end.
            ["setpriv", "--pdeathsig", "KILL", "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        _running.add(process)
        events: list[dict[str, object]] = []
        reason = ""
        cpu_seconds = 0.0
        try:
            for event in _follow(folder / "results.jsonl", process, timeout):
                if event is None:
                    reason = f"no word from the guest for {timeout:.0f} s"
                    break
                events.append(event)
                if on_event is not None:
                    on_event(event)
                if event.get("event") in ("end", "crash"):
                    break
            cpu_seconds = _cpu_seconds(process.pid)
            try:
                process.wait(10 if not reason else 0)
            except subprocess.TimeoutExpired:
                pass
        finally:
            if process.poll() is None:
                process.kill()
            assert process.stderr is not None
            complaint = process.stderr.read().decode("utf-8", "replace").strip()
            process.stderr.close()
            process.wait()
            _running.discard(process)
        seconds = time.monotonic() - start
        console_file = folder / "console.log"
        console = (
            console_file.read_text("utf-8", "replace").replace("\r\n", "\n")
            if console_file.exists()
            else ""
        )
        if artifacts is not None:
            artifacts.mkdir(parents=True, exist_ok=True)
            (artifacts / "console.log").write_text(console)
            with open(artifacts / "results.jsonl", "w") as out:
                times = {"seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1)}
                for event in (*events, {"event": "qemu", **times}):
                    out.write(json.dumps(event) + "\n")
        status, reason = _end(events, reason, complaint, process.returncode)
        trouble = kernel_trouble(console)
        return Outcome(events, console, status, reason, seconds, cpu_seconds, trouble)


def _cpu_seconds(pid: int) -> float:
    """What the process has used of the processor, in user and kernel mode (proc(5), stat)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:  # it has ended already
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _end(
    events: Sequence[dict[str, object]], reason: str, complaint: str, code: int
) -> tuple[int | None, str]:
    """The status that the guest reported, if it did, and why the run is over."""
    last = events[-1] if events else {}
    if last.get("event") == "end":
        given = last.get("status")
        status = given if isinstance(given, int) else None
        return status, f"ended with status {status}"
    if last.get("event") == "crash":
        return None, f"PID 1 failed in {last.get('where')}: {last.get('traceback')}"
    if not reason:
        reason = f"qemu ended with status {code} before the guest said that it was done"
        if complaint:
            reason += f": {complaint}"
    return None, reason


def _follow(
    path: Path, process: subprocess.Popen[bytes], timeout: float
) -> Iterator[dict[str, object] | None]:
    """Events as they are appended to *path*; None once when none came for *timeout* seconds."""
    deadline = time.monotonic() + timeout
    pending = b""
    position = 0
    while True:
        ended = process.poll() is not None
        if path.exists():
            with open(path, "rb") as file:
                file.seek(position)
                data = file.read()
            position += len(data)
            pending += data
            *lines, pending = pending.split(b"\n")
            for line in lines:
                # OVMF writes its own words to every serial port before the kernel starts.
                start = line.find(b'{"event"')
                if start < 0:
                    continue
                try:
                    event = json.loads(line[start:])
                except ValueError:
                    event = {"event": "garbled", "text": line.decode("utf-8", "replace")}
                yield event
                deadline = time.monotonic() + timeout
        if ended:
            return
        if time.monotonic() > deadline:
            yield None
            return
        time.sleep(0.02)
