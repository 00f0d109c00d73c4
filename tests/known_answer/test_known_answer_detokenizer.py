"""The detokenizer's model against the library that vLLM uses."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pytest_vllm_triton.known_answer import KnownAnswer, KnownAnswerSpec
from pytest_vllm_triton.known_answer._detokenizer import Detokenizer
from pytest_vllm_triton.known_answer._vocabulary import SPECIAL_TOKENS

decoders = pytest.importorskip("tokenizers.decoders")
if not hasattr(decoders, "DecodeStream"):
    pytest.skip("this tokenizers release has no DecodeStream", allow_module_level=True)

VOCABULARY = KnownAnswer(KnownAnswerSpec()).vocabulary
EMOJI = VOCABULARY.tokenizer.encode("😀é", add_special_tokens=False).ids

token = st.one_of(
    st.integers(0, len(VOCABULARY) - 1),
    st.sampled_from(EMOJI),
    st.integers(4 + 0x80, 4 + 0xFF),
)


class Reference:
    """vLLM's FastIncrementalDetokenizer: a DecodeStream, started over after an invalid prefix."""

    def __init__(self, prompt_ids: list[int]) -> None:
        self._stream = decoders.DecodeStream(ids=prompt_ids, skip_special_tokens=True)

    def step(self, token_id: int) -> str:
        try:
            return self._stream.step(VOCABULARY.tokenizer, token_id) or ""
        except Exception as error:
            if "Invalid prefix" not in str(error):
                raise
            self._stream = decoders.DecodeStream(skip_special_tokens=True)
            return self._stream.step(VOCABULARY.tokenizer, token_id) or ""


@settings(max_examples=500, deadline=None)
@given(prompt_ids=st.lists(token, max_size=6), token_ids=st.lists(token, max_size=12))
@example(prompt_ids=[0, *EMOJI[:2]], token_ids=[*EMOJI[2:], 40])
@example(prompt_ids=[0], token_ids=[EMOJI[0], 40, *EMOJI])
@example(prompt_ids=[], token_ids=EMOJI)
def test_steps_as_the_library_does(prompt_ids: list[int], token_ids: list[int]) -> None:
    model, reference = Detokenizer(VOCABULARY.token_bytes, prompt_ids), Reference(prompt_ids)
    for token_id in token_ids:
        assert model.step(token_id) == reference.step(token_id)


# What is spelled like a special token is one, and shows as nothing. Hypothesis takes such texts
# from the sources of the package.
@given(st.text(max_size=40).filter(lambda text: not any(map(text.__contains__, SPECIAL_TOKENS))))
def test_decodes_what_the_tokenizer_encodes(text: str) -> None:
    ids = VOCABULARY.tokenizer.encode(text, add_special_tokens=False).ids
    model = Detokenizer(VOCABULARY.token_bytes)
    told = "".join(map(model.step, ids))
    assert text.startswith(told)
    assert told == text or text.endswith("\ufffd")
