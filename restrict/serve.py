# SPDX-License-Identifier: BSD-2-Clause
"""Reads the ring buffer and hands events to whoever connects; waits for the signal to stop.

Only one process may consume a ring buffer, and its fd is not given away, so `restrict events`
connects to the reader's socket (SOCK_SEQPACKET, root only). Messages, one a packet: an event
record as the programs wrote it; ``lost N`` (the client was too slow for N events); ``live`` (what
came before this was history).

Uses _socket and signalfd(2) directly: the modules socket and signal bring enum along.
"""

from __future__ import annotations

import _socket
import errno
import os
import select
import struct

from pybpf.sys.syscalls import syscall
from restrict import abi
from restrict.errors import KernelError, system_error
from restrict.events import Reader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from restrict.events import Event
    from restrict.fsaccess import Policy

__all__ = ["SOCKET", "SOCKETS", "Server", "connect", "retire", "spawn", "wait_signals"]

SOCKET = "/run/restrict/events"
# Each policy's reader has a socket of its own.
SOCKETS = {"fsaccess": SOCKET, "userns": f"{SOCKET}-userns", "pins": f"{SOCKET}-pins"}
_HISTORY = 1024
_QUEUE = 2 * _HISTORY
_CLIENTS = 32
_SIGNALS = (1, 2, 15)  # SIGHUP, SIGINT, SIGTERM
_SIG_BLOCK = 0
_SFD_CLOEXEC = os.O_CLOEXEC


class _Client:
    """A connection with what is still to be sent on it."""

    __slots__ = ("lost", "queue", "socket")

    def __init__(self, socket: _socket.socket, history: list[bytes]) -> None:
        self.socket = socket
        self.queue = [*history, b"live"]
        self.lost = 0

    def push(self, data: bytes) -> None:
        """Queue a record; a client that reads too slowly loses it, and is told how many."""
        if len(self.queue) >= _QUEUE:
            self.lost += 1
            return
        if self.lost:
            self.queue.append(f"lost {self.lost}".encode())
            self.lost = 0
        self.queue.append(data)

    def flush(self) -> bool:
        """Send what the socket takes now; False if the client is gone."""
        sent = 0
        try:
            for data in self.queue:
                self.socket.send(data)
                sent += 1
        except BlockingIOError:
            pass
        except OSError:
            return False
        finally:
            del self.queue[:sent]
        return True


class Server:
    """The reader of one ring buffer, and its clients. A context manager."""

    def __init__(self, events_fd: int, path: str | None = SOCKET) -> None:
        self._path = path
        self._clients: dict[int, _Client] = {}
        self._history: list[bytes] = []
        self._listener: _socket.socket | None = None
        self._reader = Reader(events_fd)
        self._poll = select.poll()
        try:
            self._poll.register(self._reader.fileno(), select.POLLIN)
            if path is not None:
                self._listen(path)
        except BaseException:
            self.close()
            raise

    def _listen(self, path: str) -> None:
        try:
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
            if os.path.lexists(path):
                os.unlink(path)  # of a reader that is gone: a live one holds the ring buffer
            listener = _socket.socket(
                _socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC
            )
            self._listener = listener
            old = os.umask(0o177)
            try:
                listener.bind(path)
            finally:
                os.umask(old)
            listener.listen(8)
            listener.setblocking(False)
        except OSError as e:
            raise system_error("events cannot be offered", e, "bind", path=path) from None
        self._poll.register(listener.fileno(), select.POLLIN)

    def close(self) -> None:
        for client in self._clients.values():
            client.socket.close()
        self._clients.clear()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            try:
                os.unlink(self._path or "")
            except OSError:
                pass
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        except OSError:
            return
        client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd)
        os.set_inheritable(fd, False)
        raw = client.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
        uid = struct.unpack("=iII", raw)[1]
        if uid != 0 or len(self._clients) >= _CLIENTS:
            client.close()
            return
        client.setblocking(False)
        self._clients[fd] = _Client(client, self._history)
        self._poll.register(fd, 0)
        self._send(fd)

    def _send(self, fd: int) -> None:
        """Send what can be sent, and be told when the rest can; POLLHUP and POLLERR are
        reported unasked."""
        client = self._clients[fd]
        if client.flush():
            self._poll.modify(fd, select.POLLOUT if client.queue else 0)
        else:
            self._drop(fd)

    def _drop(self, fd: int) -> None:
        client = self._clients.pop(fd, None)
        if client is not None:
            self._poll.unregister(fd)
            client.socket.close()

    def _publish(self, data: bytes) -> None:
        self._history.append(data)
        if len(self._history) > _HISTORY:
            del self._history[: _HISTORY // 4]
        for fd, client in list(self._clients.items()):
            client.push(data)
            self._send(fd)

    def run(
        self,
        stop_fd: int = -1,
        seen: Callable[[Event], None] | None = None,
        also: tuple[int, Callable[[], None]] | None = None,
    ) -> None:
        """Serve until ``stop_fd`` is readable (-1: for ever).

        seen: called with each event. also: a further fd, and what to call when it is readable.
        """
        watched = [fd for fd in (stop_fd, also[0] if also is not None else -1) if fd >= 0]
        for fd in watched:
            self._poll.register(fd, select.POLLIN)

        def consume(event: Event) -> None:
            self._publish(event.raw)
            if seen is not None:
                seen(event)

        try:
            while True:
                for fd, mask in self._poll.poll():
                    if fd == stop_fd:
                        return
                    if also is not None and fd == also[0]:
                        also[1]()
                    elif self._listener is not None and fd == self._listener.fileno():
                        self._accept()
                    elif fd == self._reader.fileno():
                        self._reader.read(consume)
                    elif mask & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
                        self._drop(fd)
                    elif fd in self._clients:
                        self._send(fd)
        finally:
            for fd in watched:
                self._poll.unregister(fd)


def spawn(policy: Policy, path: str = SOCKET) -> int | None:
    """A child that reads this policy's events and offers them; returns its pid once it does,
    None if it could not.

    It keeps the ring buffer alone: links and globals are closed in it, so that whoever takes
    hold of the child gets none of them, and it lets go of the terminal or pipes of its parent.
    Events are what it could forge.
    """
    try:
        ready, tell = os.pipe()
    except OSError:  # the policy is in force, and that is what counts
        return None
    try:
        pid = os.fork()
    except OSError:
        os.close(tell)
        os.close(ready)
        return None
    if pid:
        os.close(tell)
        word = os.read(ready, 1)
        os.close(ready)
        if not word:
            os.waitpid(pid, 0)
        return pid if word else None
    try:
        os.setsid()
        os.chdir("/")
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        for handle in policy.handles():
            if handle is not policy.events:
                handle.close()
        with Server(policy.events.fileno(), path) as server:
            os.write(tell, b"x")
            os.close(tell)
            server.run()
    finally:
        os._exit(1)


def retire(path: str = SOCKET) -> int | None:
    """End the reader that offers events here; its pid, None if there is none.

    For a reader that ``spawn`` left, whose ring buffer nobody writes to any more.
    """
    client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    try:
        client.connect(path)
        # Of a listening socket: whoever called listen(2) (unix(7)).
        raw = client.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
    except OSError:
        return None
    finally:
        client.close()
    pid: int = struct.unpack("=iII", raw)[0]
    if pid <= 1 or pid == os.getpid():
        return None
    try:
        os.kill(pid, 15)  # SIGTERM
    except ProcessLookupError:
        return None
    return pid


def wait_signals() -> int:
    """Block SIGHUP, SIGINT and SIGTERM for this thread; a signalfd that tells of them."""
    mask = bytearray(8)
    bits = 0
    for number in _SIGNALS:
        bits |= 1 << (number - 1)
    struct.pack_into("=Q", mask, 0, bits)
    syscall("rt_sigprocmask", _SIG_BLOCK, mask, None, 8)
    return syscall("signalfd4", -1, mask, 8, _SFD_CLOEXEC)


class _Source:
    """A connection to a Server."""

    __slots__ = ("socket",)

    def __init__(self, path: str) -> None:
        self.socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        try:
            self.socket.connect(path)
        except OSError as e:
            self.socket.close()
            raise system_error(
                "the events' reader cannot be reached", e, "connect", path=path
            ) from None

    def receive(self, consume: Callable[[bytes | int], bool], follow: bool) -> bool:
        """Take one message; False if there shall be no further one."""
        data = self.socket.recv(4096)
        if not data or data == b"live":
            return bool(data) and follow
        if data[:5] == b"lost " and data[5:].isdigit() and len(data) < abi.EVENT.size:
            return consume(int(data[5:]))
        return consume(data)


def connect(
    consume: Callable[[bytes | int], bool],
    *,
    follow: bool,
    path: str | Sequence[str] = SOCKET,
) -> bool:
    """Receive from a Server, or from several at once: calls ``consume`` with each record (bytes) or
    number of lost events (int) until it returns False, the history is over (not ``follow``) or the
    reader ends. False: nobody is listening.
    """
    sources: dict[int, _Source] = {}
    poll = select.poll()
    try:
        for name in (path,) if isinstance(path, str) else path:
            try:
                source = _Source(name)
            except KernelError as e:
                if e.errno in (errno.ENOENT, errno.ECONNREFUSED):
                    continue
                raise
            sources[source.socket.fileno()] = source
            poll.register(source.socket.fileno(), select.POLLIN)
        found = bool(sources)
        while sources:
            for fd, _ in poll.poll():
                if not sources[fd].receive(consume, follow):
                    poll.unregister(fd)
                    sources.pop(fd).socket.close()
        return found
    finally:
        for source in sources.values():
            source.socket.close()
