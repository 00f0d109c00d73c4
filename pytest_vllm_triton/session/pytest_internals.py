"""Everything that the plugin uses of pytest without its promise: private names, and plugins of its.

Run with pytest 8.2.0, the oldest that this package allows, and 9.2.0
(tests/plugin/test_plugin_pytest_internals.py).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import pytest


def run_again(item: pytest.Function) -> None:
    """Call a test function once more, with its fixtures of function scope made anew.

    Raises:
        Exception: whatever the test or a fixture raises.
    """
    private: Any = item
    private._initrequest()
    private._request._fillfixtures()
    arguments = {name: item.funcargs[name] for name in private._fixtureinfo.argnames}
    item.obj(**arguments)


def finish_fixture(item: pytest.Item, name: str) -> None:
    """End a fixture, and with it those that use it, so that whoever asks next gets it made anew.

    An exception of theirs is dropped.
    """
    private: Any = item
    for definition in private.session._fixturemanager.getfixturedefs(name, item) or ():
        with suppress(Exception):
            definition.finish(private._request)


def tmp_path_factory(config: pytest.Config) -> pytest.TempPathFactory:
    """What the fixture of this name gives, where there is no test that could ask for it."""
    private: Any = config
    factory: pytest.TempPathFactory = private._tmp_path_factory
    return factory


def without_capture(config: pytest.Config) -> AbstractContextManager[None]:
    """Lift pytest's capture of output, even while a test runs."""
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    if capture is None:
        return nullcontext()
    lifted: AbstractContextManager[None] = capture.global_and_fixture_disabled()
    return lifted


def show_line(config: pytest.Config, line: str) -> None:
    """Write to pytest's terminal at once, on a line of its own."""
    terminal: Any = config.pluginmanager.getplugin("terminalreporter")
    if terminal is not None:
        with without_capture(config):
            terminal.ensure_newline()
            terminal.write_line(line)
