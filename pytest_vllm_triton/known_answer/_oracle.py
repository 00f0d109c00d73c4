"""What a known-answer checkpoint answers, computed from its spec alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from ._adapter import AdapterSpec
from ._detokenizer import Detokenizer
from ._spec import KnownAnswerSpec
from ._vocabulary import BOS, EOS, SPECIAL_TOKENS, Vocabulary, build_vocabulary
from ._weights import MAX_POSITIONS, Floats, Successors, build_successors

FinishReason = Literal["stop", "length"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A UTF-8 character has four bytes at most: vLLM looks no further back.
_CONTEXT = 4


@dataclass(frozen=True)
class Answer:
    """One expected completion.

    Attributes:
        text: the generated text, without the prompt.
        token_ids: generated tokens, a final EOS or stop token included, as vLLM counts them.
        finish_reason: "stop" at EOS, a stop token or a stop string; else "length".
        stop_reason: the stop string or stop token id that ended it, None for EOS and for length.
        num_input_tokens: tokens of the prompt, BOS included.
        fragments: the text that each token adds, aligned with token_ids; "" for a token that only
            continues a character. Without stop strings, which vLLM holds text back for, a stream
            may be cut between fragments and nowhere else.
        decoded_tokens: the text that vLLM shows for each token in its logprobs. Unlike a fragment
            it is not cut at a stop string, shows EOS, and looks at no prompt for an unfinished
            character.
        logprobs: natural logarithm of each token's probability before temperature and masks.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: str | int | None
    num_input_tokens: int
    fragments: tuple[str, ...]
    decoded_tokens: tuple[str, ...]
    logprobs: tuple[float, ...]

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def cumulative_logprob(self) -> float:
        return sum(self.logprobs)


class KnownAnswer:
    """The oracle of one checkpoint, optionally under one of its LoRA adapters."""

    def __init__(self, spec: KnownAnswerSpec, *, adapter: AdapterSpec | None = None) -> None:
        self.spec = spec
        self.adapter = adapter

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return build_vocabulary(self.spec)

    @cached_property
    def successors(self) -> Successors:
        links = None if self.adapter is None else self.adapter.link_ids(self.vocabulary)
        return build_successors(self.spec, self.vocabulary, links=links)

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    @property
    def bos_token_id(self) -> int:
        return BOS

    @property
    def eos_token_id(self) -> int:
        return EOS

    @property
    def max_model_len(self) -> int:
        """Prompt and completion together, in tokens, that the checkpoint has positions for."""
        return MAX_POSITIONS

    @property
    def story_text(self) -> str:
        return "".join(self.spec.story)

    @property
    def story_ids(self) -> tuple[int, ...]:
        """The story in tokens, without EOS."""
        return self.vocabulary.story_ids

    def tokenize(self, prompt: str) -> list[int]:
        """Token ids of `prompt` as vLLM sees them: BOS first, special tokens' text recognized."""
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"no server can receive this prompt, it is not valid Unicode: {error}"
            ) from error
        return list(self.vocabulary.tokenizer.encode(prompt).ids)

    def successor(self, token_id: int) -> int:
        """The token that greedy decoding puts after `token_id`."""
        return self.successors.next_ids[token_id]

    def logits(self, previous_token: int) -> Floats:
        """Logits of every token after `previous_token`, shape [vocab_size], exact."""
        return self.successors.logits(previous_token)

    def logprobs(self, previous_token: int, *, temperature: float = 1.0) -> Floats:
        """Log-probabilities (natural) of every token after `previous_token`, shape [vocab_size]."""
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, not {temperature!r}")
        scaled = self.logits(previous_token) / temperature
        shifted = scaled - scaled.max()
        normalized: Floats = shifted - np.log(np.exp(shifted).sum())
        return normalized

    def expected_logprob(
        self, previous_token: int, token: int, *, temperature: float = 1.0
    ) -> float:
        """Log-probability of `token` after `previous_token`; vLLM reports that of temperature 1."""
        return float(self.logprobs(previous_token, temperature=temperature)[token])

    def top_logprobs(self, previous_token: int, count: int) -> list[tuple[int, float]]:
        """(token id, log-probability) of the `count` most probable next tokens, best first.

        Only the ranked tokens (the right one and its four deputies) differ from each other: asking
        for more than five is refused, because their order would be the sorting's choice.
        """
        ranked = self.successors.ranked(previous_token)
        if not 0 <= count <= len(ranked):
            raise ValueError(f"count must be from 0 to {len(ranked)}, not {count}")
        logprobs = self.logprobs(previous_token)
        return [(i, float(logprobs[i])) for i, _ in ranked[:count]]

    def decoded_tokens(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        """`decoded_token` of each generated token in vLLM's logprobs.

        A character's first bytes have "", its last byte has the character.
        """
        return tuple(
            self._decoded_token(token_ids[max(0, i - _CONTEXT) : i], token_id)
            for i, token_id in enumerate(token_ids)
        )

    def choice(self, prompt: str, choices: Sequence[str]) -> str:
        """Which of `choices` greedy decoding takes under structured output's `choice`.

        ValueError where two of them part at tokens that are equally probable after the prompt.
        """
        previous = self.tokenize(prompt)[-1]
        left = {text: text.encode() for text in choices}
        while len(left) > 1:
            allowed = {
                token
                for token in range(self.vocab_size)
                if (spelled := self.vocabulary.token_bytes(token))
                and any(rest.startswith(spelled) for rest in left.values())
            }
            if not all(left.values()):
                allowed.add(EOS)
            ranked = [i for i, _ in self.successors.ranked(previous) if i in allowed]
            if not ranked and len(allowed) > 1:
                raise ValueError(f"after {prompt!r} the model has no preference among {choices!r}")
            previous = ranked[0] if ranked else allowed.pop()
            if previous == EOS:
                return next(text for text, rest in left.items() if not rest)
            spelled = self.vocabulary.token_bytes(previous)
            left = {
                text: rest.removeprefix(spelled)
                for text, rest in left.items()
                if rest.startswith(spelled)
            }
        return next(iter(left))

    def answer(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = 16,
        min_tokens: int = 0,
        ignore_eos: bool = False,
        stop: str | Sequence[str] = (),
        stop_token_ids: Collection[int] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        max_model_len: int = MAX_POSITIONS,
    ) -> Answer:
        """The greedy answer to `prompt` (text, or token ids) under vLLM's sampling parameters.

        `include_stop` is vLLM's include_stop_str_in_output, the others have vLLM's names and
        defaults; `max_tokens=None` means up to `max_model_len`. What vLLM refuses is a ValueError.
        After a prompt that ends in U+FFFD vLLM's text begins with the whole prompt; so does this.
        """
        prompt_ids = self.tokenize(prompt) if isinstance(prompt, str) else list(prompt)
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        self._check_prompt(prompt_ids, max_model_len)
        _check_limits(max_tokens, min_tokens, stops)
        room = max_model_len - len(prompt_ids)
        ending = _Ending(
            limit=room if max_tokens is None else min(max_tokens, room),
            min_tokens=min_tokens,
            stops=stops,
            stop_token_ids=frozenset(stop_token_ids),
            ignore_eos=ignore_eos,
            include_stop=include_stop,
        )
        token_bytes = self.vocabulary.token_bytes if skip_special_tokens else self._shown_bytes
        telling = _Telling(ending, Detokenizer(token_bytes, prompt_ids))
        logprobs = []
        previous = prompt_ids[-1]
        while telling.end is None:
            token = self._best(previous, ending.masked(len(telling.token_ids)))
            logprobs.append(self.expected_logprob(previous, token))
            telling.add(token)
            previous = token
        finish_reason, stop_reason = telling.end
        return Answer(
            text="".join(telling.fragments),
            token_ids=tuple(telling.token_ids),
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            num_input_tokens=len(prompt_ids),
            fragments=tuple(telling.fragments),
            decoded_tokens=self.decoded_tokens(telling.token_ids),
            logprobs=tuple(logprobs),
        )

    def _check_prompt(self, prompt_ids: Sequence[int], max_model_len: int) -> None:
        if not prompt_ids or not all(0 <= i < self.vocab_size for i in prompt_ids):
            raise ValueError("a prompt has at least one token, and only tokens of the vocabulary")
        if max_model_len - len(prompt_ids) < 1:
            raise ValueError(f"a prompt of {len(prompt_ids)} tokens leaves no room to answer")

    def _best(self, previous: int, masked: Collection[int]) -> int:
        ranked = self.successors.ranked(previous)
        best = next((i for i, _ in ranked if i not in masked), None)
        if best is None:
            raise ValueError("every ranked token is masked; which of the others comes is not known")
        return best

    def _decoded_token(self, context: Sequence[int], token_id: int) -> str:
        for first in range(len(context), -1, -1):
            used = [*context[first:], token_id]
            text = self._shown_text(used)
            if text.endswith(_REPLACEMENT):
                continue
            while len(used) > 1 and self._shown_text(used[-2:-1]).endswith(_REPLACEMENT):
                del used[-2]
            return text[len(self._shown_text(used[:-1])) :]
        return ""

    def _shown_text(self, token_ids: Sequence[int]) -> str:
        return b"".join(map(self._shown_bytes, token_ids)).decode("utf-8", "replace")

    def _shown_bytes(self, token_id: int) -> bytes:
        if token_id < len(SPECIAL_TOKENS):
            return SPECIAL_TOKENS[token_id].encode()
        return self.vocabulary.token_bytes(token_id)


@dataclass(frozen=True)
class _Ending:
    """What an answer ends at.

    Attributes:
        limit: its tokens, at most.
        min_tokens: its tokens, at least.
        stops: texts that end it.
        stop_token_ids: tokens that end it, beside EOS.
        ignore_eos: EOS does not end it.
        include_stop: what ended it is part of its text.
    """

    limit: int
    min_tokens: int
    stops: Sequence[str]
    stop_token_ids: Collection[int]
    ignore_eos: bool
    include_stop: bool

    def masked(self, count: int) -> Collection[int]:
        """Tokens that cannot come after so many of the answer."""
        # vLLM masks EOS below min_tokens even when EOS is ignored.
        return {*self.stop_token_ids, EOS} if count < self.min_tokens else ()

    def is_end(self, token: int) -> bool:
        return token in self.stop_token_ids or self._is_plain_eos(token)

    def stop_reason(self, token: int) -> int | None:
        """What vLLM calls the reason of an end with this token."""
        return None if self._is_plain_eos(token) else token

    def _is_plain_eos(self, token: int) -> bool:
        return token == EOS and not self.ignore_eos


class _Telling:
    """An answer that grows by a token at a time until it ends.

    Attributes:
        token_ids, fragments: see `Answer`.
        end: finish reason and stop reason, see `Answer`; None before it.
    """

    def __init__(self, ending: _Ending, detokenizer: Detokenizer) -> None:
        self.token_ids: list[int] = []
        self.fragments: list[str] = []
        self.end: tuple[FinishReason, str | int | None] | None = None
        self._ending = ending
        self._detokenizer = detokenizer

    def add(self, token: int) -> None:
        ending = self._ending
        is_end = ending.is_end(token)
        self.token_ids.append(token)
        is_shown = ending.include_stop or not is_end
        self.fragments.append(self._detokenizer.step(token) if is_shown else "")
        if (stop := self._cut_at_stop()) is not None:
            self.end = "stop", stop
        elif is_end:
            self.end = "stop", ending.stop_reason(token)
        elif len(self.token_ids) == ending.limit:
            self.end = "length", None

    def _cut_at_stop(self) -> str | None:
        """The stop string that the newest fragment completes, if any; the text ends there."""
        ending = self._ending
        if not ending.stops or len(self.token_ids) <= ending.min_tokens:
            return None
        found = _find_stop("".join(self.fragments), len(self.fragments[-1]), ending.stops)
        if found is None:
            return None
        stop, start = found
        length = start + len(stop) if ending.include_stop else start
        self.fragments = _truncate(self.fragments, length)
        return stop


def _check_limits(max_tokens: int | None, min_tokens: int, stops: Sequence[str]) -> None:
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
    if min_tokens < 0 or (max_tokens is not None and min_tokens > max_tokens):
        raise ValueError(f"min_tokens must be from 0 to max_tokens, not {min_tokens}")
    if not all(stops):
        raise ValueError("stop strings must not be empty")


def _find_stop(text: str, new: int, stops: Sequence[str]) -> tuple[str, int] | None:
    """(stop string, start) of the stop string that `new` new characters complete first."""
    if not new:
        return None
    hits = (
        (start + len(stop), order, stop, start)
        for order, stop in enumerate(stops)
        if (start := text.find(stop, max(0, len(text) - new - len(stop) + 1))) >= 0
    )
    first = min(hits, default=None)
    return None if first is None else (first[2], first[3])


def _truncate(fragments: Sequence[str], length: int) -> list[str]:
    """`fragments` cut so that together they have `length` characters."""
    kept: list[str] = []
    for fragment in fragments:
        kept.append(fragment[: max(0, length)])
        length -= len(fragment)
    return kept
