"""Run by the servers' Python: what vLLM generates without Triton.

Argument: {"environment": {…}, "engine_args": {…}, "requests": [[prompt, sampling], …], "mark": "…"}
as JSON. On a line of standard output of its own it writes the mark and a JSON list. Imports nothing
of this package, which is not there.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    job = json.loads(sys.argv[1])
    os.environ.update(job["environment"])
    from vllm import LLM, SamplingParams

    of_servers = ("enable_log_requests", "disable_log_requests")
    arguments = {name: v for name, v in job["engine_args"].items() if name not in of_servers}
    engine = LLM(**arguments)
    # One by one, as the check sends them: in a batch, 16-bit sums may differ in their last bit.
    texts = [
        engine.generate(prompt, SamplingParams(**sampling))[0].outputs[0].text
        for prompt, sampling in job["requests"]
    ]
    # In one piece, on a line of its own: vLLM's processes write there too, until they end.
    os.write(1, f"\n{job['mark']}{json.dumps(texts)}\n".encode())


if __name__ == "__main__":
    main()
