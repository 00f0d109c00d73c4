"""Run by the embedded runtime's Python: what vLLM generates without Triton.

Argument: {"engine_args": {...}, "prompts": [...], "sampling": {...}} as JSON; the last line of
standard output: a JSON list of texts. Imports nothing of this package, which is not there.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    job = json.loads(sys.argv[1])
    from vllm import LLM, SamplingParams

    engine = LLM(**job["engine_args"])
    outputs = engine.generate(job["prompts"], SamplingParams(**job["sampling"]))
    print(json.dumps([output.outputs[0].text for output in outputs]), flush=True)


if __name__ == "__main__":
    main()
