"""PIP: the vLLM model as a step of an ensemble, and called by a Python model (BLS)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import GenerateRequest, GrpcClient, HttpAnswer, HttpClient
from pytest_vllm_triton.clients.repository import ModelRepository
from pytest_vllm_triton.launchers.base import ModelSpec, ServerHandle
from pytest_vllm_triton.models.under_test import ModelUnderTest
from pytest_vllm_triton.servers.harness import Harness
from pytest_vllm_triton.transcript import Transcript

from .extra_models import needs_owned
from .marks import UNARY_AND_STREAM
from .traffic import expect_told_alike
from .waits import UNLOAD_SECONDS, until

PROMPT = "Say alpha"
GREEDY = {"temperature": 0, "max_tokens": 24, "ignore_eos": True}
# Too many tokens for one response of a stream (STR-005).
SEVERAL_RESPONSES = 400
ENSEMBLE = "ensemble_model"
# Models of one instance each: Triton 24.10 now and then aborts (lock_exception) when it starts
# several instances of a Python model at the same time, whatever their code.
CALLERS = ("calling_model", "other_calling_model")

_ENSEMBLE = """
platform: "ensemble"
max_batch_size: 0
model_transaction_policy { decoupled: true }
input [
  { name: "text_input" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "stream" data_type: TYPE_BOOL dims: [ 1 ] },
  { name: "sampling_parameters" data_type: TYPE_STRING dims: [ 1 ] }
]
output [ { name: "text_output" data_type: TYPE_STRING dims: [ -1 ] } ]
ensemble_scheduling {
  step [
    {
      model_name: "%s"
      model_version: -1
      input_map { key: "text_input" value: "text_input" }
      input_map { key: "stream" value: "stream" }
      input_map { key: "sampling_parameters" value: "sampling_parameters" }
      output_map { key: "text_output" value: "text_output" }
    }
  ]
}
"""

_CALLER_CONFIG = """
backend: "python"
max_batch_size: 0
input [
  { name: "text_input" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "stream" data_type: TYPE_BOOL dims: [ 1 ] },
  { name: "sampling_parameters" data_type: TYPE_STRING dims: [ 1 ] }
]
output [
  { name: "pieces" data_type: TYPE_STRING dims: [ -1 ] },
  { name: "errors" data_type: TYPE_STRING dims: [ -1 ] }
]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""

# As python_backend's README shows business logic scripting with decoupled models, but for `kept`:
# Triton 24.10's stub destroys the responses of a finished call in a thread of its own that does not
# hold the GIL (Stub::SendCleanupId), and now and then crashes of it, on a busy host. It must not be
# the last to hold them, so this model keeps them until its next call is over.
_CALLER = """
import numpy as np
import triton_python_backend_utils as pb_utils

INPUTS = ("text_input", "stream", "sampling_parameters")


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        call = pb_utils.InferenceRequest(
            model_name="%s",
            requested_output_names=["text_output"],
            inputs=[pb_utils.get_input_tensor_by_name(request, name) for name in INPUTS],
        )
        found = {"pieces": [], "errors": []}
        responses = []
        for response in call.exec(decoupled=True):
            responses.append(response)
            if response.has_error():
                found["errors"].append(response.error().message().encode())
                continue
            output = pb_utils.get_output_tensor_by_name(response, "text_output")
            if output is not None:
                found["pieces"].append(output.as_numpy()[0])
        self.kept = responses
        return pb_utils.InferenceResponse(
            output_tensors=[
                pb_utils.Tensor(name, np.array(values, dtype=np.object_))
                for name, values in found.items()
            ]
        )
"""


@pytest.fixture(scope="module")
def pipelines(vllm_harness: Harness, vllm_server: ServerHandle) -> Iterator[ModelRepository]:
    """The shared server's repository with the models around the vLLM model, not loaded yet."""
    server = needs_owned(vllm_server)
    opened = ModelRepository(server)
    model = vllm_harness.model_name
    opened.add(ModelSpec(ENSEMBLE, config=_ENSEMBLE % model))
    code = (_CALLER % model).encode()
    for name in CALLERS:
        opened.add(ModelSpec(name, config=_CALLER_CONFIG, files={"1/model.py": code}))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def ensemble(pipelines: ModelRepository) -> str:
    pipelines.load(ENSEMBLE).ok()
    return ENSEMBLE


@pytest.fixture
def callers(transcript: Transcript, pipelines: ModelRepository) -> Callers:
    # With a calling model on a busy host Triton 24.10 crashes now and then, also when it starts.
    transcript.note_crash_risk()
    return Callers(pipelines)


def asked(prompt: str, stream: bool, **sampling: Any) -> GenerateRequest:
    return GenerateRequest(prompt, stream=stream, sampling={**GREEDY, **sampling})


@pytest.mark.requirement("PIP-001")
def test_ensemble_answers(triton_http: HttpClient, triton_grpc: GrpcClient, ensemble: str) -> None:
    """Not streaming: the text of the vLLM model itself."""
    request = asked(PROMPT, stream=False)
    expected = triton_http.generate(request).text
    expect.starts_with("text_output of the vLLM model", expected, PROMPT)
    for client in (triton_http, triton_grpc):
        answer = client.for_model(ensemble).generate(request)
        expect.equal("text_output of the ensemble", answer.text, expected)
        expect.equal("model_name", answer.data[0].model_name, ensemble)


@pytest.mark.requirement("PIP-001")
def test_ensemble_streams(triton_http: HttpClient, triton_grpc: GrpcClient, ensemble: str) -> None:
    request = asked(PROMPT, stream=True, max_tokens=SEVERAL_RESPONSES)
    expected = triton_grpc.generate(request).text
    for client in (triton_http, triton_grpc):
        answer = client.for_model(ensemble).generate(request)
        expect.equal("joined text_output of the ensemble", answer.text, expected)
        expect.that("number of responses", len(answer.data), lambda n: n >= 2, "at least 2")


@pytest.mark.requirement("PIP-001")
def test_errors_pass_through_an_ensemble(
    triton_http: HttpClient, triton_grpc: GrpcClient, ensemble: str
) -> None:
    bad = asked(PROMPT, stream=False, temperature=-1)
    for client in (triton_http, triton_grpc):
        error = client.for_model(ensemble).generate(bad).failed()
        expect.contains("error of the ensemble", error, client.generate(bad).failed())


@dataclass(frozen=True)
class Callers:
    """The models that call the vLLM model."""

    repository: ModelRepository

    def load(self) -> None:
        """See that they can be asked: in the check, which is made again if the server crashes."""
        for name in CALLERS:
            if not self.repository.is_ready(name):
                self.repository.load(name).ok()

    def call(self, client: HttpClient, name: str, request: GenerateRequest) -> dict[str, list[str]]:
        """What the calling model of this name collected: texts and errors."""
        answer = _infer(client, name, request)
        if f"Stub process '{name}_" in (answer.error or ""):
            # On a host that stands still for a second Triton gives up that model's stub, and the
            # memory that the next one shares with the server may be spoilt.
            self.repository.unload(name)
            until(lambda: not self.repository.is_ready(name), UNLOAD_SECONDS)
            self.repository.load(name).ok()
            answer = _infer(client, name, request)
        expect.equal(f"HTTP status ({answer.error})", answer.status, 200)
        return {output["name"]: output["data"] for output in answer.json()["outputs"]}


def _infer(client: HttpClient, name: str, request: GenerateRequest) -> HttpAnswer:
    body = {
        "inputs": [
            {
                "name": tensor,
                "datatype": "BOOL" if isinstance(value, bool) else "BYTES",
                "shape": [1],
                "data": [value],
            }
            for tensor, value in request.named_inputs().items()
        ]
    }
    # The server compresses answers of this endpoint, unless it is asked not to.
    headers = {"Accept-Encoding": "identity"}
    return client.request("POST", f"/v2/models/{name}/infer", json_body=body, headers=headers)


@pytest.mark.requirement("PIP-002")
@UNARY_AND_STREAM
def test_called_by_a_python_model(triton_http: HttpClient, callers: Callers, stream: bool) -> None:
    callers.load()
    request = asked(PROMPT, stream=stream, max_tokens=SEVERAL_RESPONSES)
    expected = triton_http.generate(request).text
    found = callers.call(triton_http, CALLERS[0], request)
    expect.equal("errors", found["errors"], [])
    expect.equal("joined text_output", "".join(found["pieces"]), expected)
    if stream:
        pieces = len(found["pieces"])
        expect.that("number of responses", pieces, lambda n: n >= 2, "at least 2")
    else:
        expect.equal("number of responses", len(found["pieces"]), 1)


@pytest.mark.requirement("PIP-002")
def test_python_model_sees_the_error(triton_http: HttpClient, callers: Callers) -> None:
    callers.load()
    bad = asked(PROMPT, stream=False, temperature=-1)
    found = callers.call(triton_http, CALLERS[0], bad)
    expect.equal("texts", found["pieces"], [])
    expect.equal("number of errors", len(found["errors"]), 1)
    expect.contains("error", found["errors"][0], triton_http.generate(bad).failed())


@pytest.mark.requirement("PIP-002")
def test_several_python_models_at_once(
    triton_http: HttpClient, callers: Callers, vllm_model: ModelUnderTest
) -> None:
    """Two models call at the same time, 16 requests in all."""
    callers.load()
    prompts = [f"{index} {word}" for index, word in enumerate(("lima", "tango", "Ünï", "a") * 4)]
    requests = [asked(prompt, stream=index % 2 == 0) for index, prompt in enumerate(prompts)]
    expected = [triton_http.generate(request).text for request in requests]

    def call(name: str, own: list[GenerateRequest]) -> list[str]:
        # Without a transcript, in which the two threads would stand mixed up.
        with HttpClient(triton_http.url, name) as client:
            found = [callers.call(client, name, request) for request in own]
        expect.equal("errors", [error for one in found for error in one["errors"]], [])
        return ["".join(one["pieces"]) for one in found]

    half = len(requests) // 2
    with ThreadPoolExecutor(len(CALLERS)) as pool:
        first, second = pool.map(call, CALLERS, (requests[:half], requests[half:]))
    expect_told_alike("texts, by request", vllm_model, requests, first + second, expected)
