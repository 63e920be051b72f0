# SPDX-License-Identifier: BSD-2-Clause
"""restrict userns: what is refused before the kernel is asked, formats, and the command line."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from pybpf.plan import ops
from restrict import abi, cli, userns, userns_pins, userns_status
from restrict.errors import RestrictError
from restrict.events import Event
from restrict.guard import ticks_of

ROOT = Path(__file__).resolve().parent.parent.parent
HEADER = (ROOT / "bpf/include/userns.h").read_text()
PROGRAMS = 24
PLAN = str(ROOT / "bpf/objects/userns.plan")


def _names(enum: str, prefix: str) -> tuple[str, ...]:
    body = re.search(rf"enum {enum} {{(.*?)}};", HEADER, re.S)
    assert body is not None
    found = re.findall(rf"{prefix}(\w+) = (\d+)", body[1])
    assert [int(number) for _, number in found] == list(range(len(found)))
    return tuple(name.lower() for name, _ in found)


def test_names_are_those_of_the_header() -> None:
    assert _names("userns_operation", "USERNS_OP_") == abi.USERNS_OPERATIONS
    assert _names("userns_reason", "USERNS_REASON_") == abi.USERNS_REASONS


def test_the_record_is_that_of_the_object() -> None:
    from pybpf import elf

    spec = elf.read(ROOT / "bpf/objects/userns.bpf.o")
    assert spec.maps["userns_mounts"].max_entries == userns.NAMESPACES_MOST
    inner = spec.maps["userns_mounts"].inner
    assert inner is not None
    assert (inner.key_size, inner.value_size, inner.max_entries) == (8, 4, userns.MOUNTS_MOST)


def test_the_plan_has_the_policy() -> None:
    plan = userns_pins.load_plan(PLAN)
    assert set(userns_pins._MAPS) <= set(plan.maps)
    assert len(plan.programs) == PROGRAMS
    assert {"armed", "audit"} <= set(plan.variables)
    assert set(userns.GLOBALS) <= set(plan.variables)
    assert plan.attach, "programs are attached by operations"
    assert all(isinstance(op, ops.LinkCreate) for op in plan.attach)


def test_no_probe_read_in_the_plan() -> None:
    """Helpers 4, 45, 112 … 115 are forbidden under lockdown=confidentiality."""

    def loads(operations: object) -> list[ops.ProgLoad]:
        assert isinstance(operations, tuple | list)
        return [op for op in operations if isinstance(op, ops.ProgLoad)]

    found = loads(userns_pins.load_plan(PLAN).ops)
    assert len(found) == PROGRAMS
    for op in found:
        for i in range(0, len(op.insns), 8):
            code, registers, _, imm = struct.unpack_from("<BBhi", op.insns, i)
            if code == 0x85 and registers >> 4 == 0:
                assert imm not in (4, 45, 112, 113, 114, 115), op.name


def _event(**values: int) -> Event:
    fields = {
        "time": 2_500_000_000, "operation": 1, "reason": 1, "verdict": 1, "pid": 7, "tid": 8,
        "uid": 9, "cgroup": 6, "inode": 0, "magic": 0x01021994, "device": 34, "userns": 78,
        "mount": 5, "managed": 77, "path_flags": 1, "length": 3,
    }  # fmt: skip
    fields.update(values)
    return Event(abi.EVENT.pack(*fields.values(), b"mkdir\0", b"abc\0", 1))


def test_an_event() -> None:
    event = _event()
    assert event.as_dict() == {
        "time": 2.5, "policy": "userns", "verdict": "denied", "operation": "mkdir",
        "reason": "mount", "pid": 7, "tid": 8, "uid": 9, "comm": "mkdir", "cgroup": 6,
        "managed": 77, "userns": 78, "filesystem": "tmpfs", "magic": 0x01021994,
        "device": "0:34", "mount": 5, "path": "abc", "path_is_name": True,
    }  # fmt: skip
    assert event.text() == (
        "2.500000 userns denied mkdir mount pid=7 comm='mkdir' uid=9 fs=tmpfs dev=0:34 "
        "managed=77 userns=78 mount=5 name='abc'"
    )


def test_an_event_of_the_guard_is_about_an_object() -> None:
    event = _event(operation=10, reason=6, mount=0, userns=0, managed=41, magic=0)
    found = event.as_dict()
    assert (found["operation"], found["reason"], found["object"]) == ("bpf_map", "guard_map", 41)
    assert "managed" not in found


@pytest.mark.parametrize("inode", [0, -1, 1 << 32, 1 << 63])
def test_inodes_that_are_none(inode: int) -> None:
    with pytest.raises(RestrictError, match="32 bits"):
        userns.check_inode(inode)


def test_the_initial_namespace_is_refused() -> None:
    with pytest.raises(RestrictError, match="initial"):
        userns.check_inode(0xEFFFFFFD)


def test_an_fd_that_is_no_user_namespace() -> None:
    for path in ("/dev/null", "/proc/self/ns/mnt", "/"):
        fd = os.open(path, os.O_RDONLY)
        try:
            with pytest.raises(RestrictError, match="not one of a user namespace"):
                userns.namespace_inode(fd)
        finally:
            os.close(fd)


def test_an_fd_that_is_a_user_namespace() -> None:
    fd = os.open("/proc/self/ns/user", os.O_RDONLY)
    try:
        assert userns.namespace_inode(fd) == os.stat("/proc/self/ns/user").st_ino
    finally:
        os.close(fd)


@pytest.mark.skipif(
    tuple(map(int, os.uname().release.split(".")[:2])) < (6, 8), reason="unique mount ids: 6.8"
)
def test_the_id_of_a_mount() -> None:
    fds = [os.open(path, os.O_PATH) for path in ("/", "/tmp", "/proc")]
    try:
        ids = [userns.mount_id(fd) for fd in fds]
    finally:
        for fd in fds:
            os.close(fd)
    assert ids[0] != ids[2]
    assert all(ident > 1 << 31 for ident in ids), "unique ids start above the others"


def _restrict(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "restrict", *words], capture_output=True, text=True, cwd=ROOT,
        check=False,
    )  # fmt: skip


def test_commands_that_cannot_be_understood() -> None:
    assert _restrict("userns").returncode == 2
    assert _restrict("userns", "put").returncode == 2
    both = ("userns", "put", "5", "--deny-setgroups", "--allow-setgroups")
    assert _restrict(*both).returncode == 2


@pytest.mark.parametrize("command", ["list", "watch", "put 5", "reset 5"])
def test_not_installed(command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["userns", *command.split(), "--pins", str(tmp_path / "none")]
    assert cli.main(words) == 1
    assert "not installed" in capsys.readouterr().err


def test_nothing_to_uninstall(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["userns", "uninstall", "--json", "--pins", str(tmp_path / "none")]) == 1
    assert json.loads(capsys.readouterr().out) == {"removed": False}


STATUS = """\
armed 1
audit 0
administrators 1
teardown_lost 2
version 1
generation 0
kept 0
events_map 9
owner 0 start_ticks 0
guard_map 5
guard_map 6
guard_program 7
guard_link 8
counter mknod allowed 1 denied 2 audited 0 dropped 0
counter ipc allowed 0 denied 0 audited 0 dropped 0
"""


def test_the_status_that_the_iterator_prints() -> None:
    found = userns_status.UsernsStatus(STATUS)
    found.attached = True
    assert found.as_dict() == {
        "policy": "userns", "armed": True, "attached": True, "in_force": True, "mode": "deny",
        "version": 1, "generation": 0, "administrators": True,
        "owner": {"pid": 0, "start_ticks": 0, "alive": False}, "deputy": None,
        "guard": {"maps": [5, 6], "programs": [7], "links": [8]},
        "counters": {
            "mknod": {"allowed": 1, "denied": 2, "audited": 0, "dropped": 0},
            "ipc": {"allowed": 0, "denied": 0, "audited": 0, "dropped": 0},
        },
        "teardown_lost": 2,
    }  # fmt: skip
    assert found.text() == (
        "userns: armed\n"
        "owner: whoever has CAP_SYS_ADMIN in the initial user namespace\n"
        "guard: maps 5 6; programs 7; links 8\n"
        "counters:\n"
        "  mknod: 1 allowed, 2 denied, 0 audited, 0 dropped\n"
        "ends of namespaces that were not reported: 2"
    )


def test_a_status_in_audit_mode() -> None:
    found = userns_status.UsernsStatus(STATUS.replace("audit 0", "audit 1"))
    assert found.as_dict()["mode"] == "audit"
    assert found.text().startswith("userns: armed, audit: would-be denials are reported")


def test_who_administers() -> None:
    assert "CAP_SYS_ADMIN" in userns_status.UsernsStatus(STATUS).text()
    text = STATUS.replace("administrators 1", "administrators 0")
    assert "owner: nobody" in userns_status.UsernsStatus(text).text()
    mine = f"owner {os.getpid()} start_ticks {ticks_of(os.getpid())}"
    found = userns_status.UsernsStatus(text.replace("owner 0 start_ticks 0", mine))
    assert f"owner: process {os.getpid()}\n" in found.text()


def test_an_owner_and_links_that_are_gone() -> None:
    text = STATUS.replace("administrators 1", "administrators 0")
    # The number is this process', but it was another that owned the policy.
    mine = f"owner {os.getpid()} start_ticks {ticks_of(os.getpid()) - 1}"
    found = userns_status.UsernsStatus(text.replace("owner 0 start_ticks 0", mine))
    assert f"process {os.getpid()}, which has ended: nobody, until the next boot" in found.text()
    found.attached = False
    assert not found.in_force
    assert "NOT in force" in found.text()


def test_the_status_of_another_policy() -> None:
    other = "".join(line for line in STATUS.splitlines(True) if "administrators" not in line)
    with pytest.raises(RestrictError, match="not the status of the userns policy"):
        userns_status.UsernsStatus(other)


def test_no_status(tmp_path: Path) -> None:
    assert userns_status.read(str(tmp_path / "none")) is None


def test_programs_and_their_guard() -> None:
    """Nothing is left to a default: what is loaded is what is listed here."""
    plan = userns_pins.load_plan(PLAN)
    assert set(plan.programs) == {
        f"userns_{name}" for name in (
            "chown", "mkdir", "mknod", "symlink", "link", "rename", "open", "ioctl",
            "ioctl_compat", "create_queue", "shm", "msg", "sem", "acl", "capability", "mount",
            "setgroups", "ended_probe", "guard_map", "guard_program", "guard_link", "ptrace",
            "traceme", "status",
        )
    }  # fmt: skip
