"""Parameters: what clients send -> keyword arguments of vLLM's SamplingParams or PoolingParams.

The table of names and types is vLLM's own: the type hints of the class that is handed in, so a
new parameter of a new vLLM works on the day it appears. Values may be typed loosely, because
clients send them as JSON, as strings ("0.1", "false") or as Triton request parameters (scalars
only): "5" is an int where vLLM wants one, a JSON text is a list or an object where vLLM wants
one, null means "not given". What cannot be converted is refused with the parameter's name.

This is not msgspec.convert(…, strict=False), which vLLM's environment has: it reads no JSON text
as a list or an object, ignores unknown keys inside an object, refuses a null inside one where the
type has none, and takes "nan" for a number. And what it says of a refusal ("Expected `array`,
got `str`") neither shows the value nor completes the sentence "'name' must be …".
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from vllm_triton_backend.errors import RequestError, invalid

# Fields of SamplingParams and PoolingParams that belong to the backend or are vLLM's internals. It
# does not check those: a wrong one ends the engine, or its input thread and so all later requests.
_RESERVED = frozenset(
    {
        *("output_kind", "skip_clone", "output_text_buffer_length", "flat_logprobs"),
        *("stream_interval", "trace_decode_token_ids", "task", "requires_token_ids"),
        *("late_interaction_params", "extra_kwargs"),
    }
)
# Name before vLLM 0.11, still sent by clients; these keys of it have no successor.
_OLD_STRUCTURED = "guided_decoding"
_OLD_STRUCTURED_KEYS = frozenset({"backend", "disable_fallback"})
# Source: Triton's "Parameters Extension", with the `id` of a `generate` request.
_TRITONS_OWN = frozenset(
    {"id", "sequence_id", "sequence_start", "sequence_end", "headers", "binary_data_output"}
)
_TRUE, _FALSE = ("true", "1"), ("false", "0")

MOST_INT = 2**63 - 1
# A client's JSON goes on by pickle, to each rank of a parallel engine, which takes 490 levels.
MOST_LEVELS = 100


def read_json(text: str) -> Any:
    """JSON that a client has written.

    Raises:
        ValueError: it is none, or it spells half a surrogate pair ("\\ud800"), which is no text:
            neither vLLM nor an error that quotes it could carry it on. Or it is nested too deeply.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if text.count("[") + text.count("{") > MOST_LEVELS and _is_deep(value, MOST_LEVELS):
        raise ValueError("nested too deeply")
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _is_deep(value: Any, levels: int) -> bool:
    if not isinstance(value, list | dict):
        return False
    items = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deep(item, levels - 1) for item in items)


class Mismatch(Exception):
    """The value does not fit the type; the text completes "'name' must be …"."""


class ParameterParser:
    """Converts client mappings for one class of parameters.

    Args:
        params_class: a class with annotated fields whose constructor takes them as keywords
            (vLLM's SamplingParams and PoolingParams; a dataclass in tests).
        source: the input that holds them, for what is said of a refusal.
    """

    def __init__(self, params_class: Callable[..., Any], source: str) -> None:
        self._class = params_class
        self._prefix = f"Invalid {source}: "
        hints = typing.get_type_hints(params_class, include_extras=True)
        self._hints = {
            name: hint
            for name, hint in hints.items()
            if not name.startswith("_") and name not in _RESERVED
        }

    def from_json(self, text: str) -> dict[str, Any]:
        """The object in a `sampling_parameters` tensor, not yet converted.

        Raises:
            RequestError: INVALID_ARG when the text is not a JSON object.
        """
        try:
            value = read_json(text)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise invalid(self._prefix + "expected a valid JSON object.")
        return value

    def pick_request_parameters(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The sampling parameters among Triton's request parameters.

        Request parameters also carry forwarded HTTP and gRPC headers, and those that Triton
        reserves for itself, which `generate` hands on. Headers are always strings and can be told
        apart by nothing else, so an unknown *string* is dropped and an unknown number or boolean
        is refused. A string whose name is nearly a parameter's ("temprature") is refused as well.

        Raises:
            RequestError: INVALID_ARG naming the unknown parameter.
        """
        picked = {}
        for name, value in parameters.items():
            if name in self._hints or name == _OLD_STRUCTURED:
                picked[name] = value
            elif name in _TRITONS_OWN or name.startswith("triton_"):
                continue
            elif not isinstance(value, str) or self._close(name, cutoff=0.85):
                raise self._unknown(name)
        return picked

    def convert(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments for the class, each with vLLM's type; nulls are left out.

        Raises:
            RequestError: INVALID_ARG naming the unknown or unconvertible parameter.
        """
        arguments: dict[str, Any] = {}
        for name, value in given.items():
            if name == _OLD_STRUCTURED and "structured_outputs" in self._hints:
                name, value = "structured_outputs", _modern_structured(value)
                if given.get(name) is not None and value is not None:
                    raise invalid(
                        f"{self._prefix}'{_OLD_STRUCTURED}' is the old name of "
                        "'structured_outputs', give only one of them."
                    )
            hint = self._hints.get(name)
            if hint is None:
                raise self._unknown(name)
            if value is None:
                continue
            try:
                arguments[name] = coerce(value, hint)
            except Mismatch as error:
                raise invalid(f"{self._prefix}'{name}' must be {error}.") from None
        return arguments

    def build(self, given: Mapping[str, Any], **fixed: Any) -> Any:
        """An instance of the class from client values and the backend's own (`fixed`).

        Raises:
            RequestError: INVALID_ARG with the parameter's name, and vLLM's reason where vLLM
                refuses the value.
        """
        arguments = self.convert(given)
        try:
            return self._class(**arguments, **fixed)
        except RequestError:
            raise
        except Exception as error:
            # Everything that the constructor refuses is a value of the client.
            raise invalid(f"{self._prefix}{error}") from None

    def _close(self, name: str, cutoff: float) -> str | None:
        found = difflib.get_close_matches(name, self._hints, n=1, cutoff=cutoff)
        return found[0] if found else None

    def _unknown(self, name: str) -> RequestError:
        close = self._close(name, cutoff=0.75)
        hint = f" Did you mean '{close}'?" if close else ""
        return invalid(f"{self._prefix}unknown parameter '{name}'.{hint}")


def _modern_structured(value: Any) -> Any:
    value = _parsed(value)
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if key not in _OLD_STRUCTURED_KEYS}
    return value


def coerce(value: Any, hint: Any) -> Any:
    """`value` (JSON) as the annotated type `hint`.

    Raises:
        Mismatch: with the second half of the sentence "'name' must be …".
    """
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return coerce(value, typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        return _coerce_union(value, typing.get_args(hint))
    if hint is Any or hint is object:
        return value
    if hint is bool:
        return _coerce_bool(value)
    if hint is int:
        return _coerce_int(value)
    if hint is float:
        return _coerce_float(value)
    if hint is str:
        if isinstance(value, str):
            return value
        raise Mismatch(f"a string, got {_show(value)}")
    container = origin or hint
    if container in (list, set, tuple):
        return _coerce_sequence(value, container, typing.get_args(hint))
    if container is dict:
        return _coerce_dict(value, typing.get_args(hint))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _coerce_dataclass(value, hint)
    # A type that JSON has no word for (numpy arrays, enums): vLLM judges the value itself.
    return _parsed(value) if isinstance(value, str) else value


def _coerce_union(value: Any, members: tuple[Any, ...]) -> Any:
    options = [member for member in members if member is not type(None)]
    # A member whose JSON type is the value's own comes first: for `str | list[str]` a string
    # stays a string.
    options.sort(key=lambda member: not _same_json_type(value, member))
    failure: Mismatch | None = None
    for member in options:
        try:
            return coerce(value, member)
        except Mismatch as error:
            failure = failure or error
    raise failure or Mismatch(f"null, got {_show(value)}")


def _same_json_type(value: Any, member: Any) -> bool:
    kind = typing.get_origin(member) or member
    return type(value) is kind or (dataclasses.is_dataclass(kind) and isinstance(value, dict))


def _coerce_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = value.strip().lower() if isinstance(value, str) else str(value)
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise Mismatch(f"true or false, got {_show(value)}")


def _coerce_int(value: Any) -> int:
    number = _whole(value)
    # vLLM sends it to the engine, and keeps it there, in 64 bits: another one ends the engine.
    if not -MOST_INT - 1 <= number <= MOST_INT:
        raise Mismatch(f"an integer of 64 bits, got {_show(value)}")
    return number


def _whole(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            pass
    raise Mismatch(f"an integer, got {_show(value)}")


def _coerce_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Mismatch(f"a number, got {_show(value)}")
    try:
        number = float(value)
    except ValueError:
        raise Mismatch(f"a number, got {_show(value)}") from None
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise Mismatch(f"a finite number, got {_show(value)}")
    return number


def _parsed(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return read_json(value)
        except ValueError:
            return value
    return value


def _coerce_sequence(value: Any, container: Any, arguments: tuple[Any, ...]) -> Any:
    items = _parsed(value)
    if not isinstance(items, list):
        raise Mismatch(f"a list, got {_show(value)}")
    hint = arguments[0] if arguments else Any
    try:
        return container(coerce(item, hint) for item in items)
    except Mismatch as error:
        raise Mismatch(f"a list in which every item is {error}") from None


def _coerce_dict(value: Any, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    items = _parsed(value)
    if not isinstance(items, dict):
        raise Mismatch(f"an object, got {_show(value)}")
    key_hint, item_hint = arguments or (Any, Any)
    result = {}
    for key, item in items.items():
        part = "key"
        try:
            new_key = coerce(key, key_hint)
            part = "value"
            result[new_key] = coerce(item, item_hint)
        except Mismatch as error:
            raise Mismatch(f"an object in which every {part} is {error}") from None
    return result


def _coerce_dataclass(value: Any, hint: Any) -> Any:
    items = _parsed(value)
    if not isinstance(items, dict):
        raise Mismatch(f"an object or its JSON text, got {_show(value)}")
    hints = typing.get_type_hints(hint, include_extras=True)
    allowed = {field.name for field in dataclasses.fields(hint) if field.init}
    arguments = {}
    for key, item in items.items():
        # Clients send the whole dataclass of *their* vLLM (Triton's OpenAI frontend uses
        # asdict()): private fields and nulls say nothing.
        if key.startswith("_") or item is None:
            continue
        if key not in allowed:
            raise Mismatch(f"an object with the keys {sorted(allowed)}, got '{key}'")
        try:
            arguments[key] = coerce(item, hints[key])
        except Mismatch as error:
            raise Mismatch(f"an object whose '{key}' is {error}") from None
    try:
        return hint(**arguments)
    except Exception as error:
        raise Mismatch(f"valid: {error}") from None


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 80 else text[:79] + "…"
