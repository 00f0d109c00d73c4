"""LIF: models come and go, in any state, and leave nothing behind; so do servers."""

from __future__ import annotations

import time

import pytest

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import GenerateRequest, HttpClient
from pytest_vllm_triton.launchers.base import ServerHandle
from pytest_vllm_triton.launchers.flags import EXIT_TIMEOUT_SECONDS
from pytest_vllm_triton.verdicts import untested

from .experiments.second_model import SOAK_REQUESTS, SOAK_STREAMS, STREAM_ID
from .processes import Footprint, is_stub, living
from .record import Seen
from .waits import NOTICED_SECONDS, UNLOAD_SECONDS

# What an error says of a model that is not served (any more), whoever says it.
UNLOADED = r"(?i)no available versions|not ready|unload|unavailable|shut"
REFUSAL_SECONDS = 10.0
# By which two unloads may differ; a wait for requests that are no more is longer.
UNLOAD_NOISE_SECONDS = 15.0
IDLE_MOMENTS, IDLE_MOMENT_SECONDS, IDLE_SHARE = 3, 1.0, 0.1


@pytest.mark.requirement("LIF-001")
def test_load_and_unload(second_model_life: Seen) -> None:
    seen = second_model_life
    expect.equal("load error", seen["error of the mended load"], None)
    expect.equal("model is ready when loaded", seen["ready when loaded"], True)
    expect.equal("state when loaded", seen["state when loaded"], "READY")
    expect.equal("unload error", seen["error of the unload"], None)
    expect.equal("model is ready when unloaded", seen["ready when unloaded"], False)
    expect.equal("state when unloaded", seen["state when unloaded"], "UNAVAILABLE")


@pytest.mark.requirement("LIF-001")
def test_load_again(second_model_life: Seen) -> None:
    seen = second_model_life
    expect.equal("load error", seen["error of the second load"], None)
    expect.equal("model is ready when loaded again", seen["ready when loaded again"], True)
    expect.equal(
        "text_output",
        seen["text after the second load"],
        seen["text expected after the second load"],
    )


@pytest.mark.requirement("LIF-002")
def test_loading_another_model_disturbs_no_stream(second_model_life: Seen) -> None:
    """The first model streamed all the time while the second one was loaded."""
    seen = second_model_life
    expect.equal(
        "distinct texts of the first model during the load",
        seen["first texts during the load"],
        {seen["first text"]},
    )


@pytest.mark.requirement("LIF-002")
def test_two_models_side_by_side(second_model_life: Seen) -> None:
    seen = second_model_life
    expect.equal(
        "texts of the second model",
        seen["second texts beside the first"],
        seen["second texts expected"],
    )
    expect.equal(
        "distinct texts of the first model",
        seen["first texts beside the second"],
        {seen["first text"]},
    )


@pytest.mark.requirement("LIF-002")
def test_unloading_one_leaves_the_other(second_model_life: Seen) -> None:
    seen = second_model_life
    for when in ("after the unload", "at the end"):
        expect.equal(
            f"text of the first model {when}", seen[f"first text {when}"], seen["first text"]
        )


@pytest.mark.requirement("LIF-005")
def test_failed_load_leaves_nothing(second_model_life: Seen) -> None:
    """The load failed in the engine's own process, so there was something to leave."""
    seen = second_model_life
    expect.that("load error", seen["error of a broken load"], bool, "an error")
    expect.equal("processes and regions left", seen["left after a broken load"], [])
    expect.equal("/v2/health/live", seen["live after a broken load"], 200)
    expect.equal(
        "text of the other model", seen["first text after a broken load"], seen["first text"]
    )


@pytest.mark.requirement("LIF-005")
def test_mended_model_loads(second_model_life: Seen) -> None:
    seen = second_model_life
    expect.that("error of the broken load", seen["error of a broken load"], bool, "an error")
    expect.equal("error of the mended load", seen["error of the mended load"], None)
    expect.equal("model is ready", seen["ready when loaded"], True)


@pytest.mark.requirement("LIF-006")
def test_unload_lets_a_stream_end(second_model_life: Seen) -> None:
    seen = second_model_life
    responses = [r for r in seen["answers during the unload"] if r.id == STREAM_ID]
    expect.equal("errors", [r.error for r in responses if r.error], [])
    expect.equal("text", "".join(r.text for r in responses), seen["stream expected"])
    flags = [response.final for response in responses]
    expect.equal("final flags", flags, [False] * (len(flags) - 1) + [True])
    expect.equal("state of the model then", seen["state when unloaded"], "UNAVAILABLE")


@pytest.mark.requirement("LIF-006")
def test_unload_lets_requests_beside_a_stream_end(second_model_life: Seen) -> None:
    """Some run and some wait for a place in the engine."""
    seen = second_model_life
    texts = {
        r.id: r.error or r.text for r in seen["answers during the unload"] if r.outputs or r.error
    }
    texts.pop(STREAM_ID, None)
    expect.equal("texts of the requests without stream", texts, seen["unary expected"])


@pytest.mark.requirement("LIF-007")
@pytest.mark.parametrize("when", ["during the unload", "after the unload"])
@pytest.mark.parametrize("protocol", ["HTTP", "gRPC"])
def test_requests_to_an_unloaded_model(second_model_life: Seen, when: str, protocol: str) -> None:
    answer = second_model_life[f"{protocol} answer {when}"]
    expect.matches("error", answer.failed(), UNLOADED)
    expect.between("seconds until it came", answer.seconds, 0, REFUSAL_SECONDS)


@pytest.mark.requirement("LIF-008")
def test_unload_after_all_kinds_of_requests(second_model_life: Seen) -> None:
    """A stream runs; others before it ended well, with an error, and cancelled."""
    seen = second_model_life
    expect.that("error before the unload", seen["error before the unload"], bool, "an error")
    expect.between("seconds of the unload", seen["seconds of the unload"], 0, UNLOAD_SECONDS)
    loaded: Footprint = seen["while loaded"].beyond(seen["before"])
    stubs = [process for process in loaded.processes if is_stub(process)]
    expect.equal("stubs that still run", living(stubs), [])
    expect.equal("processes and regions left", seen["left after the unload"], [])


@pytest.mark.requirement("LIF-008")
def test_unload_waits_for_no_request_that_has_ended(second_model_life: Seen) -> None:
    """Errors and cancelled streams came before this unload, none before the second one."""
    seconds, quiet = (
        second_model_life[f"seconds of the {which}"] for which in ("unload", "second unload")
    )
    expect.between("seconds of the unload after good requests alone", quiet, 0, UNLOAD_SECONDS)
    expect.between("seconds of the unload", seconds, 0, quiet + UNLOAD_NOISE_SECONDS)


@pytest.mark.requirement("LIF-008")
def test_unload_of_a_dead_engine_ends(deaths: Seen) -> None:
    """With the health check, which takes the model out of service."""
    expect.happened(
        "seconds until the unload is complete", deaths["seconds until gone"], UNLOAD_SECONDS
    )


@pytest.mark.requirement("LIF-009")
def test_nothing_grows(second_model_life: Seen) -> None:
    """From the first life of the model to the second. What the first load needed once for all is in
    both counts."""
    seen = second_model_life
    expect.between(
        "seconds of the second unload", seen["seconds of the second unload"], 0, UNLOAD_SECONDS
    )
    expect.equal("processes and regions left", seen["left after the second unload"], [])
    once: Footprint = seen["after one life"]
    twice: Footprint = seen["after two lives"]
    expect.equal("further processes", [p.pid for p in twice.beyond(once).processes], [])
    expect.equal("further regions", sorted(twice.beyond(once).regions), [])
    # Connections come and go; a leak of stub or engine would show as several.
    expect.between("open files of tritonserver beyond", twice.files - once.files, -1000, 4)


@pytest.mark.requirement("LIF-012")
def test_load_with_overridden_model_json(second_model_life: Seen) -> None:
    """A text ends where the model.json given with the load ends it, not the one on the disk."""
    seen = second_model_life
    expect.equal("load error", seen["error of the second load"], None)
    expect.equal("longest text", seen["longest text"], seen["longest text expected"])


@pytest.mark.requirement("LIF-014")
def test_soak(second_model_life: Seen) -> None:
    seen = second_model_life
    expect.equal(f"wrong answers among {SOAK_REQUESTS}", seen["soak"], [])
    expect.equal(f"wrong streams among {SOAK_STREAMS}", seen["soak of streams"], [])
    expect.between("seconds of the unload", seen["seconds of the unload"], 0, UNLOAD_SECONDS)


@pytest.mark.requirement("LIF-014")
@pytest.mark.parametrize(("what", "most"), [("files", 50), ("threads", 20), ("memory", 32 << 20)])
def test_soak_leaves_nothing_in_the_stub(second_model_life: Seen, what: str, most: int) -> None:
    """The stub hardly grows by 1600 requests, of which some are refused and some cancelled.

    Before the first look a crowd of requests has made it start all that it needs for many at once.
    """
    before, after = (second_model_life[f"stub {when} the soak"] for when in ("before", "after"))
    if not before.files:
        untested("no process of the model is seen")
    growth = getattr(after, what) - getattr(before, what)
    expect.between(f"growth of the stub's {what}", growth, -(1 << 30), most)


@pytest.mark.requirement("LIF-018")
def test_load_anew_while_it_streams(second_model_life: Seen) -> None:
    seen = second_model_life
    expect.equal("load error", seen["error of the load while it streams"], None)
    old, new = seen["stubs"]
    if not new:
        untested("no process of the model is seen")
    expect.that(
        "process ids of the stub afterwards",
        {process.pid for process in new},
        lambda pids: pids.isdisjoint(process.pid for process in old),
        f"others than before: {[process.pid for process in old]}",
    )
    expect.equal(
        "distinct texts meanwhile",
        seen["texts while it is loaded anew"],
        {seen["text expected while it is loaded anew"]},
    )
    expect.equal("processes of the old one left", seen["processes of the old one left"], [])


@pytest.mark.requirement("LIF-010")
def test_sigterm_leaves_nothing(plain_life: Seen) -> None:
    seen = plain_life
    expect.equal("exit code", seen["exit code"], 0)
    expect.between(
        "seconds from the end of the last stream until the exit",
        seen["seconds until the exit"],
        0,
        EXIT_TIMEOUT_SECONDS,
    )
    expect.equal("processes left", seen["processes left"], [])


@pytest.mark.requirement("LIF-011")
def test_sigterm_lets_a_stream_end(plain_life: Seen) -> None:
    seen = plain_life
    responses = seen["stream during the shutdown"]
    expect.equal("errors", [r.error for r in responses if r.error], [])
    expect.equal("text", "".join(r.text for r in responses), seen["stream expected"])
    expect.happened(
        "seconds until new requests are refused",
        seen["seconds until requests are refused"],
        NOTICED_SECONDS,
    )
    expect.equal("exit code by then", seen["exit code when requests were refused"], None)


@pytest.mark.requirement("LIF-013")
def test_control_is_refused_without_control_mode(plain_life: Seen) -> None:
    seen = plain_life
    expect.that("load error", seen["load error"], bool, "an error")
    expect.that("unload error", seen["unload error"], bool, "an error")
    expect.equal("model is ready", seen["ready after load and unload"], True)
    expect.equal(
        "text", seen["text after load and unload"], seen["text expected after load and unload"]
    )


@pytest.mark.requirement("LIF-015")
def test_engine_ends_with_its_stub(deaths: Seen) -> None:
    expect.equal("processes left", deaths["processes left of a killed stub"], [])
    expect.equal("regions left", deaths["regions left of a killed stub"], [])


@pytest.mark.requirement("LIF-016")
@pytest.mark.parametrize("killed", ["engine", "worker"])
def test_engine_and_workers_end_together(deaths: Seen, killed: str) -> None:
    expect.equal("processes left", deaths[f"left of a killed {killed}"], [])


@pytest.mark.requirement("LIF-017")
def test_everything_ends_with_the_server(deaths: Seen) -> None:
    expect.equal("processes and regions left", deaths["left of a killed server"], [])


@pytest.fixture(params=["without metrics", "with metrics"])
def idle_model(request: pytest.FixtureRequest, triton_http: HttpClient) -> str:
    """The name of a model that nobody asks."""
    with_metrics = request.param == "with metrics"
    return str(request.getfixturevalue("lora_model") if with_metrics else triton_http.model)


@pytest.mark.requirement("LIF-019")
def test_idle_model(idle_model: str, triton_http: HttpClient, owned_server: ServerHandle) -> None:
    """The quietest of some moments: what earlier checks asked for may still be at work."""
    model = idle_model
    # What is only then begun counts as well.
    triton_http.for_model(model).generate(GenerateRequest("Hello")).ok()
    stubs = [p for p in owned_server.processes() if is_stub(p, model)]
    if not stubs:
        untested("no process of the server looks like the model's stub")

    def used() -> float:
        times = [stub.cpu_times() for stub in stubs]
        return sum(spent.user + spent.system for spent in times)

    shares = []
    for _ in range(IDLE_MOMENTS):
        before, started = used(), time.monotonic()
        time.sleep(IDLE_MOMENT_SECONDS)
        shares.append((used() - before) / (time.monotonic() - started))
    expect.between("share of a core that the idle stub uses", min(shares), 0, IDLE_SHARE)
