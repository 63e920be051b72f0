# SPDX-License-Identifier: BSD-2-Clause
"""Ring and perf buffers with asyncio. The only module of pybpf that imports it.

    async for event in aio.records(ring):
        …
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pybpf.kernel.perfbuf import PerfBuffer
    from pybpf.kernel.ringbuf import RingBuffer

__all__ = ["records", "wait"]

# A record that is reserved but not submitted makes the fd readable without anything to read.
_PAUSE = 0.001


async def wait(buffer: RingBuffer | PerfBuffer, timeout: float | None = None) -> list[Any]:
    """The next records, at least one, waiting for them without blocking the event loop; an empty
    list after ``timeout`` seconds (None: for ever). One waiter for each buffer at a time."""
    loop = asyncio.get_running_loop()
    end = None if timeout is None else loop.time() + timeout
    while not (found := buffer.read()):
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(buffer.fileno(), _wake, ready)
        try:
            async with asyncio.timeout_at(end):
                await ready
        except TimeoutError:
            return buffer.read()
        finally:
            loop.remove_reader(buffer.fileno())
        if not buffer.pending:
            continue
        if found := buffer.read():
            return found
        await asyncio.sleep(_PAUSE)
    return found


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def records(buffer: RingBuffer | PerfBuffer) -> AsyncIterator[Any]:
    """Records for ever, waiting for each next one."""
    while True:
        for record in await wait(buffer):
            yield record
