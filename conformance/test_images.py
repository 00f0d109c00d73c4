"""IMG: images reach the model, and those that it cannot take, or that are none, are refused
cleanly."""

from __future__ import annotations

import base64
import contextlib
import itertools
import random
import struct
import zlib
from collections.abc import Iterator

import pytest

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import Generate, GenerateRequest, GrpcClient, HttpClient, Unanswered
from pytest_vllm_triton.known_answer import (
    COLOURS,
    IMAGE_TOKEN,
    IMAGE_TOKENS,
    KnownAnswer,
    vision_answer,
)
from pytest_vllm_triton.launchers.base import ServerHandle

from .error_words import UNHEALTHY
from .extra_models import MAX_PICTURES, ExtraModel
from .logs import expect_not_logged, log_of
from .marks import UNARY_AND_STREAM
from .metrics_page import NO_METRICS_SECONDS, page_with_lines
from .processes import is_stub, kill_engine
from .traffic import at_once, first_of
from .waits import GONE_SECONDS

TOKENS = 6
#: Pixels: as a camera's.
LARGE = (2048, 1536)
DOOMED = "secret of the doomed"
PICTURES = (
    [" red"],
    [" green"],
    [" blue"],
    [" green", " red"],
    [" red", " blue", " green"],
    [" green", " red", " blue"],
)
GOOD = GenerateRequest("What is this?", sampling={"temperature": 0, "max_tokens": 4})


def png(width: int, height: int, colour: tuple[int, ...], rows: bytes = b"") -> bytes:
    """A PNG file of one colour: red, green, blue, and the opacity if there is a fourth number.

    Or with these rows of pixels, each after a zero.
    """

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    kind = {3: 2, 4: 6}[len(colour)]
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    rows = rows or (b"\0" + bytes(colour) * width) * height
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*parts) for parts in chunks)


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def cut_short() -> bytes:
    """The first half of a PNG file of pixels that cannot be compressed."""
    noise = bytes(random.Random(7).choices(range(256), k=3 * 64))
    whole = png(64, 1, (0, 0, 0), rows=b"\0" + noise)
    return whole[: len(whole) // 2]


RED = encoded(png(8, 8, (255, 0, 0)))
# Blue, 8 x 8; the first two as Pillow writes them.
FORMATS = {
    "jpeg": base64.b64decode(
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsL"
        "EBYQERMUFRUVDA8XGBYUGBIUFRT/2wBDAQMEBAUEBQkFBQkUDQsNFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU"
        "FBQUFBQUFBQUFBQUFBQUFBQUFBT/wAARCAAIAAgDASIAAhEBAxEB/8QAFQABAQAAAAAAAAAAAAAAAAAAAAn/xAAUEAEA"
        "AAAAAAAAAAAAAAAAAAAA/8QAFQEBAQAAAAAAAAAAAAAAAAAABgn/xAAUEQEAAAAAAAAAAAAAAAAAAAAA/9oADAMBAAIR"
        "AxEAPwCe4CqYO//Z"
    ),
    "gif": base64.b64decode(
        "R0lGODdhCAAIAIEAAAAA/wAAAAAAAAAAACwAAAAACAAIAAAIDwABCBxIsKDBgwgTKkwYEAA7"
    ),
    "png-with-alpha": png(8, 8, (0, 0, 255, 255)),
}


def looking_at(colours: list[str]) -> GenerateRequest:
    """A request with a picture of each of these colours."""
    # Neither square nor of the size that the model works with.
    pictures = [encoded(png(20, 12, COLOURS[colour])) for colour in colours]
    return GenerateRequest(
        f"See {IMAGE_TOKEN * len(colours)}:",
        sampling={"temperature": 0, "max_tokens": TOKENS},
        exclude_input_in_output=True,
        inputs={"image": pictures},
    )


@pytest.fixture
def look(triton_client: HttpClient | GrpcClient, vision_model: str) -> Iterator[Generate]:
    """Send a request to the model that names colours, over HTTP and then over gRPC."""
    with triton_client.for_model(vision_model) as client:
        yield client.generate


@pytest.mark.requirement("IMG-001")
@UNARY_AND_STREAM
@pytest.mark.parametrize("colours", PICTURES, ids=lambda colours: "".join(colours).strip())
def test_answer_is_decided_by_the_images(look: Generate, colours: list[str], stream: bool) -> None:
    """The model names the colour of the last one."""
    answer = look(looking_at(colours).but(stream=stream))
    expect.equal("text_output", answer.text, vision_answer(colours, TOKENS))


@pytest.mark.requirement("IMG-001")
def test_large_image_before_a_small_one(look: Generate) -> None:
    """The large one takes longer to read."""
    request = looking_at([" green", " red"])
    assert request.inputs is not None
    pictures = [encoded(png(*LARGE, COLOURS[" green"])), request.inputs["image"][1]]
    answer = look(request.but(inputs={"image": pictures}))
    expect.equal("text_output", answer.text, vision_answer([" green", " red"], TOKENS))


@pytest.mark.requirement("IMG-001")
@pytest.mark.parametrize("kind", FORMATS)
def test_formats_of_images(look: Generate, kind: str) -> None:
    request = looking_at([" red", " blue"])
    assert request.inputs is not None
    pictures = [request.inputs["image"][0], encoded(FORMATS[kind])]
    answer = look(request.but(inputs={"image": pictures}))
    expect.equal(f"text_output for {kind}", answer.text, vision_answer([" blue"], TOKENS))


@pytest.mark.requirement("IMG-001")
def test_base64_in_lines(look: Generate, triton_grpc: GrpcClient, vision_model: str) -> None:
    """As the program base64 writes it, which a backend that is strict refuses."""
    lines = base64.encodebytes(FORMATS["jpeg"]).decode()
    request = looking_at([" red"]).but(inputs={"image": [lines]})
    answer = look(request)
    if answer.error is None:
        expect.equal("text_output", answer.text, vision_answer([" blue"], TOKENS))
        return
    expect.clean_error(answer.error)
    refused = triton_grpc.for_model(vision_model).until_error(request)
    expect.equal(f"gRPC status ({refused.error})", refused.status, "INVALID_ARGUMENT")


@pytest.mark.requirement("GEN-002")
def test_prompt_with_an_image_is_echoed(look: Generate) -> None:
    request = looking_at([" red"])
    answer = look(request.but(exclude_input_in_output=None))
    expected = str(request.text_input) + vision_answer([" red"], TOKENS)
    expect.equal("text_output", answer.text, expected)


@pytest.mark.requirement("GEN-030")
def test_prompt_with_an_image_is_not_in_the_log(look: Generate, vllm_server: ServerHandle) -> None:
    secret = "secret of a picture"
    request = looking_at([" red"]).but(text_input=f"{secret} {IMAGE_TOKEN}:")
    expect_not_logged(vllm_server, secret, lambda: look(request))


@pytest.mark.requirement("IMG-001")
def test_every_image_is_in_the_prompt(look: Generate) -> None:
    counts = [
        look(looking_at([" red"] * number).but(returns=("num_input_tokens",)))
        .ok()
        .last("num_input_tokens")
        for number in (1, 2, 3)
    ]
    growth = [later - earlier for earlier, later in itertools.pairwise(counts)]
    expect.equal("prompt tokens that each further image adds", growth, [IMAGE_TOKENS] * 2)


@pytest.mark.requirement("IMG-001")
def test_images_of_concurrent_requests_keep_apart(
    triton_grpc: GrpcClient, vision_model: str
) -> None:
    asked = [*PICTURES, *reversed(PICTURES)] * 2
    send = triton_grpc.for_model(vision_model).generate
    texts = at_once(send, map(looking_at, asked), 8)
    expect.equal("texts, by request", texts, [vision_answer(c, TOKENS) for c in asked])


@pytest.mark.requirement("IMG-001")
def test_no_image_for_a_model_that_sees(look: Generate) -> None:
    """Without one it says its last word again."""
    request = GOOD.but(text_input="in this picture", exclude_input_in_output=True)
    expect.equal("text_output", look(request).text, " picture" * 4)


@pytest.mark.requirement("IMG-002")
@pytest.mark.parametrize(
    "images",
    [
        ["!!! no base64 !!!"],
        [encoded(b"these bytes are no image")],
        [encoded(png(8, 8, (0, 0, 0))[:40])],
        [encoded(cut_short())],
        [RED, "???"],
        [RED] * (MAX_PICTURES + 1),
    ],
    ids=["base64", "bytes", "truncated", "cut-short", "second", "too-many"],
)
def test_what_is_no_image(look: Generate, images: list[str]) -> None:
    prompt = IMAGE_TOKEN * len(images)
    error = look(GOOD.but(text_input=prompt, inputs={"image": images})).failed()
    expect.clean_error(error)
    answer = look(looking_at([" green"]))
    expect.equal("text_output of the next request", answer.text, vision_answer([" green"], TOKENS))


@pytest.mark.requirement("IMG-002")
@pytest.mark.parametrize(
    ("prompt", "images"),
    [
        (IMAGE_TOKEN, ["!!! no base64 !!!"]),
        (IMAGE_TOKEN, [encoded(b"no image")]),
        (IMAGE_TOKEN, [encoded(cut_short())]),
        ("See:", [RED]),
    ],
    ids=["base64", "bytes", "cut-short", "no-place"],
)
def test_bad_image_is_an_invalid_argument(
    triton_grpc: GrpcClient, vision_model: str, prompt: str, images: list[str]
) -> None:
    request = GOOD.but(text_input=prompt, inputs={"image": images})
    answer = triton_grpc.for_model(vision_model).until_error(request)
    expect.equal(f"gRPC status ({answer.error})", answer.status, "INVALID_ARGUMENT")


@pytest.mark.requirement("IMG-002")
def test_foreign_character_in_base64(triton_grpc: GrpcClient, vision_model: str) -> None:
    """A strict backend refuses it; one that is lenient leaves it out and sees the picture."""
    request = looking_at([" blue"]).but(inputs={"image": [f"{RED[:40]}!{RED[40:]}"]})
    answer = triton_grpc.for_model(vision_model).until_error(request)
    if answer.error is None:
        expect.equal("text_output", answer.text, vision_answer([" red"], TOKENS))
    else:
        expect.equal(f"gRPC status ({answer.error})", answer.status, "INVALID_ARGUMENT")


@pytest.mark.requirement("IMG-002")
def test_image_for_a_text_model(generate: Generate, known_answer: KnownAnswer) -> None:
    """The known-answer model knows no images; a good one is refused all the same."""
    error = generate(GOOD.but(inputs={"image": [RED]})).failed()
    expect.clean_error(error)
    # The reason is the model, not the image.
    for part in ("known format", "cannot be read", "cannot identify"):
        expect.lacks("error", error, part)
    expect.equal("error of the next request", generate(GOOD).error, None)


@pytest.mark.requirement("IMG-002")
def test_prompt_without_a_place_for_its_image(look: Generate) -> None:
    error = look(GOOD.but(inputs={"image": [RED]})).failed()
    expect.clean_error(error)
    answer = look(looking_at([" blue"]))
    expect.equal("text_output of the next request", answer.text, vision_answer([" blue"], TOKENS))


@pytest.mark.requirement("MET-009")
def test_no_vllm_metrics_without_statistics(
    look: Generate, owned_server: ServerHandle, vision_model: str
) -> None:
    """The vision model asks for metrics, but its model.json says disable_log_stats."""
    look(looking_at([" red"])).ok()
    page = page_with_lines(owned_server, vision_model, NO_METRICS_SECONDS)
    expect.equal("lines of the model", page.vllm_lines(vision_model), [])


@pytest.fixture(scope="module")
def log_of_its_death(vision_extra: ExtraModel) -> Iterator[str]:
    """What is logged when the engine dies while it answers. Nothing needs this model any more."""
    model, server = vision_extra.served(), vision_extra.server
    log = log_of(server)
    since = log.position()
    stubs = [process for process in server.processes() if is_stub(process, model)]
    sampling = {"max_tokens": 3000, "ignore_eos": True}
    doomed = GOOD.but(text_input=f"the {DOOMED}", stream=True, sampling=sampling)
    with (
        GrpcClient(server.endpoints.grpc, model, deadline=GONE_SECONDS) as client,
        client.open() as call,
        # That the stream ends is another requirement's.
        contextlib.suppress(Unanswered),
    ):
        call.send(doomed)
        call.half_close()
        responses = iter(call)
        first_of(responses)
        kill_engine(stubs, GONE_SECONDS)
        list(responses)
    yield log.read(since)
    vision_extra.unload()


@pytest.mark.requirement("GEN-030")
def test_prompt_that_dies_with_its_engine_is_not_in_the_log(log_of_its_death: str) -> None:
    expect.lacks("log since the request", log_of_its_death, DOOMED)


@pytest.mark.requirement("HLT-002")
def test_health_check_is_off_by_default(
    log_of_its_death: str, vision_extra: ExtraModel, triton_http: HttpClient
) -> None:
    """Its configuration does not name the check."""
    client = triton_http.for_model(vision_extra.spec.name)
    # vLLM may take the first one before it has noticed.
    for _ in range(3):
        error = client.generate(GOOD).failed()
        expect.lacks("error of a request to a dead engine", error, UNHEALTHY)
