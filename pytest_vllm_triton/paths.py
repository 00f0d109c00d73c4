"""Where the plugin keeps what it makes once: server runtimes and generated checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

HOME_VARIABLE = "PYTEST_VLLM_TRITON_HOME"


def cache_home() -> Path:
    """``$PYTEST_VLLM_TRITON_HOME``, else the user's cache directory. Not created here."""
    given = os.environ.get(HOME_VARIABLE)
    if given:
        return Path(given).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("pytest-vllm-triton", appauthor=False)
