"""What the servers of this host inherit of our environment."""

from __future__ import annotations

import os
import re

#: Variables of pytest's own Python that would mislead the Python inside the server.
_DROPPED = re.compile(r"PYTHON|PYTEST_|COVERAGE_|COV_CORE_|VIRTUAL_ENV|CONDA_|__PYVENV")


def inherited() -> dict[str, str]:
    """Our environment without what is meant for pytest's own Python alone."""
    return {name: value for name, value in os.environ.items() if not _DROPPED.match(name)}
