"""Marks that several modules of checks share."""

from __future__ import annotations

import pytest

UNARY_AND_STREAM = pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
