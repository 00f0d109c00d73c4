"""pytest's entry point: options, header, markers, and which tests are run.

It is loaded in every pytest run of its environment, so it imports nothing heavy and does nothing
until a collected test needs a server or carries a requirement; then a `ServerSession` acts.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_triton import assets
from pytest_vllm_triton.options.environment_names import check_environment_names
from pytest_vllm_triton.options.loading import add_options, load_settings
from pytest_vllm_triton.session.collected_checks import CollectedChecks
from pytest_vllm_triton.session.judge import Judge
from pytest_vllm_triton.session.state import COLLECTED_CHECKS, JUDGE, SETTINGS

pytest_plugins = ["pytest_vllm_triton.fixtures"]


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "requirement(*ids): the conformance requirements that this test decides"
    )
    # This plugin needs pytest-asyncio, which warns everybody who has not set this option. For
    # those who do not use it the warning is noise, and where warnings are errors it ends every run.
    warnings.filterwarnings(
        "ignore",
        'The configuration option "asyncio_default_fixture_loop_scope" is unset',
        pytest.PytestDeprecationWarning,
    )
    settings = load_settings(config)
    config.stash[SETTINGS] = settings
    judge = Judge(config)
    config.stash[JUDGE] = judge
    config.pluginmanager.register(judge, "vllm-triton-judge")
    config.stash[COLLECTED_CHECKS] = CollectedChecks()
    config.pluginmanager.register(config.stash[COLLECTED_CHECKS], "vllm-triton-collected-checks")
    if settings.selects_suite and config.args_source is pytest.Config.ArgsSource.INVOCATION_DIR:
        # Files, not their folder: the user's own python_files must not decide what is in the suite.
        config.args[:] = sorted(str(path) for path in assets.suite_dir().glob("test_*.py"))


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Module | None:
    """The suite's modules are collected by pytest's default names, whatever the user's are."""
    if not assets.is_of_suite(module_path):
        return None
    # Where the suite is installed, the id is the file's name alone. The one that pytest would make
    # contains the path of site-packages, or is empty for files outside of the user's folder.
    in_checkout = not assets.is_installed() and parent.config.rootpath in module_path.parents
    nodeid = module_path.name
    if in_checkout:
        nodeid = module_path.relative_to(parent.config.rootpath).as_posix()
    return _SuiteModule.from_parent(parent, path=module_path, nodeid=nodeid)


class _SuiteModule(pytest.Module):
    def funcnamefilter(self, name: str) -> bool:
        return name.startswith("test_")


def pytest_report_header(config: pytest.Config) -> list[str] | None:
    settings = config.stash[SETTINGS]
    if settings.is_default:
        return None
    from pytest_vllm_triton.servers.provision import Provision

    facts = Provision(settings).describe()
    return [f"vllm-triton {name}: {value}" for name, value in facts.items()]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: Sequence[Any]) -> None:
    """In pytest-xdist's controller: refuse too many workers, rather than fail in each check."""
    settings = config.stash[SETTINGS]
    if not settings.selects_suite:
        return
    from pytest_vllm_triton.errors import UserError
    from pytest_vllm_triton.servers.provision import Provision

    try:
        Provision(settings, workers=len(specs)).check_gpus()
    except UserError as error:
        raise pytest.UsageError(str(error)) from None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Hand over to a `ServerSession` if any test needs one."""
    if not any(
        "vllm_harness" in getattr(item, "fixturenames", ())
        or item.get_closest_marker("requirement")
        for item in items
    ):
        return
    # The mistyped variable may be the only option that was to be given. A worker of pytest-xdist
    # cannot refuse the run: it refuses each test.
    if not hasattr(config, "workerinput"):
        check_environment_names()
    from pytest_vllm_triton.session.server_session import ServerSession

    session = ServerSession(config)
    session.select(items)
    config.pluginmanager.register(session, "vllm-triton-session")
