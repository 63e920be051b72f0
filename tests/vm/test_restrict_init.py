# SPDX-License-Identifier: BSD-2-Clause
"""``restrict init`` as PID 1 of an initramfs: to the signed root, and ten successors further."""

from __future__ import annotations

import os

from tests.vm import probes
from tests.vm.outcome import ALLOWED, refused
from tests.vm.programs import EXIT_STATUS, program
from tests.vm.restrict_boot import PLAN, Prober, console, files, resumed
from tests.vm.scenario import Guest, Scenario

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

TAKEOVERS = 10


def _initramfs(run: Mapping[str, Any]) -> dict[str, bytes]:
    return files(run, init=resumed(TAKEOVERS), keep="")  # whose default is exec then


boot = Scenario("boot", initramfs=_initramfs)


@boot.setup
def take_over(guest: Guest) -> None:
    """The harness is the last successor: it validates, and owns."""
    from restrict import fsaccess, handover

    guest.state["variable"] = os.environ.get(handover.VARIABLE)
    guest.state["policy"] = handover.adopt(plan=fsaccess.load_plan(PLAN))


@boot.case()
def policy_is_owned_by_pid_1(guest: Guest) -> None:
    from restrict import handover

    assert guest.state["policy"] is not None
    assert handover.VARIABLE not in os.environ
    from restrict import fsaccess, status

    found = status.read()
    assert found is not None
    assert found.armed
    assert found.owner == 1
    assert not found.initramfs_dev
    links = guest.state["policy"].links
    assert len(found.guard["link"]) == len(links) + 1  # and the status iterator's
    plan = fsaccess.load_plan("/project/bpf/objects/fsaccess.plan")
    assert len(found.guard["map"]) == len(plan.maps) > 4


@boot.case()
def root_is_known_as_signed(guest: Guest) -> None:
    from restrict import status

    found = status.read()
    assert found is not None
    (device,) = [d for d in found.devices if "/" in d.mounts]
    assert device.signed
    assert (device.name, device.root_hash) == ("root", guest.images["root"]["root_hash"])


@boot.case()
def each_step_was_said(guest: Guest) -> None:
    lines = console()
    for line in lines:
        guest.note(line)
    assert any(f"armed: {len(guest.state['policy'].links)} programs" in line for line in lines)
    assert any("keep = auto: exec, " in line for line in lines)
    assert any("signed root" in line for line in lines)
    assert any("root switched" in line for line in lines)
    assert sum("took over" in line for line in lines) == TAKEOVERS
    assert not any("FAILED" in line or "still trusted" in line for line in lines)
    keyring = any("1 certificates in .dm-verity, which is restricted now" in x for x in lines)
    assert keyring == (guest.lane == "7.3")


@boot.case()
def enforcement_was_never_off(guest: Guest) -> None:
    """A process from before the policy tried all the time, through ten takeovers."""
    seen = Prober()
    guest.note(str(seen))
    assert seen.before > 0, "the prober never succeeded, so it shows nothing"
    assert seen.denied > 20
    assert (seen.after, seen.other) == (0, 0)


@boot.case()
def tmpfs_is_denied(guest: Guest) -> None:
    path = probes.write_file("/run/program", program())
    guest.expect(probes.execute(path), refused())


@boot.case()
def root_runs(guest: Guest) -> None:
    guest.expect(probes.run("/usr/bin/busybox", "true"), ALLOWED)


@boot.case()
def initramfs_number_reused_is_denied(guest: Guest) -> None:
    """New tmpfs mounts take the lowest free anonymous numbers, the initramfs' among them."""
    lines = [line for line in console() if "initramfs" in line and "trusted" in line]
    number = lines[0].partition("initramfs ")[2].split()[0]
    major, minor = map(int, number.split(":"))
    guest.note(f"the initramfs was {number}")
    for i in range(4):
        where = f"/run/reuse{i}"
        guest.mount("tmpfs", where, "tmpfs", 0)
        path = probes.write_file(f"{where}/program", program())
        if os.stat(path).st_dev == os.makedev(major, minor):
            guest.note("its number was given to a new tmpfs")
        guest.expect(probes.execute(path), refused())


@boot.case()
def others_get_no_fds(guest: Guest) -> None:
    import errno

    from pybpf.errors import KernelError
    from pybpf.kernel.link import Link
    from pybpf.kernel.map import Map
    from pybpf.kernel.program import Program
    from restrict import status

    found = status.read()
    assert found is not None
    kinds = (("map", Map), ("program", Program), ("link", Link))
    for kind, cls in kinds:
        for ident in found.guard[kind]:
            code = 0
            try:
                cls.from_id(ident).close()
            except KernelError as e:
                code = e.errno
            assert code == errno.EPERM, f"{kind} {ident}: {errno.errorcode.get(code, code)}"


@boot.case(where="pid1")
def owner_gets_fds(guest: Guest) -> None:
    from pybpf.kernel.link import Link

    for link in guest.state["policy"].links.values():
        Link.from_id(link.id).close()


@boot.case(where="pid1")
def what_was_inherited_is_private_again(guest: Guest) -> None:
    for handle in guest.state["policy"].handles():
        assert not os.get_inheritable(handle.fileno())


@boot.case()
def initramfs_is_empty(guest: Guest) -> None:
    """The prober still has it as its root directory."""
    (root,) = [
        f"/proc/{pid}/root"
        for pid in filter(str.isdigit, os.listdir("/proc"))
        if pid != "1" and _parent(int(pid)) == 1 and _device(f"/proc/{pid}/root") != _device("/")
    ]
    assert os.listdir(root) == []


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:  # it has ended
        return 0


def _device(path: str) -> int:
    try:
        return os.stat(path).st_dev
    except OSError:  # a kernel thread, or gone
        return os.stat("/").st_dev


@boot.case(where="pid1")
def prober_ends(guest: Guest) -> None:
    """Last: after the policy is let go, the prober succeeds again, so it could have failed."""
    guest.state["policy"].close()
    guest.wait(lambda: Prober().after > 0, "success after the end of enforcement")
    Prober.stop()


def _audited(run: Mapping[str, Any]) -> dict[str, bytes]:
    return files(run, mode="audit")


audit = Scenario("audit", lanes=("7.3",), initramfs=_audited)


@audit.setup
def take_over_audited(guest: Guest) -> None:
    from restrict import fsaccess, handover

    guest.state["policy"] = handover.adopt(plan=fsaccess.load_plan(PLAN))


@audit.case()
def nothing_is_denied_in_audit_mode(guest: Guest) -> None:
    from restrict import status

    found = status.read()
    assert found is not None
    assert (found.in_force, found.mode, found.owner) == (True, "audit", 1)
    before = found.counters["exec"]["audited"]
    path = probes.write_file("/run/program", program())
    outcome = probes.execute(path)
    assert outcome.detail == f"exited with {EXIT_STATUS}", str(outcome)
    found = status.read()
    assert found is not None
    assert found.counters["exec"]["audited"] > before
    assert found.counters["exec"]["denied"] == 0
    seen = Prober()
    assert (seen.denied, seen.after, seen.other) == (0, 0, 0)


@audit.case()
def the_guard_denies_in_audit_mode_too(guest: Guest) -> None:
    import errno

    from pybpf.errors import KernelError
    from pybpf.kernel.map import Map
    from restrict import status

    found = status.read()
    assert found is not None
    code = 0
    try:
        Map.from_id(found.guard["map"][0]).close()
    except KernelError as e:
        code = e.errno
    assert code == errno.EPERM


def _locked_down(run: Mapping[str, Any]) -> dict[str, bytes]:
    return files(run, events="yes", gate=True)


lockdown = Scenario("lockdown", initramfs=_locked_down, append="lockdown=confidentiality")


@lockdown.setup
def take_over_locked_down(guest: Guest) -> None:
    from restrict import fsaccess, handover

    guest.state["policy"] = handover.adopt(plan=fsaccess.load_plan(PLAN))


@lockdown.case()
def enforced_under_lockdown(guest: Guest) -> None:
    from restrict import preflight, status

    notes = {f.name: f.message for f in preflight.check()}
    assert notes["lockdown"] == "lockdown is confidentiality."
    found = status.read()
    assert found is not None
    assert found.in_force
    assert [d.signed for d in found.devices] == [True]
    path = probes.write_file("/run/program", program())
    guest.expect(probes.execute(path), refused())
    guest.expect(probes.run("/usr/bin/busybox", "true"), ALLOWED)


@lockdown.case()
def events_are_served_by_a_process_of_init(guest: Guest) -> None:
    """It was forked in the initramfs, and holds the ring buffer but no link and no globals."""
    import json
    import subprocess
    import sys

    path = probes.write_file("/run/program2", program())
    guest.expect(probes.execute(path), refused())
    done = subprocess.run(
        [sys.executable, "-s", "-m", "restrict", "events", "--json"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    (event,) = [e for e in found if e.get("path") == path]  # among those of the prober
    assert (event["operation"], event["reason"], event["verdict"]) == (
        "exec", "filesystem", "denied",
    )  # fmt: skip
    servers = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            held = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            continue
        if pid != "1" and any("bpf-map" in h for h in held):
            servers.append(sorted(h for h in held if "bpf" in h))
    assert len(servers) == 1
    assert set(servers[0]) == {"anon_inode:bpf-map"}, servers


def _load_a_table(name: str) -> None:
    from restrict.devmapper import DeviceMapper, Target

    with DeviceMapper() as mapper:
        mapper.create(name)
        try:
            mapper.load(name, [Target(0, 8, "error", "")])
            mapper.resume(name)
        finally:
            mapper.remove(name)


@lockdown.case()
def others_load_no_tables(guest: Guest) -> None:
    import errno

    from pybpf.errors import KernelError
    from restrict import status

    code = 0
    try:
        _load_a_table("theirs")
    except KernelError as e:
        code = e.errno
    assert code == errno.EPERM
    found = status.read()
    assert found is not None
    assert found.counters["device_mapper"]["denied"] == 1


@lockdown.case(where="pid1")
def the_owner_loads_tables(guest: Guest) -> None:
    _load_a_table("ours")


def _pinned(run: Mapping[str, Any]) -> dict[str, bytes]:
    return files(run, init=resumed(1), keep="pins")


# With pins there is nothing for a successor to take over: `--resume` says so and goes on.
resumed_pins = Scenario("resumed_pins", initramfs=_pinned, lanes=("7.3",))


@resumed_pins.case()
def a_policy_of_nobodys_is_left_as_it_is(guest: Guest) -> None:
    from restrict import handover, status

    lines = console()
    for line in lines:
        guest.note(line)
    assert any("the policy is kept by pins and belongs to nobody" in line for line in lines)
    assert any("root can take the pins away" in line for line in lines)  # no plan for a guard
    assert handover.VARIABLE not in os.environ
    found = status.read()
    assert found is not None
    assert (found.in_force, found.mode, found.owner) == (True, "exec", 0)
    assert (found.initramfs_dev, found.keep["method"]) == (0, "pins")
    assert len(found.keep["removers"]) == 1
    seen = Prober()
    assert seen.before > 0
    assert (seen.after, seen.other) == (0, 0)
    guest.expect(probes.execute(probes.write_file("/run/program", program())), refused())
