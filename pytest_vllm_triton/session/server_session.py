"""The hooks of a session that has tests to run on servers: in the process that runs the tests."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_triton.errors import ServerFailed, UserError
from pytest_vllm_triton.options.environment_names import check_environment_names
from pytest_vllm_triton.report.checks import (
    RESULT_ATTRIBUTE,
    check_result,
    describe_failure,
    expect_known_failure,
)
from pytest_vllm_triton.requirements import load_catalogue
from pytest_vllm_triton.servers.harness import Harness
from pytest_vllm_triton.servers.provision import Provision
from pytest_vllm_triton.session import pytest_internals
from pytest_vllm_triton.session.collected_checks import requirement_ids
from pytest_vllm_triton.session.interrupt import killed_at_interrupt
from pytest_vllm_triton.session.state import (
    COLLECTED_CHECKS,
    EARLIER_LOG,
    HARNESS,
    JUDGE,
    SETTINGS,
    TRANSCRIPT,
)
from pytest_vllm_triton.suggest import did_you_mean
from pytest_vllm_triton.transcript import Transcript
from pytest_vllm_triton.verdicts import Verdict, combine

_LOG_POSITIONS: pytest.StashKey[dict[Path, int]] = pytest.StashKey()
_VERDICTS: pytest.StashKey[list[Verdict]] = pytest.StashKey()


class ServerSession:
    """Selects the checks, gets what they need before the first, and judges each when it ends."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._catalogue = load_catalogue()
        self._settings = config.stash[SETTINGS]
        self._judge = config.stash[JUDGE]
        worker: dict[str, Any] = getattr(config, "workerinput", {})
        self.harness = Harness(
            Provision(
                self._settings,
                self._make_work_dir,
                self._show,
                worker=int("".join(filter(str.isdigit, worker.get("workerid", ""))) or 0),
                workers=int(worker.get("workercount", 1)),
            )
        )
        config.stash[HARNESS] = self.harness
        self._judge.watch(self.harness)
        self._death: ServerFailed | None = None
        #: Of the check that runs; until its set-up, of the one before.
        self._transcript = Transcript()

    def select(self, items: list[pytest.Item]) -> None:
        """Keep the checks of the asked level and selection, and attach their requirements.

        Raises:
            pytest.UsageError: a test names a requirement that does not exist.
        """
        kept, deselected = [], []
        for item in items:
            ids = requirement_ids(item)
            if not ids and item.get_closest_marker("requirement"):
                raise pytest.UsageError(f"{item.nodeid}: a requirement marker without an id")
            for key in ids:
                if key not in self._catalogue:
                    raise pytest.UsageError(
                        f"{item.nodeid}: unknown requirement {key}."
                        f"{did_you_mean(key, self._catalogue)}"
                    )
            levels = [self._catalogue[key].level for key in ids]
            asked = (self._settings.asks_for(self._catalogue[key]) for key in ids)
            if ids and not any(asked):
                deselected.append(item)
                continue
            kept.append(item)
            if ids:
                self._judge.expect_check(item.nodeid, ids)
            # user_properties reach JUnit's <properties> and pytest-xdist's controller.
            item.user_properties += [("requirement", key) for key in ids]
            item.user_properties += [("level", level.value) for level in levels]
        if deselected:
            self._config.hook.pytest_deselected(items=deselected)
            items[:] = kept

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Expect no result of a check that other plugins, such as --lf, left out after `select`."""
        kept = {item.nodeid for item in session.items}
        self._judge.keep_only(kept, all_checks=self._config.stash[COLLECTED_CHECKS].checks())

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Get model, runtime and shared server first: what is missing is said once, and at once."""
        option = session.config.option
        fixtures = {name for item in session.items for name in getattr(item, "fixturenames", ())}
        # A worker of pytest-xdist must take the tests it is sent: its fixtures say what is missing.
        is_worker = hasattr(session.config, "workerinput")
        if option.collectonly or option.setupplan or session.testsfailed or is_worker:
            return None
        if "vllm_harness" not in fixtures:
            return None
        try:
            with pytest_internals.without_capture(self._config):  # progress is to be seen
                self.harness.provision.prepare()
                if "vllm_server" in fixtures:
                    self.harness.shared_server()
        except UserError as error:
            self._judge.abort(str(error), pytest.ExitCode.USAGE_ERROR)
            return True
        except ServerFailed as error:
            self._judge.abort(str(error), pytest.ExitCode.TESTS_FAILED)
            return True
        return None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        with killed_at_interrupt(self.harness.kill):
            return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if hasattr(self._config, "workerinput"):
            check_environment_names()
        before, self._transcript = self._transcript, Transcript()
        item.stash[TRANSCRIPT] = self._transcript
        item.stash[_VERDICTS] = []
        item.stash[_LOG_POSITIONS] = {
            server.log.path: server.log.position()
            for server in self.harness.servers
            if server.log is not None
        }
        if "vllm_harness" in getattr(item, "fixturenames", ()):
            self._replace_dead_server(item, before)

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Generator[None, object, object]:
        """Make a check again, once, on a new server, when the failure was a crash of Triton's own.

        Triton 24.10 frees what a stream in gRPC's error mode, or one that is cancelled, still uses:
        who has one may find the server gone, whatever the backend did.
        """
        try:
            return (yield)
        except Exception:
            # A coroutine function would only be called here, not run.
            is_run = not iscoroutinefunction(pyfuncitem.obj)
            again = is_run and self._triton_crashed(self._transcript)
            if not (again and self.harness.replace_shared_server(own_crash=True)):
                raise
        self._show(f"Triton itself crashed during {pyfuncitem.name}: again, on a new server")
        self._forget_shared_server(pyfuncitem)
        pytest_internals.run_again(pyfuncitem)
        return True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        ids = requirement_ids(item)
        if ids:
            transcript = item.stash.get(TRANSCRIPT, Transcript())
            result = check_result(item, call, report, ids, transcript, self._log_since(item))
            if result is not None:
                if report.failed:
                    death = self._new_death(item)
                    describe_failure(item, call, report, result, self._catalogue, death)
                    if death:  # first: of a reason, tables and summaries show the first line
                        result = replace(result, reason=f"{death}\n{result.reason}")
                result = expect_known_failure(report, result, self._settings.known_failures)
                setattr(report, RESULT_ATTRIBUTE, result.to_dict())
                item.stash.setdefault(_VERDICTS, []).append(result.verdict)
            if report.when == "teardown":
                # The report from which JUnit's <properties> are written.
                verdicts = item.stash.setdefault(_VERDICTS, [])
                report.user_properties.append(("verdict", combine(verdicts).value))
        return report

    def _triton_crashed(self, transcript: Transcript) -> bool:
        """Whether the shared server ended by a crash of Triton's own, at what is told here."""
        return transcript.triton_may_crash and self.harness.shared_crashed()

    def _replace_dead_server(self, item: pytest.Item, before: Transcript) -> None:
        """If the shared server ended during a test before, or by itself after one, boot another for
        this one; not again and again.

        Args:
            before: what the test before did.

        Raises:
            ServerFailed: the server ended after the last test, which nothing has reported yet; or
                it has been replaced before.
        """
        is_reported = self._death is not None
        if self._death is None:
            self._death = self.harness.shared_death(f"before {item.name}")
        if self._death is None:
            return
        own_crash = not is_reported and self._triton_crashed(before)
        if not (is_reported or own_crash) or not self.harness.replace_shared_server(own_crash):
            raise ServerFailed(self._death.reason)
        if own_crash:
            self._show(f"Triton itself crashed before {item.name}, which gets a new server")
        self._death = None
        self._forget_shared_server(item)

    def _forget_shared_server(self, item: pytest.Item) -> None:
        """Let the fixture ask the harness anew.

        What the fixtures that use it would do at the end of the session, they would do to a server
        that is gone.
        """
        pytest_internals.finish_fixture(item, "vllm_server")

    def _new_death(self, item: pytest.Item) -> str:
        """Why the shared server ended during this test; "" if it did not."""
        if self._death is not None:
            return ""
        self._death = self.harness.shared_death(f"during {item.name}", failed=True)
        return "" if self._death is None else self._death.reason

    def pytest_unconfigure(self) -> None:
        # The fixture's finalizer has done it, unless pytest was interrupted before any fixture.
        self.harness.close()

    def _log_since(self, item: pytest.Item) -> str:
        """What the servers logged since the test's set-up began, and what it tells of that was
        logged before."""
        positions = item.stash.get(_LOG_POSITIONS, {})
        earlier = item.stash.get(EARLIER_LOG, None)
        slices = [] if earlier is None else [earlier()]
        slices += [
            server.log.read(positions.get(server.log.path, 0))
            for server in self.harness.servers
            if server.log is not None
        ]
        return "".join(slices)

    def _make_work_dir(self) -> Path:
        # pytest keeps the folders of the last three sessions: logs can be read after the run.
        return pytest_internals.tmp_path_factory(self._config).mktemp("triton")

    def _show(self, line: str) -> None:
        pytest_internals.show_line(self._config, line)
