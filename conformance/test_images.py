"""IMG: images that a model cannot take, or that are none, are refused cleanly."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable

import pytest

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import GenerateRequest, Generation
from pytest_vllm_triton.known_answer import KnownAnswer

Generate = Callable[[GenerateRequest], Generation]

GOOD = GenerateRequest("What is this?", sampling={"temperature": 0, "max_tokens": 4})


def png(width: int, height: int, colour: tuple[int, int, int]) -> bytes:
    """A PNG file of one colour."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = (b"\0" + bytes(colour) * width) * height
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*parts) for parts in chunks)


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


RED = encoded(png(8, 8, (255, 0, 0)))


@pytest.mark.requirement("IMG-002")
@pytest.mark.parametrize(
    "images",
    [
        ["!!! no base64 !!!"],
        [encoded(b"these bytes are no image")],
        [encoded(png(8, 8, (0, 0, 0))[:40])],
        [RED, "???"],
    ],
    ids=["base64", "bytes", "truncated", "second"],
)
def test_what_is_no_image(generate: Generate, images: list[str]) -> None:
    error = generate(GOOD.but(inputs={"image": images})).failed()
    expect.clean_error(error)
    expect.equal("error of the next request", generate(GOOD).error, None)


@pytest.mark.requirement("IMG-002")
def test_image_for_a_text_model(generate: Generate, known_answer: KnownAnswer) -> None:
    """The known-answer model knows no images; a good one is refused all the same."""
    error = generate(GOOD.but(inputs={"image": [RED]})).failed()
    expect.clean_error(error)
    # The reason is the model, not the image.
    for part in ("base64", "known format", "cannot be read", "cannot identify"):
        expect.lacks("error", error, part)
    expect.equal("error of the next request", generate(GOOD).error, None)
