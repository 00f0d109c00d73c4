"""SHM: several servers on one host, with one /dev/shm, keep apart and clean up after themselves."""

from __future__ import annotations

import pytest

from pytest_vllm_triton import expect
from pytest_vllm_triton.errors import ServerFailed
from pytest_vllm_triton.launchers.base import ServerHandle
from pytest_vllm_triton.servers.harness import Harness
from pytest_vllm_triton.verdicts import untested

from .experiments.bare_server import BATCH_SIZE, SHORT_STUB_TIMEOUT, STUB_TIMEOUT
from .experiments.shared_host import SHARED_LOAD
from .record import Seen


def expect_own_answers(seen: Seen) -> None:
    if not seen["one /dev/shm"]:
        untested("the two servers do not share a /dev/shm")
    for name in ("one", "other"):
        expect.equal(
            f"texts of {name}", seen[f"texts of {name}"], seen[f"texts expected of {name}"]
        )
        counted = seen[f"requests counted by {name}"]
        expect.equal(f"requests counted by {name}", counted, SHARED_LOAD)


@pytest.mark.requirement("SHM-001")
def test_two_servers_with_different_prefixes(bare_life: Seen) -> None:
    seen = bare_life
    expect.different("prefix of the other", seen["prefix of other"], seen["prefix of one"])
    expect_own_answers(seen)


@pytest.mark.requirement("SHM-002")
def test_two_servers_with_the_same_prefix(plain_life: Seen) -> None:
    expect.equal("prefix of the other", plain_life["prefix of other"], plain_life["prefix of one"])
    expect_own_answers(plain_life)


@pytest.mark.requirement("SHM-003")
def test_prefix_reaches_the_backend(bare_life: Seen) -> None:
    for name in ("one", "other"):
        prefix = bare_life[f"prefix of {name}"]
        stubs = bare_life[f"regions of {name}'s stubs"]
        if not stubs:
            untested("no process of the server looks like a stub of Triton's Python backend")
        for stub, regions in stubs.items():
            own = [region for region in regions if region.startswith(prefix)]
            expect.that(
                f"regions of {name}'s stub {stub} that start with {prefix}",
                own,
                bool,
                f"at least one of {regions}",
            )


@pytest.mark.requirement("SHM-004")
def test_empty_prefix_is_refused(vllm_harness: Harness, owned_server: ServerHandle) -> None:
    expect_refused_start(vllm_harness, "shm-region-prefix-name=", "shm-region-prefix-name")


@pytest.mark.requirement("SHM-005")
def test_clean_stop_leaves_no_region(plain_life: Seen) -> None:
    expect.equal("regions left", plain_life["regions left"], [])


@pytest.mark.requirement("SHM-006")
def test_killed_server_disturbs_no_other(deaths: Seen) -> None:
    """It had the same prefix as the other."""
    expect.equal(
        "distinct texts of the other server meanwhile",
        deaths["texts of the other server meanwhile"],
        {deaths["text of the other server"]},
    )
    expect.equal(
        "regions of the other server that are gone",
        deaths["regions of the other server that are gone"],
        [],
    )


@pytest.mark.requirement("SHM-006")
def test_stopped_server_disturbs_no_other(plain_life: Seen) -> None:
    """It had the same prefix as the other."""
    expect.equal(
        "distinct texts of the other server meanwhile",
        plain_life["texts of the other server meanwhile"],
        {plain_life["text of the other server"]},
    )
    expect.equal(
        "regions of the other server that are gone",
        plain_life["regions of the other server that are gone"],
        [],
    )


@pytest.mark.requirement("SHM-007")
def test_default_max_batch_size_is_not_for_vllm(bare_life: Seen) -> None:
    """The server was started with --backend-config=python,default-max-batch-size=8."""
    expect.contains("what a server boots with", bare_life["flags"], BATCH_SIZE)
    expect.equal("max_batch_size", bare_life["max_batch_size"], 0)
    expect.starts_with("text_output", bare_life["answer"].text, "Say alpha")


@pytest.mark.requirement("SHM-008")
def test_load_longer_than_the_stub_timeout(bare_life: Seen) -> None:
    expect.contains("what a server boots with", bare_life["flags"], STUB_TIMEOUT)
    if bare_life["boot seconds"] < SHORT_STUB_TIMEOUT:
        untested(f"models are loaded in less than {SHORT_STUB_TIMEOUT} s here")
    expect.equal("HTTP status of /v2/health/ready", bare_life["/v2/health/ready"], 200)


@pytest.mark.requirement("SHM-008")
def test_too_small_region_is_refused(vllm_harness: Harness, owned_server: ServerHandle) -> None:
    expect_refused_start(vllm_harness, "shm-default-byte-size=1024", "shm-default-byte-size")


def expect_refused_start(harness: Harness, setting: str, *words: str) -> None:
    """A server with this setting of the python backend does not start, and says why."""
    spec = harness.server_spec(args=(f"--backend-config=python,{setting}",))
    try:
        server = harness.boot(spec, f"must not start with {setting}")
    except ServerFailed as failure:
        # Not `str(failure)`: it ends with the command, which has the setting in it.
        said = f"{failure.reason}\n{failure.log_tail}"
        for word in words:
            expect.contains("error", said, word)
        return
    server.kill()
    harness.forget(server)
    raise expect.Violation(
        f"start with {setting}", expect.Words("refused"), expect.Words("the server got ready")
    )
