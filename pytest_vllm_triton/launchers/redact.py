"""Keep secrets out of what users paste into issues: logs, command lines, reports."""

from __future__ import annotations

import re
from collections.abc import Mapping

#: Variables whose values are secrets. Not TOKENIZERS_PARALLELISM.
_SECRET_NAME = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|API_?KEY|ACCESS_KEY|PRIVATE_KEY)(_|$)",
    re.IGNORECASE,
)
#: Shorter values are words such as "1" or "none", which stand in every second line.
_SHORTEST = 6
MASK = "***"


def is_secret(name: str) -> bool:
    """Whether a variable of this name holds a secret."""
    return _SECRET_NAME.search(name) is not None


class Redactor:
    """Replaces the secret values of these environments, wherever they stand in a text."""

    def __init__(self, *environments: Mapping[str, str]) -> None:
        values = {
            value
            for environment in environments
            for name, value in environment.items()
            if is_secret(name) and len(value) >= _SHORTEST
        }
        # The longest first: one secret may be part of another.
        self._values = sorted(values, key=lambda value: (-len(value), value))

    def text(self, text: str) -> str:
        for value in self._values:
            text = text.replace(value, MASK)
        return text

    def line(self, line: bytes) -> bytes:
        for value in self._values:
            line = line.replace(value.encode(), MASK.encode())
        return line
