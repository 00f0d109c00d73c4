"""CLI: the sample client, run as a user runs it, and seen from the server's side."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2_grpc

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients.grpc import NO_PROXY
from pytest_vllm_triton.expect import Violation, Words
from pytest_vllm_triton.known_answer import KnownAnswer
from pytest_vllm_triton.launchers.base import ServerHandle
from pytest_vllm_triton.launchers.ports import reserved_ports
from pytest_vllm_triton.models.under_test import ModelUnderTest
from pytest_vllm_triton.servers.harness import Harness

from .extra_models import oracle

SECONDS = 120.0
MAX_TOKENS = 100
SEPARATOR = "========="
FLAGS = (
    *("--model", "--verbose", "--url", "--stream-timeout", "--offset", "--input-prompts"),
    *("--results-file", "--iterations", "--streaming-mode", "--exclude-inputs-in-outputs"),
    "--lora-name",
)


@dataclass(frozen=True)
class Run:
    """One run of the client.

    Attributes:
        results: the text of its results file; None when it wrote none.
    """

    status: int
    stdout: str
    stderr: str
    results: str | None

    @property
    def sections(self) -> list[str]:
        """What stands between the separators, without the blank lines around."""
        if self.results is None:
            raise Violation("results file", Words("one"), Words(f"none: {self.stdout!r}"))
        return [section.strip() for section in self.results.split(SEPARATOR)[:-1]]

    def passed(self) -> Run:
        """Itself, when the client says that all went well."""
        shown = (self.status, "PASS: vLLM example" in self.stdout)
        expect.equal(f"exit status, and whether it says PASS ({self.stderr})", shown, (0, True))
        return self

    def failed(self) -> Run:
        """Itself, when the client says that something went wrong."""
        expect.different("exit status", self.status, 0)
        expect.contains("standard output", self.stdout, "FAIL: vLLM example")
        expect.lacks("standard output", self.stdout, "PASS")
        return self


class SampleClient:
    """The client of the backend under test, where it has one: see `Provision.samples_dir`."""

    def __init__(self, harness: Harness, server: ServerHandle, folder: Path) -> None:
        self.samples = harness.provision.samples_dir
        self._folder = folder
        self.server = server.endpoints.grpc
        self._default = ["-u", server.endpoints.grpc]
        # The client's own default is vllm_model.
        if harness.model_name != "vllm_model":
            self._default += ["-m", harness.model_name]
        prompts = (self.samples / "prompts.txt").read_bytes()
        (folder / "prompts.txt").write_bytes(prompts)
        self.prompts = [line for line in prompts.decode().splitlines() if line.strip()]

    def run(self, *arguments: str, results: str = "results.txt") -> Run:
        """Run it in a folder that holds prompts.txt; a later flag wins over the defaults."""
        try:
            done = subprocess.run(
                [sys.executable, str(self.samples / "client.py"), *self._default, *arguments],
                cwd=self._folder,
                # A proxy of the user's is no way to a server on this host.
                env={k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                encoding="utf-8",
                errors="backslashreplace",
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired as late:
            expected = Words(f"its end within {SECONDS:.0f} s")
            shown = Words(f"none; standard output until then: {late.stdout!r}")
            raise Violation("sample client", expected, shown) from None
        file = self._folder / results
        text = None
        if file.is_file():
            text = file.read_text(encoding="utf-8", errors="backslashreplace")
        return Run(done.returncode, done.stdout, done.stderr, text)

    def write(self, name: str, text: str) -> None:
        (self._folder / name).write_text(text, encoding="utf-8")


@pytest.fixture
def client(vllm_harness: Harness, vllm_server: ServerHandle, tmp_path: Path) -> SampleClient:
    return SampleClient(vllm_harness, vllm_server, tmp_path)


def known_text(model: ModelUnderTest, prompt: str) -> str | None:
    """What the model tells after a prompt; None when that is not known.

    The client asks for a temperature at which the known-answer model tells its story.
    """
    if model.known_answer is None:
        return None
    return model.known_answer.answer(prompt, max_tokens=MAX_TOKENS).text


def expect_sections(sections: list[str], prompts: list[str], model: ModelUnderTest) -> None:
    """One for each prompt: the prompt, and what the model tells after it, where that is known."""
    expect.equal("number of sections", len(sections), len(prompts))
    for prompt, section in zip(prompts, sections, strict=True):
        expect.starts_with("section", section, prompt)
        text = known_text(model, prompt)
        if text is not None:
            expect.equal("section", section, (prompt + text).strip())


@pytest.mark.requirement("CLI-001")
def test_default_run(client: SampleClient, vllm_model: ModelUnderTest) -> None:
    run = client.run().passed()
    for line in ("Loading inputs from `prompts.txt`...", "Storing results into `results.txt`..."):
        expect.contains("standard output", run.stdout, line)
    expect_sections(run.sections, client.prompts, vllm_model)


@pytest.mark.requirement("CLI-001")
def test_prompts_of_other_alphabets(client: SampleClient, vllm_model: ModelUnderTest) -> None:
    """Twice: the second run's results take the place of the first one's."""
    prompts = ["Ünï", "你好", "Привет", "🙂 alpha", *(f"{number} alpha" for number in range(8))]
    client.write("prompts.txt", "".join(f"{prompt}\n" for prompt in prompts))
    client.run().passed()
    expect_sections(client.run().passed().sections, prompts, vllm_model)


@pytest.mark.requirement("CLI-001")
def test_default_address(client: SampleClient) -> None:
    expect.contains("output of --help", client.run("--help").stdout, "localhost:8001")


@pytest.mark.requirement("CLI-001")
def test_prompts_of_the_sample(client: SampleClient) -> None:
    expect.equal("number of prompts in prompts.txt", len(client.prompts), 4)


@pytest.mark.requirement("CLI-002")
def test_flags(client: SampleClient, alternate_model: str) -> None:
    """Another prompts file, results file, model, and three rounds, as the server sees them."""
    with recorded(client) as seen:
        client.write("mine.txt", "one\ntwo\nthree\nvier\n")
        run = client.run(
            *("-u", seen.address, "-m", alternate_model, "--iterations", "3", "--offset", "100"),
            *("--input-prompts", "mine.txt", "--results-file", "mine.out", "-t", "60"),
            results="mine.out",
        ).passed()
        requests = seen.requests()
    expect.equal("models", {request.model_name for request in requests}, {alternate_model})
    ids = sorted(request.id for request in requests)
    expect.equal("request ids", ids, [*map(str, range(100, 112))])
    expect.equal("number of sections", len(run.sections), 12)
    for prompt, section in zip(["one", "two", "three", "vier"] * 3, run.sections, strict=True):
        expect.starts_with("section", section, prompt)


@pytest.mark.requirement("CLI-003")
@pytest.mark.parametrize("streaming", [True, False], ids=["stream", "unary"])
def test_without_prompts_in_the_answers(
    client: SampleClient, known_answer: KnownAnswer, streaming: bool
) -> None:
    """After the last of these prompts there is nothing more to tell."""
    flags = ["-s"] if streaming else []
    prompts = [*client.prompts, "Say zulu"]
    client.write("one_more.txt", "\n".join(prompts))
    flags += ["--exclude-inputs-in-outputs", "--input-prompts", "one_more.txt"]
    run = client.run(*flags).passed()
    texts = [known_answer.answer(p, max_tokens=MAX_TOKENS).text.strip() for p in prompts]
    expect.equal("sections", run.sections, texts)


@pytest.mark.requirement("CLI-004")
def test_streaming_needs_no_other_flag(client: SampleClient, known_answer: KnownAnswer) -> None:
    run = client.run("-s").passed()
    texts = [known_answer.answer(p, max_tokens=MAX_TOKENS).text.strip() for p in client.prompts]
    expect.equal("sections", run.sections, texts)


@pytest.mark.requirement("CLI-005")
def test_failures_have_a_status(client: SampleClient) -> None:
    client.run("-m", "no_such_model").failed()
    with reserved_ports(1) as (port,):
        client.run("-u", f"127.0.0.1:{port}").failed()
    client.run("--input-prompts", "no_such_file.txt").failed()
    client.run("-t", "0.001").failed()


@pytest.mark.requirement("CLI-005")
def test_one_refused_prompt_is_a_failure(client: SampleClient, alternate_model: str) -> None:
    """The second of three is too long for this model; the others are answered all the same."""
    client.write("mixed.txt", "one\n" + "a " * 100_000 + "\nthree\n")
    run = client.run("-m", alternate_model, "--input-prompts", "mixed.txt").failed()
    expect.that("sections", run.sections, lambda them: len(them) >= 3, "at least 3")
    expect.starts_with("first section", run.sections[0], "one")
    expect.starts_with("third section", run.sections[2], "three")


@pytest.mark.requirement("CLI-005")
def test_stream_that_breaks_is_a_failure(client: SampleClient) -> None:
    """After the first piece of its one answer."""
    client.write("one.txt", "Say alpha\n")
    with recorded(client, responses=1) as seen:
        client.run("-u", seen.address, "-s", "--input-prompts", "one.txt").failed()


@pytest.mark.requirement("CLI-006")
def test_verbose_and_help(client: SampleClient) -> None:
    run = client.run("-v").passed()
    for section in run.sections:
        expect.contains("standard output of -v", run.stdout, section)
    plain = client.run().passed()
    expect.that("sections", plain.sections, bool, "some")
    expect.lacks("standard output without -v", plain.stdout, plain.sections[0])
    usage = client.run("--help")
    expect.equal("exit status of --help", usage.status, 0)
    for flag in FLAGS:
        expect.contains("standard output of --help", usage.stdout, flag)


@pytest.mark.requirement("CLI-006")
def test_adapter(client: SampleClient, lora_model: str) -> None:
    run = client.run("-m", lora_model, "-l", "backwards").passed()
    expected = oracle("backwards")
    texts = [p + expected.answer(p, max_tokens=MAX_TOKENS).text for p in client.prompts]
    expect.equal("sections", run.sections, [text.strip() for text in texts])


@pytest.mark.requirement("CLI-007")
def test_prompts_without_line_breaks(client: SampleClient) -> None:
    client.write("gaps.txt", "one\n\n  \n two \r\nthree")
    with recorded(client) as seen:
        client.run("-u", seen.address, "--input-prompts", "gaps.txt").passed()
        prompts = [text_of(request, "text_input") for request in seen.requests()]
    expect.equal("prompts as sent", prompts, ["one", " two ", "three"])


class Recorder(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Stands between client and server: hands everything on, and keeps the requests.

    Args:
        responses: so many are handed on before a stream breaks; None: all.
    """

    def __init__(self, server: str, responses: int | None = None) -> None:
        self._responses = responses
        self._kept: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._channel = grpc.insecure_channel(server, options=[NO_PROXY])
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def ModelStreamInfer(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        def passed_on() -> Iterator[Any]:
            for request in requests:
                self._kept.put(request)
                yield request

        answers = self._stub.ModelStreamInfer(passed_on(), timeout=SECONDS)
        yield from itertools.islice(answers, self._responses)
        if self._responses is not None:
            answers.cancel()
            context.abort(grpc.StatusCode.UNAVAILABLE, "the stream breaks here")

    def requests(self) -> list[Any]:
        """All requests so far, in the order of their arrival."""
        return [self._kept.get() for _ in range(self._kept.qsize())]

    def close(self) -> None:
        self._server.stop(grace=None).wait(SECONDS)
        self._channel.close()


@contextlib.contextmanager
def recorded(client: SampleClient, responses: int | None = None) -> Iterator[Recorder]:
    """A recorder in front of the server that the client talks to.

    Args:
        responses: see `Recorder`.
    """
    recorder = Recorder(client.server, responses)
    try:
        yield recorder
    finally:
        recorder.close()


def text_of(request: Any, name: str) -> str:
    """The text in an input tensor of a request as it was sent."""
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        if tensor.name == name:
            # One BYTES element: four bytes of length, then the text.
            return bytes(raw[4:]).decode("utf-8")
    raise Violation("inputs of the request", name, [t.name for t in request.inputs])
