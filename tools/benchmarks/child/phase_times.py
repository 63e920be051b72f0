# SPDX-License-Identifier: BSD-2-Clause
"""Load once with the borders of the phases timed, or tell what is imported for it.

PRODUCT DEPENDENCIES FOLDER OBJECT|BUNDLE HOW [MODULE…]; FOLDER has phases.py;
HOW: "bundle", "kernel" or "python".
Without modules: prints "imported NAME" for every module that the load needed beyond this
script's own. With them: imports them first and prints "mark …", "ns.PHASE N", "calls.PHASE N".
"""

from __future__ import annotations

import sys
import time

first = time.monotonic_ns()
product, dependencies, folder, source, how = sys.argv[1:6]
wanted = sys.argv[6:]
before = set(sys.modules)
sys.path[0:0] = [product] if how == "bundle" else [product, dependencies]


def load() -> object:
    if how == "bundle":
        from pybpf.plan.frozen import from_bytes
        from pybpf.plan.run import run

        with open(source, "rb") as file:
            return run(from_bytes(file.read()))
    import pybpf

    return pybpf.load(source, relocate=how)


if not wanted:
    obj = load()
    for name in sys.modules:
        if name not in before:
            print("imported", name)
    sys.exit(0)
for name in wanted:
    __import__(name)
begin = time.monotonic_ns()
sys.path.append(folder)
from phases import BORDERS, Stopwatch, install  # type: ignore[import-not-found]  # noqa: E402

known = {border: phase for border, phase in BORDERS.items() if border.partition(":")[0] in wanted}
stopwatch = Stopwatch()
install(stopwatch, known)
stopwatch.stop()
stopwatch.nanoseconds.clear()
start = time.monotonic_ns()
obj = load()
loaded = time.monotonic_ns()
stopwatch.stop()
print(f"mark first {first}\nmark begin {begin}\nmark start {start}\nmark loaded {loaded}")
for phase, nanoseconds in stopwatch.nanoseconds.items():
    print(f"ns.{phase} {nanoseconds}\ncalls.{phase} {stopwatch.calls.get(phase, 0)}")
