# SPDX-License-Identifier: BSD-2-Clause
"""Contender: load a bundle (a frozen Plan) and end. PRODUCT BUNDLE; see tools/benchmarks/host.py.

Prints when its first line ran, when its imports were done and when the programs were loaded.
"""

import sys
import time

first = time.monotonic_ns()
sys.path.insert(0, sys.argv[1])

from pybpf.plan.frozen import from_bytes  # noqa: E402
from pybpf.plan.run import run  # noqa: E402

begin = time.monotonic_ns()
with open(sys.argv[2], "rb") as file:
    plan = from_bytes(file.read())
obj = run(plan)
loaded = time.monotonic_ns()
print(
    f"mark first {first}\nmark begin {begin}\nmark loaded {loaded}\nprograms {len(obj.programs)}"
)
