# SPDX-License-Identifier: BSD-2-Clause
"""Contender: load an ELF object and end. PRODUCT DEPENDENCIES OBJECT HOW [MODULE…].

HOW: who relocates, "kernel" or "python". The modules named are imported before the clock of
"begin" starts: with all that loading needs, begin to loaded is the work without imports.
"""

import sys
import time

first = time.monotonic_ns()
sys.path[0:0] = sys.argv[1:3]

import pybpf  # noqa: E402

for name in sys.argv[5:]:
    __import__(name)
begin = time.monotonic_ns()
obj = pybpf.load(sys.argv[3], relocate=sys.argv[4])
loaded = time.monotonic_ns()
print(
    f"mark first {first}\nmark begin {begin}\nmark loaded {loaded}\nprograms {len(obj.programs)}"
)
