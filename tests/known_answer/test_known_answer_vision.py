"""The checkpoint that sees: its files. What it answers is checked by the conformance suite."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tokenizers import Tokenizer

from pytest_vllm_triton.known_answer import (
    COLOURS,
    IMAGE_TOKEN,
    build_vision_checkpoint,
    vision_answer,
)


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_same_bytes_each_time(tmp_path: Path) -> None:
    one, other = (build_vision_checkpoint(tmp_path / name) for name in ("one", "other"))
    assert digests(one) == digests(other)


def test_pictures_and_colours_are_one_token_each(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(build_vision_checkpoint(tmp_path) / "tokenizer.json"))
    for text in (IMAGE_TOKEN, *COLOURS):
        assert len(tokenizer.encode(text, add_special_tokens=False).ids) == 1
    # In the midst of a text too, and twice.
    image = tokenizer.token_to_id(IMAGE_TOKEN)
    assert tokenizer.encode(f"a{IMAGE_TOKEN}{IMAGE_TOKEN}b").ids.count(image) == 2


def test_the_last_picture_decides() -> None:
    assert vision_answer([" red", " blue"], 2) == " blue blue"
