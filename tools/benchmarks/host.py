# SPDX-License-Identifier: BSD-2-Clause
"""The host part: loading objects, against a C program on Debian's libbpf and against bpftool.

Nothing is attached. Every contender runs in a process of its own, in rounds; ratios are taken
within a round. Times are milliseconds, memory is the peak resident set in megabytes (2**20).
"""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.benchmarks.build import HERE, program, stage
from tools.benchmarks.errors import BenchError
from tools.benchmarks.launch import Contender, Sample, launch, paired
from tools.benchmarks.objects import Subject
from tools.benchmarks.phases import PHASES
from tools.benchmarks.stats import Summary, paired_ratios, summarise
from tools.guest.cache import progress

__all__ = ["HostBench", "bpf_filesystem", "describe_host"]

SELF_RUNNING = "bundle that runs by itself"
BUNDLE = "bundle, by the library"
COMMAND = "ELF, by the command pybpf run"
KERNEL = "ELF, relocated in the kernel"
PYTHON = "ELF, relocated in Python"
WARM = ", modules imported before"
LIBBPF = "C on libbpf"
BPFTOOL = "bpftool loadall"


@contextmanager
def bpf_filesystem() -> Iterator[Path]:
    """A bpf filesystem of our own, for the pins of bpftool; gone at the end, pins and all."""
    with tempfile.TemporaryDirectory(prefix="bench-bpffs-") as folder:
        done = subprocess.run(
            ["mount", "-t", "bpf", "bpf", folder], capture_output=True, text=True
        )
        if done.returncode:
            raise BenchError(f"no bpf filesystem can be mounted: {done.stderr.strip()}")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


def _first_line(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True)
    return (done.stdout or done.stderr).strip().partition("\n")[0]


def describe_host(python: Path) -> dict[str, object]:
    """What the numbers depend on."""
    one, five, _ = os.getloadavg()
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "load": [round(one, 2), round(five, 2)],
        "python": _first_line(str(python), "--version"),
        "libbpf": _first_line("dpkg-query", "-W", "-f=${Version}", "libbpf1"),
        "bpftool": _first_line("bpftool", "version"),
    }


@dataclass
class HostBench:
    """What a run of the host part needs: the interpreter, rounds, a place for bundles and pins."""

    python: Path
    rounds: int
    folder: Path
    bpffs: Path

    def __post_init__(self) -> None:
        self.product, self.dependencies = stage()
        self.yardstick = program("libbpf_load", "-lbpf")
        self.counter = program("count_bpf", "-shared", "-fPIC", "-ldl")

    # --- the contenders -----------------------------------------------------------------------

    def _script(self, name: str, *arguments: str | Path) -> list[str | Path]:
        return [self.python, "-I", "-S", HERE / "child" / f"{name}.py", *arguments]

    def bundle_of(self, subject: Subject) -> Path:
        """The object frozen to a bundle, by the staged product in a process of its own."""
        target = self.folder / f"{subject.name}.bundle"
        script = self._script(
            "make_bundle", self.product, self.dependencies, subject.path, target
        )
        done = subprocess.run([str(word) for word in script], capture_output=True, text=True)
        if done.returncode:
            raise BenchError(f"{subject.name} cannot be bundled: {done.stderr.strip()}")
        return target

    def self_running(self, bundle: Path) -> Path:
        """The same Plan with its executor, in one file."""
        target = bundle.with_suffix(".pyz")
        code = (
            f"import sys; sys.path.insert(0, {str(self.product)!r}); from pybpf.pyz import build; "
            f"open({str(target)!r}, 'wb').write(build(open({str(bundle)!r}, 'rb').read()))"
        )
        subprocess.run([str(self.python), "-I", "-c", code], check=True)
        return target

    def _elf(self, subject: Subject, how: str, *modules: str) -> list[str | Path]:
        return self._script(
            "load_elf", self.product, self.dependencies, subject.path, how, *modules
        )

    def _command(self, subject: Subject) -> list[str | Path]:
        """What `pybpf run OBJECT --no-attach` runs where pybpf is installed."""
        code = (
            "import sys; sys.path[0:0] = sys.argv[1:3]; del sys.argv[1:3]; "
            "from pybpf.cli import console; console()"
        )
        return [
            self.python, "-I", "-S", "-c", code, self.product, self.dependencies, "run",
            subject.path, "--no-attach",
        ]  # fmt: skip

    def _bpftool(self, subject: Subject) -> tuple[list[str | Path], Callable[[], None]]:
        pins = self.bpffs / subject.name

        def clean() -> None:
            for path in pins.iterdir():
                path.unlink()
            pins.rmdir()

        return ["/usr/sbin/bpftool", "prog", "loadall", subject.path, pins], clean

    def _imports(self, subject: Subject, how: str, source: Path) -> list[str]:
        """The modules that a load imports: the product's own first, which import most others.

        (In the order in which they came to be, some of the standard library's would be imported
        from within a circle at its wrong end.)
        """
        words = self._phases(how, source)
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
        if done.returncode:
            raise BenchError(f"{subject.name} cannot be loaded: {done.stderr.strip()}")
        lines = [line.split() for line in done.stdout.splitlines()]
        names = [line[1] for line in lines if len(line) == 2 and line[0] == "imported"]
        return sorted(names, key=lambda name: name.partition(".")[0] != "pybpf")

    def _phases(self, how: str, source: Path, *modules: str) -> list[str | Path]:
        return self._script(
            "phase_times", self.product, self.dependencies, HERE, source, how, *modules
        )

    # --- the measurements ---------------------------------------------------------------------

    def start(self) -> dict[str, object]:
        """What the interpreter and imports cost, each as a process."""
        path = f"import sys; sys.path.insert(0, {str(self.product)!r}); "
        both = f"import sys; sys.path[0:0] = [{str(self.product)!r}, {str(self.dependencies)!r}]; "
        cases = {
            "nothing": "pass",
            "import ctypes": "import ctypes",
            "import ctypes; import pybpf": path + "import ctypes; import pybpf",
            "what runs a bundle": path + "import pybpf.plan.frozen, pybpf.plan.run",
            "what loads an ELF": both + "import pybpf.compiler.compile, pybpf.elf, pybpf.plan.run",
        }
        contenders = [
            Contender(name, [self.python, "-I", "-S", "-c", code]) for name, code in cases.items()
        ]
        with progress(f"interpreter start and imports, {self.rounds} rounds"):
            paired(contenders, self.rounds)
        base = contenders[1].samples
        return {
            contender.name: {
                "whole_ms": summarise(contender.values(lambda sample: sample.whole)).json(),
                "cpu_ms": summarise(contender.values(lambda sample: sample.cpu)).json(),
                "whole_over_ctypes_ms": summarise(
                    [a.whole - b.whole for a, b in zip(contender.samples, base, strict=True)]
                ).json(),
                "cpu_over_ctypes_ms": summarise(
                    [a.cpu - b.cpu for a, b in zip(contender.samples, base, strict=True)]
                ).json(),
                "rss_mb": summarise(contender.values(lambda sample: sample.rss)).json(),
            }
            for contender in contenders
        }

    def load(self, subject: Subject) -> dict[str, object]:
        """Every contender loads the object, in rounds: times, memory, ratios in pairs."""
        bundle = self.bundle_of(subject)
        tool, clean = self._bpftool(subject)
        modules = {how: self._imports(subject, how, subject.path) for how in ("kernel", "python")}
        contenders = [
            Contender(BUNDLE, self._script("load_bundle", self.product, bundle)),
            Contender(
                SELF_RUNNING,
                [self.python, "-I", "-S", self.self_running(bundle), "--no-attach"],
            ),
            Contender(COMMAND, self._command(subject)),
            Contender(KERNEL, self._elf(subject, "kernel")),
            Contender(PYTHON, self._elf(subject, "python")),
            Contender(KERNEL + WARM, self._elf(subject, "kernel", *modules["kernel"])),
            Contender(PYTHON + WARM, self._elf(subject, "python", *modules["python"])),
            Contender(LIBBPF, [self.yardstick, subject.path]),
            Contender(BPFTOOL, tool, clean),
        ]
        with progress(f"loading {subject.name}, {self.rounds} rounds of {len(contenders)}"):
            paired(contenders, self.rounds)
        self._same_programs(subject, contenders)
        return {
            "file": subject.path.name,
            "origin": subject.origin,
            "bytes": subject.path.stat().st_size,
            "bundle_bytes": bundle.stat().st_size,
            "programs": contenders[0].samples[0].facts["programs"],
            "contenders": {
                contender.name: _measured(contender, contenders) for contender in contenders
            },
        }

    @staticmethod
    def _same_programs(subject: Subject, contenders: Sequence[Contender]) -> None:
        counts = {
            contender.name: contender.samples[0].facts["programs"]
            for contender in contenders
            if "programs" in contender.samples[0].facts
        }
        if len(set(counts.values())) != 1:
            raise BenchError(f"{subject.name}: not all loaded the same programs: {counts}")

    def phases(self, subject: Subject) -> dict[str, object]:
        """Milliseconds of each phase, by way of loading; medians, the clock's own cost included."""
        ways = {
            BUNDLE: ("bundle", self.bundle_of(subject)),
            KERNEL: ("kernel", subject.path),
            PYTHON: ("python", subject.path),
        }
        contenders = []
        for name, (how, source) in ways.items():
            modules = self._imports(subject, how, source)
            contenders.append(Contender(name, self._phases(how, source, *modules)))
        with progress(f"phases of loading {subject.name}, {self.rounds} rounds"):
            paired(contenders, self.rounds)
        return {contender.name: _phases_of(contender) for contender in contenders}

    def calls(self, subject: Subject) -> dict[str, object]:
        """How many bpf(2) calls each contender makes, how many fail, and the time in them."""
        tool, clean = self._bpftool(subject)
        ways: dict[str, tuple[Sequence[str | Path], Callable[[], None]]] = {
            BUNDLE: (
                self._script("load_bundle", self.product, self.bundle_of(subject)),
                lambda: None,
            ),
            KERNEL: (self._elf(subject, "kernel"), lambda: None),
            PYTHON: (self._elf(subject, "python"), lambda: None),
            LIBBPF: ([self.yardstick, subject.path], lambda: None),
            BPFTOOL: (tool, clean),
        }
        return {name: self._counted(command, clean) for name, (command, clean) in ways.items()}

    def _counted(
        self, command: Sequence[str | Path], clean: Callable[[], None]
    ) -> dict[str, object]:
        path = self.folder / "counts"
        commands: dict[str, int] = {}
        times = []
        failed = 0
        for _ in range(min(self.rounds, 9)):
            path.write_text("")
            launch(command, {"LD_PRELOAD": str(self.counter), "COUNT_BPF": str(path)})
            clean()
            lines = [list(map(int, line.split())) for line in path.read_text().splitlines()]
            if not lines:
                raise BenchError(f"no bpf(2) call was seen of {command[0]}")
            commands = {_command_name(line[0]): line[1] for line in lines}
            failed = sum(line[2] for line in lines)
            times.append(sum(line[3] for line in lines) / 1e6)
        return {
            "calls": sum(commands.values()),
            "failed": failed,
            "ms": summarise(times).json(),
            "commands": commands,
        }


def _command_name(number: int) -> str:
    from pybpf.sys.abi_names import CMD_NAMES

    return CMD_NAMES.get(number, str(number))


def _in_process(sample: Sample) -> float:
    return sample.between("begin", "loaded")


def _measured(contender: Contender, contenders: Sequence[Contender]) -> dict[str, object]:
    by_name = {other.name: other for other in contenders}
    result: dict[str, object] = {
        "whole_ms": summarise(contender.values(lambda sample: sample.whole)).json(),
        "cpu_ms": summarise(contender.values(lambda sample: sample.cpu)).json(),
        "rss_mb": summarise(contender.values(lambda sample: sample.rss)).json(),
    }
    for name, key in ((LIBBPF, "libbpf"), (BPFTOOL, "bpftool")):
        other = by_name[name]
        result[f"whole_over_{key}"] = _ratio(contender, other, lambda sample: sample.whole).json()
        result[f"cpu_over_{key}"] = _ratio(contender, other, lambda sample: sample.cpu).json()
    if "loaded" in contender.samples[0].marks:
        result["to_loaded_ms"] = summarise(
            contender.values(lambda sample: sample.marks["loaded"])
        ).json()
        result["in_process_ms"] = summarise(contender.values(_in_process)).json()
        result["in_process_over_libbpf"] = _ratio(
            contender, by_name[LIBBPF], _in_process
        ).json()
    return result


def _ratio(ours: Contender, theirs: Contender, what: Callable[[Sample], float]) -> Summary:
    return summarise(paired_ratios(ours.values(what), theirs.values(what)))


def _phases_of(contender: Contender) -> dict[str, object]:
    def of(phase: str) -> list[float]:
        return [sample.facts.get(f"ns.{phase}", 0.0) / 1e6 for sample in contender.samples]

    return {
        "interpreter": summarise(contender.values(lambda sample: sample.marks["first"])).json(),
        "import": summarise(
            contender.values(lambda sample: sample.between("first", "begin"))
        ).json(),
        **{phase: summarise(of(phase)).json() for phase in (*PHASES, "rest")},
        "end": summarise(
            contender.values(lambda sample: sample.whole - sample.marks["loaded"])
        ).json(),
    }
