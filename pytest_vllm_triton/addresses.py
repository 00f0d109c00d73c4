"""Addresses of servers: how users write them, and the ports beside the one that they name."""

from __future__ import annotations

import re

from pytest_vllm_triton.errors import UserError

_HOST_AND_PORT = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^/:@\s]+):(?P<port>\d{1,5})")
_HIGHEST_PORT = 65535


def http_url(text: str) -> str:
    """``http://HOST:PORT``, with a path if one was given; the scheme may be left out.

    Raises:
        UserError: it is none.
    """
    authority, slash, path = text.removeprefix("http://").rstrip("/").partition("/")
    if not _is_host_and_port(authority) or re.search(r"\s", path):
        raise UserError(f"{text!r} is not of the form http://HOST:PORT.")
    return f"http://{authority}{slash}{path}"


def host_and_port(text: str) -> str:
    """``HOST:PORT``; a scheme before it is taken off.

    Raises:
        UserError: it is none.
    """
    address = re.sub(r"^(grpc|http)://", "", text).rstrip("/")
    if not _is_host_and_port(address):
        raise UserError(f"{text!r} is not of the form HOST:PORT.")
    return address


def port_above(url: str, distance: int) -> str | None:
    """``HOST:PORT`` that far above the port of an `http_url`; None where there is no such port."""
    found = _HOST_AND_PORT.match(url.removeprefix("http://"))
    assert found is not None
    port = int(found["port"]) + distance
    return f"{found['host']}:{port}" if port <= _HIGHEST_PORT else None


def _is_host_and_port(text: str) -> bool:
    found = _HOST_AND_PORT.fullmatch(text)
    return found is not None and 0 < int(found["port"]) <= _HIGHEST_PORT
