"""What a request asks for beyond what an engine can hold: it is refused, or cut where that means
the same, before it reaches the engine.

vLLM itself finds out only inside the engine, where an exception ends the engine for everybody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm_triton_backend.errors import RequestError, invalid
from vllm_triton_backend.sampling import MOST_INT

# The tables of vLLM's second model runner, the one of GPUs. Source: logit_bias.py and bad_words.py
# of vllm/v1/worker/gpu/sample, 0.22 to 0.32.
_MOST_TOKEN_IDS = 1024
# 128, which the model's own end-of-sequence tokens are counted among.
_MOST_STOP_TOKENS = 120
_MOST_BAD_WORDS = 128
_MOST_BAD_WORD_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Limits of one engine.

    Attributes:
        max_model_len: longest prompt plus answer, in tokens; None when vLLM does not say.
        vocab_size: token ids are below it; None when vLLM does not say.
        has_fixed_tables: whether it runs vLLM's second model runner.
        tokenizer: vLLM's; None when there is none.
    """

    max_model_len: int | None
    vocab_size: int | None
    has_fixed_tables: bool
    tokenizer: Any

    def fit(self, params: Any) -> None:
        """Change these SamplingParams into ones that the engine can hold and that mean the same.

        The engine counts the tokens of a text in 32 bits; a larger limit means no more than the
        length of the model's context, so it is lowered to that. Each of the `n` texts has a seed of
        its own, counted up from the given one, and the last one must fit into 64 bits.

        Raises:
            RequestError: INVALID_ARG naming the parameter that it cannot hold.
        """
        if self.max_model_len is not None:
            params.min_tokens = min(params.min_tokens, self.max_model_len)
            if params.max_tokens is not None:
                params.max_tokens = min(params.max_tokens, self.max_model_len)
        if params.seed is not None and params.seed + params.n - 1 > MOST_INT:
            raise _refused("seed", f"of the last of {params.n} texts is beyond 64 bits")
        reads_cache = getattr(params, "skip_reading_prefix_cache", None) is False
        if reads_cache and params.prompt_logprobs is not None:
            # vLLM has not computed the log-probabilities of a cached part of the prompt, and would
            # answer with whatever is in that memory.
            raise _refused("skip_reading_prefix_cache", "must be true with 'prompt_logprobs'")
        self._check_token_ids(params)
        if self.has_fixed_tables:
            self._fit_tables(params)

    def _check_token_ids(self, params: Any) -> None:
        # They are columns of the engine's tensors. Versions of vLLM before 0.32 do not look.
        if self.vocab_size is None:
            return
        for name in ("allowed_token_ids", "stop_token_ids"):
            for token_id in getattr(params, name) or ():
                if not 0 <= token_id < self.vocab_size:
                    raise _refused(name, f"holds {token_id}, which is no token of this model")

    def _fit_tables(self, params: Any) -> None:
        for name, most in (
            ("allowed_token_ids", _MOST_TOKEN_IDS),
            ("logit_bias", _MOST_TOKEN_IDS),
            ("bad_words", _MOST_BAD_WORDS),
            ("stop_token_ids", _MOST_STOP_TOKENS),
        ):
            count = len(getattr(params, name) or ())
            # Stop tokens are in a table as long as they must not come yet.
            if count > most and (name != "stop_token_ids" or params.min_tokens > 0):
                raise _refused(name, f"has {count} entries, this engine takes {most}")

    def fit_to_prompt(self, params: Any, prompt: Any) -> None:
        """Lower `min_tokens` to what the context has room for after this prompt of vLLM's.

        The answer ends there anyway, with "length"; but before vllm#51299 one that had to be longer
        never ended.
        """
        tokens = prompt.get("prompt_token_ids") if isinstance(prompt, dict) else None
        if tokens is None or self.max_model_len is None or not getattr(params, "min_tokens", 0):
            return
        params.min_tokens = min(params.min_tokens, max(self.max_model_len - len(tokens), 0))

    def check_bad_words(self, params: Any) -> None:
        """See that they fit as tokens, which `params` may hold afterwards; on the event loop, where
        vLLM tokenizes them itself.

        Raises:
            RequestError: INVALID_ARG.
        """
        words = getattr(params, "bad_words", None)
        if not words or not self.has_fixed_tables or self.tokenizer is None:
            return
        # Each counts twice, at the beginning and inside of a text. No token is shorter than a byte,
        # so most words need not be tokenized here as well.
        if 2 * sum(len(word.encode()) + 1 for word in words) <= _MOST_BAD_WORD_TOKENS:
            return
        params.update_from_tokenizer(self.tokenizer)
        tokens = params.bad_words_token_ids or ()
        count = sum(map(len, tokens))
        if len(tokens) > _MOST_BAD_WORDS or count > _MOST_BAD_WORD_TOKENS:
            raise _refused(
                "bad_words",
                f"has {len(tokens)} words of {count} tokens in all, this engine takes "
                f"{_MOST_BAD_WORDS} of {_MOST_BAD_WORD_TOKENS}",
            )


def _refused(name: str, reason: str) -> RequestError:
    return invalid(f"Invalid sampling_parameters: '{name}' {reason}.")
