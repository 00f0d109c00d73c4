"""Assertions that keep what was expected and what came, so that a report can show both.

A check states each fact through one of these functions. They raise `Violation`, an AssertionError
whose ``expected`` and ``actual`` the report prints as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

# Characters before the first difference of two long texts that are shown.
_CONTEXT = 30
# Characters on either side of what a text should not contain that are shown, and how long a text
# may be to be shown whole.
_SURROUNDINGS = 80
_LONG = 1000
# Python's own words that tell of its types rather than of the request. "codec can't decode" is none
# of them: it is true of bytes that are no UTF-8, and a client can do something about it.
_LEAKS = (
    "NoneType",
    "Traceback",
    "object has no attribute",
    "codec can't encode",
    "not supported between instances",
)


class Words(str):
    """A description rather than a value: shown without quotes."""


class Violation(AssertionError):
    """The backend did not do what the requirement says.

    Attributes:
        what: the observed thing, e.g. ``"HTTP status"``.
        expected: what the requirement asks for, a value or `Words`.
        actual: what came, likewise.
    """

    def __init__(self, what: str, expected: object, actual: object) -> None:
        self.what = what
        self.expected = _shown(expected)
        self.actual = _shown(actual)
        super().__init__(f"{what}\n  expected: {self.expected}\n  actual:   {self.actual}")


def equal(what: str, actual: object, expected: object) -> None:
    """The two are equal. Of long texts the report shows the part where they begin to differ."""
    if actual == expected:
        return
    if isinstance(actual, str) and isinstance(expected, str):
        start = _common(actual, expected) - _CONTEXT
        if start > _CONTEXT:
            what = f"{what}, from character {start} on"
            raise Violation(what, Words(f"…{expected[start:]!r}"), Words(f"…{actual[start:]!r}"))
    raise Violation(what, expected, actual)


def different(what: str, actual: object, other: object) -> None:
    """The two differ."""
    if actual == other:
        raise Violation(what, Words(f"anything but {_shown(other)}"), actual)


def contains(what: str, actual: str | Collection[Any] | None, part: Any) -> None:
    """The text contains the part, or the collection the element."""
    if actual is None or part not in actual:
        raise Violation(what, Words(f"something that contains {_shown(part)}"), _end_of(actual))


def lacks(what: str, actual: str | Collection[Any] | None, part: Any) -> None:
    """The text does not contain the part, or the collection not the element."""
    if actual is not None and part in actual:
        found = _around(actual, part) if isinstance(actual, str) else actual
        raise Violation(what, Words(f"something without {_shown(part)}"), found)


def starts_with(what: str, actual: str | None, prefix: str) -> None:
    """The text starts with the prefix."""
    if actual is None or not actual.startswith(prefix):
        raise Violation(what, Words(f"a text that starts with {_shown(prefix)}"), actual)


def matches(what: str, actual: str | None, pattern: str) -> None:
    """The regular expression is found in the text."""
    if actual is None or not re.search(pattern, actual):
        raise Violation(what, Words(f"a text that matches /{pattern}/"), _end_of(actual))


def one_of(what: str, actual: object, choices: Collection[Any]) -> None:
    """The value is one of the choices."""
    if actual not in choices:
        listed = ", ".join(_shown(choice) for choice in choices)
        raise Violation(what, Words(f"one of {listed}"), actual)


def between(what: str, actual: float | None, low: float, high: float) -> None:
    """``low <= actual <= high``."""
    if not isinstance(actual, (int, float)) or not low <= actual <= high:
        raise Violation(what, Words(f"from {low} to {high}"), actual)


#: By which a look that began in time may end later, on a host that stands still.
LATE_LOOK_SECONDS = 5.0


def happened(what: str, seconds: float | None, waited: float) -> None:
    """It happened while somebody waited so many seconds for it: after ``seconds``, or never
    (None)."""
    if seconds is None:
        raise Violation(what, Words(f"at most {waited:g}"), Words("not yet"))
    if seconds > waited + LATE_LOOK_SECONDS:
        raise Violation(what, Words(f"at most {waited:g}"), seconds)


class Raised(Generic[E]):
    """What a block of `raises` ended with.

    Attributes:
        error: the exception; only after the block.
    """

    error: E


@contextmanager
def raises(what: str, kind: type[E]) -> Iterator[Raised[E]]:
    """The block ends with an exception of this kind; any other one passes through."""
    raised: Raised[E] = Raised()
    try:
        yield raised
    except kind as error:
        raised.error = error
    else:
        raise Violation(what, Words(f"to end with {kind.__name__}"), Words("nothing was raised"))


def that(what: str, actual: T, is_right: Callable[[T], bool], expected: str) -> None:
    """The predicate holds; ``expected`` says it in words."""
    if not is_right(actual):
        raise Violation(what, Words(expected), actual)


def json_value(what: str, content: str | bytes) -> Any:
    """The content is JSON; returned is its value."""
    try:
        return json.loads(content)
    except ValueError as error:
        raise Violation(what, Words(f"JSON ({error})"), content) from None


def json_object(what: str, content: str | bytes) -> dict[str, Any]:
    """The content is a JSON object; returned are its fields."""
    value = json_value(what, content)
    if not isinstance(value, dict):
        raise Violation(what, Words("a JSON object"), content)
    return value


def clean_error(error: str) -> None:
    """The error tells a client a reason, and nothing of the inside of a Python program."""
    that("error", error.strip(), bool, "a reason")
    for leak in _LEAKS:
        lacks("error", error, leak)


def _common(one: str, other: str) -> int:
    """The number of characters that both texts begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _around(text: str, part: str) -> object:
    """Where the part is in a text, which may be a whole log."""
    at = text.index(part)
    start, end = max(0, at - _SURROUNDINGS), at + len(part) + _SURROUNDINGS
    before, after = "…" if start else "", "…" if end < len(text) else ""
    return Words(f"{before}{text[start:end]!r}{after}")


def _end_of(value: object) -> object:
    """Of a text that may be a whole log or page, in which something is missing: its end."""
    if not isinstance(value, str) or len(value) <= _LONG:
        return value
    return Words(f"{len(value)} characters, which end with {value[-_LONG:]!r}")


def _shown(value: object) -> str:
    return str(value) if isinstance(value, Words) else repr(value)
