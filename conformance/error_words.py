"""What errors say and are called, where several modules ask for it."""

from __future__ import annotations

# What gRPC calls a request of something that is not there, or that the model cannot do.
CLIENTS_MISTAKE = ("INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED")
# What the health check answers (ENABLE_VLLM_HEALTH_CHECK).
UNHEALTHY = "Model is unavailable due to unhealthy vLLM engine"
# What the server says of a model that is not loaded any more.
NO_VERSIONS = "has no available versions"
# A regular expression for a prompt or an input that does not fit.
TOO_LONG = r"(?i)length|long|exceed|too many"
