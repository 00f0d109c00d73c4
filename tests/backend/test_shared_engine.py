"""SHARED_ENGINE on a real Triton: three instances, each a process, in front of one engine."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from waiting import eventually, gone

from conformance.processes import ENGINE_CORE, is_engine, is_stub, stub_instance
from pytest_vllm_triton import known_answer
from pytest_vllm_triton.launchers.base import ModelSpec, ServerHandle, ServerSpec
from pytest_vllm_triton.launchers.process import ProcessLauncher
from pytest_vllm_triton.paths import cache_home
from pytest_vllm_triton.runtime import create_runtime

ROOT = Path(__file__).resolve().parents[2]
NAME = "shared"
INSTANCES = 3
CONFIG = f"""
backend: "vllm"
instance_group [{{ count: {INSTANCES} kind: KIND_MODEL }}]
parameters {{ key: "SHARED_ENGINE" value {{ string_value: "true" }} }}
parameters {{ key: "REPORT_CUSTOM_METRICS" value {{ string_value: "true" }} }}
parameters {{ key: "DRAIN_TIMEOUT_SECONDS" value {{ string_value: "120" }} }}
"""
ORACLE = known_answer.KnownAnswer(known_answer.KnownAnswerSpec())
PROMPTS = [ORACLE.story_text[:length] for length in range(20, 60)]
TOKENS = 24
MODEL_LEN = 4096
#: Of requests that are to run for some seconds.
MANY = 1600


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerHandle]:
    runtime = create_runtime(progress=print)
    checkpoint = known_answer.build_checkpoint(ORACLE.spec, cache_home() / "checkpoints")
    arguments = {
        "model": str(checkpoint),
        "enforce_eager": True,
        "max_model_len": MODEL_LEN,
        "kv_cache_memory_bytes": 1 << 28,
        "gpu_memory_utilization": 0.1,
    }
    launcher = ProcessLauncher(
        runtime.tritonserver,
        runtime.backends,
        runtime.environment(),
        tmp_path_factory.mktemp("servers"),
    )
    models = (ModelSpec.create(NAME, arguments, CONFIG),)
    handle = launcher.launch(ServerSpec(models=models, backend_dir=ROOT / "backend"), timeout=300)
    try:
        yield handle
    finally:
        handle.stop()


class Model:
    """The model as a client sees it, and its processes."""

    def __init__(self, server: ServerHandle) -> None:
        self._server = server
        self._client = httpx.Client(base_url=server.endpoints.http, timeout=120, trust_env=False)

    def answer(self, prompt: str, **sampling: object) -> httpx.Response:
        parameters = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, **sampling}
        body = {"text_input": prompt, "exclude_input_in_output": True, **parameters}
        return self._client.post(f"/v2/models/{NAME}/generate", json=body)

    def answers(self, prompts: list[str]) -> list[httpx.Response]:
        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(self.answer, prompts))

    def load(self) -> None:
        self._client.post(f"/v2/repository/models/{NAME}/load", json={}).raise_for_status()

    def unload(self) -> None:
        self._client.post(f"/v2/repository/models/{NAME}/unload", json={}).raise_for_status()

    def is_ready(self) -> bool:
        return self._client.get(f"/v2/models/{NAME}/ready").status_code == 200

    def metric(self, family: str) -> float:
        assert self._server.endpoints.metrics is not None
        text = httpx.get(self._server.endpoints.metrics, trust_env=False).text
        found = re.findall(rf'^{family}{{[^}}]*model="{NAME}"[^}}]*}} (\S+)$', text, re.MULTILINE)
        return float(found[0]) if found else 0.0

    def stubs(self) -> list[psutil.Process]:
        """In the order of their instances."""
        stubs = [process for process in self._server.processes() if is_stub(process, NAME)]
        return sorted(stubs, key=lambda stub: stub_instance(stub, NAME))

    def seconds_at_work(self) -> list[float]:
        """What each instance has used of a processor."""
        return [sum(stub.cpu_times()[:2]) for stub in self.stubs()]

    def first_at_work(self, before: list[float]) -> int:
        """Which instance has a request, the only one since `before`."""
        seconds = []

        def one_works() -> bool:
            now = self.seconds_at_work()
            seconds[:] = [new - old for old, new in zip(before, now, strict=True)]
            return max(seconds) > 0.2

        assert eventually(one_works), seconds
        return seconds.index(max(seconds))

    def engines(self) -> list[psutil.Process]:
        return [process for process in self._server.processes() if is_engine(process, ENGINE_CORE)]


@pytest.fixture
def model(server: ServerHandle) -> Model:
    model = Model(server)
    if not model.is_ready() or not model.engines():
        model.load()
    return model


def expected(prompt: str, tokens: int = TOKENS) -> str:
    return ORACLE.answer(prompt, max_tokens=tokens, ignore_eos=True).text


def test_instances_answer_from_one_engine(model: Model) -> None:
    assert len(model.stubs()) == INSTANCES
    assert len(model.engines()) == 1
    before = model.seconds_at_work()
    generated = model.metric("vllm:generation_tokens_total")

    responses = [response for _ in range(3) for response in model.answers(PROMPTS)]

    texts = [response.json()["text_output"] for response in responses]
    assert texts == [expected(prompt) for prompt in PROMPTS] * 3
    after = model.seconds_at_work()
    assert all(new - old > 0.05 for old, new in zip(before, after, strict=True)), (before, after)
    count = generated + len(responses) * TOKENS
    assert eventually(lambda: model.metric("vllm:generation_tokens_total") == count)


def test_gauges_are_of_the_engine_whichever_instance_it_reports_to(model: Model) -> None:
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(model.answer, prompt, max_tokens=MANY) for prompt in PROMPTS[:8]]
        assert eventually(lambda: model.metric("vllm:num_requests_running") == 8)
        for future in running:
            future.result().raise_for_status()

    assert eventually(lambda: model.metric("vllm:num_requests_running") == 0)
    assert eventually(lambda: model.metric("vllm:kv_cache_usage_perc") == 0)


def test_unload_waits_for_the_requests_of_every_instance(model: Model) -> None:
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(model.answer, prompt, max_tokens=MANY) for prompt in PROMPTS[:8]]
        assert eventually(lambda: model.metric("vllm:num_requests_running") == 8)
        model.unload()
        texts = [future.result().json()["text_output"] for future in running]

    assert texts == [expected(prompt, MANY) for prompt in PROMPTS[:8]]
    assert eventually(lambda: not model.stubs() and not model.engines())


def test_gauges_are_of_a_single_busy_instance(model: Model) -> None:
    """As each instance in turn is given a request."""
    with ThreadPoolExecutor(1) as pool:
        for prompt in PROMPTS[:INSTANCES]:
            # Many logprobs, so that it takes longer than the time between two reports.
            running = pool.submit(model.answer, prompt, max_tokens=MANY, logprobs=20)
            assert eventually(lambda: model.metric("vllm:num_requests_running") == 1)
            running.result().raise_for_status()
            assert eventually(lambda: model.metric("vllm:num_requests_running") == 0)


def test_unload_waits_for_a_client_where_the_owner_has_nothing_to_do(model: Model) -> None:
    with ThreadPoolExecutor(1) as pool:
        for prompt in PROMPTS[: 2 * INSTANCES]:
            before = model.seconds_at_work()
            # Many logprobs, so that it takes longer than an instance without requests needs to end.
            running = pool.submit(model.answer, prompt, max_tokens=MANY, logprobs=20)
            if model.first_at_work(before) > 0:
                break
            running.result()
        else:
            pytest.fail("all requests were given to the first instance")
        model.unload()
        text = running.result().json()["text_output"]

    assert text == expected(prompt, MANY)
    assert eventually(lambda: not model.stubs() and not model.engines())


def test_the_model_can_be_loaded_anew_while_it_serves(server: ServerHandle, model: Model) -> None:
    before = model.engines()
    assert server.model_repository is not None
    file = server.model_repository / NAME / "1" / "model.json"
    file.write_text(file.read_text(encoding="utf-8") + "\n", encoding="utf-8")

    model.load()

    assert eventually(lambda: all(gone(engine.pid) for engine in before))
    assert eventually(lambda: len(model.stubs()) == INSTANCES)
    texts = [response.json()["text_output"] for response in model.answers(PROMPTS)]
    assert texts == [expected(prompt) for prompt in PROMPTS]


def test_all_instances_know_when_the_engine_is_gone(model: Model) -> None:
    engine = model.engines()[0]
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(model.answer, prompt, max_tokens=MANY) for prompt in PROMPTS[:8]]
        assert eventually(lambda: model.metric("vllm:num_requests_running") == 8)
        engine.send_signal(signal.SIGKILL)
        responses = [future.result() for future in running]

    assert all(response.is_error for response in responses), responses
    later = [model.answer(PROMPTS[0]) for _ in range(2 * INSTANCES)]
    assert all(response.is_error for response in later), later
    model.unload()
    assert eventually(lambda: not model.stubs())


def test_what_is_left_when_instances_are_killed(model: Model) -> None:
    """The last test: Triton 24.10 never unloads a model of which an instance was killed."""
    engine, stubs = model.engines()[0], model.stubs()

    stubs[-1].send_signal(signal.SIGKILL)

    responses = [model.answer(PROMPTS[0]) for _ in range(4 * INSTANCES)]
    texts = [response.json()["text_output"] for response in responses if response.is_success]
    assert len(texts) >= INSTANCES
    assert set(texts) == {expected(PROMPTS[0])}

    stubs[0].send_signal(signal.SIGKILL)  # the engine's parent

    assert eventually(lambda: gone(engine.pid))
    responses = [model.answer(PROMPTS[0]) for _ in range(2 * INSTANCES)]
    assert all(response.is_error for response in responses), responses
    assert "EngineCore" in "".join(response.text for response in responses)
