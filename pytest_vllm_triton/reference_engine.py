"""Run by the embedded runtime's Python: what vLLM generates without Triton.

Arguments: {"engine_args": {...}, "prompts": [...], "sampling": {...}} as JSON, and the path of the
file to write: a JSON list of texts. Imports nothing of this package, which is not there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    job = json.loads(sys.argv[1])
    from vllm import LLM, SamplingParams

    engine = LLM(**job["engine_args"])
    outputs = engine.generate(job["prompts"], SamplingParams(**job["sampling"]))
    texts = [output.outputs[0].text for output in outputs]
    # Not to standard output, which vLLM's processes write to until they end.
    Path(sys.argv[2]).write_text(json.dumps(texts), encoding="utf-8")


if __name__ == "__main__":
    main()
