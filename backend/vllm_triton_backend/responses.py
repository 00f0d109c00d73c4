"""vLLM outputs -> response tensors.

Tensors (contract of upstream's docs/additional_outputs.md; n = number of sequences):

| name               | dtype  | shape | when                                                   |
|--------------------|--------|-------|--------------------------------------------------------|
| text_output        | BYTES  | [n]   | always, if requested; deltas when streaming            |
| finish_reason      | BYTES  | [n]   | return_finish_reason; "" until the sequence ends       |
| cumulative_logprob | FP32   | [n]   | return_cumulative_logprob and sampling `logprobs`      |
| logprobs           | BYTES  | [n]   | return_logprobs; JSON of the new tokens, "null" if none|
| num_input_tokens   | UINT32 | [1]   | return_num_input_tokens                                |
| num_output_tokens  | UINT32 | [n]   | return_num_output_tokens; new tokens of this response  |
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from vllm_triton_backend.errors import Code, RequestError
from vllm_triton_backend.requests import GenerateRequest, Wanted

_TEXT_ONLY = Wanted()
# The log-probability of a token that is ruled out, as `vllm serve` tells it: JSON has no infinity.
_RULED_OUT = -9999.0


class GenerateFormatter:
    """Turns the outputs of one request into responses; keeps what must outlive a response.

    Args:
        request: says which tensors are wanted and whether the prompt is echoed.
        sequences: n of the sampling parameters.
        with_logprobs: the sampling parameters ask for logprobs.
    """

    def __init__(self, request: GenerateRequest, sequences: int, with_logprobs: bool) -> None:
        self._wanted = request.wanted
        self._prefix = request.prompt if request.echo_prompt else ""
        self._size = sequences
        self._with_logprobs = with_logprobs
        self._reasons: list[str] = [""] * sequences
        self._cumulative: list[float] = [0.0] * sequences
        self._prompt_tokens = 0
        # A delta without text (half a character, text held back for a stop string) waits for the
        # next one, unless the client counts tokens.
        self._every_delta = (
            request.wanted.logprobs
            or request.wanted.num_output_tokens
            or request.wanted.cumulative_logprob
        )

    def build(self, outputs: Iterable[Any], final: bool) -> Any | None:
        """One `pb_utils.InferenceResponse` for `outputs` (vLLM RequestOutputs, in order).

        Returns None when there is nothing worth a response yet.

        Raises:
            RequestError: a sequence ended because the engine failed or dropped it.
        """
        size, wanted = self._size, self._wanted
        texts: list[str] = [""] * size
        counts = [0] * size
        logprobs: list[list[Any]] = [[] for _ in range(size)] if wanted.logprobs else []
        for output in outputs:
            self._prompt_tokens = len(output.prompt_token_ids or ()) or self._prompt_tokens
            for part in output.outputs:
                index = part.index
                texts[index] += part.text
                counts[index] += len(part.token_ids)
                if part.cumulative_logprob is not None:
                    self._cumulative[index] = part.cumulative_logprob
                if wanted.logprobs and part.logprobs:
                    logprobs[index].extend(part.logprobs)
                if part.finish_reason is not None:
                    self._reasons[index] = _reason(part.finish_reason)
        if not final and not self._every_delta and not any(texts):
            return None
        if self._prefix:
            texts = [self._prefix + text for text in texts]
        tensors = [_strings("text_output", texts)] if wanted.text_output else []
        if wanted != _TEXT_ONLY:
            tensors += self._additional(counts, logprobs)
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def _additional(self, counts: list[int], logprobs: list[list[Any]]) -> list[Any]:
        wanted = self._wanted
        tensors = []
        if wanted.finish_reason:
            tensors.append(_strings("finish_reason", self._reasons))
        if wanted.cumulative_logprob and self._with_logprobs:
            tensors.append(_array("cumulative_logprob", self._cumulative, np.float32))
        if wanted.logprobs:
            # Without sampling `logprobs` there are none to report: JSON null, as upstream.
            texts = [logprobs_json(items) if self._with_logprobs else "null" for items in logprobs]
            tensors.append(_strings("logprobs", texts))
        if wanted.num_input_tokens:
            tensors.append(_array("num_input_tokens", [self._prompt_tokens], np.uint32))
        if wanted.num_output_tokens:
            tensors.append(_array("num_output_tokens", counts, np.uint32))
        return tensors


class EmbedFormatter:
    """Turns the one output of an embedding request into its one response."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted

    def build(self, outputs: Iterable[Any], final: bool) -> Any | None:
        """text_output is the JSON list of the vector's floats, shape [1]; None until `final`."""
        if not final:
            return None
        *_, output = outputs
        vector = output.outputs.data.tolist()
        if not np.isfinite(vector).all():  # no JSON
            reason = "Error generating stream: the vector holds NaN or infinity"
            raise RequestError(Code.INTERNAL, reason)
        tensors = []
        if self._wanted.text_output:
            tensors.append(_strings("text_output", [json.dumps(vector)]))
        if self._wanted.num_input_tokens:
            count = len(output.prompt_token_ids)
            tensors.append(_array("num_input_tokens", [count], np.uint32))
        if self._wanted.num_output_tokens:
            tensors.append(_array("num_output_tokens", [0], np.uint32))
        return pb_utils.InferenceResponse(output_tensors=tensors)


def logprobs_json(tokens: Sequence[Mapping[int, Any]]) -> str:
    """vLLM's logprobs of consecutive tokens as JSON: a list with one object per token, token id
    (as a string) -> {"logprob": float, "rank": int, "decoded_token": str}.

    JSON has no infinity, which is what a token that the sampler ruled out has under vLLM's
    `logprobs_mode: processed_logprobs`. It is told as vLLM's own servers tell it.
    """
    return json.dumps(
        [
            {
                str(token): {
                    "logprob": max(_RULED_OUT, item.logprob),
                    "rank": item.rank,
                    "decoded_token": item.decoded_token,
                }
                for token, item in candidates.items()
            }
            for candidates in tokens
        ]
    )


def _reason(reason: Any) -> str:
    text = str(reason)
    if text == "error":
        raise RequestError(Code.INTERNAL, "Error generating stream: the engine failed the request")
    if text == "abort":
        raise RequestError(Code.UNAVAILABLE, "Error generating stream: the engine dropped it")
    return text


def _strings(name: str, texts: Sequence[str]) -> Any:
    # Bytes on purpose: pb_utils would encode each string anyway, through str().
    return pb_utils.Tensor(name, np.array([text.encode() for text in texts], dtype=np.object_))


def _array(name: str, values: Sequence[Any], dtype: Any) -> Any:
    return pb_utils.Tensor(name, np.array(values, dtype=dtype))
