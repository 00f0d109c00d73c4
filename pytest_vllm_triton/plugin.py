"""pytest's entry point: options, header, markers, and which tests are run.

It is loaded in every pytest run of its environment, so it imports nothing heavy and does nothing
until a collected test needs a server or carries a requirement; then `session` and `judge` act.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_vllm_triton import options
from pytest_vllm_triton.judge import Judge
from pytest_vllm_triton.state import JUDGE, SETTINGS

pytest_plugins = ["pytest_vllm_triton.fixtures"]


def pytest_addoption(parser: pytest.Parser) -> None:
    options.add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "requirement(*ids): the conformance requirements that this test decides"
    )
    settings = options.load_settings(config)
    config.stash[SETTINGS] = settings
    judge = Judge(config)
    config.stash[JUDGE] = judge
    config.pluginmanager.register(judge, "vllm-triton-judge")
    if settings.selects_suite and config.args_source is pytest.Config.ArgsSource.INVOCATION_DIR:
        from pytest_vllm_triton import assets

        config.args[:] = [str(assets.suite_dir())]


def pytest_report_header(config: pytest.Config) -> list[str] | None:
    settings = config.stash[SETTINGS]
    if settings.is_default:
        return None
    from pytest_vllm_triton.harness import Harness

    facts = Harness(settings, make_work_dir=Path).describe()
    return [f"vllm-triton {name}: {value}" for name, value in facts.items()]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Hand over to a `ServerSession` if any test needs one."""
    if not any(
        "vllm_harness" in getattr(item, "fixturenames", ())
        or item.get_closest_marker("requirement")
        for item in items
    ):
        return
    from pytest_vllm_triton.session import ServerSession

    session = ServerSession(config)
    session.select(items)
    config.pluginmanager.register(session, "vllm-triton-session")
