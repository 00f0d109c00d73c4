"""Who boots the engine: an instance for itself, or, with SHARED_ENGINE, one for all of the model.

One Python process hands out some 20,000 tokens per second, and a GPU makes more of them with a
small model. So several instances, each in a process of its own, can serve one engine: the first
one, the *host*, boots it; the others, its *guests*, send it requests over sockets of their own, as
the API servers of `vllm serve --api-server-count` do.

Host and guests hold a connection each, and what they say is one JSON object per packet:

* host to guest, first: its `Ticket`, once the engine is up
* host to guest: "leaving", when the model is unloaded, upon which the guest drains and hangs up
* guest to host: vLLM's gauges, and whether it is idle. The engine reports to whichever of its
  clients it is sending to, and only the host can put these reports in order
* a host that hangs up without "leaving" has lost its engine

They meet at a socket in the abstract namespace, which leaves nothing behind and whose name tells
the server's process and the model; each side makes sure that the other belongs to the same server.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import shutil
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from vllm_triton_backend.adapter import Engine, EngineAddresses, Vllm
from vllm_triton_backend.errors import LoadError
from vllm_triton_backend.metrics import Stats
from vllm_triton_backend.watchdog import parent_of

_POLL_SECONDS = 0.2
# Between the beginnings of the loads of two instances of one model, on a busy host.
_MEETING_SECONDS = 120.0
_LARGEST_PACKET = 4096
_LEAVING = {"leaving": True}
#: What in Stats is of the engine as it is now, and not of the requests of one client.
_GAUGES = ("running", "waiting", "kv_cache_usage")


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a guest needs to use the host's engine. `index` is vLLM's number of the client."""

    index: int
    addresses: EngineAddresses


@dataclass(frozen=True, slots=True)
class FrontEnd:
    """What its share of the engine may ask of an instance.

    Attributes:
        engine: as `EngineShare.boot` gave it.
        is_idle: whether it has no live request.
        drain: refuses new requests and waits for those that run.
        export: takes statistics that another instance was given.
    """

    engine: Engine
    is_idle: Callable[[], bool]
    drain: Callable[[], None]
    export: Callable[[Stats], None]


class EngineShare(Protocol):
    """How an instance comes to its engine, and what it owes to the other instances.

    Attributes:
        instances: how many use the engine.
    """

    instances: int

    async def boot(
        self, vllm: Vllm, arguments: Mapping[str, Any], stat_loggers: Sequence[Any]
    ) -> Engine:
        """The engine, ready for requests; runs on the event loop that will use it.

        Raises:
            LoadError: the instance that boots the engine failed.
        """

    def begin(self, front_end: FrontEnd) -> None:
        """The instance takes requests from now on."""

    def record(self, stats: Stats) -> Stats:
        """Statistics of vLLM as this instance should export them."""

    def is_idle(self) -> bool:
        """Whether no other instance of the engine has a live request."""

    def leave(self) -> None:
        """The model is being unloaded: tell the others."""

    def close(self, timeout: float) -> None:
        """Wait until nobody else needs the engine; it may be shut down afterwards."""


class Alone:
    """The engine of one instance."""

    instances = 1

    async def boot(
        self, vllm: Vllm, arguments: Mapping[str, Any], stat_loggers: Sequence[Any]
    ) -> Engine:
        return await vllm.start_engine(arguments, stat_loggers)

    def begin(self, front_end: FrontEnd) -> None:
        pass

    def record(self, stats: Stats) -> Stats:
        return stats

    def is_idle(self) -> bool:
        return True

    def leave(self) -> None:
        pass

    def close(self, timeout: float) -> None:
        pass


class EngineHost:
    """Boots the engine and lets the other instances of the model use it.

    Args:
        name: see `server.socket_name`.
        instances: how many there will be, with this one.
    """

    def __init__(self, name: str, instances: int) -> None:
        self.instances = instances
        # The watchdog removes it, as it is below its own directory.
        folder = self._folder = tempfile.mkdtemp(dir=os.environ.get("VLLM_RPC_BASE_PATH"))
        self._tickets = [
            Ticket(
                index, EngineAddresses(f"ipc://{folder}/in{index}", f"ipc://{folder}/out{index}")
            )
            for index in range(1, instances)
        ]
        self._addresses = [ticket.addresses for ticket in self._tickets]
        self._lock = threading.Lock()
        self._front_end: FrontEnd | None = None
        self._waiting: list[socket.socket] = []
        # Of each guest with a ticket: whether it is idle.
        self._idle: dict[socket.socket, bool] = {}
        # When the engine gave the gauges that were exported last (monotonic clock).
        self._latest = 0.0
        self._leaving = False
        self._closed = threading.Event()
        self._gone = threading.Condition(self._lock)
        self._listener: socket.socket | None = _listen(name)
        self._thread = threading.Thread(target=self._run, name="vllm-guests", daemon=True)
        self._thread.start()

    async def boot(
        self, vllm: Vllm, arguments: Mapping[str, Any], stat_loggers: Sequence[Any]
    ) -> Engine:
        return await vllm.start_engine(arguments, stat_loggers, self._addresses)

    def begin(self, front_end: FrontEnd) -> None:
        with self._lock:
            self._front_end = front_end
            waiting, self._waiting = self._waiting, []
            for guest in waiting:
                self._admit(guest)

    def record(self, stats: Stats) -> Stats:
        with self._lock:
            if stats.running is not None:
                self._latest = time.monotonic()
        return stats

    def is_idle(self) -> bool:
        with self._lock:
            return all(self._idle.values())

    def leave(self) -> None:
        with self._lock:
            self._leaving = True
            for guest in self._idle:
                _send(guest, _LEAVING)

    def close(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        with self._lock:
            while self._idle and (left := deadline - time.monotonic()) > 0:
                self._gone.wait(left)
        self._closed.set()
        self._thread.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    # -- its thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closed.is_set() and not self._lost_engine():
                for readable in self._readable():
                    if readable is self._listener:
                        self._welcome()
                    else:
                        self._receive_news(readable)
        finally:
            with self._lock:
                for guest in [*self._waiting, *self._idle]:
                    guest.close()
                self._waiting.clear()
                self._idle.clear()
                self._gone.notify_all()
                self._stop_listening()

    def _lost_engine(self) -> bool:
        front_end = self._front_end
        return front_end is not None and not self._leaving and not front_end.engine.alive

    def _readable(self) -> list[socket.socket]:
        with self._lock:
            watched = [*self._waiting, *self._idle]
            if self._listener is not None:
                watched.append(self._listener)
        try:
            return _readable(watched, _POLL_SECONDS)
        except (OSError, ValueError):
            # `begin` closed one of them in another thread.
            return []

    def _welcome(self) -> None:
        assert self._listener is not None
        guest, _ = self._listener.accept()
        if not _same_server(guest):
            guest.close()
            return
        with self._lock:
            if self._front_end is None:
                self._waiting.append(guest)
            else:
                self._admit(guest)

    def _admit(self, guest: socket.socket) -> None:
        """Hand out a ticket; the caller holds the lock."""
        if not self._tickets or self._leaving:
            guest.close()
            return
        _send(guest, asdict(self._tickets.pop(0)))
        self._idle[guest] = True
        if not self._tickets:
            # The next load of the model, which may begin while this one serves, meets here too.
            self._stop_listening()

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _receive_news(self, guest: socket.socket) -> None:
        message = _receive(guest)
        with self._lock:
            if message is None:
                self._idle.pop(guest, None)
                if guest in self._waiting:
                    self._waiting.remove(guest)
                guest.close()
                self._gone.notify_all()
                return
            self._idle[guest] = message["idle"]
            newer = message["at"] > self._latest
            self._latest = max(self._latest, message["at"])
        if newer and self._front_end is not None:
            self._front_end.export(Stats(**message["gauges"]))


class EngineGuest:
    """Uses the engine of an `EngineHost`.

    Args:
        name: see `server.socket_name`.
        instances: how many use the engine.
    """

    def __init__(self, name: str, instances: int) -> None:
        self.instances = instances
        self._connection = _connect(name)
        self._lock = threading.Lock()
        self._gauges: dict[str, Any] = {}
        self._at = 0.0
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    async def boot(
        self, vllm: Vllm, arguments: Mapping[str, Any], stat_loggers: Sequence[Any]
    ) -> Engine:
        # Blocks the loop, on which nothing else runs yet.
        message = _receive(self._connection)
        if message is None:
            raise LoadError(
                "the first instance of this model, which shares its engine with this one "
                "(SHARED_ENGINE), could not be loaded, or was loaded for fewer instances"
            )
        return await vllm.join_engine(
            arguments, stat_loggers, EngineAddresses(**message["addresses"]), message["index"]
        )

    def begin(self, front_end: FrontEnd) -> None:
        self._thread = threading.Thread(
            target=self._run, args=(front_end,), name="vllm-host", daemon=True
        )
        self._thread.start()

    def record(self, stats: Stats) -> Stats:
        if stats.running is None:
            return stats
        with self._lock:
            self._at = time.monotonic()
            self._gauges = {gauge: getattr(stats, gauge) for gauge in _GAUGES}
        none: dict[str, Any] = dict.fromkeys(_GAUGES)
        return replace(stats, **none)

    def is_idle(self) -> bool:
        return True

    def leave(self) -> None:
        pass

    def close(self, timeout: float) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout)
        self._connection.close()

    # -- its thread ------------------------------------------------------------------------------

    def _run(self, front_end: FrontEnd) -> None:
        told: tuple[float, bool] = (0.0, True)
        while not self._closed.is_set():
            if _readable([self._connection], _POLL_SECONDS):
                if _receive(self._connection) == _LEAVING:
                    front_end.drain()
                    self._connection.shutdown(socket.SHUT_RDWR)
                elif not self._closed.is_set():
                    front_end.engine.mark_dead()
                return
            idle = front_end.is_idle()
            with self._lock:
                news = {"at": self._at, "idle": idle, "gauges": self._gauges}
            if told != (self._at, idle):
                told = (self._at, idle)
                _send(self._connection, news)


def _listen(name: str) -> socket.socket:
    """Waits until a host of an earlier load has all its guests."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for left in _attempts():
        try:
            listener.bind(name)
            break
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not left:
                listener.close()
                raise LoadError(f"SHARED_ENGINE: {error.strerror}") from None
    listener.listen()
    return listener


def _connect(name: str) -> socket.socket:
    """Waits until the host listens, which Triton may start later."""
    for left in _attempts():
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.connect(name)
            if _same_server(connection):
                return connection
        except OSError:
            pass
        connection.close()
        if not left:
            break
    raise LoadError(
        "SHARED_ENGINE: the first instance of this model does not accept another one; unload the "
        "model before changing the number of its instances"
    )


def _attempts() -> Iterator[float]:
    """The seconds left, after a short wait each; 0 at last."""
    deadline = time.monotonic() + _MEETING_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        yield left
        time.sleep(_POLL_SECONDS / 2)
    yield 0.0


def _same_server(peer: socket.socket) -> bool:
    """Whether a stub of the server of this one is at the other end."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, user, _ = struct.unpack("3i", credentials)
    return user == os.getuid() and parent_of(pid) == os.getppid()


def _readable(sockets: Sequence[socket.socket], seconds: float) -> list[socket.socket]:
    """Those with something to read, as soon as there is one; select.select, with which a socket's
    number must be below 1024, is not for a process of many files."""
    poll = select.poll()
    by_number = {one.fileno(): one for one in sockets}
    for number in by_number:
        poll.register(number, select.POLLIN)
    return [by_number[number] for number, _ in poll.poll(1000 * seconds)]


def _send(peer: socket.socket, message: Mapping[str, Any]) -> None:
    # Who does not listen any more has hung up, which is seen when reading.
    with contextlib.suppress(OSError):
        peer.send(json.dumps(message).encode())


def _receive(peer: socket.socket) -> Any | None:
    """The next message; None when the other side has hung up."""
    try:
        data = peer.recv(_LARGEST_PACKET)
    except OSError:
        return None
    return json.loads(data) if data else None
