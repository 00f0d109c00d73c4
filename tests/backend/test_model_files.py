"""model.json and multi_lora.json."""

from __future__ import annotations

from pathlib import Path

import pytest
from vllm_triton_backend import model_files
from vllm_triton_backend.errors import LoadError


def test_missing_model_json_has_upstreams_text(tmp_path: Path) -> None:
    with pytest.raises(LoadError) as caught:
        model_files.read_engine_args(tmp_path)
    expected = f"'model.json' containing vllm engine args must be provided in '{tmp_path}'"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [("{bad", "not valid JSON"), ("[]", "JSON object"), ("{}", "name the model")],
)
def test_a_bad_model_json_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(LoadError, match=words) as caught:
        model_files.read_engine_args(tmp_path)
    assert str(tmp_path / "model.json") in str(caught.value)


def test_lora_paths_are_relative_to_the_version_folder(tmp_path: Path) -> None:
    (tmp_path / "multi_lora.json").write_text('{"a": "adapters/a", "b": "/b"}')
    assert model_files.read_lora_paths(tmp_path) == {"a": str(tmp_path / "adapters/a"), "b": "/b"}


def test_missing_lora_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="cannot find") as caught:
        model_files.read_lora_paths(tmp_path)
    assert str(tmp_path / "multi_lora.json") in str(caught.value)


@pytest.mark.parametrize(
    ("given", "expected"), [("true", True), ("False", False), (True, True), (False, False)]
)
def test_booleans_of_model_json_may_be_strings(given: object, expected: bool) -> None:
    arguments = {"enable_lora": given}
    assert model_files.read_bool(arguments, "enable_lora") is expected
    assert arguments["enable_lora"] is expected
