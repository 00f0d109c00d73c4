"""What is refused because the engine could not hold it and would end."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
from vllm_triton_backend.engine_limits import EngineLimits
from vllm_triton_backend.errors import Code, RequestError
from vllm_triton_backend.sampling import MOST_INT

OF_CPU = EngineLimits(max_model_len=4096, vocab_size=300, has_fixed_tables=False, tokenizer=None)


class Params(SimpleNamespace):
    """vLLM's, of which a word has a token for each character, and is tokenized once."""

    def __init__(self, **given: Any) -> None:
        defaults: dict[str, Any] = {"n": 1, "min_tokens": 0, "max_tokens": 16}
        names = ("seed", "prompt_logprobs", "skip_reading_prefix_cache", "allowed_token_ids")
        names += ("logit_bias", "bad_words", "stop_token_ids", "bad_words_token_ids")
        super().__init__(**{**defaults, **dict.fromkeys(names), **given})

    def update_from_tokenizer(self, tokenizer: Any) -> None:
        self.bad_words_token_ids = [tokenizer(word) for word in self.bad_words]


OF_GPU = dataclasses.replace(OF_CPU, has_fixed_tables=True, tokenizer=list)
UNKNOWN = dataclasses.replace(OF_CPU, max_model_len=None, vocab_size=None)


def refusal(limits: EngineLimits, params: Params) -> str:
    def check() -> None:
        limits.fit(params)
        limits.check_bad_words(params)

    with pytest.raises(RequestError) as caught:
        check()
    assert caught.value.code is Code.INVALID_ARG
    return caught.value.message


def test_no_text_is_longer_than_the_context() -> None:
    params = Params(max_tokens=MOST_INT, min_tokens=2**31)
    OF_CPU.fit(params)
    assert (params.max_tokens, params.min_tokens) == (4096, 4096)

    params = Params(max_tokens=None, min_tokens=1)
    OF_CPU.fit(params)
    assert (params.max_tokens, params.min_tokens) == (None, 1)

    params = Params(max_tokens=5000)
    UNKNOWN.fit(params)
    assert params.max_tokens == 5000


def test_no_more_tokens_are_asked_for_than_fit_after_the_prompt() -> None:
    prompt = {"prompt_token_ids": [1] * 96}

    def least(given: int, prompt: Any, limits: EngineLimits = OF_CPU) -> int:
        params = Params(min_tokens=given)
        limits.fit_to_prompt(params, prompt)
        return int(params.min_tokens)

    assert [least(given, prompt) for given in (0, 1, 4000, 4001)] == [0, 1, 4000, 4000]
    assert least(1, {"prompt_token_ids": [1] * 5000}) == 0
    # Not known: a prompt that this vLLM tokenizes itself, or its context.
    assert least(4096, "Say alpha") == 4096
    assert least(4096, prompt, UNKNOWN) == 4096
    # Parameters of an embedding have no such thing.
    OF_CPU.fit_to_prompt(SimpleNamespace(), prompt)


@pytest.mark.parametrize("name", ["allowed_token_ids", "stop_token_ids"])
def test_a_token_that_the_model_has_not_is_refused(name: str) -> None:
    OF_CPU.fit(Params(**{name: [0, 299]}))
    UNKNOWN.fit(Params(**{name: [300]}))
    for token_id in (300, -1):
        told = refusal(OF_CPU, Params(**{name: [0, token_id]}))
        assert f"'{name}' holds {token_id}, which is no token of this model" in told


def test_each_text_has_a_seed_of_64_bits() -> None:
    OF_CPU.fit(Params(seed=MOST_INT - 1, n=2))
    assert "'seed' of the last of 2 texts" in refusal(OF_CPU, Params(seed=MOST_INT, n=2))


def test_cached_tokens_have_no_logprobs() -> None:
    OF_CPU.fit(Params(prompt_logprobs=1, skip_reading_prefix_cache=True))
    OF_CPU.fit(Params(skip_reading_prefix_cache=False))
    params = Params(prompt_logprobs=1, skip_reading_prefix_cache=False)
    assert "'skip_reading_prefix_cache'" in refusal(OF_CPU, params)


FITTING = [
    {"allowed_token_ids": [1] * 1024},
    {"logit_bias": dict.fromkeys(range(1024), 1.0)},
    {"stop_token_ids": [1] * 120, "min_tokens": 1},
    {"stop_token_ids": [1] * 5000},
    {"bad_words": ["a"] * 128},
    {"bad_words": ["a" * 1024]},
]
TOO_LONG: list[tuple[str, dict[str, Any]]] = [
    ("allowed_token_ids", {"allowed_token_ids": [1] * 1025}),
    ("logit_bias", {"logit_bias": dict.fromkeys(range(1025), 1.0)}),
    ("stop_token_ids", {"stop_token_ids": [1] * 121, "min_tokens": 1}),
    ("bad_words", {"bad_words": ["a"] * 129}),
    ("bad_words", {"bad_words": ["a" * 1025]}),
]


@pytest.mark.parametrize("given", FITTING, ids=lambda given: "-".join(given))
def test_what_has_room_in_the_tables(given: dict[str, Any]) -> None:
    OF_GPU.fit(Params(**given))
    OF_GPU.check_bad_words(Params(**given))


@pytest.mark.parametrize(("name", "given"), TOO_LONG)
def test_what_has_none_is_named(name: str, given: dict[str, Any]) -> None:
    assert f"'{name}' has" in refusal(OF_GPU, Params(**given))
    OF_CPU.fit(Params(**given))
    OF_CPU.check_bad_words(Params(**given))


def test_embeddings_have_no_bad_words() -> None:
    OF_GPU.check_bad_words(SimpleNamespace())
