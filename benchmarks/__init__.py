"""The benchmark: the same load on our backend, on ``vllm serve`` and on AsyncLLM, in one run.

See docs/benchmark.md; ``python -m benchmarks --help``.
"""
