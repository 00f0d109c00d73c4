"""What the texts of options mean: a parser for each kind of value.

Each raises UserError where the text means nothing, and says what it should have been; the caller
puts the option's name before it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from pytest_vllm_triton import assets
from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.known_failures import KnownFailure, load_known_failures
from pytest_vllm_triton.options.launcher_kinds import DEFAULT_IMAGE
from pytest_vllm_triton.report.formats import check_suffix
from pytest_vllm_triton.requirements import load_catalogue
from pytest_vllm_triton.suggest import did_you_mean, nearest_sibling

T = TypeVar("T")

#: The value of --vllm-model that is neither a folder nor a model of the hub.
KNOWN_ANSWER = "known-answer"


class BackendSource(Enum):
    """The values of --triton-backend-dir that are no folder."""

    #: The backend which the image holds.
    IMAGE = "image"


def one_of(meanings: Mapping[str, T]) -> Callable[[str], T]:
    """A parser of these names, in whatever case they are written."""

    def parse(text: str) -> T:
        if text.lower() in meanings:
            return meanings[text.lower()]
        raise UserError(
            f"{text!r} is not one of {', '.join(meanings)}.{did_you_mean(text, meanings)}"
        )

    return parse


def choice(*names: str) -> Callable[[str], str]:
    """A parser of these names, each of which means itself."""
    return one_of({name: name for name in names})


def not_empty(text: str) -> str:
    if not text.strip():
        raise UserError("it is empty.")
    return text


def vllm_version(text: str) -> str:
    from pytest_vllm_triton.runtime.recipe import check_vllm_version

    return check_vllm_version(text)


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise UserError(f"{text!r} is not a number of seconds greater than 0.")
    return value


def count(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise UserError(f"{text!r} is not a whole number of at least 1.")
    return int(text)


def executable(text: str) -> Path:
    path = Path(text).expanduser().absolute()
    if not os.path.isfile(path):  # noqa: PTH113 - unlike Path.is_file, it takes any text
        raise UserError(f"{text!r} is not a file.{nearest_sibling(path)}")
    if not os.access(path, os.X_OK):
        raise UserError(f"{text!r} is not executable.")
    return path


def image(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-zA-Z0-9._\-/:@]*", text):
        raise UserError(
            f"{text!r} is not the name of an image, such as {DEFAULT_IMAGE}: names have no spaces "
            "and begin with a lower-case letter or a digit."
        )
    return text


def gpus(text: str) -> str:
    names = [name.strip() for name in text.split(",")]
    if text.lower() in ("all", "none"):
        return text.lower()
    if not all(re.fullmatch(r"\d+|GPU-[0-9a-fA-F-]+|MIG-[0-9a-fA-F-]+", name) for name in names):
        raise UserError(f"{text!r} is not all, none, or GPUs such as 0 or 0,1.")
    return ",".join(dict.fromkeys(names))


def size(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*[bkmg]?", text, re.IGNORECASE):
        raise UserError(f"{text!r} is not a size such as 1G, 512m or a number of bytes.")
    return text


def backend_dir(text: str) -> Path | BackendSource:
    if text == BackendSource.IMAGE.value:
        return BackendSource.IMAGE
    path = Path(text).expanduser().absolute()
    if not os.path.isdir(path):  # noqa: PTH112 - unlike Path.is_dir, it takes any text
        raise UserError(f"{text!r} is not a directory.{nearest_sibling(path)}")
    if not os.path.isfile(path / "model.py"):  # noqa: PTH113 - no error where it is closed
        found = sorted(str(p.parent) for p in path.glob("*/model.py"))
        hint = f" Did you mean {found[0]!r}?" if found else ""
        raise UserError(
            f"{text!r} holds no model.py, so it is no Python-based Triton backend.{hint}"
        )
    return path


def model_json(text: str) -> dict[str, Any]:
    """A JSON object of vLLM engine arguments, inline or the path of a file that holds one."""
    source = text.strip()
    where = "the given JSON"
    if not source.startswith("{"):
        path = Path(source).expanduser()
        if not os.path.isfile(path):  # noqa: PTH113 - unlike Path.is_file, it takes any text
            raise UserError(
                f"{text!r} is neither a file nor inline JSON such as '{{\"max_num_seqs\": 4}}'."
                f"{nearest_sibling(path.absolute())}"
            )
        try:
            source, where = path.read_text(encoding="utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{str(path)!r} cannot be read: {error}.") from None
    try:
        value = json.loads(source)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{where} is JSON, but not an object of engine arguments.")
    return value


def report_path(text: str) -> Path:
    path = Path(text).expanduser().absolute()
    check_suffix(path)
    return path


def known_failures(text: str) -> dict[str, KnownFailure]:
    """A file, or the name of a list that this package ships."""
    path = Path(text).expanduser().absolute()
    if not os.path.isfile(path):  # noqa: PTH113 - unlike Path.is_file, it takes any text
        shipped = {file.stem: file for file in assets.known_failures()}
        if text not in shipped:
            hint = nearest_sibling(path) or did_you_mean(text, shipped)
            raise UserError(f"{text!r} is not a file.{hint}")
        path = shipped[text]
    return load_known_failures(path)


def group_or_id(text: str) -> str:
    catalogue = load_catalogue()
    name = text.upper()
    if name not in catalogue and name not in catalogue.groups:
        hint = did_you_mean(name, [*catalogue.groups, *catalogue])
        raise UserError(f"there is no requirement or group {text!r}.{hint}")
    return name
