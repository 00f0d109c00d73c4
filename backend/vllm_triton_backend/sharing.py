"""Who boots the engine: an instance for itself, or, with SHARED_ENGINE, one for all of the model.

One Python process hands out some 20,000 tokens per second, and a GPU makes more of them with a
small model. So several instances, each in a process of its own, can serve one engine: the first
one, its *owner*, boots it; the others are *clients* of it, as vLLM calls those that send requests
to an engine over sockets of their own, like the API servers of `vllm serve --api-server-count`.

Each client has a connection with the owner, of one JSON object per packet:

* owner to client, first: its `ClientSlot`, once the engine is up
* owner to client: "unloading", when the model is unloaded, upon which the client drains and closes
  the connection
* client to owner: vLLM's gauges, and whether it is idle. The engine reports to whichever of its
  clients it is sending to, and only the owner can put these reports in order
* an owner that closes the connection without "unloading" has lost its engine

The owner listens on a socket in the abstract namespace, which leaves nothing behind and whose name
tells the server's process and the model; each side makes sure that the other belongs to the same
server.
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
from vllm_triton_backend.stats import Stats
from vllm_triton_backend.watchdog import parent_of

_POLL_SECONDS = 0.2
# How long an instance waits for another one of its model to be there. Triton does not start their
# loads at the same moment, and on a busy host they may be far apart.
_CONNECT_SECONDS = 120.0
_LARGEST_PACKET = 4096
_UNLOADING = {"unloading": True}
#: What in Stats is of the engine as it is now, and not of the requests of one client.
_GAUGES = ("running", "waiting", "kv_cache_usage")


@dataclass(frozen=True, slots=True)
class ClientSlot:
    """What a client needs to use the owner's engine. `index` is vLLM's number of the client."""

    index: int
    addresses: EngineAddresses


@dataclass(frozen=True, slots=True)
class ServingInstance:
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

    def begin(self, instance: ServingInstance) -> None:
        """The instance takes requests from now on."""

    def record(self, stats: Stats) -> Stats:
        """Statistics of vLLM as this instance should export them."""

    def is_idle(self) -> bool:
        """Whether no other instance of the engine has a live request."""

    def announce_unload(self) -> None:
        """The model is being unloaded: tell the others."""

    def close(self, timeout: float) -> None:
        """Wait until nobody else needs the engine; it may be shut down afterwards."""


class SingleInstance:
    """The engine of one instance."""

    instances = 1

    async def boot(
        self, vllm: Vllm, arguments: Mapping[str, Any], stat_loggers: Sequence[Any]
    ) -> Engine:
        return await vllm.start_engine(arguments, stat_loggers)

    def begin(self, instance: ServingInstance) -> None:
        pass

    def record(self, stats: Stats) -> Stats:
        return stats

    def is_idle(self) -> bool:
        return True

    def announce_unload(self) -> None:
        pass

    def close(self, timeout: float) -> None:
        pass


class EngineOwner:
    """Boots the engine and lets the other instances of the model use it.

    Args:
        name: see `parent_server.socket_name`.
        instances: how many there will be, with this one.
    """

    def __init__(self, name: str, instances: int) -> None:
        self.instances = instances
        # First: it fails where another owner does not let go of the name.
        self._listener: socket.socket | None = _listen(name)
        # The watchdog removes it, as it is below its own directory.
        folder = self._folder = tempfile.mkdtemp(dir=os.environ.get("VLLM_RPC_BASE_PATH"))
        self._slots = [
            ClientSlot(
                index, EngineAddresses(f"ipc://{folder}/in{index}", f"ipc://{folder}/out{index}")
            )
            for index in range(1, instances)
        ]
        self._addresses = [slot.addresses for slot in self._slots]
        self._lock = threading.Lock()
        self._instance: ServingInstance | None = None
        self._waiting: list[socket.socket] = []
        # Of each client with a slot: whether it is idle.
        self._idle: dict[socket.socket, bool] = {}
        # When the engine gave the gauges that were exported last (monotonic clock).
        self._latest = 0.0
        self._unloading = False
        self._closed = threading.Event()
        self._client_left = threading.Condition(self._lock)
        # A forked engine would keep the name, and clients connected, after all is closed here.
        os.register_at_fork(after_in_child=self._close_sockets)
        self._thread = threading.Thread(target=self._run, name="vllm-clients", daemon=True)
        self._thread.start()

    async def boot(
        self, vllm: Vllm, arguments: Mapping[str, Any], stat_loggers: Sequence[Any]
    ) -> Engine:
        return await vllm.start_engine(arguments, stat_loggers, self._addresses)

    def begin(self, instance: ServingInstance) -> None:
        with self._lock:
            self._instance = instance
            waiting, self._waiting = self._waiting, []
            for client in waiting:
                self._grant_slot(client)

    def record(self, stats: Stats) -> Stats:
        with self._lock:
            if stats.running is not None:
                self._latest = time.monotonic()
        return stats

    def is_idle(self) -> bool:
        with self._lock:
            return all(self._idle.values())

    def announce_unload(self) -> None:
        with self._lock:
            self._unloading = True
            for client in self._idle:
                _send(client, _UNLOADING)

    def close(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        with self._lock:
            while self._idle and (left := deadline - time.monotonic()) > 0:
                self._client_left.wait(left)
        self._closed.set()
        self._thread.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    # -- its thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closed.is_set() and not self._lost_engine():
                for readable in self._readable():
                    if readable is self._listener:
                        self._accept(readable)
                    else:
                        self._receive_report(readable)
        finally:
            with self._lock:
                self._close_sockets()
                self._client_left.notify_all()

    def _close_sockets(self) -> None:
        for client in [*self._waiting, *self._idle]:
            client.close()
        self._waiting.clear()
        self._idle.clear()
        self._stop_listening()

    def _lost_engine(self) -> bool:
        instance = self._instance
        return instance is not None and not self._unloading and not instance.engine.alive

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

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError:
            # `begin` closed it in another thread, as the last slot was given away.
            return
        if not _same_server(client):
            client.close()
            return
        with self._lock:
            if self._instance is None:
                self._waiting.append(client)
            else:
                self._grant_slot(client)

    def _grant_slot(self, client: socket.socket) -> None:
        """Hand out a slot; the caller holds the lock."""
        if not self._slots or self._unloading:
            client.close()
            return
        _send(client, asdict(self._slots.pop(0)))
        self._idle[client] = True
        if not self._slots:
            # The next load of the model, which may begin while this one serves, meets here too.
            self._stop_listening()

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _receive_report(self, client: socket.socket) -> None:
        message = _receive(client)
        with self._lock:
            if message is None:
                self._idle.pop(client, None)
                if client in self._waiting:
                    self._waiting.remove(client)
                client.close()
                self._client_left.notify_all()
                return
            self._idle[client] = message["idle"]
            newer = message["at"] > self._latest
            self._latest = max(self._latest, message["at"])
        if newer and self._instance is not None:
            self._instance.export(Stats(**message["gauges"]))


class EngineClient:
    """Uses the engine of an `EngineOwner`.

    Args:
        name: see `parent_server.socket_name`.
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

    def begin(self, instance: ServingInstance) -> None:
        self._thread = threading.Thread(
            target=self._run, args=(instance,), name="vllm-owner", daemon=True
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

    def announce_unload(self) -> None:
        pass

    def close(self, timeout: float) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout)
        self._connection.close()

    # -- its thread ------------------------------------------------------------------------------

    def _run(self, instance: ServingInstance) -> None:
        sent: tuple[float, bool] = (0.0, True)
        while not self._closed.is_set():
            if _readable([self._connection], _POLL_SECONDS):
                if _receive(self._connection) == _UNLOADING:
                    instance.drain()
                    self._connection.shutdown(socket.SHUT_RDWR)
                elif not self._closed.is_set():
                    instance.engine.mark_dead()
                return
            idle = instance.is_idle()
            with self._lock:
                report = {"at": self._at, "idle": idle, "gauges": self._gauges}
            if sent != (self._at, idle):
                sent = (self._at, idle)
                _send(self._connection, report)


def _listen(name: str) -> socket.socket:
    """Waits until an owner of an earlier load has all its clients."""
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
    """Waits until the owner listens, which Triton may start later."""
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
    deadline = time.monotonic() + _CONNECT_SECONDS
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
    # A connection that is closed by now is noticed when reading.
    with contextlib.suppress(OSError):
        peer.send(json.dumps(message).encode())


def _receive(peer: socket.socket) -> Any | None:
    """The next message; None when the other side has closed the connection."""
    try:
        data = peer.recv(_LARGEST_PACKET)
    except OSError:
        return None
    return json.loads(data) if data else None
