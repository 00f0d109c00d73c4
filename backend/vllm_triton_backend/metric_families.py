"""Which metrics there are.

Names, descriptions and buckets of the first eight families follow upstream's metrics.py; the rest
follow vllm/v1/metrics/loggers.py. Labels: model, version (and finished_reason).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

COUNTER, GAUGE, HISTOGRAM = "COUNTER", "GAUGE", "HISTOGRAM"

_TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0),
)
_TPOT_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)


@dataclass(frozen=True, slots=True)
class Family:
    """A metric family, and the attribute of Stats that it shows.

    `token_buckets`: the buckets of the histogram count tokens, up to the model's longest text.
    """

    name: str
    description: str
    kind: str
    attribute: str
    buckets: tuple[float, ...] = ()
    token_buckets: bool = False


#: All families without an extra label.
FAMILIES = (
    Family(
        "vllm:prompt_tokens_total",
        "Number of prefill tokens processed.",
        COUNTER,
        "prompt_tokens",
    ),
    Family(
        "vllm:generation_tokens_total",
        "Number of generation tokens processed.",
        COUNTER,
        "generation_tokens",
    ),
    Family(
        "vllm:time_to_first_token_seconds",
        "Histogram of time to first token in seconds.",
        HISTOGRAM,
        "time_to_first_token",
        _TTFT_BUCKETS,
    ),
    Family(
        "vllm:time_per_output_token_seconds",
        "Histogram of time per output token in seconds.",
        HISTOGRAM,
        "time_per_output_token",
        _TPOT_BUCKETS,
    ),
    Family(
        "vllm:e2e_request_latency_seconds",
        "Histogram of end to end request latency in seconds.",
        HISTOGRAM,
        "e2e_latency",
        (1.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    ),
    Family(
        "vllm:request_prompt_tokens",
        "Number of prefill tokens processed.",
        HISTOGRAM,
        "request_prompt_tokens",
        token_buckets=True,
    ),
    Family(
        "vllm:request_generation_tokens",
        "Number of generation tokens processed.",
        HISTOGRAM,
        "request_generation_tokens",
        token_buckets=True,
    ),
    Family(
        "vllm:request_params_n",
        "Histogram of the n request parameter.",
        HISTOGRAM,
        "n_params",
        (1.0, 2.0, 5.0, 10.0, 20.0),
    ),
    Family(
        "vllm:num_requests_running",
        "Number of requests in the engine's running batch.",
        GAUGE,
        "running",
    ),
    Family(
        "vllm:num_requests_waiting",
        "Number of requests that wait for a place in the batch.",
        GAUGE,
        "waiting",
    ),
    Family(
        "vllm:kv_cache_usage_perc",
        "Share of the KV cache that is in use; 1 is all of it.",
        GAUGE,
        "kv_cache_usage",
    ),
    Family(
        "vllm:num_preemptions_total",
        "Number of times a running request was put back to waiting.",
        COUNTER,
        "preemptions",
    ),
    Family(
        "vllm:prefix_cache_queries_total",
        "Number of prompt tokens looked up in the prefix cache.",
        COUNTER,
        "prefix_queries",
    ),
    Family(
        "vllm:prefix_cache_hits_total",
        "Number of prompt tokens found in the prefix cache.",
        COUNTER,
        "prefix_hits",
    ),
)


def one_two_five(largest: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50 … up to and including values of at most `largest`."""
    buckets: list[float] = []
    power = 1
    while True:
        for factor in (1, 2, 5):
            if power * factor > largest:
                return tuple(buckets)
            buckets.append(float(power * factor))
        power *= 10


def families(max_model_len: int) -> tuple[Family, ...]:
    """FAMILIES as they are for a model of `max_model_len` tokens."""
    buckets = one_two_five(max_model_len)
    return tuple(
        replace(family, buckets=buckets) if family.token_buckets else family for family in FAMILIES
    )


#: The family with an extra label: name, description, label.
FINISHED = (
    "vllm:request_success_total",
    "Number of sequences that ended, by reason.",
    "finished_reason",
)
FINISHED_REASONS = ("stop", "length", "abort", "error", "repetition")
