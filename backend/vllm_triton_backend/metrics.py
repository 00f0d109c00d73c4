"""vLLM's metrics through Triton's custom-metrics API (built in issue 3)."""
