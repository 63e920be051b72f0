# SPDX-License-Identifier: BSD-2-Clause
"""The commands of restrict on a running system: check, enable, status, events, simulate."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys

from tests.vm import probes, probes_bpf
from tests.vm.outcome import ALLOWED, refused
from tests.vm.programs import EXIT_STATUS, program
from tests.vm.scenario import Guest, Scenario
from tests.vm.waiting import ATTEMPT_SECONDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pybpf.plan.live import Object

PLAN = "/project/bpf/objects/fsaccess.plan"
SEVEN = (7).to_bytes(8, sys.byteorder)
RESTRICT = [sys.executable, "-s", "-m", "restrict"]

enable = Scenario("enable")
weak = Scenario(
    "weak",
    lanes=("7.3",),
    append="proc_mem.force_override=always lsm=lockdown,capability,yama",
)


@enable.setup
@weak.setup
def prepare(guest: Guest) -> None:
    os.makedirs("/run/test", exist_ok=True)
    probes.write_file("/tmp/program", program())


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RESTRICT, *words], capture_output=True, text=True, timeout=ATTEMPT_SECONDS
    )


def runs(path: str = "/tmp/program") -> bool:
    outcome = probes.execute(path)
    assert outcome.kind in ("allowed", "refused"), str(outcome)
    return outcome.kind == "allowed"


class Enabled:
    """``restrict enable`` in the foreground, for a ``with`` block."""

    def __init__(self, *words: str) -> None:
        self.words = words
        self.first: dict[str, Any] = {}

    def __enter__(self) -> Enabled:
        self.process = subprocess.Popen(
            [*RESTRICT, "enable", "--foreground", "--json", *self.words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise AssertionError(self.process.stderr.read())
        self.first = json.loads(line)
        return self

    def event(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def __exit__(self, *exc: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.read()
        status = self.process.wait(20)
        if exc[0] is None:
            assert status == 0, self.process.stderr.read()


# ── check ──


@enable.case()
def check_passes(guest: Guest) -> None:
    done = command("check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MISSING" not in done.stdout


@enable.case()
def check_as_json(guest: Guest) -> None:
    found = json.loads(command("check", "--json").stdout)
    assert found["ok"] is True
    names = [f["name"] for f in found["findings"]]
    assert len(names) == len(set(names)) >= 12


def _private_mounts() -> None:
    from pybpf.sys import syscalls

    syscalls.syscall("unshare", 0x20000)  # CLONE_NEWNS
    syscalls.mount("none", "/", "", 1 << 18 | 1 << 14)  # MS_PRIVATE | MS_REC


def _cover(path: str, content: str) -> None:
    """Put another content in a file's place, for this process and its children."""
    from restrict import mounts

    cover = f"/run/test/cover{os.getpid()}"
    with open(cover, "w") as file:
        file.write(content)
    mounts.mount(cover, path, "", mounts.MS_BIND)


def _missing(name: str, prepare: Callable[[], object], message: str) -> None:
    """A case: after ``prepare``, the one prerequisite ``name`` is missing, with its own message
    and remedy, and `enable` refuses and leaves nothing behind."""

    @enable.case(name=f"check_refuses_{name}")
    def run(guest: Guest) -> None:
        from restrict import preflight

        _private_mounts()
        prepare()
        blocking = [f for f in preflight.check() if f.blocks]
        guest.note("; ".join(f"{f.name}: {f.message} {f.remedy}" for f in blocking))
        wanted = name.partition("_")[0]
        first = blocking[0]
        assert first.name == wanted, f"expected {wanted}"
        assert message in first.message
        assert first.remedy
        # What cannot be read because of it may be missing too, nothing else.
        assert {f.name for f in blocking[1:]} <= {"lsm-bpf"}
        done = command("check")
        assert done.returncode == 1
        assert f"MISSING {wanted}: {first.message}" in done.stdout
        before = _objects()
        done = command("enable")
        assert done.returncode == 1
        assert f"{wanted}: {first.message}" in done.stderr
        guest.wait(lambda: _objects() <= before, "nothing left behind")


def _objects() -> set[tuple[str, int]]:
    """All programs, maps and links, by id. None is left behind if no other is there afterwards; of
    those that were there, some may have been about to be freed, after a grace period."""
    return {(kind, ident) for kind in ("program", "map", "link") for ident in probes_bpf.ids(kind)}


def _umount_securityfs() -> None:
    from restrict import mounts

    mounts.unmount("/sys/kernel/security", lazy=True)


_LINE = "console=ttyS0 quiet "
_OVERRIDE = "proc_mem.force_override="
_missing("securityfs", _umount_securityfs, "not mounted")
_missing("lsm-bpf", lambda: _cover("/sys/kernel/security/lsm", "lockdown,capability"), "capability")
_missing(
    "dm-verity-signatures",
    lambda: _cover("/sys/module/dm_verity/parameters/require_signatures", "N\n"),
    "require_signatures is N",
)
_missing("proc-mem-override", lambda: _cover("/proc/cmdline", _LINE), "not on the kernel command")
for _word, _text in (
    ("always", f"{_OVERRIDE}always"),
    ("ptrace", f"{_OVERRIDE}ptrace"),
    ("never_then_ptrace", f"{_OVERRIDE}never {_OVERRIDE}ptrace"),
):
    _missing(
        f"proc-mem-override_{_word}",
        lambda text=_text: _cover("/proc/cmdline", _LINE + text),  # type: ignore[misc]
        f"is '{_text.rpartition('=')[2]}'",
    )
_missing("ftrace", lambda: _cover("/proc/sys/kernel/ftrace_enabled", "0\n"), "ftrace_enabled is 0")


@weak.case()
def check_sees_a_weak_kernel(guest: Guest) -> None:
    """Booted without bpf among the LSMs and with force_override=always: nothing is covered."""
    found = {f["name"]: f for f in json.loads(command("check", "--json").stdout)["findings"]}
    missing = {name for name, f in found.items() if f["required"] and not f["ok"]}
    assert missing == {"lsm-bpf", "proc-mem-override", "proc-mem-probe"}
    assert "succeeded" in found["proc-mem-probe"]["message"]


@weak.case()
def enable_refuses_a_weak_kernel(guest: Guest) -> None:
    done = command("enable")
    assert done.returncode == 1
    for name in ("lsm-bpf", "proc-mem-override", "proc-mem-probe"):
        assert name in done.stderr


# ── enable ──


@enable.case()
def enable_and_end(guest: Guest) -> None:
    assert runs(), "the baseline"
    with Enabled() as owner:
        from restrict import fsaccess

        plan = fsaccess.load_plan(PLAN)
        assert set(owner.first["links"]) == {*plan.links, fsaccess.SYSCTL}
        guest.expect(probes.execute("/tmp/program"), refused())
        guest.expect(probes.run("/usr/bin/busybox", "true"), ALLOWED)
    assert runs(), "after the end"
    assert not os.path.exists("/sys/fs/bpf/restrict")


@enable.case()
def audit_allows_and_reports(guest: Guest) -> None:
    with Enabled("--audit", "--events") as owner:
        assert owner.first["mode"] == "audit"
        outcome = probes.execute("/tmp/program")
        assert outcome.detail == f"exited with {EXIT_STATUS}", str(outcome)
        event = owner.event()
        while event["operation"] != "exec":
            event = owner.event()
        assert (event["verdict"], event["reason"], event["path"]) == (
            "audited", "filesystem", "/tmp/program",
        )  # fmt: skip
        done = command("status")
        assert done.returncode == 0
        assert "audit" in done.stdout


@enable.case()
def lock_out_is_refused(guest: Guest) -> None:
    """The interpreter on tmpfs: enforcing would take it away."""
    with open("/usr/bin/python3.11", "rb") as file:
        probes.write_file("/tmp/python3", file.read())
    before = _objects()
    done = subprocess.run(
        ["/tmp/python3", "-s", "-m", "restrict", "enable"],
        env={**os.environ, "PYTHONHOME": "/usr"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "this program (/tmp/python3) is on tmpfs" in done.stderr
    assert "PID 1" not in done.stderr
    assert "--force" in done.stderr
    assert runs()
    assert not os.path.exists("/sys/fs/bpf/restrict"), "the mount for pins was left"
    guest.wait(lambda: _objects() <= before, "everything undone")


@enable.case()
def lock_out_can_be_forced(guest: Guest) -> None:
    with open("/usr/bin/python3.11", "rb") as file:
        probes.write_file("/tmp/python3", file.read())
    old, RESTRICT[0] = RESTRICT[0], "/tmp/python3"
    os.environ["PYTHONHOME"] = "/usr"
    try:
        with Enabled("--force"):
            assert not runs()
            assert not runs("/tmp/python3")
    finally:
        RESTRICT[0] = old
    assert runs()


@enable.case()
def a_second_policy_is_refused(guest: Guest) -> None:
    with Enabled() as owner:
        done = command("enable")
        assert done.returncode == 1
        assert f"owned by process {owner.process.pid}" in done.stderr
        assert command("status").returncode == 0


@enable.case()
def a_planted_status_directory_is_refused(guest: Guest) -> None:
    """bpffs lets everybody make directories and symbolic links in its root."""
    os.mkdir("/sys/fs/bpf/restrict")
    os.chown("/sys/fs/bpf/restrict", 65534, 65534)
    try:
        done = command("enable")
        assert done.returncode == 1
        assert "root alone" in done.stderr
        assert "Remove it" in done.stderr
        assert runs()
    finally:
        os.rmdir("/sys/fs/bpf/restrict")


@enable.case()
def another_owner(guest: Guest) -> None:
    """--owner: that process passes the guard, the one that enabled does not."""
    from restrict import status

    with Enabled("--owner", str(os.getpid())) as owner:
        found = status.read()
        assert found is not None
        assert found.owner == os.getpid()
        from pybpf.kernel.map import Map

        Map.from_id(found.guard["map"][0]).close()
        assert owner.process.pid != os.getpid()


def _damaged(name: str, change: Callable[[bytes], bytes]) -> None:
    @enable.case(name=f"plan_{name}_is_refused")
    def run(guest: Guest) -> None:
        with open(PLAN, "rb") as file:
            data = file.read()
        with open("/run/test/damaged.plan", "wb") as file:
            file.write(change(data))
        done = command("enable", "--plan", "/run/test/damaged.plan")
        assert done.returncode == 1
        assert "/run/test/damaged.plan" in done.stderr
        assert "Traceback" not in done.stderr
        guest.note(done.stderr.strip())


_damaged("empty", lambda data: b"")
_damaged("cut_short", lambda data: data[:-1])
_damaged("altered", lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
_damaged("of_another_kind", lambda data: b"\x7fELF" + data[4:])


@enable.case()
def missing_plan_is_told(guest: Guest) -> None:
    done = command("enable", "--plan", "/run/test/nothing.plan")
    assert done.returncode == 1
    assert "nothing.plan" in done.stderr
    assert "restrict bundle" in done.stderr


@enable.case()
def every_failure_before_armed_is_undone(guest: Guest) -> None:
    """Fail at each step in turn; count objects and fds."""
    from restrict import fsaccess

    class Stop(Exception):
        pass

    plan = fsaccess.load_plan(PLAN)
    steps: list[str] = []
    fsaccess.enable(plan, before_arm=lambda obj: None, step=steps.append).close()
    assert steps == ["load", "settings", "attach", "lock-out", "status", "guard", "arm"]
    before, fds = _objects(), sorted(os.listdir("/proc/self/fd"))
    for bad in steps:

        def step(name: str, bad: str = bad) -> None:
            if name == bad:
                raise Stop

        try:
            fsaccess.enable(plan, before_arm=lambda obj: None, step=step)
        except Stop:
            pass
        else:
            raise AssertionError(f"step {bad} did not come")
        guest.wait(lambda: _objects() <= before, f"everything undone after {bad}")
        assert sorted(os.listdir("/proc/self/fd")) == fds
        assert not os.path.exists(fsaccess.PIN)
        assert runs()


# ── status, events, simulate ──


@enable.case()
def status_of_nothing(guest: Guest) -> None:
    done = command("status")
    assert done.returncode == 1
    assert "not in force" in done.stdout


@enable.case()
def status_as_json(guest: Guest) -> None:
    with Enabled() as owner:
        guest.expect(probes.execute("/tmp/program"), refused())
        done = command("status", "--json")
        assert done.returncode == 0
        found = json.loads(done.stdout)
        assert found["in_force"] is True
        assert found["owner"]["pid"] == owner.process.pid
        assert found["trust_window"] == {"open": False, "device": None}
        assert found["counters"]["exec"]["denied"] == 1
        assert set(owner.first["links"].values()) < set(found["guard"]["links"])
        devices = {d["name"]: d for d in found["devices"]}
        assert devices["system"]["signed"] is True
        assert devices["system"]["root_hash"] == guest.images["system"]["root_hash"]
        assert "/" in devices["system"]["mounts"]


@enable.case()
def status_needs_no_privileges(guest: Guest) -> None:
    with Enabled():
        done = subprocess.run(
            [*RESTRICT, "status"],
            capture_output=True,
            text=True,
            user=65534,
            group=65534,
            extra_groups=[],
        )
        assert done.returncode == 0, done.stderr
        assert "armed" in done.stdout


@enable.case()
def status_of_a_dead_owner_is_not_in_force(guest: Guest) -> None:
    with Enabled() as owner:
        owner.process.kill()
        owner.process.wait()
        guest.wait(runs, "the end of enforcement")
        done = command("status")
        assert done.returncode == 1
        assert "NOT in force" in done.stdout
        owner.process = subprocess.Popen(
            ["/usr/bin/busybox", "true"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        owner.process.wait()
    with Enabled():  # the pin that was left behind is replaced
        assert command("status").returncode == 0


def _iterator(kind: str, code: bytes) -> Object:
    """A map with one element, 7, and an iterator program of this kind; iter/bpf_map_elem's is
    linked to that map."""
    from pybpf.plan import ops
    from pybpf.plan.run import run
    from pybpf.sys import abi
    from tests.kernel.helpers import TRACING, array, plan, prog

    iterator = abi.BPF_TRACE_ITER
    link = ops.LinkCreate(
        dst=2, name="link", prog=1, how="iter", target=0, attach_type=iterator
    )  # fmt: skip
    return run(
        plan(
            ops.Lookup(names=((0, f"bpf_iter_{kind}", abi.BTF_KIND_FUNC, None, False),)),
            array(0, "map"),
            ops.MapFill(map=0, entries=((bytes(4), SEVEN),)),
            prog(1, "program", code, TRACING, expected_attach_type=iterator, attach_symbol=0),
            attach=(link,) if kind == "bpf_map_elem" else (),
        )
    )


@enable.case()
def replaced_status_program_changes_nothing(guest: Guest) -> None:
    """Root may put another iterator over maps into the pinned link: the text is his from then on,
    and nothing else. One over elements, which is shown values to write, does not go in."""
    from pybpf.errors import KernelError
    from pybpf.kernel.link import Link
    from restrict import fsaccess

    def refusal(act: Callable[[], object]) -> int:
        try:
            act()
        except KernelError as error:
            return error.errno
        return 0

    silent = bytes.fromhex("b700000000000000 9500000000000000")  # r0 = 0; exit: prints nothing
    # r1 = ctx->value; if r1: *(u64 *)r1 = 0; r0 = 0; exit
    writing = bytes.fromhex("7911180000000000 1501010000000000 7a01000000000000") + silent
    with Enabled(), _iterator("bpf_map", silent) as other, \
            _iterator("bpf_map_elem", writing) as writer:  # fmt: skip
        guest.expect(probes.execute("/tmp/program"), refused())
        with open(fsaccess.PIN) as file:
            assert "armed 1\n" in file.read()
        # What such a program can do where its link is over a map's elements.
        assert writer.maps["map"][0] == SEVEN
        writer.attach()
        writer.links["link"].read()
        assert writer.maps["map"][0] == bytes(8)
        with Link.from_pin(fsaccess.PIN) as link:
            assert link.info()["target_name"] == "bpf_map"
            assert refusal(lambda: Link.from_id(link.id).close()) == errno.EPERM
            writing_fd = writer.programs["program"].fileno()
            assert refusal(lambda: link.update(writing_fd)) == errno.EINVAL
            with open(fsaccess.PIN) as file:
                assert "armed 1\n" in file.read()
            link.update(other.programs["program"].fileno())
        with open(fsaccess.PIN) as file:
            assert file.read() == ""
        guest.expect(probes.execute("/tmp/program"), refused())
        assert "not the status" in command("status").stderr


@enable.case()
def events_of_the_past_and_to_come(guest: Guest) -> None:
    with Enabled():
        guest.expect(probes.execute("/tmp/program"), refused())
        done = command("events", "--json")
        assert done.returncode == 0, done.stderr
        past = [json.loads(line) for line in done.stdout.splitlines()]
        assert [(e["operation"], e["reason"]) for e in past] == [("exec", "filesystem")]
        follower = subprocess.Popen(
            [*RESTRICT, "events", "--follow", "--json"], stdout=subprocess.PIPE, text=True
        )
        assert follower.stdout is not None
        assert json.loads(follower.stdout.readline())["time"] == past[0]["time"]
        guest.expect(probes.map_anonymous(), refused())
        event = json.loads(follower.stdout.readline())
        assert (event["operation"], event["reason"], event["prot"]) == ("mmap", "anonymous", 5)
    assert follower.wait(20) == 0  # the owner's end is the end of the events
    done = command("events")
    assert done.returncode == 1
    assert "nobody offers events" in done.stderr


@enable.case()
def events_from_an_inherited_ring_buffer(guest: Guest) -> None:
    from restrict import fsaccess, lockout

    plan = fsaccess.load_plan(PLAN)
    before_arm = lockout.before_arm(plan, resumed=True)
    with fsaccess.enable(plan, before_arm=before_arm, status_pin=None) as policy:
        guest.expect(probes.execute("/tmp/program"), refused())
        fd = policy.events.dup(inheritable=True)
        done = subprocess.run(
            [*RESTRICT, "events", "--fd", str(fd), "--json"],
            pass_fds=[fd],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        (line,) = done.stdout.splitlines()
        assert json.loads(line)["pid"] not in (0, os.getpid())
        done = subprocess.run(
            [*RESTRICT, "events", "--fd", "0"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert "Traceback" not in done.stderr


@enable.case()
def events_are_for_root_only(guest: Guest) -> None:
    with Enabled():
        done = subprocess.run(
            [*RESTRICT, "events"], capture_output=True, text=True, user=65534, group=65534,
            extra_groups=[],
        )  # fmt: skip
        assert done.returncode == 1
        assert "Permission denied" in done.stderr


@enable.case()
def simulate_finds_what_would_be_denied(guest: Guest) -> None:
    done = command("simulate", "--json")
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["denials"] == []
    with open("/usr/bin/busybox", "rb") as file:
        path = probes.write_file("/tmp/busybox", file.read())
    sleeper = subprocess.Popen([path, "sleep", "60"])
    try:
        guest.wait(
            lambda: os.readlink(f"/proc/{sleeper.pid}/exe") == path, "the start of the sleeper"
        )
        done = command("simulate", "--json")
        assert done.returncode == 1
        found = json.loads(done.stdout)["denials"]
        assert {(d["operation"], d["reason"], d["filesystem"], d["mount"]) for d in found} == {
            ("exec", "filesystem", "tmpfs", "/tmp"), ("mmap", "filesystem", "tmpfs", "/tmp"),
        }  # fmt: skip
        for denial in found:
            assert [p["pid"] for p in denial["processes"]] == [sleeper.pid]
            assert denial["files"] == [path]
        assert command("simulate", "--assume", "/tmp").returncode == 0
    finally:
        sleeper.kill()
        sleeper.wait()


@enable.case()
def enforcement_imports_little(guest: Guest) -> None:
    """What a process imports that runs the plan, arms it and reads status."""
    code = (
        "import sys; from restrict import fsaccess, status, lockout, handover\n"
        f"plan = fsaccess.load_plan({PLAN!r})\n"
        "policy = fsaccess.enable(plan, before_arm=lockout.before_arm(plan, resumed=True))\n"
        "assert status.read().in_force\n"
        "policy.close()\n"
        "print(' '.join(sorted(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, '/project'); {code}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = {name.partition(".")[0] for name in done.stdout.split()}
    heavy = {
        "re", "enum", "dataclasses", "typing", "contextlib", "collections", "inspect", "elftools",
        "construct", "subprocess", "argparse", "json", "logging", "socket", "signal",
    }  # fmt: skip
    guest.note(" ".join(sorted(found)))
    assert not found & heavy
