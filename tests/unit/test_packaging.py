# SPDX-License-Identifier: BSD-2-Clause
"""What is installed: every package, and the policies' objects along with them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from restrict.initramfs_install import GENERATORS

TOP = Path(__file__).resolve().parents[2]


def _setuptools() -> dict[str, Any]:
    with open(TOP / "pyproject.toml", "rb") as file:
        return dict(tomllib.load(file)["tool"]["setuptools"])


def test_every_package_is_listed() -> None:
    folders = {
        ".".join(found.parent.relative_to(TOP).parts)
        for top in ("pybpf", "restrict")
        for found in (TOP / top).rglob("__init__.py")
    }
    assert {*folders, "restrict.integrations", "restrict.objects"} == set(_setuptools()["packages"])


def test_the_objects_go_along() -> None:
    settings = _setuptools()
    folder = TOP / settings["package-dir"]["restrict.objects"]
    patterns = settings["package-data"]["restrict.objects"]
    taken = {path.name for pattern in patterns for path in folder.glob(pattern)}
    assert {"fsaccess.bpf.o", "fsaccess.plan"} <= taken
    assert taken == {path.name for path in folder.iterdir()}


def test_the_integrations_go_along() -> None:
    settings = _setuptools()
    folder = TOP / settings["package-dir"]["restrict.integrations"]
    patterns = settings["package-data"]["restrict.integrations"]
    taken = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    assert taken == {path for path in folder.rglob("*") if path.is_file()}
    for _sign, files in GENERATORS.values():
        assert {folder / source for source, _target in files} <= taken
