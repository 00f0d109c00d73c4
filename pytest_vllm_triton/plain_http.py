"""HTTP between this process and a server at a known address."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx


def plain_client(timeout: float, **options: Any) -> httpx.Client:
    """A client that loads no certificates and consults no proxies: between the two is nothing else.

    Args:
        timeout: seconds for each step of a request.
        options: further arguments of `httpx.Client`.
    """
    import httpx

    return httpx.Client(timeout=timeout, verify=False, trust_env=False, **options)
