# SPDX-License-Identifier: BSD-2-Clause
"""10,000 updates of a hash map, one by one and at once. PRODUCT DEPENDENCIES OBJECT."""

import sys
import time

sys.path[0:0] = sys.argv[1:3]

import pybpf  # noqa: E402

COUNT = 10_000
with pybpf.load(sys.argv[3]) as live:
    table = live.maps["table"]
    for name, one_by_one in (("single", True), ("batch", False)):
        best = 1e9
        for round_ in range(5):
            start = time.perf_counter()
            if one_by_one:
                for number in range(COUNT):
                    table[number] = number + round_
            else:
                table.update_batch((number, number + round_) for number in range(COUNT))
            best = min(best, time.perf_counter() - start)
        print(f"{name} {best * 1e3:f}")
