"""A server without metrics page and control API, until its engine dies."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import httpx
from tritonclient.grpc import service_pb2

from pytest_vllm_triton.clients import (
    GenerateRequest,
    GrpcClient,
    HttpClient,
)
from pytest_vllm_triton.clients.grpc import add_input, infer_request
from pytest_vllm_triton.errors import ServerFailed
from pytest_vllm_triton.launchers.base import ModelSpec, ServerHandle, ServerProcess
from pytest_vllm_triton.launchers.readiness import LoadStumbled, NotReadyInTime, PortTaken
from pytest_vllm_triton.plain_http import plain_client
from pytest_vllm_triton.servers.harness import Harness

from ..extra_models import config_with
from ..processes import described, is_stub, kill_engine, living
from ..record import Seen
from ..traffic import greedy
from ..waits import GONE_SECONDS, PATIENCE
from .shared_host import share_the_host

# More than the start of a Python process takes, less than a load: vLLM is imported in it.
SHORT_STUB_TIMEOUT = 10
# What is unusual about this server -> the flag. Two are settings of the python backend that are not
# for the vLLM backend: a batch size for models that name none, and a time-out of stubs that is
# shorter than a load.
NO_METRICS, BATCH_SIZE, STUB_TIMEOUT = "no metrics page", "a batch size", "a short stub timeout"
FLAGS = {
    NO_METRICS: "--allow-metrics=false",
    BATCH_SIZE: "--backend-config=python,default-max-batch-size=8",
    STUB_TIMEOUT: f"--backend-config=python,stub-timeout-seconds={SHORT_STUB_TIMEOUT}",
}
# Failures of a boot that say nothing of the backend.
_NOT_THE_BACKENDS = (NotReadyInTime, LoadStumbled, PortTaken)


class BareLife:
    """A server without metrics page and without control API, whose engine is then killed.

    Its vLLM model asks for custom metrics and has the health check on; beside it is a model without
    vLLM. It shares /dev/shm with the shared server, where it has a prefix of its own.

    Attributes:
        stub_crashed: whether the vLLM model's stub was gone in the end, as Triton 24.10's may be by
            itself when the server refuses to unload a model for it: it reads the refusal's text
            from memory that may be free by then. No version is known that mends this.
    """

    def __init__(self, harness: Harness, shared: ServerHandle) -> None:
        self.harness = harness
        self.shared = shared
        self.model = harness.model_name
        self.seen = Seen()
        self.handle: ServerHandle
        self.stubs: list[ServerProcess] = []
        self.stub_crashed = False

    def run(self) -> Seen:
        seen = self.seen
        names = list(FLAGS)
        if not self._boots(names):
            # One of them is enough for that: the others are not to be blamed.
            names = [name for name in FLAGS if self._boots_with(name)]
            self._boot(names)
        seen["flags"] = names
        seen["boot seconds"] = self.handle.boot_seconds
        try:
            seen.step(self.two_servers_under_load)
            for step in (self.serve, self.wrong_tensors, self.engine_dies):
                if not seen.step(step):
                    break
        finally:
            self.stub_crashed = len(living(self.stubs)) < len(self.stubs)
            self._kill()
        return seen

    def _boots_with(self, name: str) -> bool:
        if not self._boots([name]):
            return False
        self._kill()
        return True

    def _boots(self, names: Sequence[str]) -> bool:
        try:
            self._boot(names)
        except _NOT_THE_BACKENDS:
            raise
        except ServerFailed:
            return False
        return True

    def _boot(self, names: Sequence[str]) -> None:
        harness = self.harness
        config = config_with(REPORT_CUSTOM_METRICS="true", ENABLE_VLLM_HEALTH_CHECK="true")
        echo = ModelSpec(ECHO, config=_ECHO_CONFIG, files={"1/model.py": _ECHO_CODE.encode()})
        spec = harness.server_spec(
            harness.model_spec(config=config),
            echo,
            args=tuple(FLAGS[name] for name in names),
            control_mode="none",
            shm_domain=self.shared.shm_domain,
        )
        purpose = ", ".join(["no control API", *names])
        self.handle = harness.boot(spec, f"{purpose}; its engine dies")
        self.seen.watch(self.handle)

    def _kill(self) -> None:
        self.handle.kill()
        self.harness.forget(self.handle)

    def two_servers_under_load(self) -> None:
        share_the_host(self.seen, self.shared, self.handle, self.harness)

    def serve(self) -> None:
        seen = self.seen
        with self._http(self.model) as http:
            seen["/v2/health/ready"] = http.get("/v2/health/ready").status
            seen["max_batch_size"] = http.get(http.path("config")).json().get("max_batch_size")
            seen["answer"] = http.generate(greedy("Say alpha", 8))
        seen["refusal of the metrics page"] = _refusal(str(self.handle.metrics_address))

    def wrong_tensors(self) -> None:
        """On a server that is killed: Triton 24.10 cannot unload a model after such a request."""
        with GrpcClient(self.handle.endpoints.grpc, self.model) as grpc:
            for name, message in requests_with_wrong_tensors(self.model).items():
                self.seen.look(f"answer to {name}", partial(grpc.exchange, [message]))

    def engine_dies(self) -> None:
        """This server cannot unload the model."""
        seen = self.seen
        self.stubs = [p for p in self.handle.processes() if is_stub(p, self.model)]
        kill_engine(self.stubs, GONE_SECONDS)
        with self._http(self.model) as http:
            with GrpcClient(self.handle.endpoints.grpc, self.model, deadline=PATIENCE) as grpc:
                answers = [grpc.generate(greedy("tango", 8)), http.generate(greedy("tango", 8))]
            seen["answers of a dead engine"] = answers
            seen["live with a dead engine"] = http.get("/v2/health/live").status
            seen["stubs that crashed"] = [
                described(stub) for stub in self.stubs if not living([stub])
            ]
            tensor = {"name": "IN", "shape": [1], "datatype": "BYTES", "data": ["mars"]}
            path = f"/v2/models/{ECHO}/infer"
            echoed = http.request("POST", path, json_body={"inputs": [tensor]})
            seen["answer of the other model"] = echoed.text

    def _http(self, model: str) -> HttpClient:
        return HttpClient(self.handle.endpoints.http, model, deadline=PATIENCE)


ECHO = "echo_model"
_ECHO_CONFIG = """
backend: "python"
max_batch_size: 0
input [ { name: "IN" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_STRING dims: [ 1 ] } ]
instance_group [ { kind: KIND_CPU } ]
"""
_ECHO_CODE = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "IN") for request in requests]
        outputs = [pb_utils.Tensor("OUT", tensor.as_numpy()) for tensor in inputs]
        return [pb_utils.InferenceResponse([tensor]) for tensor in outputs]
"""


def requests_with_wrong_tensors(model: str) -> dict[str, service_pb2.ModelInferRequest]:
    """Requests that do not fit the model's configuration, which the server itself refuses."""
    good = GenerateRequest("What is Triton Inference Server?")
    wrong_type = infer_request(model, good)
    add_input(wrong_type, "stream", "BYTES", [1], ["true"])
    wrong_shape = infer_request(model, GenerateRequest())
    add_input(wrong_shape, "text_input", "BYTES", [2], ["a", "b"])
    unknown_input = infer_request(model, good)
    add_input(unknown_input, "x", "BYTES", [1], ["a"])
    return {
        "a wrong type": wrong_type,
        "a wrong shape": wrong_shape,
        "an unknown input": unknown_input,
        "an unknown output": infer_request(model, good.but(outputs=("x",))),
    }


def _refusal(address: str) -> Exception | None:
    """What asking for the metrics page brought: no answer is an exception, any answer None."""
    try:
        with plain_client(5.0) as client:
            client.get(f"http://{address}/metrics")
    except httpx.TransportError as error:
        return error
    return None
