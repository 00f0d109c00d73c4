"""Paths that cannot be looked at are refused with a sentence, as those that are not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.models.checkpoints import checked_checkpoint
from pytest_vllm_triton.options.values import (
    backend_dir,
    executable,
    known_failures,
    model_json,
)
from pytest_vllm_triton.suggest import nearest_sibling

NOBODY = 65534
# Longer than the name of any file.
LONG = "x" * 300

readers: pytest.MarkDecorator = pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda text: checked_checkpoint(Path(text)), "does not exist."),
        (backend_dir, "is not a directory."),
        (executable, "is not a file."),
        (known_failures, "is not a file."),
        (model_json, "is neither a file nor inline JSON"),
    ],
)


@pytest.fixture
def closed() -> Iterator[Path]:
    """A folder that we may not look into. Root may look into all: for a while we are not root."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0)
        if user == 0:
            os.seteuid(NOBODY)
        yield Path(folder)
        os.seteuid(user)
        Path(folder).chmod(0o700)


@readers
@pytest.mark.parametrize(
    "name", [LONG, f"{LONG}/name", "x/" * 3000], ids=["name", "folder", "path"]
)
def test_a_name_that_is_too_long(read: Callable[[str], object], said: str, name: str) -> None:
    with pytest.raises(UserError, match=said):
        read(name)


@readers
def test_a_folder_that_is_closed(read: Callable[[str], object], said: str, closed: Path) -> None:
    with pytest.raises(UserError, match=said):
        read(f"{closed}/name")


def test_a_closed_folder_itself(closed: Path) -> None:
    with pytest.raises(UserError, match=r"holds no config\.json"):
        checked_checkpoint(closed)
    with pytest.raises(UserError, match=r"holds no model\.py"):
        backend_dir(str(closed))


def test_the_nearest_entry(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    assert nearest_sibling(tmp_path / "chekpoint") == f" Did you mean '{tmp_path}/checkpoint'?"
    assert nearest_sibling(tmp_path / "another") == ""
    assert nearest_sibling(tmp_path / "no such folder" / "name") == ""
