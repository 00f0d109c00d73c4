"""MET: vLLM's metrics through Triton's page, and Triton's own counts of the model."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass

import pytest
from prometheus_client.samples import Sample

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import (
    GenerateRequest,
    GrpcClient,
    HttpClient,
)
from pytest_vllm_triton.launchers.base import ServerHandle
from pytest_vllm_triton.servers.harness import Harness
from pytest_vllm_triton.verdicts import untested

from .alternate import Alternate
from .experiments.second_model import SECOND
from .extra_models import ExtraModel, oracle
from .metered_traffic import LATENCIES, MeteredTraffic, on_the_page, sent, sent_at_once
from .metrics_page import (
    Growth,
    MetricsPage,
    grown_page,
    metrics_page,
    page_with_lines,
    quiet_page,
    settled_page,
)
from .record import Seen
from .traffic import first_of, second_oracle

# name -> (type, HELP text), from the README of upstream's backend.
FAMILIES = {
    "vllm:prompt_tokens_total": ("counter", "Number of prefill tokens processed."),
    "vllm:generation_tokens_total": ("counter", "Number of generation tokens processed."),
    "vllm:time_to_first_token_seconds": (
        "histogram",
        "Histogram of time to first token in seconds.",
    ),
    "vllm:time_per_output_token_seconds": (
        "histogram",
        "Histogram of time per output token in seconds.",
    ),
    "vllm:e2e_request_latency_seconds": (
        "histogram",
        "Histogram of end to end request latency in seconds.",
    ),
    "vllm:request_prompt_tokens": ("histogram", "Number of prefill tokens processed."),
    "vllm:request_generation_tokens": ("histogram", "Number of generation tokens processed."),
    "vllm:request_params_n": ("histogram", "Histogram of the n request parameter."),
}
HISTOGRAMS = [name for name, (kind, _) in FAMILIES.items() if kind == "histogram"]
# 1, 2 and 5 times the powers of ten up to the LoRA model's max_model_len.
TOKEN_BOUNDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
# Upper bounds from upstream's metrics.py.
BOUNDS = {
    "vllm:time_to_first_token_seconds": (
        *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
        *(1.0, 2.5, 5.0, 7.5, 10.0),
    ),
    "vllm:time_per_output_token_seconds": (
        *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
    ),
    "vllm:e2e_request_latency_seconds": (1, 2.5, 5, 10, 15, 20, 30, 40, 50, 60),
    "vllm:request_params_n": (1, 2, 5, 10, 20),
    "vllm:request_prompt_tokens": TOKEN_BOUNDS,
    "vllm:request_generation_tokens": TOKEN_BOUNDS,
}
# So many long streams keep an engine of one sequence busy for longer than these seconds.
BUSY_STREAMS = 6
BUSY_SECONDS = 10.0
LONG_STREAM = GenerateRequest(
    "venus",
    stream=True,
    sampling={"temperature": 0, "ignore_eos": True, "max_tokens": 3900},
)
FINISHED = "vllm:request_success_total"
ABORTED = 3
CACHE_USAGE = "vllm:kv_cache_usage_perc"


@pytest.fixture(scope="module")
def traffic(vllm_server: ServerHandle, lora_extra: ExtraModel) -> MeteredTraffic:
    """Requests of unequal length, streamed and not, over HTTP and gRPC.

    One prompt is found in the prefix cache: it is longer than a block and comes twice. The last
    answer ends by itself.
    """
    sampling = {"temperature": 0, "ignore_eos": True}
    return sent(
        vllm_server,
        lora_extra.served(),
        oracle(),
        [
            GenerateRequest("one", sampling={**sampling, "max_tokens": 1}),
            GenerateRequest("two words", sampling={**sampling, "max_tokens": 17}),
            GenerateRequest("alpha", stream=True, sampling={**sampling, "max_tokens": 40}),
            GenerateRequest("say alpha", stream=True, sampling={**sampling, "max_tokens": 300}),
            GenerateRequest("alpha beta " * 20, sampling={**sampling, "max_tokens": 5}),
            *[GenerateRequest("alpha beta " * 100, sampling={**sampling, "max_tokens": 2})] * 2,
            GenerateRequest("say alpha", sampling={"temperature": 0, "max_tokens": 64}),
        ],
    )


@pytest.fixture(scope="module")
def batch(vllm_server: ServerHandle, lora_extra: ExtraModel) -> MeteredTraffic:
    """32 requests that share the steps of the engine."""
    sampling = {"temperature": 0, "ignore_eos": True, "max_tokens": 64}
    requests = [GenerateRequest(f"number {i} alpha", sampling=sampling) for i in range(32)]
    return sent_at_once(vllm_server, lora_extra.served(), oracle(), requests)


@pytest.mark.requirement("MET-001")
def test_no_vllm_metrics_unless_asked_for(
    triton_http: HttpClient, owned_server: ServerHandle, lora_model: str, traffic: MeteredTraffic
) -> None:
    """The shared model has no such parameter; another model's lines show that the page has them."""
    triton_http.generate(GenerateRequest("Hello")).ok()
    if not traffic.growth.after.vllm_lines(lora_model):
        untested("no model has vLLM's metrics, which is MET-002's")
    page = metrics_page(owned_server)
    expect.equal("lines of the model", page.vllm_lines(triton_http.model), [])


@pytest.mark.requirement("MET-001")
def test_no_vllm_metrics_with_another_word(plain_life: Seen, vllm_harness: Harness) -> None:
    """Of two models of a server one has REPORT_CUSTOM_METRICS "true" and the other "yes"."""
    lines = plain_life["lines of metrics"]
    if not lines[SECOND]:
        untested("no model has vLLM's metrics, which is MET-002's")
    expect.equal("lines of the model", lines[vllm_harness.model_name], [])


@pytest.mark.requirement("MET-002")
def test_families_are_present(traffic: MeteredTraffic) -> None:
    present = {sample.name for sample in samples(traffic)}
    for name, (kind, _) in FAMILIES.items():
        for suffix in ("_bucket", "_sum", "_count") if kind == "histogram" else ("",):
            expect.contains("names on the page", present, f"{name}{suffix}")


@pytest.mark.requirement("MET-003")
def test_help_type_and_labels(traffic: MeteredTraffic, lora_model: str) -> None:
    page = traffic.growth.after
    lines = page.text.splitlines()
    for name, (kind, text) in FAMILIES.items():
        expect.contains("lines of the page", lines, f"# HELP {name} {text}")
        expect.contains("lines of the page", lines, f"# TYPE {name} {kind}")
        labels = {
            (sample.labels.get("model"), sample.labels.get("version"), len(sample.labels))
            for sample in samples(traffic)
            if re.fullmatch(rf"{name}(_sum|_count|_created)?", sample.name)
        }
        expect.equal(f"labels of {name}: model, version, count", labels, {(lora_model, "1", 2)})


@pytest.mark.requirement("MET-003")
def test_label_is_the_version_that_is_served(
    vllm_server: ServerHandle, triton_grpc: GrpcClient, alternate: Alternate
) -> None:
    """The alternate model has a version 3 and no other."""
    # A family may begin with the first request.
    triton_grpc.for_model(alternate.name).generate(GenerateRequest("venus")).ok()
    page = page_with_lines(vllm_server, alternate.name)
    versions = {
        sample.labels.get("version")
        for sample in page.samples_of(model=alternate.name)
        if sample.name.startswith("vllm:")
    }
    expect.equal("versions of the alternate model", versions, {str(alternate.version)})


@pytest.mark.requirement("MET-003")
def test_page_is_prometheus_text(traffic: MeteredTraffic) -> None:
    page = traffic.growth.after
    try:
        families = page.families
    except ValueError as error:
        raise expect.Violation(
            "page", expect.Words("Prometheus text"), expect.Words(error)
        ) from None
    expect.that("number of families", len(families), bool, "at least 1")
    expect_declared_once(page)
    unlabelled = {
        sample.name
        for family in families
        for sample in family.samples
        if sample.name.startswith("vllm:") and not {"model", "version"} <= sample.labels.keys()
    }
    expect.equal("vLLM's metrics without model or version", unlabelled, set())


@pytest.mark.requirement("MET-004")
def test_token_counters(traffic: MeteredTraffic) -> None:
    growth = traffic.growth
    expect.equal(
        "growth of prompt_tokens_total",
        growth.of("vllm:prompt_tokens_total"),
        sum(traffic.input_tokens),
    )
    expect.equal(
        "growth of generation_tokens_total",
        growth.of("vllm:generation_tokens_total"),
        sum(traffic.output_tokens),
    )


@pytest.mark.requirement("MET-004")
def test_tokens_are_counted_while_they_come(
    vllm_server: ServerHandle, triton_grpc: GrpcClient, alternate_model: str
) -> None:
    """None of these streams comes to its end: they are cancelled."""
    before = quiet_page(vllm_server, alternate_model)
    generated = "vllm:generation_tokens_total"
    with triton_grpc.for_model(alternate_model).open() as stream:
        # One at a time: the engine has something to do until all of them are cancelled.
        for _ in range(BUSY_STREAMS):
            stream.send(LONG_STREAM)
        first_of(stream)
        growth = grown_page(vllm_server, before, [(generated, 1)], BUSY_SECONDS)
        stream.cancel()
    expect.between(
        f"growth of generation_tokens_total in {BUSY_SECONDS:.0f} s of a busy engine",
        growth.of(generated),
        1,
        math.inf,
    )


@pytest.mark.requirement("MET-017")
def test_finished_requests_by_reason(traffic: MeteredTraffic) -> None:
    """All but the last ended at their max_tokens."""
    reasons = {s.labels["finished_reason"] for s in samples(traffic) if s.name == FINISHED}
    if not reasons:
        untested(f"the page has no {FINISHED}")
    grown = {reason: traffic.growth.of(FINISHED, finished_reason=reason) for reason in reasons}
    expect.equal(
        f"growth of {FINISHED} by reason",
        {reason: count for reason, count in grown.items() if count},
        {"length": traffic.requests - 1, "stop": 1},
    )


@pytest.fixture
def aborted(
    vllm_server: ServerHandle, triton_grpc: GrpcClient, lora_model: str, traffic: MeteredTraffic
) -> Growth:
    """What three requests that are given up add to the page, where it counts such at all."""
    if "abort" not in {s.labels["finished_reason"] for s in samples(traffic) if s.name == FINISHED}:
        untested(f"the page has no {FINISHED} of aborted requests")
    before = quiet_page(vllm_server, lora_model)
    client = triton_grpc.for_model(lora_model)
    long = LONG_STREAM.but(sampling={"max_tokens": 1400, "ignore_eos": True})
    for _ in range(ABORTED - 1):
        with client.open() as stream:
            stream.send(long)
            first_of(stream)
            stream.cancel()
    if client.generate(long.but(parameters={"timeout": 100_000})).error is None:
        untested("a request's own timeout does not end it here, which is CAN-015's")

    def is_settled(page: MetricsPage) -> bool:
        return before.growth_to(page).of(FINISHED, finished_reason="abort") >= ABORTED

    return before.growth_to(settled_page(vllm_server, is_settled))


@pytest.mark.requirement("MET-017")
def test_aborted_requests(aborted: Growth) -> None:
    """A request that is given up has not ended by itself."""
    grown = {why: aborted.of(FINISHED, finished_reason=why) for why in ("abort", "stop", "length")}
    expect.equal(
        f"growth of {FINISHED} by reason", grown, {"abort": ABORTED, "stop": 0, "length": 0}
    )


@pytest.mark.requirement("MET-005")
def test_aborted_requests_have_no_latency(aborted: Growth) -> None:
    expect.equal(f"growth of {LATENCIES}", aborted.of(LATENCIES), 0)


@pytest.mark.requirement("MET-017")
def test_waiting_requests_are_gone_while_one_runs(
    vllm_server: ServerHandle, triton_grpc: GrpcClient, alternate_model: str
) -> None:
    """The alternate model has one sequence at a time; what waited is cancelled before it runs."""
    running, waiting = "vllm:num_requests_running", "vllm:num_requests_waiting"
    client = triton_grpc.for_model(alternate_model)
    client.generate(GenerateRequest("venus")).ok()
    page = page_with_lines(vllm_server, alternate_model)
    if waiting not in {sample.name for sample in page.samples_of(model=alternate_model)}:
        untested(f"the page has no {waiting}")

    def gauges(page: MetricsPage) -> tuple[float, float]:
        mine = page.of(alternate_model)
        return mine.value(running), mine.value(waiting)

    # The first one may end before a host that stands still lets the page be read.
    for _ in range(2):
        with client.open() as first, client.open() as second:
            first.send(LONG_STREAM)
            first_of(first)
            second.send(LONG_STREAM)
            both = settled_page(vllm_server, lambda page: gauges(page) == (1, 1), BUSY_SECONDS)
            second.cancel()
            one = settled_page(vllm_server, lambda page: gauges(page) == (1, 0), BUSY_SECONDS)
            first.cancel()
        none = settled_page(vllm_server, lambda page: gauges(page) == (0, 0))
        if gauges(both) == (1, 1) and gauges(one) == (1, 0):
            break
    expect.equal("running and waiting when all have gone", gauges(none), (0, 0))
    if gauges(one)[0] == 0:
        untested("the request that runs ended before the page was read")
    expect.equal("running and waiting while one waits", gauges(both), (1, 1))
    expect.equal("running and waiting when it has gone", gauges(one), (1, 0))


@pytest.mark.requirement("MET-017")
def test_preempted_requests(second_model_life: Seen) -> None:
    """Its cache holds less than the sequences that ran at once needed."""
    page, name = second_model_life["page after the soak"], "vllm:num_preemptions_total"
    if name not in {sample.name for sample in page.samples_of(**page.labels)}:
        untested(f"the page has no {name}")
    expect.that(name, page.value(name), lambda count: count >= 1, "at least 1")


@pytest.mark.requirement("MET-017")
def test_usage_of_a_full_cache(second_model_life: Seen) -> None:
    """More sequences run than its cache holds. A share, and no percentage, is at most 1."""
    pages = second_model_life["pages while its cache is full"]
    usages = [page.value(CACHE_USAGE) for page in pages]
    if not any(usages):
        untested(f"no page that was read meanwhile has {CACHE_USAGE}")
    expect.between(f"largest {CACHE_USAGE}", max(usages), 0, 1)


@pytest.mark.requirement("MET-017")
def test_hits_of_the_prefix_cache(traffic: MeteredTraffic) -> None:
    queries, hits = (f"vllm:prefix_cache_{name}_total" for name in ("queries", "hits"))
    if not {sample.name for sample in samples(traffic)}.issuperset((queries, hits)):
        untested(f"the page has no {queries} or {hits}")
    grown = traffic.growth.of(hits)
    # One prompt came twice, and of each prompt a token at least is computed.
    expect.between(f"growth of {hits}", grown, 1, traffic.growth.of(queries) - traffic.requests)


@pytest.mark.requirement("MET-017")
def test_running_and_waiting_requests(
    vllm_server: ServerHandle, triton_grpc: GrpcClient, alternate_model: str
) -> None:
    """The alternate model has one sequence at a time."""
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", CACHE_USAGE)
    client = triton_grpc.for_model(alternate_model)
    # A family may begin with the first request.
    client.generate(GenerateRequest("venus")).ok()
    page = page_with_lines(vllm_server, alternate_model)
    on_page = {sample.name for sample in page.samples_of(model=alternate_model)}
    shown = [name for name in names if name in on_page]
    if not shown:
        untested(f"the page has no {', '.join(names)}")

    def gauges(page: MetricsPage) -> dict[str, float]:
        return {name: page.of(alternate_model).value(name) for name in shown}

    with client.open() as stream:
        for _ in range(BUSY_STREAMS):
            stream.send(LONG_STREAM)
        first_of(stream)
        page = settled_page(vllm_server, lambda page: all(gauges(page).values()), BUSY_SECONDS)
        stream.cancel()
    # Fewer may be left by the time that the page is up to date.
    most = dict(zip(names, (1, BUSY_STREAMS - 1, 1), strict=True))
    for name, value in gauges(page).items():
        expect.different(name, value, 0)
        expect.between(name, value, 0, most[name])


@pytest.mark.requirement("MET-005")
def test_latency_histograms(traffic: MeteredTraffic) -> None:
    expect_latencies(traffic)
    growth = traffic.growth
    first, each, whole = (
        growth.of(f"vllm:{name}_seconds_sum")
        for name in ("time_to_first_token", "time_per_output_token", "e2e_request_latency")
    )
    # vLLM takes the times between tokens in the engine, the others in its front end.
    slack = 5.0
    expect.between(
        "seconds to the first token and between tokens, of those of the whole requests",
        first + each,
        0.5 * whole - slack,
        whole + slack,
    )


@pytest.mark.requirement("MET-005")
def test_latencies_of_a_batch(batch: MeteredTraffic) -> None:
    expect_latencies(batch)


def expect_latencies(traffic: MeteredTraffic) -> None:
    growth = traffic.growth
    for name, count in (
        ("vllm:time_to_first_token_seconds", traffic.requests),
        ("vllm:time_per_output_token_seconds", sum(traffic.output_tokens) - traffic.requests),
        ("vllm:e2e_request_latency_seconds", traffic.requests),
    ):
        expect.equal(f"growth of {name}_count", growth.of(f"{name}_count"), count)
        expect.equal("growth of its +Inf bucket", growth.of(f"{name}_bucket", le="+Inf"), count)
        expect.between(f"growth of {name}_sum", growth.of(f"{name}_sum"), 1e-9, math.inf)


@pytest.mark.requirement("MET-006")
@pytest.mark.parametrize("together", [False, True], ids=["traffic", "batch"])
def test_token_histograms(traffic: MeteredTraffic, batch: MeteredTraffic, together: bool) -> None:
    traffic = batch if together else traffic
    for name, tokens in (
        ("vllm:request_prompt_tokens", traffic.input_tokens),
        ("vllm:request_generation_tokens", traffic.output_tokens),
    ):
        growth = traffic.growth
        expect.equal(f"growth of {name}_count", growth.of(f"{name}_count"), traffic.requests)
        expect.equal(f"growth of {name}_sum", growth.of(f"{name}_sum"), sum(tokens))
        for bound in growth.after.buckets(name):
            below = sum(count <= float(bound) for count in tokens)
            grown = growth.of(f"{name}_bucket", le=bound)
            expect.equal(f'growth of {name}_bucket{{le="{bound}"}}', grown, below)


@pytest.mark.requirement("MET-007")
def test_parameter_n(vllm_server: ServerHandle, lora_model: str) -> None:
    request = GenerateRequest(
        "alpha", sampling={"temperature": 1, "n": 2, "max_tokens": 6, "ignore_eos": True}
    )
    requests = [request, request, request.but(stream=True)]
    growth = sent(vllm_server, lora_model, oracle(), requests).growth
    expect.equal("growth of request_params_n_count", growth.of("vllm:request_params_n_count"), 3)
    expect.equal("growth of request_params_n_sum", growth.of("vllm:request_params_n_sum"), 6)
    tokens = growth.of("vllm:generation_tokens_total")
    expect.equal("growth of generation_tokens_total", tokens, 3 * 2 * 6)


@pytest.mark.requirement("MET-008")
def test_buckets(traffic: MeteredTraffic) -> None:
    page = traffic.growth.after
    for name in HISTOGRAMS:
        buckets = page.buckets(name)
        counts = list(buckets.values())
        expect.equal(f"counts of the buckets of {name}", counts, sorted(counts))
        bounds = [float(bound) for bound in buckets]
        expect.equal(f"last bound of {name}", bounds[-1], math.inf)
        if name in BOUNDS:
            expect.equal(f"bounds of {name}", bounds[:-1], [float(b) for b in BOUNDS[name]])


@pytest.mark.requirement("MET-011")
def test_models_are_counted_apart(
    vllm_server: ServerHandle, triton_grpc: GrpcClient, alternate_model: str, lora_model: str
) -> None:
    """One request to each of two models."""
    oracles = {alternate_model: second_oracle(), lora_model: oracle()}
    requests = {
        model: GenerateRequest("venus", sampling={"temperature": 0, "max_tokens": length})
        for model, length in ((alternate_model, 9), (lora_model, 13))
    }
    before = quiet_page(vllm_server, alternate_model, lora_model)
    answers = {
        model: triton_grpc.for_model(model).generate(request).ok()
        for model, request in requests.items()
    }
    for model, answer in answers.items():
        traffic = on_the_page(vllm_server, before.of(model), oracles[model], [answer])
        for name, tokens in (
            ("vllm:prompt_tokens_total", traffic.input_tokens),
            ("vllm:generation_tokens_total", traffic.output_tokens),
        ):
            expect.equal(f"growth of {model}'s {name}", traffic.growth.of(name), sum(tokens))
        for name in HISTOGRAMS:
            # What lies between two tokens is counted once for each token but the first.
            times = sum(traffic.output_tokens) - 1 if "per_output_token" in name else 1
            expect.equal(f"growth of {model}'s {name}", traffic.growth.of(f"{name}_count"), times)


@pytest.mark.requirement("MET-012")
def test_reload(second_model_life: Seen) -> None:
    """The second model has metrics in both of its lives."""
    seen = second_model_life
    expect.equal("error of the second load", seen["error of the second load"], None)
    traffic: MeteredTraffic = seen["traffic after the second load"]
    growth = traffic.growth
    expect.equal(
        "growth of generation_tokens_total",
        growth.of("vllm:generation_tokens_total"),
        sum(traffic.output_tokens),
    )
    expect.equal(f"growth of {LATENCIES}", growth.of(LATENCIES), traffic.requests)
    expect_declared_once(growth.after)


def expect_declared_once(page: MetricsPage) -> None:
    types = Counter(line.split()[2] for line in page.text.splitlines() if line[:6] == "# TYPE")
    expect.equal("families declared twice", [name for name, n in types.items() if n > 1], [])


@pytest.mark.requirement("MET-013")
def test_sigterm_with_metrics_on(plain_life: Seen) -> None:
    """A model with metrics streams when the server is told to end."""
    expect.equal("exit code", plain_life["exit code"], 0)


@dataclass(frozen=True)
class TritonCounts:
    """Triton's own counts of a model, from the metrics page and from its statistics."""

    success: float
    inferences: float
    executions: float
    failures: float
    stats_success: int
    stats_inferences: int
    stats_executions: int


def triton_counts(server: ServerHandle, client: HttpClient) -> TritonCounts:
    page = metrics_page(server).of(client.model)
    (stats,) = client.get(client.path("stats")).json()["model_stats"]
    return TritonCounts(
        success=page.value("nv_inference_request_success"),
        inferences=page.value("nv_inference_count"),
        executions=page.value("nv_inference_exec_count"),
        failures=page.value("nv_inference_request_failure"),
        stats_success=stats["inference_stats"]["success"]["count"],
        stats_inferences=stats["inference_count"],
        stats_executions=stats["execution_count"],
    )


@pytest.mark.requirement("MET-014")
def test_triton_counts_requests(
    triton_http: HttpClient, triton_grpc: GrpcClient, owned_server: ServerHandle
) -> None:
    def grown(_: MetricsPage) -> bool:
        now = triton_counts(owned_server, triton_http)
        return all(
            getattr(now, name) >= count + 3
            for name, count in vars(before).items()
            if name != "failures"
        )

    before = triton_counts(owned_server, triton_http)
    request = GenerateRequest("Hello", sampling={"max_tokens": 5})
    triton_http.generate(request).ok()
    triton_grpc.generate(request).ok()
    triton_grpc.generate(request.but(stream=True)).ok()
    settled_page(owned_server, grown)
    after = triton_counts(owned_server, triton_http)
    for name in vars(before):
        expected = 0 if name == "failures" else 3
        expect.equal(f"growth of {name}", getattr(after, name) - getattr(before, name), expected)


@pytest.mark.requirement("MET-015")
def test_triton_counts_a_refused_request_once(
    triton_http: HttpClient, triton_grpc: GrpcClient, owned_server: ServerHandle
) -> None:
    """As a success, in Triton 24.10: a decoupled model's request has succeeded once it is taken."""

    def is_counted(page: MetricsPage) -> bool:
        return answered(triton_counts(owned_server, triton_http)) >= answered(before) + 3

    before = triton_counts(owned_server, triton_http)
    for _ in range(3):
        triton_grpc.generate(GenerateRequest("Hello", sampling={"temperature": -1})).failed()
    settled_page(owned_server, is_counted)
    grown = answered(triton_counts(owned_server, triton_http)) - answered(before)
    expect.equal("growth of successes and failures together", grown, 3)


def answered(counts: TritonCounts) -> float:
    return counts.success + counts.failures


@pytest.mark.requirement("MET-016")
def test_latency_is_what_clients_see(traffic: MeteredTraffic) -> None:
    """Triton's own request duration ends when a decoupled model has taken the request."""
    total, _, high = latency_and_bounds(traffic)
    expect.that(LATENCY, total, lambda seconds: 0 < seconds <= high, f"above 0, at most {high:g}")


@pytest.mark.requirement("MET-016")
def test_latency_of_a_long_prompt_that_comes_again(
    vllm_server: ServerHandle, lora_extra: ExtraModel
) -> None:
    """It counts from the arrival of each request, whatever a backend keeps of the prompt."""
    sampling = {"temperature": 0, "ignore_eos": True, "max_tokens": 20}
    request = GenerateRequest("alpha beta " * 200, sampling=sampling)
    traffic = sent(vllm_server, lora_extra.served(), oracle(), [request] * 5)
    total, _, high = latency_and_bounds(traffic)
    expect.between(LATENCY, total, 0, high)


@pytest.fixture(scope="module")
def queued(vllm_server: ServerHandle, alternate_model: str) -> MeteredTraffic:
    """The alternate model has one sequence at a time: most of what these clients see is waiting.

    More and more of it, until the busy host's part, which is in each client's wait, is small.
    """
    for count in (80, 320, 1280):
        sampling = {"temperature": 0, "ignore_eos": True, "max_tokens": count}
        requests = [GenerateRequest("venus", sampling=sampling)] * 8
        traffic = sent_at_once(vllm_server, alternate_model, second_oracle(), requests)
        bounds = (latency_and_bounds(traffic), token_times_and_bounds(traffic))
        if all(low <= total <= high for total, low, high in bounds):
            break
    return traffic


@pytest.mark.requirement("MET-016")
def test_latency_holds_the_wait_for_a_place(queued: MeteredTraffic) -> None:
    total, low, high = latency_and_bounds(queued)
    expect.between(LATENCY, total, low, high)
    first = queued.growth.of("vllm:time_to_first_token_seconds_sum")
    expect.between("seconds in time_to_first_token_seconds", first, 0.5 * total, total)


@pytest.mark.requirement("MET-005")
def test_times_between_tokens_are_seconds(queued: MeteredTraffic) -> None:
    """One sequence at a time: those of all requests add up to what the last one waited."""
    total, low, high = token_times_and_bounds(queued)
    expect.between("seconds in time_per_output_token_seconds", total, low, high)


LATENCY = "seconds in e2e_request_latency"


def latency_and_bounds(traffic: MeteredTraffic) -> tuple[float, float, float]:
    """The sum of the latencies on the page, and what it must lie between."""
    seen = sum(traffic.seconds)
    total = traffic.growth.of("vllm:e2e_request_latency_seconds_sum")
    return total, 0.5 * seen - 0.5, seen


def token_times_and_bounds(traffic: MeteredTraffic) -> tuple[float, float, float]:
    """The same for the times between tokens, where one request runs after the other."""
    longest = max(traffic.seconds)
    total = traffic.growth.of("vllm:time_per_output_token_seconds_sum")
    return total, 0.5 * longest - 0.2, longest + 0.2


def samples(traffic: MeteredTraffic) -> list[Sample]:
    page = traffic.growth.after
    return page.samples_of(**page.labels)
