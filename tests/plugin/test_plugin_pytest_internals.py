"""What pytest does not promise is there, and does what the plugin needs, without any server."""

from __future__ import annotations

import pytest

CONFTEST = """
import pytest
from pytest_vllm_triton.session import pytest_internals

@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    try:
        return (yield)
    except OSError:
        pytest_internals.finish_fixture(pyfuncitem, "server")
    pytest_internals.show_line(pyfuncitem.config, "again, on a new server")
    pytest_internals.run_again(pyfuncitem)
    return True

def pytest_unconfigure(config):
    with pytest_internals.without_capture(config):
        print("made:", pytest_internals.tmp_path_factory(config).mktemp("triton").name)
"""

TESTS = """
import pytest

made = []

@pytest.fixture(scope="session")
def server():
    made.append("server")
    return len(made)

@pytest.fixture(scope="session")
def address(server):
    yield server
    assert server != 1, "dropped: this server is gone"

@pytest.fixture
def client(address):
    made.append("client")
    return address

@pytest.mark.parametrize("word", ["one"])
def test_it(server, client, word, request):
    assert client == server and word == "one"
    if made == ["server", "client"]:
        raise OSError
    assert made == ["server", "client", "server", "client"]

def test_after(server):
    assert made.count("server") == 2
"""


@pytest.mark.parametrize("capture", ["fd", "no"])
def test_a_test_is_run_again_with_new_fixtures(pytester: pytest.Pytester, capture: str) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_subprocess(f"--capture={capture}", "--basetemp=kept")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["again, on a new server", "made: triton0"])


def test_without_capture_and_terminal(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        "from pytest_vllm_triton.session import pytest_internals\n"
        "def pytest_collection_finish(session):\n"
        "    session.config.pluginmanager.unregister(name='terminalreporter')\n"
        "    pytest_internals.show_line(session.config, 'nobody sees it')\n"
    )
    pytester.makepyfile("def test_it(): pass\n")
    result = pytester.runpytest_subprocess("-p", "no:capture")
    assert result.ret == pytest.ExitCode.OK
    assert "nobody sees it" not in result.stdout.str() + result.stderr.str()
