"""HLT: what is told about a model's health is true, whoever has died."""

from __future__ import annotations

import pytest
from packaging.version import Version

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import HttpClient
from pytest_vllm_triton.servers.harness import Harness
from pytest_vllm_triton.verdicts import untested

from .error_words import NO_VERSIONS, UNHEALTHY
from .experiments.deaths import ASKS_MODELS, EngineDeath
from .experiments.second_model import SECOND
from .record import Seen
from .waits import ANSWER_SECONDS, NOTICED_SECONDS, UNLOAD_SECONDS


@pytest.fixture
def model(vllm_harness: Harness) -> str:
    return vllm_harness.model_name


@pytest.mark.requirement("HLT-001")
def test_ready_server_has_its_models(plain_life: Seen, model: str) -> None:
    """Asked as soon as the server said that it is ready."""
    seen = plain_life
    for path in ("/v2/health/live", "/v2/health/ready"):
        expect.equal(f"HTTP status of {path}", seen[path], 200)
    for name in (model, SECOND):
        expect.equal(f"HTTP status of /v2/models/{name}/ready", seen[f"HTTP ready: {name}"], 200)
        expect.equal(f"gRPC ModelReady of {name}", seen[f"gRPC ready: {name}"], True)
    expect.different("HTTP status for an unknown model", seen["HTTP ready: no_such_model"], 200)
    expect.equal("gRPC ModelReady of an unknown model", seen["gRPC ready: no_such_model"], False)
    expect.equal(
        "text of a model",
        seen["text of the second model"],
        seen["text expected of the second model"],
    )


@pytest.mark.requirement("HLT-002")
def test_other_values_do_not_switch_the_check_on(deaths: Seen) -> None:
    """ENABLE_VLLM_HEALTH_CHECK was "1", which is not "true"; the engine is dead."""
    engine_death: EngineDeath = deaths["engine death"]
    expect.that("error of a later request", engine_death.later.error, bool, "an error")
    expect.lacks("error of a later request", engine_death.later.error, UNHEALTHY)
    # What the check does: it unloads the model.
    expect.different("state in the index", deaths["state after the engine's death"], "UNAVAILABLE")


@pytest.mark.requirement("HLT-003")
def test_healthy_engine_with_the_check_on(plain_life: Seen) -> None:
    answers = plain_life["answers with the check on"]
    expect.equal("distinct answers to ten requests", len(set(answers)), 1)
    expect.starts_with("answer", answers[0], "tango")
    expect.equal("HTTP status of /ready after them", plain_life["ready after them"], 200)


@pytest.mark.requirement("HLT-004")
def test_unhealthy_engine_unloads_the_model(deaths: Seen) -> None:
    """The first request after vLLM noticed; a model that was unloaded even before says so."""
    responses = deaths["responses after the death"]
    expect.equal("number of responses", len(responses), 1)
    expect.matches("error", responses[0].error, f"{UNHEALTHY}|{NO_VERSIONS}")
    expect.happened(
        "seconds until the model is not ready", deaths["seconds until unloaded"], UNLOAD_SECONDS
    )
    expect.different("state in the index", deaths["state after the death"], "READY")


@pytest.mark.requirement("HLT-005")
@pytest.mark.parametrize("protocol", ["HTTP", "gRPC"])
def test_request_after_the_unload(deaths: Seen, model: str, protocol: str) -> None:
    answer = deaths[f"{protocol} answer of the next request"]
    expected = f"Request for unknown model: '{model}' {NO_VERSIONS}"
    expect.equal("error", answer.failed(), expected)


@pytest.mark.requirement("HLT-006")
def test_status_of_unhealthy_and_unloaded(deaths: Seen) -> None:
    unloaded = deaths["HTTP answer of the next request"]
    expect.equal("HTTP status of the next request", unloaded.status, 404)
    if NO_VERSIONS in (deaths["responses after the death"][0].error or ""):
        untested("the model was unloaded before a request could find it unhealthy")
    expect.equal("gRPC status", deaths["status after the death"], "UNAVAILABLE")


@pytest.mark.requirement("HLT-007")
def test_loading_again_recovers_a_dead_engine(deaths: Seen) -> None:
    for cause in ("engine", "worker"):
        expect.equal(
            f"error of the load after the {cause}'s death",
            deaths[f"error of the load after the {cause}'s death"],
            None,
        )
    healthy = deaths["answer of a healthy engine"]
    expect.equal("text", deaths["text after the recovery"], healthy.text)


@pytest.mark.requirement("HLT-008")
def test_dead_engine_is_not_ready(deaths: Seen, triton_http: HttpClient) -> None:
    """No request was sent after the engine's death."""
    version = Version(triton_http.get("/v2").json()["version"])
    if deaths["seconds until not ready"] is None and version < ASKS_MODELS:
        untested(f"Triton {version} asks no Python model whether it is ready; {ASKS_MODELS} does")
    expect.happened(
        "seconds until the model is not ready", deaths["seconds until not ready"], NOTICED_SECONDS
    )


@pytest.mark.requirement("HLT-009")
def test_dead_engine_that_cannot_be_unloaded(bare_life: Seen) -> None:
    seen = bare_life
    for answer in seen["answers of a dead engine"]:
        expect.that("error", answer.failed(), bool, "an error text")
        expect.between("seconds until it came", answer.seconds, 0, ANSWER_SECONDS)
    expect.equal("/v2/health/live", seen["live with a dead engine"], 200)
    expect.equal("stubs that crashed", seen["stubs that crashed"], [])
    expect.contains("answer of the other model", seen["answer of the other model"], '"mars"')


@pytest.mark.requirement("HLT-010")
@pytest.mark.parametrize("protocol", ["HTTP", "gRPC"])
def test_requests_without_a_stub(deaths: Seen, protocol: str) -> None:
    answer = deaths[f"{protocol} answer without a stub"]
    expect.that("error", answer.failed(), bool, "an error text")
    expect.between("seconds until it came", answer.seconds, 0, ANSWER_SECONDS)
    expect.equal("/v2/health/live", deaths["live without a stub"], 200)


@pytest.mark.requirement("HLT-010")
def test_loading_again_recovers_a_dead_stub(deaths: Seen) -> None:
    expect.equal("load error", deaths["error of the load after the stub's death"], None)
    expect.equal("text", deaths["text after the stub's death"], deaths["text after the recovery"])
