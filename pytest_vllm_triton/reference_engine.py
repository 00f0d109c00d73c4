"""Run by the servers' Python: what vLLM generates without Triton.

Argument: {"engine_args": {...}, "prompts": [...], "sampling": {...}} as JSON. On a line of standard
output of its own it writes "reference texts: " and a JSON list. Imports nothing of this package,
which is not there.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    job = json.loads(sys.argv[1])
    from vllm import LLM, SamplingParams

    engine = LLM(**job["engine_args"])
    outputs = engine.generate(job["prompts"], SamplingParams(**job["sampling"]))
    texts = [output.outputs[0].text for output in outputs]
    # In one piece, on a line of its own: vLLM's processes write there too, until they end.
    os.write(1, f"\nreference texts: {json.dumps(texts)}\n".encode())


if __name__ == "__main__":
    main()
