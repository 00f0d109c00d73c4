"""MGP: models on several GPUs, and each on the GPUs that it was meant for."""

from __future__ import annotations

import re

import pytest

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import GenerateRequest, HttpClient
from pytest_vllm_triton.clients.repository import ModelRepository
from pytest_vllm_triton.gpus import Gpu
from pytest_vllm_triton.launchers.base import ServerHandle
from pytest_vllm_triton.servers.harness import Harness
from pytest_vllm_triton.verdicts import not_applicable, untested

from .experiments.placement import (
    CHOSEN_GPU,
    EACH_GPU,
    FIRST_GPU,
    FOUR,
    PIPELINE,
    RAY,
    SECOND_GPU,
    SLICED_GPUS,
    TENSOR,
    TWO_INSTANCES,
    ManyGpus,
    Placement,
    holding,
    placed_spec,
)
from .extra_models import needs_owned
from .record import Seen
from .waits import ANSWER_SECONDS, UNLOAD_SECONDS

LOAD_SECONDS = 120.0
FREE_SECONDS = 5.0
NO_RAY = re.compile(r"(?i)no module named '?ray|ray.{0,40}not installed|install ray|import ray")
# Ranks hold equal shares of the weights and of the cache; one of them may hold a bit more.
EQUAL = 0.1
FREE = 0.05


@pytest.fixture(scope="session")
def gpus(vllm_server: ServerHandle) -> tuple[Gpu, ...]:
    """Those of the shared server, at least one."""
    needs_owned(vllm_server)
    found = vllm_server.gpus()
    if not found:
        untested("the server sees no GPU")
    return found


@pytest.fixture(scope="session")
def many_gpus(vllm_harness: Harness, vllm_server: ServerHandle, gpus: tuple[Gpu, ...]) -> Seen:
    """What was seen of models that were placed on several GPUs."""
    if len(gpus) < 2:
        untested("the server sees one GPU only")
    return ManyGpus(vllm_harness, vllm_server).run()


def expect_served(seen: Seen, model: str) -> None:
    """It was loaded, and all its answers are right."""
    expect.equal(f"load error of {model}", seen[f"load error of {model}"], None)
    expect.equal(f"texts of {model}", seen[f"texts of {model}"], seen["texts expected"])


def expect_gpus(seen: Seen, model: str, *expected: list[int]) -> None:
    """Which GPUs each of its instances holds memory of, in the order of the instances."""
    held = [holding(memory) for memory in seen[f"memory of {model}"]]
    expect.equal(f"GPUs of the instances of {model}", held, list(expected))


@pytest.mark.requirement("MGP-001")
def test_tensor_parallel_model_serves_from_both_gpus(many_gpus: Seen) -> None:
    expect_served(many_gpus, TENSOR)
    (memory,) = many_gpus[f"memory of {TENSOR}"]
    expect.equal("GPUs that hold memory", holding(memory), [0, 1])
    one, other = memory[:2]
    expect.between("bytes on GPU 0 over those on GPU 1", one / other, 1 - EQUAL, 1 / (1 - EQUAL))


@pytest.mark.requirement("MGP-002")
def test_one_gpu_is_not_for_several_ranks(
    vllm_harness: Harness, repository: ModelRepository, gpus: tuple[Gpu, ...]
) -> None:
    expect_refused(vllm_harness, repository, "tensor_parallel_size")


@pytest.mark.requirement("MGP-003")
def test_one_gpu_is_not_for_several_stages(
    vllm_harness: Harness, repository: ModelRepository, gpus: tuple[Gpu, ...]
) -> None:
    expect_refused(vllm_harness, repository, "pipeline_parallel_size")


def expect_refused(harness: Harness, repository: ModelRepository, size: str) -> None:
    """A KIND_GPU model with this argument of 2 does not load."""
    placement = Placement("kind: KIND_GPU", {size: 2})
    repository.add(placed_spec(harness, "kind_gpu_of_two", placement))
    error = repository.load("kind_gpu_of_two").failed()
    expect.contains("load error", error, "please specify KIND_MODEL")


@pytest.mark.requirement("MGP-004")
def test_pipeline_parallel_model_serves(many_gpus: Seen) -> None:
    expect_served(many_gpus, PIPELINE)
    expect_gpus(many_gpus, PIPELINE, [0, 1])


@pytest.mark.requirement("MGP-005")
def test_tensor_parallel_text_is_that_of_one_gpu(many_gpus: Seen) -> None:
    expect_served(many_gpus, FIRST_GPU)
    expect.equal(
        "texts with two GPUs", many_gpus[f"texts of {TENSOR}"], many_gpus[f"texts of {FIRST_GPU}"]
    )


@pytest.mark.requirement("MGP-006")
def test_an_instance_on_each_gpu(many_gpus: Seen, gpus: tuple[Gpu, ...]) -> None:
    expect_served(many_gpus, EACH_GPU)
    held = sorted(holding(memory) for memory in many_gpus[f"memory of {EACH_GPU}"])
    expect.equal("GPUs of the instances", held, [[number] for number in range(len(gpus))])


@pytest.mark.requirement("MGP-007")
def test_models_land_on_their_own_gpus(many_gpus: Seen) -> None:
    expect_served(many_gpus, FIRST_GPU)
    expect_served(many_gpus, SECOND_GPU)
    expect_gpus(many_gpus, FIRST_GPU, [0])
    expect_gpus(many_gpus, SECOND_GPU, [1])


@pytest.mark.requirement("MGP-008")
def test_gpus_are_counted_as_the_server_sees_them(many_gpus: Seen) -> None:
    """The server was started with CUDA_VISIBLE_DEVICES naming the second GPU."""
    texts = many_gpus["texts under the mask"]
    expect.equal("texts", texts, many_gpus["texts expected"])
    expect.equal("GPUs that hold memory", holding(many_gpus["memory under the mask"]), [1])


@pytest.mark.requirement("MGP-009")
def test_two_instances_are_spread_or_refused(many_gpus: Seen) -> None:
    error = many_gpus[f"load error of {TWO_INSTANCES}"]
    if error is not None:
        expect.clean_error(error)
        expect.matches("load error", error, r"(?i)instance|gpu")
        return
    expect_served(many_gpus, TWO_INSTANCES)
    held = sorted(holding(memory) for memory in many_gpus[f"memory of {TWO_INSTANCES}"])
    expect.equal("GPUs of the instances", held, [[0], [1]])


@pytest.mark.requirement("MGP-010")
def test_more_gpus_than_there_are(
    vllm_harness: Harness,
    repository: ModelRepository,
    triton_http: HttpClient,
    gpus: tuple[Gpu, ...],
) -> None:
    placement = Placement(engine_args={"tensor_parallel_size": 2 * len(gpus)})
    repository.add(placed_spec(vllm_harness, "too_many_gpus", placement))
    answer = repository.load("too_many_gpus")
    expect.clean_error(answer.failed())
    expect.matches("load error", answer.failed(), r"(?i)gpu|device|world.size")
    expect.between("seconds until it came", answer.answer.seconds, 0, LOAD_SECONDS)
    expect.equal("/v2/health/live", triton_http.get("/v2/health/live").status, 200)
    expect.equal("next answer", triton_http.generate(GenerateRequest("Hello")).status, 200)


@pytest.mark.requirement("MGP-011")
def test_unload_frees_both_gpus(many_gpus: Seen) -> None:
    seen = many_gpus
    expect.equal("error of the unload", seen["error of the unload"], None)
    expect.equal("processes left", seen["processes left after the unload"], [])
    expect.between("seconds of the unload", seen["seconds of the unload"], 0, UNLOAD_SECONDS)
    for number, (before, after) in enumerate(
        zip(seen["memory before"], seen["memory after"], strict=True)
    ):
        limit = before * (1 + FREE)
        expect.between(f"bytes on GPU {number} after all unloads", after, 0, limit)


@pytest.mark.requirement("MGP-012")
def test_streaming_with_tensor_parallelism(many_gpus: Seen) -> None:
    answer = many_gpus["stream"]
    expect.equal("error", answer.error, None)
    expect.equal("joined text", answer.text, many_gpus["stream expected"])
    expect.that("responses", len(answer.data), lambda number: number > 1, "more than one")


@pytest.mark.requirement("MGP-012")
@pytest.mark.parametrize("adapter", ["backwards", "leaps"])
def test_adapters_with_tensor_parallelism(many_gpus: Seen, adapter: str) -> None:
    expect.equal(
        "text", many_gpus[f"text with {adapter}"], many_gpus[f"text expected with {adapter}"]
    )


@pytest.mark.requirement("MGP-012")
def test_cancellation_with_tensor_parallelism(many_gpus: Seen) -> None:
    answer = many_gpus["answer after the cancellation"]
    expect.equal("error", answer.error, None)
    limit = FREE_SECONDS + many_gpus["seconds of an answer before"]
    expect.between("seconds until it came", answer.seconds, 0, limit)


@pytest.mark.requirement("MGP-012")
def test_tensor_parallelism_on_ray(many_gpus: Seen) -> None:
    if NO_RAY.search(many_gpus[f"load error of {RAY}"] or ""):
        not_applicable("the server's Python has no Ray")
    expect_served(many_gpus, RAY)


@pytest.mark.requirement("MGP-013")
def test_death_of_a_worker(many_gpus: Seen) -> None:
    seen = many_gpus
    last = seen["responses around the death of a worker"][-1]
    expect.that("error of the request in flight", last.error, bool, "an error")
    seconds = seen["seconds from the death to the error"]
    expect.between("seconds until it came", seconds, 0, ANSWER_SECONDS)
    expect.equal("processes left", seen["left of the killed worker's engine"], [])
    expect.equal(
        "text of another model",
        seen["text of another model after the death"],
        seen["text expected of another model"],
    )


@pytest.mark.requirement("MGP-014")
def test_gpus_chosen_by_parameter(many_gpus: Seen) -> None:
    expect_served(many_gpus, CHOSEN_GPU)
    expect_gpus(many_gpus, CHOSEN_GPU, [1])


@pytest.mark.requirement("MGP-016")
def test_gpus_chosen_for_each_instance(many_gpus: Seen) -> None:
    expect_served(many_gpus, SLICED_GPUS)
    expect_gpus(many_gpus, SLICED_GPUS, [1], [0])


@pytest.mark.requirement("MGP-015")
def test_four_gpus(many_gpus: Seen, gpus: tuple[Gpu, ...]) -> None:
    if len(gpus) < 4:
        untested(f"the server sees {len(gpus)} GPUs only")
    expect_served(many_gpus, FOUR)
    expect_gpus(many_gpus, FOUR, [0, 1, 2, 3])
