"""LOR: adapters are chosen by name, told apart, and a bad one hurts nobody else."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import Generate, GenerateRequest, GrpcClient, HttpClient
from pytest_vllm_triton.clients.repository import ModelRepository
from pytest_vllm_triton.known_answer import (
    BACKWARDS,
    KnownAnswer,
    build_adapter,
)
from pytest_vllm_triton.launchers.base import ServerHandle
from pytest_vllm_triton.paths import cache_home
from pytest_vllm_triton.servers.harness import Harness
from pytest_vllm_triton.verdicts import untested

from .alternate import NO_LORA, Alternate
from .error_words import CLIENTS_MISTAKE
from .extra_models import (
    BASE,
    LARGE_ADAPTER,
    LATE_ADAPTERS,
    MISSING_ADAPTER,
    ExtraModel,
    config_with,
    oracle,
)
from .logs import expect_not_logged
from .metered_traffic import sent
from .record import Seen
from .traffic import by_id, first_of, on_one_stream, pieces
from .waits import NOTICED_SECONDS, until

PROMPT = "Say alpha"
LENGTH = 12
# Names that no adapter has, some of them nearly; and an error has to quote any text.
UNKNOWN = pytest.mark.parametrize("name", ["nobody", "back", "backwards-2", "Backwards", "名"])


def asked(adapter: str | None, **more: Any) -> GenerateRequest:
    """A greedy request; its answer holds no prompt."""
    sampling: dict[str, Any] = {"temperature": 0, "max_tokens": LENGTH}
    if adapter is not None:
        sampling["lora_name"] = adapter
    return GenerateRequest(PROMPT, sampling=sampling, exclude_input_in_output=True).but(**more)


def asked_by_parameter(adapter: str) -> GenerateRequest:
    """The same by request parameters instead of the tensor."""
    parameters = {"temperature": 0, "max_tokens": LENGTH, "lora_name": adapter}
    return asked(None).but(sampling=None, parameters=parameters)


def text_with(adapter: str | None) -> str:
    return oracle(adapter).answer(PROMPT, max_tokens=LENGTH).text


@pytest.fixture
def generate(triton_client: HttpClient | GrpcClient, lora_model: str) -> Iterator[Generate]:
    """Send a request to the model with adapters, over HTTP and then over gRPC."""
    with triton_client.for_model(lora_model) as client:
        yield client.generate


@pytest.mark.requirement("LOR-001")
def test_model_with_adapters_loads(lora_extra: ExtraModel) -> None:
    """With enable_lora "true"; that true is understood as well shows in LOR-007."""
    if not lora_extra.is_loaded:
        lora_extra.load()
    expect.equal("error of the load", lora_extra.load_error, None)


@pytest.mark.requirement("LOR-002")
@pytest.mark.parametrize("adapter", ["backwards", "leaps"])
def test_adapter_by_tensor(generate: Generate, adapter: str) -> None:
    for _ in range(2):
        expect.equal(f"text with {adapter}", generate(asked(adapter)).text, text_with(adapter))


@pytest.mark.requirement("LOR-002")
def test_adapter_of_two_sequences(generate: Generate) -> None:
    """vLLM takes temperature 0 for one sequence only; with top_k 1 both are the greedy one."""
    sampling = {"top_k": 1, "max_tokens": LENGTH, "n": 2, "lora_name": "backwards"}
    answer = generate(asked(None, sampling=sampling)).ok()
    texts = answer.data[0].values("text_output")
    # How many there are is GEN-019's.
    expect.equal("texts with backwards", set(texts), {text_with("backwards")})


@pytest.mark.requirement("LOR-002")
def test_adapter_among_long_parameters(generate: Generate) -> None:
    """Twice the same: a backend that keeps what it has read must keep the adapter's name, too."""
    sampling = {"temperature": 0, "max_tokens": LENGTH, "stop": ["~" * 2000]}
    request = asked(None, sampling={**sampling, "lora_name": "backwards"})
    for _ in range(2):
        expect.equal("text with backwards", generate(request).text, text_with("backwards"))


@pytest.mark.requirement("LOR-002")
def test_streamed_adapter(generate: Generate) -> None:
    request = asked("backwards", stream=True, exclude_input_in_output=None)
    expect.equal("joined text with backwards", generate(request).text, text_with("backwards"))


@pytest.mark.requirement("LOR-003")
@pytest.mark.parametrize("adapter", ["backwards", "leaps"])
def test_adapter_by_parameter(generate: Generate, adapter: str) -> None:
    text = generate(asked_by_parameter(adapter)).text
    expect.equal(f"text with {adapter}", text, text_with(adapter))


@pytest.mark.requirement("LOR-004")
@UNKNOWN
@pytest.mark.parametrize("ask", [asked, asked_by_parameter], ids=["tensor", "parameter"])
def test_unknown_adapter(
    generate: Generate, ask: Callable[[str], GenerateRequest], name: str
) -> None:
    answer = generate(ask(name))
    error = answer.failed()
    expect.contains("error", error, f"LoRA {name} is not supported, we currently support [")
    for known in ("'backwards'", "'leaps'"):
        expect.contains("error", error, known)
    expect.equal("responses with data", answer.data, [])


@pytest.mark.requirement("LOR-004")
@pytest.mark.parametrize(
    "name",
    [5, ["backwards"], {"backwards": 1}, 0, False, [], {}],
    ids=["number", "list", "object", "zero", "false", "empty-list", "empty-object"],
)
def test_name_that_is_no_text(generate: Generate, name: object) -> None:
    """It is no adapter's name, and the model without one is not what was asked for, unless with
    something that a backend may take for none."""
    sampling = {"temperature": 0, "max_tokens": LENGTH, "lora_name": name}
    answer = generate(asked(None, sampling=sampling))
    if not name and answer.error is None:
        expect.equal("text without an adapter", answer.text, text_with(None))
    else:
        expect.clean_error(answer.failed())


@pytest.mark.requirement("LOR-004")
@UNKNOWN
def test_unknown_adapter_is_the_clients_mistake(
    triton_grpc: GrpcClient, lora_model: str, name: str
) -> None:
    answer = triton_grpc.for_model(lora_model).until_error(asked(name))
    expect.one_of(f"gRPC status ({answer.error})", answer.status, CLIENTS_MISTAKE)


@pytest.mark.requirement("LOR-005")
def test_adapter_of_a_model_without_lora(
    triton_http: HttpClient, triton_grpc: GrpcClient, owned_server: ServerHandle
) -> None:
    for answer in (
        triton_http.generate(asked("backwards")),
        triton_grpc.generate(asked("backwards", stream=True, exclude_input_in_output=None)),
        triton_http.generate(asked_by_parameter("backwards")),
        triton_grpc.generate(asked_by_parameter("backwards")),
    ):
        expect.contains("error", answer.failed(), "LoRA feature is not enabled.")


@pytest.mark.requirement("LOR-006")
def test_false_as_a_word(triton_grpc: GrpcClient, alternate: Alternate) -> None:
    """The alternate model's model.json says "enable_lora": "false"; it has no multi_lora.json."""
    expect.equal("enable_lora of a model that loads", alternate.enable_lora, NO_LORA)
    answer = triton_grpc.for_model(alternate.name).generate(asked("backwards"))
    expect.contains("error", answer.failed(), "LoRA feature is not enabled.")


@pytest.mark.requirement("LOR-006")
def test_false_as_a_word_turns_lora_off(second_model_life: Seen) -> None:
    """Its first load fails for another reason than the rank that no adapter may have."""
    error = second_model_life["error of a broken load"]
    expect.that("error of the load", error, bool, "an error")
    expect.lacks("error of the load", error, "lora")


@pytest.mark.requirement("LOR-007")
@pytest.mark.parametrize("enable", [True, "true", "True"], ids=["true", "word", "Word"])
def test_missing_list_of_adapters(
    repository: ModelRepository, vllm_harness: Harness, enable: bool | str
) -> None:
    spec = vllm_harness.model_spec("no_list", {"enable_lora": enable}, config=config_with())
    repository.add(spec)
    error = repository.load(spec.name).failed()
    expect.contains("load error", error, "cannot find")
    expect.contains("load error", error, "no_list/1/multi_lora.json")


@pytest.mark.requirement("LOR-008")
def test_no_adapter_means_the_base_model(generate: Generate) -> None:
    expect.equal("text without lora_name", generate(asked(None)).text, text_with(None))
    null = asked(None).but(sampling={"temperature": 0, "max_tokens": LENGTH, "lora_name": None})
    expect.equal("text with lora_name null", generate(null).text, text_with(None))


@pytest.mark.requirement("LOR-008")
def test_tensor_without_adapter_wins(generate: Generate) -> None:
    """Where the tensor is given, request parameters are not merged into it."""
    request = asked(None, parameters={"lora_name": "backwards"})
    expect.equal("text without lora_name in the tensor", generate(request).text, text_with(None))


@pytest.mark.requirement("LOR-009")
def test_adapters_do_not_mix(triton_grpc: GrpcClient, lora_model: str) -> None:
    """24 requests at once: base model and two adapters in turn, streamed and not."""
    asked_for = [(None, "backwards", "leaps")[index % 3] for index in range(24)]
    requests = {}
    for index, adapter in enumerate(asked_for):
        streamed = index % 2 == 1
        exclude = None if streamed else True
        requests[str(index)] = asked(adapter, stream=streamed, exclude_input_in_output=exclude)
    answers = on_one_stream(triton_grpc.for_model(lora_model), requests)
    texts = {name: "".join(pieces(responses)) for name, responses in answers.items()}
    expected = {str(index): text_with(adapter) for index, adapter in enumerate(asked_for)}
    expect.equal("texts by request", texts, expected)


@pytest.mark.requirement("LOR-009")
def test_adapters_that_are_loaded_at_the_same_time(
    triton_grpc: GrpcClient, lora_model: str
) -> None:
    """No other check uses these two: both are loaded for the first requests here."""
    client = triton_grpc.for_model(lora_model)
    for _ in range(2):
        answers = on_one_stream(client, {adapter: asked(adapter) for adapter in LATE_ADAPTERS})
        texts = {adapter: "".join(pieces(responses)) for adapter, responses in answers.items()}
        expect.equal(
            "texts by request", texts, {adapter: text_with(adapter) for adapter in LATE_ADAPTERS}
        )


@pytest.mark.requirement("LOR-010")
def test_path_relative_to_the_model(generate: Generate) -> None:
    """multi_lora.json says "adapters/nearby": a folder beside multi_lora.json."""
    expect.equal("text with a nearby adapter", generate(asked("nearby")).text, text_with("nearby"))


@pytest.mark.requirement("LOR-010")
@pytest.mark.parametrize(
    "content", [b"{bad", b'["a"]', b'{"a": 5}'], ids=["json", "list", "number"]
)
def test_malformed_list_of_adapters(
    repository: ModelRepository, vllm_harness: Harness, content: bytes
) -> None:
    spec = vllm_harness.model_spec(
        "bad_list",
        {"enable_lora": True},
        config=config_with(),
        files={"1/multi_lora.json": content},
    )
    repository.add(spec)
    error = repository.load(spec.name).failed()
    expect.matches("load error", error, "(?i)lora|adapter")
    expect.lacks("load error", error, "Traceback")


@pytest.mark.requirement("LOR-011")
def test_changed_adapter_is_read_again(
    triton_http: HttpClient, lora_extra: ExtraModel, lora_model: str
) -> None:
    """The files of an adapter that is in use become those of another adapter, and then its
    configuration alone changes: of a weight of 0 the base model is left."""
    client = triton_http.for_model(lora_model)
    expect.equal("text before", client.generate(asked("changing")).text, text_with("changing"))
    folder = lora_extra.folder / "adapters" / "changing"
    other = build_adapter(BASE, BACKWARDS, cache_home() / "checkpoints")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert {(f.name, f.stat().st_size) for f in other.iterdir()} == {
        (name, len(content)) for name, content in before.items()
    }
    try:
        for file in other.iterdir():
            shutil.copyfile(file, folder / file.name)
        expected = KnownAnswer(BASE, adapter=BACKWARDS).answer(PROMPT, max_tokens=LENGTH).text
        expect.equal("text after", client.generate(asked("changing")).text, expected)
        config = folder / "adapter_config.json"
        content = json.loads(config.read_text(encoding="utf-8"))
        config.write_text(json.dumps({**content, "lora_alpha": 0}), encoding="utf-8")
        text = client.generate(asked("changing")).text
        expect.equal("text with another adapter_config.json", text, text_with(None))
    finally:
        for name, content in before.items():
            (folder / name).write_bytes(content)


@pytest.mark.requirement("LOR-011")
def test_changed_adapter_uses_no_cache_of_the_old_one(
    vllm_server: ServerHandle, lora_extra: ExtraModel, lora_model: str
) -> None:
    """The old files made what vLLM keeps of a prompt: with new files it is made anew."""
    hits = "vllm:prefix_cache_hits_total"
    prompt = asked("changing").but(text_input=" kilo" * 600)

    def grown() -> float:
        return sent(vllm_server, lora_model, oracle("changing"), [prompt]).growth.of(hits)

    grown()
    if not grown():
        untested("a prompt that comes again is not seen to be found in the cache")
    files = lora_extra.folder / "adapters" / "changing"
    before = {file: file.read_bytes() for file in files.iterdir()}
    other = build_adapter(BASE, BACKWARDS, cache_home() / "checkpoints")
    try:
        for file in other.iterdir():
            shutil.copyfile(file, files / file.name)
        expect.equal(f"growth of {hits} with other files", grown(), 0)
    finally:
        for file, content in before.items():
            file.write_bytes(content)


@pytest.mark.requirement("GEN-030")
def test_prompt_of_an_adapter_is_not_in_the_log(
    triton_http: HttpClient, vllm_server: ServerHandle, lora_model: str
) -> None:
    secret = "secret of an adapter"
    request, client = asked("leaps").but(text_input=secret), triton_http.for_model(lora_model)
    expect_not_logged(vllm_server, secret, lambda: client.generate(request))


@pytest.mark.requirement("LOR-012")
def test_list_of_adapters_is_read_again(
    triton_http: HttpClient, lora_extra: ExtraModel, lora_model: str
) -> None:
    client = triton_http.for_model(lora_model)
    file = lora_extra.folder / "multi_lora.json"
    before = file.read_text(encoding="utf-8")
    paths = json.loads(before)
    as_old_as(lora_extra.folder / paths["nearby"], Path(paths["backwards"]))
    # From now on the two differ by their paths alone, to one who does not read them.
    text = client.generate(asked("nearby")).text
    expect.equal("text before", text, text_with("nearby"))
    paths["größe"] = paths.pop("leaps")
    paths["beside"] = paths["nearby"]
    paths["nearby"] = paths["backwards"]
    try:
        file.write_text(before[: len(before) // 2], encoding="utf-8")
        text = client.generate(asked("leaps")).text
        expect.equal("text while the file is half-written", text, text_with("leaps"))
        file.unlink()
        text = client.generate(asked("leaps")).text
        expect.equal("text while the file is away", text, text_with("leaps"))
        file.write_text(json.dumps(paths, ensure_ascii=False), encoding="utf-8")
        # As a file that is put in its place from somewhere else.
        os.utime(file, (0, 0))
        # Nothing says that it is read at every request.
        until(lambda: client.generate(asked("größe")).error is None, NOTICED_SECONDS)
        expect.equal(
            "text with a new name", client.generate(asked("größe")).text, text_with("leaps")
        )
        text = client.generate(asked("nearby")).text
        expect.equal("text with a name that leads elsewhere", text, text_with("backwards"))
        text = client.generate(asked("beside")).text
        expect.equal("text with a new name of a relative path", text, text_with("nearby"))
        error = client.generate(asked("leaps")).failed()
        expect.contains("error with the old name", error, "LoRA leaps is not supported")
    finally:
        file.write_text(before, encoding="utf-8")
        until(lambda: client.generate(asked("leaps")).error is None, NOTICED_SECONDS)
    expect.equal("text with the old name", client.generate(asked("leaps")).text, text_with("leaps"))


def as_old_as(folder: Path, other: Path) -> None:
    """Give its files the times of the other's of the same names, as archives and images do."""
    for file in other.iterdir():
        times = file.stat()
        os.utime(folder / file.name, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.requirement("LOR-010")
@pytest.mark.parametrize("adapter", [MISSING_ADAPTER, LARGE_ADAPTER], ids=["path", "rank"])
def test_bad_adapter_fails_alone(
    triton_grpc: GrpcClient, lora_extra: ExtraModel, lora_model: str, adapter: str
) -> None:
    """Asked for in the midst of good requests, of which one is being streamed."""
    client = triton_grpc.for_model(lora_model)
    running = asked(None, stream=True, exclude_input_in_output=None, id="running").but(
        sampling={"temperature": 0, "max_tokens": 400, "ignore_eos": True}
    )
    expected = client.generate(running).text
    try:
        with client.open() as stream:
            responses = iter(stream)
            stream.send(running)
            first = first_of(responses)
            stream.send(asked(adapter, id="bad"))
            stream.send(asked("leaps", id="after"))
            stream.half_close()
            answers = by_id(itertools.chain([first], responses), ("running", "bad", "after"))
        errors = {
            name: [one.error for one in received if one.error is not None]
            for name, received in answers.items()
        }
        expect.equal("requests with an error", [name for name in errors if errors[name]], ["bad"])
        for error in errors["bad"]:
            expect.clean_error(error)
        texts = {
            name: "".join(one.text for one in received if one.error is None)
            for name, received in answers.items()
        }
        told = {"running": expected, "bad": "", "after": text_with("leaps")}
        expect.equal("texts by request", texts, told)
        # What was noted of the first attempt must not take it for loaded.
        expect.clean_error(client.generate(asked(adapter)).failed())
        expect.equal("text of a later request", client.generate(asked(None)).text, text_with(None))
    finally:
        # A dead engine must not be taken for what later checks look at.
        if client.generate(asked(None)).error is not None:
            lora_extra.unload()
