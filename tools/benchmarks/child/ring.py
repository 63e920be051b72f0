# SPDX-License-Identifier: BSD-2-Clause
"""Contender: read events of a ring buffer with pybpf, until COUNT were seen.

PRODUCT DEPENDENCIES OBJECT PIN FLOOD RECORD_SIZE COUNT WAY. WAY: "read" (lists of bytes) or
"consume" (a callback each). Prints "NAME NUMBER" lines; c/libbpf_ring.c does the same with libbpf.
"""

import os
import signal
import sys
import time

sys.path[0:0] = sys.argv[1:3]

import pybpf  # noqa: E402

source, pin, flood, size, wanted, way = *sys.argv[3:7], int(sys.argv[7]), sys.argv[8]
live = pybpf.load(source)
live.programs["flood"].pin(pin)
ring = pybpf.RingBuffer(live.maps["ring"])
seen = volume = check = early = 0


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def one(record: memoryview) -> None:
    global seen, volume, check
    seen += 1
    volume += len(record)
    check += record[0]


child = os.posix_spawn(flood, [flood, pin, size], os.environ)
start, cpu = time.monotonic(), time.process_time()
while seen < wanted:
    ring.poll(0.1)
    if way == "consume":
        ring.consume(one)
    else:
        for record in ring.read():
            seen += 1
            volume += len(record)
            check += record[0]
    if not early and seen > wanted // 100:
        early = resident()
    if os.waitpid(child, os.WNOHANG)[0]:
        sys.exit("the producer ended")
took, used = time.monotonic() - start, time.process_time() - cpu
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
os.unlink(pin)
print(f"events {seen}\nbytes {volume}\nseconds {took:f}\ncpu {used:f}")
print(f"sent {live.vars['sent']}\ndropped {live.vars['dropped']}\ngrown {resident() - early}")
