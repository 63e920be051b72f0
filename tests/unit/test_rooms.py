# SPDX-License-Identifier: BSD-2-Clause
"""The rooms of pybpf import only those above them in ARCHITECTURE.md's table."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TREE = Path(__file__).parents[2]
# The package's face hands names of all rooms on.
FACES = ("pybpf/__init__.py", "pybpf/__main__.py")


def rooms() -> list[str]:
    """"sys", "kernel", … in the table's order."""
    text = (TREE / "ARCHITECTURE.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `pybpf/")]
    return [name for row in rows for name in re.findall(r"`pybpf/(\w+)(?:\.py|/)`", row)]


def imports(path: Path) -> set[str]:
    """Rooms that a file imports from, in functions and for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "pybpf":
            names = [f"pybpf.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("pybpf.")}
    return found


def test_every_import_goes_up_the_table() -> None:
    order = rooms()
    assert len(order) == len(set(order)) > 10
    wrong = []
    for path in sorted((TREE / "pybpf").rglob("*.py")):
        name = path.relative_to(TREE).as_posix()
        if name in FACES:
            continue
        room = name.split("/")[1].removesuffix(".py")
        assert room in order, f"ARCHITECTURE.md has no row for {name}"
        wrong += [
            f"{name} imports pybpf.{other}"
            for other in imports(path)
            if other not in order or order.index(other) > order.index(room)
        ]
    assert wrong == []
