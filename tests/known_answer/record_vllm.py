"""Record what a real vLLM answers on the known-answer checkpoint, as facts for the oracle's tests.

    python record_vllm.py CACHE_DIR OUTPUT.json [DTYPE]

Run it with the Python of an environment that has vLLM, with this repository on PYTHONPATH.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pytest_vllm_triton.known_answer import KnownAnswer, KnownAnswerSpec, build_checkpoint

MAX_MODEL_LEN = 512

PROMPTS = [
    *("Say alpha", "", " ", "  ", "\n", "\t", "x", "alpha", " alphabet", " mike", " mike 😀"),
    *(" mike 😀é", "😀", "é", "Ø", "ũ", "ß", "😁", "中文字符", "日本語 bravo", "한국어", "مرحبا"),
    *("</s>", "<s>", "<pad>", "abc</s>", "<s> alpha", " zulu", " zulu ", " yankee\n", "\\", '"'),
    *(
        "\0",
        "\x1b[31m red",
        "\r\n",
        "\u2028",
        "\u200b",
        "\ufeff",
        "e\u0301",
        "👩‍👩‍👧",
        "\U0010ffff",
    ),
    *("a\ufffd", "\ufffd", "\ufffd b", '{"json": [1]}', "What is Triton Inference Server?", "\xa0"),
]
STOPS: list[str | list[str]] = [
    *("elt", " delta", "😀", "é", "\n", '\n"\\ z', " mike 😀", " ", "a", "nope", "alpha"),
    *([" delta", " charlie"], ["charlie delta", "lie d"], ["india", "indi", "ia"]),
]


def cases() -> list[tuple[str | list[int], dict[str, Any]]]:
    """(prompt, keyword arguments of KnownAnswer.answer)."""
    oracle = KnownAnswer(KnownAnswerSpec())
    found: list[tuple[str | list[int], dict[str, Any]]] = []
    found += [(prompt, {"max_tokens": 6}) for prompt in PROMPTS]
    found += [(prompt, {"max_tokens": 60}) for prompt in ("Say alpha", "", "Ø", "a\ufffd")]
    found += [(" lima", {"max_tokens": count}) for count in range(1, 28)]
    found += [(" yankee", {"max_tokens": 12, "min_tokens": count}) for count in (1, 4, 5, 6, 12)]
    found += [
        (" zulu", {"max_tokens": 6, "min_tokens": count, "ignore_eos": True}) for count in (0, 1, 3)
    ]
    for stop in STOPS:
        for include in (False, True):
            found.append(("x", {"max_tokens": 60, "stop": stop, "include_stop": include}))
        found.append(("x", {"max_tokens": 25, "stop": stop, "min_tokens": 5}))
        found.append((" yankee", {"max_tokens": 9, "stop": stop, "ignore_eos": True}))
    for include in (False, True):
        for ignore_eos in (False, True):
            flags = {"max_tokens": 9, "include_stop": include, "ignore_eos": ignore_eos}
            found.append((" yankee", {**flags, "skip_special_tokens": False}))
            for stop_ids in ([oracle.eos_token_id], [oracle.story_ids[4]]):
                found.append((" bravo", {**flags, "stop_token_ids": stop_ids}))
                found.append((" yankee", {**flags, "stop_token_ids": stop_ids, "min_tokens": 7}))
    lead, rest = oracle.tokenize("😀")[1], oracle.tokenize("é")[1]
    found += [(ids, {"max_tokens": 6}) for ids in ([0, lead], [0, rest], [lead], [0, 87, rest])]
    found.append((" alpha" * 500, {"max_tokens": None, "ignore_eos": True}))
    found.append((" alpha" * 510, {"max_tokens": 100}))
    return found


def main() -> None:
    from vllm import LLM, SamplingParams, __version__

    cache_dir, output, dtype = Path(sys.argv[1]), Path(sys.argv[2]), [*sys.argv[3:], "auto"][0]
    model = build_checkpoint(KnownAnswerSpec(), cache_dir)
    llm = LLM(str(model), dtype=dtype, enforce_eager=True, max_model_len=MAX_MODEL_LEN)

    asked = cases()
    prompts = [p if isinstance(p, str) else {"prompt_token_ids": p} for p, _ in asked]
    params = []
    for _, given in asked:
        options = {**given, "include_stop_str_in_output": given.get("include_stop", False)}
        options.pop("include_stop", None)
        params.append(SamplingParams(temperature=0, logprobs=0, **options))

    facts = []
    for (prompt, given), result in zip(asked, llm.generate(prompts, params), strict=True):
        told = result.outputs[0]
        chosen = [at[token] for token, at in zip(told.token_ids, told.logprobs, strict=True)]
        facts.append(
            {
                "prompt": prompt,
                "given": given,
                "num_input_tokens": len(result.prompt_token_ids),
                "text": told.text,
                "token_ids": list(told.token_ids),
                "finish_reason": told.finish_reason,
                "stop_reason": told.stop_reason,
                "decoded_tokens": [at.decoded_token for at in chosen],
                "cumulative_logprob": told.cumulative_logprob,
            }
        )
    recorded = {
        "vllm": __version__,
        "dtype": str(llm.llm_engine.model_config.dtype),
        "max_model_len": MAX_MODEL_LEN,
    }
    lines = ",\n".join(json.dumps(fact, ensure_ascii=True) for fact in facts)
    header = json.dumps(recorded)[:-1]
    output.write_text(f'{header}, "facts": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
