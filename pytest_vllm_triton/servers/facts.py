"""What a running server says of itself."""

from __future__ import annotations

from pytest_vllm_triton.plain_http import plain_client

_DEADLINE_SECONDS = 5.0


def triton_version(url: str) -> str:
    """The version of the Triton at this address, "" if it does not say.

    It is for the report only: a server that does not answer is found by the checks.
    """
    import httpx

    try:
        with plain_client(_DEADLINE_SECONDS) as client:
            value = client.get(f"{url}/v2").json()
    except (httpx.HTTPError, ValueError):
        return ""
    version = value.get("version") if isinstance(value, dict) else None
    return version if isinstance(version, str) else ""
