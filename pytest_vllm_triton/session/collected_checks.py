"""Which checks there are, whether or not this run was told to leave some of them out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator
from pathlib import Path

import pytest

from pytest_vllm_triton import assets


def requirement_ids(node: pytest.Item) -> tuple[str, ...]:
    """The requirements that a test decides, closest marker first, each once."""
    return tuple(
        dict.fromkeys(key for marker in node.iter_markers("requirement") for key in marker.args)
    )


class CollectedChecks:
    """Notes the checks of every file that pytest reads, before anything deselects them."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, ...]] = {}
        self._files: set[Path] = set()

    # The innermost wrapper: pytest's --lf takes tests out of this report as well. And what a path
    # such as test_x.py::test_y names is only picked from it later.
    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_make_collect_report(self) -> Generator[None, pytest.CollectReport, object]:
        report = yield
        for node in report.result or ():
            if isinstance(node, pytest.Item) and (ids := requirement_ids(node)):
                self._found[node.nodeid] = ids
                self._files.add(node.path)
        return report

    def checks(self) -> dict[str, tuple[str, ...]]:
        """The requirements of every check, by its name.

        Those of the suite's files that were not read (a path was given, or --lf) are known by their
        text: one for each function, however many it would be with all its parameters.
        """
        suite = set(assets.suite_dir().glob("test_*.py"))
        unread = {path.name for path in suite - self._files}
        if not unread or suite.isdisjoint(self._files):
            return dict(self._found)
        from pytest_vllm_triton.session.suite_index import tests_by_requirement

        told: dict[str, list[str]] = defaultdict(list)
        for key, names in tests_by_requirement().items():
            for name in names:
                if name.partition("::")[0] in unread:
                    told[name].append(key)
        return {**self._found, **{name: tuple(ids) for name, ids in told.items()}}
