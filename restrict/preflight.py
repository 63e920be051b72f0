# SPDX-License-Identifier: BSD-2-Clause
"""What must be there before the execution policy means anything, each with its remedy.

Every prerequisite is asked of the running kernel; none is taken from a version number. The order
is that in which a person would put things right.
"""

from __future__ import annotations

import errno
import os

from pybpf.errors import PybpfError
from restrict.errors import PreflightError, printable
from restrict.keyring import DM_VERITY, find_keyring
from restrict.mounts import mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Finding", "check", "command_line_words", "force_override", "require"]

# include/linux/proc_ns.h: PROC_PID_INIT_INO. The guard's owner is a tgid of that namespace.
_INIT_PID_NAMESPACE = 0xEFFFFFFC
_CAPABILITIES = ((21, "CAP_SYS_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF"))


class Finding:
    """The answer to one question.

    ok: True, False, or None where the kernel does not tell. required: enforcement refuses to
    start without it (else a note). remedy: what to do, "" if ok.
    """

    __slots__ = ("message", "name", "ok", "remedy", "required")

    def __init__(
        self, name: str, ok: bool | None, message: str, remedy: str = "", *, required: bool = True
    ) -> None:
        self.name = name
        self.ok = ok
        self.message = message
        self.remedy = "" if ok else remedy
        self.required = required

    @property
    def blocks(self) -> bool:
        return self.required and not self.ok

    def as_dict(self) -> dict[str, object]:
        return {
            "name": self.name,
            "ok": self.ok,
            "required": self.required,
            "message": self.message,
            "remedy": self.remedy,
        }


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


def command_line_words(text: str) -> list[str]:
    """Split a kernel command line as next_arg() in lib/cmdline.c does; stop at ``--``.

    Double quotes keep blanks together and are dropped around a value or a whole word.
    """
    words: list[str] = []
    word = ""
    quoted = False
    for char in text.strip() + " ":
        if char == '"':
            quoted = not quoted
        elif char.isspace() and not quoted:
            if word == "--":  # what follows is for init, the kernel does not parse it
                return words
            if word:
                words.append(word)
            word = ""
        else:
            word += char
    if word.strip():
        words.append(word.rstrip())
    return words


def force_override(command_line: str) -> str | None:
    """The last value of proc_mem.force_override on a kernel command line, or None.

    Like the kernel (parameq), takes ``-`` for ``_`` in the name.
    """
    value = None
    for word in command_line_words(command_line):
        key, equals, text = word.partition("=")
        if equals and key.replace("-", "_") == "proc_mem.force_override":
            value = text
    return value


# ── the questions ──


def _pid_namespace() -> Finding:
    name = "pid-namespace"
    try:
        inside = os.stat("/proc/self/ns/pid").st_ino == _INIT_PID_NAMESPACE
    except OSError as e:
        return Finding(
            name,
            False,
            f"/proc/self/ns/pid cannot be read: {os.strerror(e.errno or 0)}.",
            "Mount procfs on /proc.",
        )
    return Finding(
        name,
        inside,
        "this is the initial PID namespace."
        if inside
        else "this is not the initial PID namespace, and the guard knows its owner by the "
        "number it has there.",
        "Run it on the host, not in a container.",
    )


def _capabilities() -> Finding:
    text = _read("/proc/self/status") or ""
    bits = 0
    for line in text.splitlines():
        if line.startswith("CapEff:"):
            bits = int(line.split()[1], 16)
    missing = [name for bit, name in _CAPABILITIES if not bits >> bit & 1]
    return Finding(
        "capabilities",
        not missing,
        f"this process lacks {', '.join(missing)}." if missing else "capabilities are sufficient.",
        "Run it as root.",
    )


def _securityfs() -> Finding:
    try:
        where = [m.target for m in mounts() if m.fstype == "securityfs"]
    except PybpfError as e:
        return Finding("securityfs", False, str(e), "Mount procfs on /proc.")
    there = "/sys/kernel/security" in where
    return Finding(
        "securityfs",
        there,
        "securityfs is mounted."
        if there
        else "securityfs is not mounted, so the list of security modules cannot be read.",
        "mount -t securityfs securityfs /sys/kernel/security",
    )


def _lsm() -> Finding:
    names = _read("/sys/kernel/security/lsm")
    if names is None:
        return Finding(
            "lsm-bpf",
            None,
            "the list of security modules cannot be read.",
            "Mount securityfs on /sys/kernel/security.",
        )
    return Finding(
        "lsm-bpf",
        "bpf" in names.split(","),
        f"the active security modules are {names or 'none'}.",
        f"Boot with lsm={names + ',' if names else ''}bpf (CONFIG_BPF_LSM).",
    )


def _signatures() -> Finding:
    name = "dm-verity-signatures"
    if not os.path.isdir("/sys/module/dm_verity"):
        return Finding(
            name,
            False,
            "the module dm-verity is not loaded.",
            "modprobe dm-verity require_signatures=1",
        )
    value = _read("/sys/module/dm_verity/parameters/require_signatures")
    if value is None:
        return Finding(
            name,
            False,
            "dm-verity has no parameter require_signatures.",
            "Use a kernel with CONFIG_DM_VERITY_VERIFY_ROOTHASH_SIG.",
        )
    return Finding(
        name,
        value in ("Y", "1"),
        f"dm_verity.require_signatures is {value}.",
        "Load dm-verity with require_signatures=1: as a parameter to insmod, or as "
        "dm_verity.require_signatures=1 on the kernel command line for modprobe and built-ins.",
    )


def _force_override() -> Finding:
    name = "proc-mem-override"
    remedy = "Boot with proc_mem.force_override=never, after any other such word."
    text = _read("/proc/cmdline")
    if text is None:
        return Finding(name, None, "/proc/cmdline cannot be read.", "Mount procfs on /proc.")
    value = force_override(text)
    if value is None:
        return Finding(
            name, False, "proc_mem.force_override is not on the kernel command line.", remedy
        )
    return Finding(
        name,
        value == "never",
        f"the last proc_mem.force_override on the kernel command line is {value!r}.",
        remedy,
    )


def _proc_mem_probe() -> Finding:
    """Write to a read-only page of ours through /proc/self/mem: EIO is the only good answer."""
    from pybpf.sys.syscalls import syscall

    name = "proc-mem-probe"
    remedy = "Use a kernel that knows proc_mem.force_override (6.12) and boot with it at never."
    try:
        address = syscall("mmap", 0, 4096, 1, 0x22, -1, 0)  # PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS
        try:
            fd = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)
            try:
                os.pwrite(fd, b"\1", address)
            finally:
                os.close(fd)
        finally:
            syscall("munmap", address, 4096)
    except (OSError, PybpfError) as e:
        code = getattr(e, "errno", None)
        return Finding(
            name,
            code == errno.EIO,
            "a write to a read-only page through /proc/self/mem is refused (EIO)."
            if code == errno.EIO
            else "a write to a read-only page through /proc/self/mem failed with "
            f"{errno.errorcode.get(code or 0, code)} where EIO was expected.",
            remedy,
        )
    return Finding(
        name,
        False,
        "a write to a read-only page through /proc/self/mem succeeded, so programs can rewrite "
        "their own code.",
        remedy,
    )


def _btf() -> Finding:
    there = os.path.exists("/sys/kernel/btf/vmlinux")
    return Finding(
        "btf",
        there,
        f"the kernel's BTF is {'' if there else 'not '}there.",
        "Mount sysfs on /sys."
        if not os.path.isdir("/sys/kernel")
        else "Use a kernel with CONFIG_DEBUG_INFO_BTF.",
    )


def _bpf() -> Finding:
    """Create and close one small array map."""
    from pybpf.sys import abi, bpf

    try:
        fd = bpf.map_create(abi.BPF_MAP_TYPE_ARRAY, 4, 4, 1, name="probe")
    except PybpfError as e:
        return Finding(
            "bpf",
            False,
            f"bpf(2) does not create a map: {e}",
            "Use a kernel with CONFIG_BPF_SYSCALL, and no seccomp filter on bpf(2).",
        )
    os.close(fd)
    return Finding("bpf", True, "bpf(2) creates maps.")


def _hooks() -> Finding:
    """The newest hook that the policy needs, by its name in the kernel's BTF."""
    name = "lsm-hooks"
    wanted = b"\0bpf_lsm_bdev_setintegrity\0"
    try:
        with open("/sys/kernel/btf/vmlinux", "rb", buffering=0) as file:
            data = file.read()
    except OSError as e:
        return Finding(name, None, f"the kernel's BTF cannot be read: {e.strerror}.", "See btf.")
    there = wanted in data
    return Finding(
        name,
        there,
        f"the hook bdev_setintegrity is {'' if there else 'not '}there.",
        "Use a kernel with CONFIG_BPF_LSM, 6.12 or later.",
    )


def _ftrace() -> Finding:
    value = _read("/proc/sys/kernel/ftrace_enabled")
    return Finding(
        "ftrace",
        value != "0",
        "kernel.ftrace_enabled is 0, so programs attach but are not called."
        if value == "0"
        else "the kernel calls attached programs.",
        "sysctl kernel.ftrace_enabled=1",
    )


def _lockdown() -> Finding:
    text = _read("/sys/kernel/security/lockdown")
    if text is None:
        return Finding("lockdown", None, "the lockdown module is not active.", required=False)
    mode = text.partition("[")[2].partition("]")[0] or text
    return Finding("lockdown", True, f"lockdown is {mode}.", required=False)


def _keyring() -> Finding:
    try:
        ring = find_keyring()
    except PybpfError as e:
        return Finding("verity-keyring", None, str(e), required=False)
    message = f"there is no keyring {DM_VERITY}."
    if ring is not None:
        message = f"the keyring {DM_VERITY} is there ({printable(ring.payload)})."
        # Whether somebody has restricted it since, the kernel does not tell.
        if _read("/sys/module/dm_verity/parameters/keyring_unsealed") == "Y":
            message += " It was left open, and takes certificates until it is restricted."
    return Finding(
        "verity-keyring",
        ring is not None,
        message,
        "Before 7.0 the certificate must be in the platform (UEFI db), secondary or built-in "
        "keyring.",
        required=False,
    )


def _bpffs() -> Finding:
    try:
        there = any(m.fstype == "bpf" and m.target == "/sys/fs/bpf" for m in mounts())
    except PybpfError as e:
        return Finding("bpffs", None, str(e), required=False)
    return Finding(
        "bpffs",
        there,
        f"bpffs is {'' if there else 'not '}mounted on /sys/fs/bpf.",
        "mount -t bpf bpf /sys/fs/bpf, else `restrict status` has nothing to read.",
        required=False,
    )


def _ptrace_poke() -> Finding:
    from restrict import seccomp

    ok, message = seccomp.report()
    return Finding(
        "ptrace-poke",
        ok,
        message,
        "`restrict init` puts PID 1, and so everything, under a seccomp filter (ptrace_poke = "
        "deny). A running system cannot be put under it; a plan made with `restrict bundle "
        "--deny-ptrace` ends attaching altogether.",
        required=False,
    )


_QUESTIONS: tuple[Callable[[], Finding], ...] = (
    _pid_namespace,
    _capabilities,
    _securityfs,
    _lsm,
    _signatures,
    _force_override,
    _proc_mem_probe,
    _btf,
    _hooks,
    _bpf,
    _ftrace,
    _lockdown,
    _keyring,
    _bpffs,
    _ptrace_poke,
)


def check() -> list[Finding]:
    """Ask everything. Changes nothing; closes what it opened."""
    return [question() for question in _QUESTIONS]


def require(findings: list[Finding] | None = None) -> list[Finding]:
    """``check()``, raising PreflightError with all that is missing."""
    findings = check() if findings is None else findings
    missing = [f for f in findings if f.blocks]
    if missing:
        raise PreflightError(
            "; ".join(f"{f.name}: {f.message} {f.remedy}".strip() for f in missing)
        )
    return findings
