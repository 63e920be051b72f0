# SPDX-License-Identifier: BSD-2-Clause
"""What ``import pybpf`` and running a Plan drag in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).parent.parent.parent


def modules_after(code: str, *, base: str = "import ctypes") -> set[str]:
    """Modules that ``code`` loads over those of ``base``."""
    script = (
        f"{base}\nimport sys\nbefore = set(sys.modules)\n{code}\n"
        "print(' '.join(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", script], cwd=TREE, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_pybpf_loads_only_itself() -> None:
    # One file of constants and functions: far below the 5 ms that are allowed over ctypes.
    assert modules_after("import pybpf") <= {"pybpf", "__future__"}


def test_names_are_there_when_asked_for() -> None:
    loaded = modules_after("import pybpf; pybpf.PybpfError")
    assert "pybpf.errors" in loaded
    assert not {m for m in loaded if m.startswith(("elftools", "construct", "pybpf.elf"))}


def test_running_a_plan_needs_no_heavy_module() -> None:
    loaded = modules_after("import pybpf; pybpf.run; pybpf.from_bytes; pybpf.Plan; pybpf.Map")
    forbidden = {"re", "enum", "typing", "dataclasses", "argparse", "subprocess", "contextlib",
                 "elftools", "construct", "collections.abc"}  # fmt: skip
    assert not loaded & forbidden


def test_every_public_name_exists() -> None:
    code = "import pybpf\nfor n in pybpf.__all__: getattr(pybpf, n)"
    done = subprocess.run([sys.executable, "-c", code], cwd=TREE, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.stderr == ""


def test_unknown_name() -> None:
    done = subprocess.run([sys.executable, "-c", "import pybpf; pybpf.nothing"], cwd=TREE,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert "has no attribute 'nothing'" in done.stderr


@pytest.mark.parametrize("command", [
    ("pybpf", "relocate", "bpf/objects/fsaccess.bpf.o"),
    ("pybpf", "verify", "bpf/objects/fsaccess.bpf.o"),
    ("restrict", "bundle", "-o", "fsaccess.plan"),
])  # fmt: skip
def test_without_pyelftools_the_error_says_so(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "elftools").mkdir()
    (tmp_path / "elftools" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'elftools'\", name='elftools')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=TREE, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "needs pyelftools. Install it" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (TREE / "fsaccess.plan").exists()
