"""Which prompts are prepared on the event loop, and which in vLLM's thread; and what errors say."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any

import pytest
from vllm_triton_backend.adapter import Engine, PromptRenderer, Vllm
from vllm_triton_backend.errors import Code
from vllm_triton_backend.stats import RankGauges, Stats

SHORT, LONG = "a word", "a word " * 1000


class FakeRenderer:
    """Tells where a prompt was prepared; what is in the thread stays there until `open`."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    def render_cmpl(self, prompts: list[str]) -> list[tuple[str, str]]:
        return [("at once", prompt) for prompt in prompts]

    async def render_cmpl_async(self, prompts: list[str]) -> list[tuple[str, str]]:
        await self.gate.wait()
        return [("in the thread", prompt) for prompt in prompts]


class FakeOldRenderer:
    async def render_cmpl_async(self, prompts: list[str]) -> list[tuple[str, str]]:
        return [("in the thread", prompt) for prompt in prompts]


def parsed(prompt: Any) -> str:
    return f"parsed {prompt}"


def test_a_short_text_is_prepared_at_once() -> None:
    async def run() -> Any:
        return await PromptRenderer(FakeRenderer(), parsed).render(SHORT)

    assert asyncio.run(run()) == ("at once", f"parsed {SHORT}")


@pytest.mark.parametrize("prompt", [LONG, {"prompt": SHORT}], ids=["long", "with images"])
def test_all_else_is_prepared_in_the_thread(prompt: Any) -> None:
    async def run() -> Any:
        renderer = FakeRenderer()
        renderer.gate.set()
        return await PromptRenderer(renderer, parsed).render(prompt)

    assert asyncio.run(run()) == ("in the thread", f"parsed {prompt}")


def test_no_two_threads_use_the_tokenizer() -> None:
    async def run() -> list[str]:
        renderer = FakeRenderer()
        prompts = PromptRenderer(renderer, parsed)
        long = asyncio.create_task(prompts.render(LONG))
        await asyncio.sleep(0)
        meanwhile = asyncio.create_task(prompts.render(SHORT))
        await asyncio.sleep(0)
        renderer.gate.set()
        places = [(await task)[0] for task in (long, meanwhile)]
        return [*places, (await prompts.render(SHORT))[0]]

    assert asyncio.run(run()) == ["in the thread", "in the thread", "at once"]


def test_a_prompt_that_is_refused_does_not_keep_the_thread() -> None:
    class Refusing(FakeRenderer):
        async def render_cmpl_async(self, prompts: list[str]) -> Any:
            raise ValueError("too long")

    async def run() -> Any:
        prompts = PromptRenderer(Refusing(), parsed)
        with pytest.raises(ValueError, match="too long"):
            await prompts.render(LONG)
        return await prompts.render(SHORT)

    assert asyncio.run(run())[0] == "at once"


def test_a_vllm_that_has_only_the_thread() -> None:
    async def run() -> Any:
        return await PromptRenderer(FakeOldRenderer(), parsed).render(SHORT)

    assert asyncio.run(run())[0] == "in the thread"


def test_an_error_without_words_tells_its_kind() -> None:
    vllm = object.__new__(Vllm)
    vllm.dead_error, vllm._client_errors = ChildProcessError, (ValueError,)
    assert vllm.to_request_error(ValueError()).message == "Error generating stream: ValueError"


def test_what_ends_the_engine_is_not_the_clients_mistake() -> None:
    vllm = object.__new__(Vllm)
    vllm.dead_error, vllm._client_errors = ChildProcessError, (ValueError,)
    told = vllm.to_engine_error(ValueError("a token id below zero"))
    assert (told.code, told.message) == (
        Code.UNAVAILABLE,
        "Error generating stream: a token id below zero",
    )


START_METHOD = "VLLM_WORKER_MULTIPROC_METHOD"


@pytest.mark.parametrize(
    ("device", "sizes", "chosen", "method"),
    [
        ("cpu", (1, 1), None, "fork"),
        ("cpu", (2, 1), None, "spawn"),
        ("cpu", (1, 2), None, "spawn"),
        ("cpu", (1, 1), "spawn", "spawn"),
        ("cuda", (1, 1), None, "spawn"),
    ],
    ids=["alone", "ranks", "replicas", "chosen", "gpu"],
)
def test_how_an_engine_is_started(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    sizes: tuple[int, int],
    chosen: str | None,
    method: str,
) -> None:
    """vLLM makes up its mind with the configuration, and reads it when the engine starts."""
    monkeypatch.delenv(START_METHOD, raising=False)
    if chosen is not None:
        monkeypatch.setenv(START_METHOD, chosen)
    started: dict[str, Any] = {}

    class Arguments:
        disable_log_stats, enable_log_requests = True, False

        def create_engine_config(self) -> Any:
            monkeypatch.setenv(START_METHOD, "spawn")
            world, data = sizes
            return SimpleNamespace(
                device_config=SimpleNamespace(device_type=device),
                parallel_config=SimpleNamespace(world_size=world, data_parallel_size=data),
            )

    class AsyncLLM(FakeVllmEngine):
        @classmethod
        def from_vllm_config(cls, config: Any, **options: Any) -> FakeVllmEngine:
            started.update(options, method=os.environ[START_METHOD])
            return cls()

    vllm: Any = object.__new__(Vllm)
    vllm._engine_class, vllm.engine_args = AsyncLLM, lambda _: Arguments()
    asyncio.run(vllm.start_engine({}, ["logger"]))
    assert started == {
        "method": method,
        "disable_log_stats": True,
        "enable_log_requests": False,
        "stat_loggers": ["logger"],
    }
    assert os.environ[START_METHOD] == "spawn"


class FakeVllmEngine:
    """An AsyncLLM that notes a request before it fails, and never answers about an adapter."""

    model_config: Any = None

    def __init__(self) -> None:
        self.errored = False
        self.known: set[str] = set()
        self.loading = asyncio.Event()

    async def add_request(self, request_id: str, *_: Any, **__: Any) -> Any:
        self.known.add(request_id)
        raise OverflowError("can't serialize ints")

    async def abort(self, request_id: str) -> None:
        self.known.discard(request_id)

    async def add_lora(self, _: Any) -> None:
        self.loading.set()
        await asyncio.Event().wait()


def engine_of(fake: FakeVllmEngine) -> Engine:
    vllm: Any = SimpleNamespace(dead_error=ChildProcessError)
    return Engine(vllm, fake, frozenset())


def test_a_request_that_cannot_be_sent_leaves_nothing_in_vllm() -> None:
    async def run() -> set[str]:
        fake = FakeVllmEngine()
        with pytest.raises(OverflowError):
            await engine_of(fake).generate("p", None, "7", lambda output: None)
        return fake.known

    assert asyncio.run(run()) == set()


class Collector:
    """vLLM's queue of one request's outputs, one of which is there from the beginning.

    Nothing can be put in the place of its `put`, as in a version that this was not written for.
    """

    __slots__ = ("outputs", "request_id")

    def __init__(self, outputs: list[Any]) -> None:
        self.outputs, self.request_id = outputs, "7-internal"

    async def get(self) -> Any:
        output = self.outputs.pop(0)
        if isinstance(output, Exception):
            raise output
        return output


@pytest.mark.parametrize("last", [SimpleNamespace(finished=True), ChildProcessError("dead")])
def test_outputs_come_from_a_collector_that_cannot_be_tapped(last: Any) -> None:
    class Answering(FakeVllmEngine):
        async def add_request(self, *_: Any, **__: Any) -> Any:
            return Collector([first, last, AssertionError("asked for more than the last one")])

    async def run() -> None:
        handle = await engine_of(Answering()).generate("p", None, "7", seen.append)
        assert (handle.abort_id, handle.internal) == ("7-internal", True)
        assert handle.task is not None
        await handle.task

    first = SimpleNamespace(finished=False)
    seen: list[Any] = []
    asyncio.run(run())
    assert seen == [first, last]


def test_an_adapter_does_not_wait_for_a_dead_engine() -> None:
    async def run() -> None:
        fake = FakeVllmEngine()
        engine = engine_of(fake)
        load = asyncio.create_task(engine.add_lora(None))
        await fake.loading.wait()
        fake.errored = True
        for loads in (load, engine.add_lora(None)):
            with pytest.raises(ChildProcessError):
                await asyncio.wait_for(loads, 10)

    asyncio.run(run())


def test_a_load_does_not_wait_for_a_dead_engine() -> None:
    class Silent(FakeVllmEngine):
        async def get_supported_tasks(self) -> Any:
            self.errored = True
            await asyncio.Event().wait()

        def shutdown(self) -> None:
            self.known.add("shut down")

    async def run() -> set[str]:
        vllm, fake = object.__new__(Vllm), Silent()
        vllm.dead_error = ChildProcessError
        with pytest.raises(ChildProcessError):
            await asyncio.wait_for(vllm._wrap(fake), 10)
        return fake.known

    assert asyncio.run(run()) == {"shut down"}


@pytest.mark.parametrize(
    ("model_config", "most"),
    [
        (None, None),
        (SimpleNamespace(is_multimodal_model=False), 0),
        (SimpleNamespace(is_multimodal_model=True, multimodal_config=None), None),
        (
            SimpleNamespace(
                is_multimodal_model=True,
                multimodal_config=SimpleNamespace(get_limit_per_prompt={"image": 2}.get),
            ),
            2,
        ),
    ],
    ids=["unknown", "text", "no-limit", "limit"],
)
def test_how_many_images_a_model_takes(model_config: Any, most: int | None) -> None:
    async def run() -> int | None:
        fake = FakeVllmEngine()
        fake.model_config = model_config
        return engine_of(fake).most_images

    assert asyncio.run(run()) == most


def test_gauges_are_those_of_all_ranks() -> None:
    gauges = RankGauges()
    alone = gauges.of_all(0, Stats(running=3, waiting=1, kv_cache_usage=0.5))
    assert (alone.running, alone.waiting, alone.kv_cache_usage) == (3, 1, 0.5)
    both = gauges.of_all(1, Stats(running=4, waiting=0, kv_cache_usage=0.1, generation_tokens=9))
    assert (both.running, both.waiting, both.kv_cache_usage) == (7, 1, pytest.approx(0.3))
    assert both.generation_tokens == 9, "counts are of the one that tells them"
    assert gauges.of_all(0, Stats(generation_tokens=2)).running is None
    assert gauges.of_all(0, Stats(running=0, waiting=0, kv_cache_usage=0.0)).running == 4
