"""Free ports on the loopback address, kept free until the server binds them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

LOOPBACK = "127.0.0.1"


@contextlib.contextmanager
def reserved_ports(count: int) -> Iterator[list[int]]:
    """Ports that nobody else is given, while the context lasts.

    Each is held by a socket that is bound but does not listen. With SO_REUSEADDR on both sides the
    kernel lets Triton bind and listen there all the same (all three of its services set it), but
    hands the port to no program that asks for just any port. So a boot of a minute does not end
    with a port that has gone to somebody else.
    """
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            holder = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind((LOOPBACK, 0))
            ports.append(holder.getsockname()[1])
        yield ports
