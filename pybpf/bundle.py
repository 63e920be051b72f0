# SPDX-License-Identifier: BSD-2-Clause
"""Bundles on disk: a frozen Plan by itself, or in a self-running file (``pybpf.pyz``)."""

from __future__ import annotations

from pybpf.errors import FormatError
from pybpf.plan.frozen import MAGIC, from_bytes
from pybpf.sys.files import read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from pybpf.plan.live import Object
    from pybpf.plan.ops import Plan

__all__ = ["read", "run_bundle"]


def read(path: str | os.PathLike[str]) -> Plan:
    """The Plan of the bundle at ``path``, of either form; nothing in the file is executed.

    Raises FormatError (no bundle, cut short, damaged, of a later version) and OSError.
    """
    data = read_file(path)
    try:
        if data[:1] == b"#":
            from pybpf.pyz.container import plan_of

            data = plan_of(data)
        elif not data.startswith(MAGIC):
            raise FormatError(
                "this is neither a bundle nor a BPF object.",
                hint="Give the object that clang -target bpf wrote, or what pybpf bundle made "
                "of it.",
            )
        return from_bytes(data)
    except FormatError as error:
        raise error.at(file=str(path)) from error.__cause__


def run_bundle(
    path: str | os.PathLike[str],
    *,
    attach: bool = False,
    maps: Mapping[str, int] | None = None,
    targets: Mapping[str, int] | None = None,
    log_level: int = 0,
) -> Object:
    """Execute the bundle at ``path`` (``pybpf bundle``, with or without ``.pyz``).

    attach: also attach; else ``Object.attach()`` does. maps, targets, log_level: as for
    ``pybpf.run``. Needs what the programs need: CAP_BPF and more by their types; Linux 5.17
    unless the bundle was relocated in Python. Raises FormatError, OSError and what ``run`` and
    ``attach`` raise; nothing is left behind then.
    """
    from pybpf.plan.run import run

    live = run(read(path), maps=maps, targets=targets, log_level=log_level)
    if attach:
        try:
            live.attach()
        except BaseException:
            live.close()
            raise
    return live
