# SPDX-License-Identifier: BSD-2-Clause
"""restrict.serve: the socket that events come from, with a real ring buffer map."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pybpf.errors import KernelError
from pybpf.kernel import map as maps
from pybpf.sys import abi as bpf_abi
from restrict import abi, serve

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.getuid() != 0, reason="the socket is root's"),
]


def record(pid: int) -> bytes:
    return abi.EVENT.pack(1, 0, 4, 1, pid, pid, 0, 0, 2, 3, 4, 0, 0, 0, 0, 1, b"c", b"/", 0)


@pytest.fixture
def ring() -> Iterator[maps.Map]:
    try:
        made = maps.create(bpf_abi.BPF_MAP_TYPE_RINGBUF, 0, 0, 4096, name="events")
    except KernelError as e:
        if os.geteuid() == 0:
            raise
        pytest.skip(f"no ring buffer can be made here: {e}")
    with made:
        yield made


class Running:
    """A Server in a thread of its own, until the end of a ``with`` block."""

    def __init__(self, ring: maps.Map, path: Path) -> None:
        self.server = serve.Server(ring.fileno(), str(path))
        # The tests publish from another thread than the one that serves; a Server alone has one.
        lock = threading.RLock()
        for name in ("_accept", "_drop", "_publish", "_send"):
            setattr(self.server, name, self._locked(lock, getattr(self.server, name)))
        self.reader, self.writer = os.pipe()
        self.thread = threading.Thread(target=self.server.run, args=(self.reader,))

    @staticmethod
    def _locked(lock: Any, function: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            with lock:
                function(*arguments)

        return call

    def __enter__(self) -> serve.Server:
        self.thread.start()
        return self.server

    def __exit__(self, *exc: object) -> None:
        os.write(self.writer, b"x")
        self.thread.join(120)
        assert not self.thread.is_alive()
        self.server.close()
        os.close(self.reader)
        os.close(self.writer)


def keep(got: list[bytes | int], event: bytes | int) -> bool:
    """A reader that keeps what it is given and wants more."""
    got.append(event)
    return True


def test_history_then_end(ring: maps.Map, tmp_path: Path) -> None:
    path = tmp_path / "events"
    with Running(ring, path) as server:
        server._publish(record(7))
        server._publish(record(8))
        got: list[bytes | int] = []
        assert serve.connect(lambda x: keep(got, x), follow=False, path=str(path))
        assert got == [record(7), record(8)]
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()


def test_a_history_that_no_socket_buffer_holds(ring: maps.Map, tmp_path: Path) -> None:
    path = tmp_path / "events"
    with Running(ring, path) as server:
        for i in range(1000):
            server._publish(record(i))
        got: list[bytes | int] = []
        assert serve.connect(lambda x: keep(got, x), follow=False, path=str(path))
        assert got == [record(i) for i in range(1000)]


def test_following_until_the_reader_ends(ring: maps.Map, tmp_path: Path) -> None:
    path = tmp_path / "events"
    got: list[bytes | int] = []
    with Running(ring, path) as server:
        client = threading.Thread(
            target=serve.connect,
            args=(lambda x: keep(got, x),),
            kwargs={"follow": True, "path": str(path)},
        )
        client.start()
        deadline = time.monotonic() + 120
        while not server._clients and time.monotonic() < deadline:
            time.sleep(0.01)
        server._publish(record(9))
    client.join(120)
    assert not client.is_alive()
    assert got == [record(9)]


def test_a_slow_client_is_told_what_it_lost(ring: maps.Map, tmp_path: Path) -> None:
    path = tmp_path / "events"
    release = threading.Event()
    got: list[bytes | int] = []

    def consume(item: bytes | int) -> bool:
        release.wait(120)
        got.append(item)
        return True

    with Running(ring, path) as server:
        client = threading.Thread(
            target=serve.connect, args=(consume,), kwargs={"follow": True, "path": str(path)}
        )
        client.start()
        deadline = time.monotonic() + 120
        while not server._clients and time.monotonic() < deadline:
            time.sleep(0.01)
        (held,) = server._clients.values()
        sent = 0
        while not held.lost and sent < 100000:
            server._publish(record(sent))
            sent += 1
        assert held.lost == 1
        release.set()
        while held.lost:
            time.sleep(0.01)
            server._publish(record(sent))
            sent += 1
        while held.queue:
            time.sleep(0.01)
            server._send(held.socket.fileno())
    client.join(120)
    lost = sum(item for item in got if isinstance(item, int))
    assert lost >= 1
    assert lost + sum(isinstance(item, bytes) for item in got) == sent


def test_a_client_that_goes_is_forgotten(ring: maps.Map, tmp_path: Path) -> None:
    path = tmp_path / "events"
    with Running(ring, path) as server:
        server._publish(record(1))
        serve.connect(lambda x: False, follow=True, path=str(path))
        deadline = time.monotonic() + 120
        while server._clients and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not server._clients


def test_a_stale_socket_is_replaced(ring: maps.Map, tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_text("stale")
    with Running(ring, path):
        assert serve.connect(lambda x: True, follow=False, path=str(path))


def test_nobody_listens(tmp_path: Path) -> None:
    assert not serve.connect(lambda x: True, follow=False, path=str(tmp_path / "none"))


def test_several_readers_at_once(ring: maps.Map, tmp_path: Path) -> None:
    """Of those that are there; the end of one does not end the others."""
    paths = [str(tmp_path / name) for name in ("one", "none", "two")]
    with (
        maps.create(bpf_abi.BPF_MAP_TYPE_RINGBUF, 0, 0, 4096, name="events") as other,
        Running(other, tmp_path / "two") as second,
    ):
        with Running(ring, tmp_path / "one") as first:
            first._publish(record(1))
            second._publish(record(2))
            got: list[bytes | int] = []
            assert serve.connect(lambda x: keep(got, x), follow=False, path=paths)
            assert sorted(map(str, got)) == sorted(map(str, (record(1), record(2))))
        got = []
        assert serve.connect(lambda x: keep(got, x), follow=False, path=paths)
        assert got == [record(2)]
    assert not serve.connect(lambda x: True, follow=False, path=paths)


def test_a_further_fd(ring: maps.Map) -> None:
    reader, writer = os.pipe()
    stop, end = os.pipe()
    seen: list[bytes] = []

    def readable() -> None:
        seen.append(os.read(reader, 10))
        os.write(end, b"x")

    os.write(writer, b"ended")
    with serve.Server(ring.fileno(), None) as server:
        server.run(stop, also=(reader, readable))
    assert seen == [b"ended"]
    for fd in (reader, writer, stop, end):
        os.close(fd)
