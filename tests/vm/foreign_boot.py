# SPDX-License-Identifier: BSD-2-Clause
"""A boot by ``restrict init`` into an init that is not ours, and what its tests need.

The initramfs' PID 1 first shows that a program on the tmpfs /run runs (the control), then becomes
``restrict init``.
"""

from __future__ import annotations

import os
import subprocess

from tests.vm import probes
from tests.vm.outcome import ALLOWED, refused
from tests.vm.programs import program
from tests.vm.restrict_boot import configuration, console

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import Any

    from tests.vm.scenario import Guest, Scenario

__all__ = [
    "PROGRAM", "attacks_on_keeper", "attacks_on_ownerless", "command", "console", "control",
    "denied", "files", "kept", "link_ids", "program_ids", "project_disk", "refusal", "remember",
    "remembered", "status", "tmpfs_program",
]  # fmt: skip

PROGRAM = "/run/test/program"
_INIT = """\
#!/usr/bin/python3 -BIS
import os, sys
sys.path.insert(0, "/project")
from restrict import init
init.mount_basics()
os.makedirs("/run/test")
with open("/probe", "rb") as source:
    program = source.read()
fd = os.open("{program}", os.O_WRONLY | os.O_CREAT, 0o755)
os.write(fd, program)
os.close(fd)
pid = os.fork()
if pid == 0:
    os.execv("{program}", ["program"])
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
with open("/run/test/control", "w") as file:
    print(status, file=file)
from restrict.cli import main
sys.exit(main(["init", "/etc/restrict/init.conf"]))
"""


def files(run: Mapping[str, Any], **settings: str) -> dict[str, bytes]:
    """The initramfs' files, for a Scenario's *initramfs*."""
    from pybpf.plan.frozen import to_bytes
    from restrict import bundle, bundle_ownerless

    ownerless = settings.get("keep") == "ownerless"
    return {
        "init": _INIT.format(program=PROGRAM).encode(),
        "probe": program(),
        "etc/restrict/init.conf": configuration(
            run, settings.pop("init", "/sbin/init"), wait="20", **settings
        ).encode(),
        "etc/restrict/fsaccess.plan": to_bytes(
            bundle_ownerless.build() if ownerless else bundle.build()
        ),
        "etc/restrict/pins.plan": bundle.OBJECT.with_name("pins.plan").read_bytes(),
        "etc/restrict/certificate.der": run["certificate"],
    }


def project_disk() -> Path:
    """The project's files as a disk."""
    from tools.guest.cache import cache_root
    from tools.guest.images import make_image
    from tools.guest.packages import toolbox
    from tools.guest.trees import project_tree

    tools = toolbox()
    tree = project_tree(tools)
    target = cache_root() / "images" / tree.name
    return make_image(tools, tree, target, "the project image").path


def command(*words: str, check: bool = True) -> str:
    """Standard output of a program; with check it must succeed."""
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(words)}: {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout.strip()


def status() -> Any:
    """The policy's status, which must be in force, enforcing, with the window closed."""
    from restrict import status

    found = status.read()
    assert found is not None
    assert found.in_force
    assert found.mode == "exec"
    assert found.initramfs_dev == 0
    return found


def link_ids() -> list[int]:
    """Ids of the policy's links: the same ones all the time were never away."""
    return sorted(status().guard["link"])


def program_ids() -> list[int]:
    """The same of its programs, which is what there is of the ownerless policy."""
    return sorted(status().guard["program"])


def kept(guest: Guest, keep: str) -> None:
    """`restrict status` names the way of keeping, and who could still end it."""
    import json

    said = json.loads(command("/usr/bin/python3", "-s", "-m", "restrict", "status", "--json"))
    guest.note(str(said["keep"]))
    assert said["keep"]["method"] == keep
    removers = {
        "pins": [], "ownerless": [], "exec": ["PID 1"], "keeper": ["the end of"],
    }[keep]  # fmt: skip
    assert len(said["keep"]["removers"]) == len(removers)
    for found, word in zip(said["keep"]["removers"], removers, strict=True):
        assert found.startswith(word)


def remember(what: str) -> None:
    """Keep it where a restarted system finds it."""
    with open("/run/test/remembered", "w") as file:
        file.write(what)


def remembered() -> str:
    with open("/run/test/remembered") as file:
        return file.read()


def control() -> int:
    """Exit status of PROGRAM before the policy was armed."""
    with open("/run/test/control") as file:
        return int(file.read())


def tmpfs_program(guest: Guest) -> str:
    """A program on a tmpfs of its own (a distribution may mount /run and /tmp noexec)."""
    where = "/mnt"
    if not os.path.ismount(where):
        guest.mount("tmpfs", where, "tmpfs", 0)
    return probes.write_file(f"{where}/program", program())


def denied(guest: Guest, path: str = PROGRAM) -> None:
    """The program on a tmpfs is refused, and by the policy."""
    before = status().counters["exec"]["denied"]
    guest.expect(probes.execute(path), refused())
    after = status().counters["exec"]["denied"]
    assert after > before, "it was refused, but not by the policy"
    assert os.stat(path).st_mode & 0o111


def refusal(act: Callable[..., object], *arguments: object) -> int:
    """The errno of what a kernel call raises; 0 if it did not."""
    from pybpf.errors import KernelError

    try:
        act(*arguments)
    except (KernelError, OSError) as e:
        return e.errno or 0
    return 0


def attacks_on_ownerless(scenario: Scenario) -> None:
    """Cases: root with all capabilities tries to get programs off the root cgroup."""

    def on_root() -> list[int]:
        from pybpf.sys import abi
        from pybpf.sys.bpf_more import prog_query
        from restrict.mounts import root_cgroup

        fd = root_cgroup()
        try:
            return sorted(prog_query(fd, abi.BPF_LSM_CGROUP))
        finally:
            os.close(fd)

    @scenario.case()
    def a_program_that_nobody_guards_is_detached(guest: Guest) -> None:
        """The control: the same acts on a second copy of the policy, not armed."""
        from pybpf.kernel.program import Program
        from pybpf.plan.run import run
        from pybpf.sys import abi
        from pybpf.sys.bpf_more import prog_attach, prog_detach
        from restrict.fsaccess import load_plan
        from restrict.mounts import root_cgroup

        before = on_root()
        cgroup = root_cgroup()
        with run(load_plan("/project/bpf/objects/fsaccess_cgroup.plan")) as copy:
            program = copy.programs["fsaccess_mmap"]
            prog_attach(program.fileno(), cgroup, abi.BPF_LSM_CGROUP, 2)
            (mine,) = set(on_root()) - set(before)
        with Program.from_id(mine) as taken:
            prog_detach(taken.fileno(), cgroup, abi.BPF_LSM_CGROUP)
        os.close(cgroup)
        assert on_root() == before

    @scenario.case()
    def programs_on_the_root_cgroup_stay(guest: Guest) -> None:
        import errno

        from pybpf.kernel.program import Program
        from pybpf.plan.run import run
        from pybpf.sys import abi
        from pybpf.sys.bpf_more import prog_attach, prog_detach
        from restrict.fsaccess import load_plan
        from restrict.mounts import root_cgroup

        before = on_root()
        assert len(before) == 9
        assert set(before) < set(status().guard["program"])
        for ident in before:
            assert refusal(Program.from_id, ident) == errno.EPERM
        cgroup = root_cgroup()
        kind = abi.BPF_LSM_CGROUP
        found = [refusal(prog_detach, 0, cgroup, kind)]
        with run(load_plan("/project/bpf/objects/fsaccess_cgroup.plan")) as copy:
            mine = copy.programs["fsaccess_mmap"].fileno()
            found.append(refusal(prog_detach, mine, cgroup, kind))
            found.append(refusal(prog_attach, mine, cgroup, kind, 0))  # alone
            found.append(refusal(prog_attach, mine, cgroup, kind, 1))  # overridable
            found.append(refusal(prog_attach, mine, cgroup, kind, 2 | 4, mine))  # replace
        os.close(cgroup)
        guest.note(str([errno.errorcode.get(code, code) for code in found]))
        assert 0 not in found
        assert on_root() == before
        denied(guest, tmpfs_program(guest))

    @scenario.case()
    def implied_exec_is_refused(guest: Guest) -> None:
        """By the filter that restrict init has left, for what no program of the policy sees."""
        guest.expect(probes.imply_exec(), refused())
        guest.expect(probes.imply_exec(0xFFFFFFFF), ALLOWED)

    @scenario.case()
    def its_maps_are_nobodys(guest: Guest) -> None:
        """PID 1 is no owner either: it does not know of the policy."""
        import errno

        from pybpf.kernel.map import Map
        from pybpf.kernel.program import Program

        assert status().owner == 0
        assert len(status().guard["program"]) >= 9
        for ident in status().guard["program"]:
            assert refusal(Program.from_id, ident) == errno.EPERM
        for ident in status().guard["map"]:
            assert refusal(Map.from_id, ident) == errno.EPERM


def attacks_on_keeper(scenario: Scenario) -> None:
    """Cases: root tries to end the process that holds the links; the last one succeeds."""

    @scenario.case()
    def the_keeper_is_marked_and_guarded(guest: Guest) -> None:
        import signal

        keeper = status().owner
        assert keeper > 1
        with open(f"/proc/{keeper}/cmdline", "rb") as file:
            assert file.read(1) == b"@"
        before = status().counters["signal"]["denied"]
        for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP):
            try:
                os.kill(keeper, number)
            except PermissionError:
                continue
            raise AssertionError(f"{number} was sent")
        os.kill(keeper, 0)  # looking is allowed
        child = subprocess.Popen(["/usr/bin/sleep", "60"])
        child.kill()  # the control: others can be killed
        assert child.wait() == -signal.SIGKILL
        assert status().counters["signal"]["denied"] == before + 3
        denied(guest, tmpfs_program(guest))

    @scenario.case()
    def limit_cgroup_kill_ends_the_keeper(guest: Guest) -> None:
        """The kernel's own kill asks no hook: why this is the weakest way."""
        from restrict import status as policy

        keeper = status().owner
        path = tmpfs_program(guest)
        root = "/mnt/cgroup"
        os.makedirs(root, exist_ok=True)
        guest.mount("cgroup2", root, "cgroup2", 0)
        os.mkdir(f"{root}/victim")
        for name, text in (("cgroup.procs", str(keeper)), ("cgroup.kill", "1")):
            with open(f"{root}/victim/{name}", "w") as file:
                file.write(text)

        def ended() -> bool:
            found = policy.read()
            return found is None or not found.in_force

        guest.wait(ended, "the end of the keeper, and of the policy")
        guest.wait(lambda: probes.execute(path).detail, "the program runs again")
