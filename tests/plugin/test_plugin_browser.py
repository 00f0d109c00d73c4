"""The HTML report in a real browser: what is shown, what the filter hides, that nothing breaks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_documents import HOSTILE, failed, green

from pytest_vllm_triton.report.formats import write_report

INSTALL = "apt-get install -y --no-install-recommends chromium"


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        message = f"needs a browser: {INSTALL}"
        # In CI a skip would be seen by nobody.
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return found


class Page:
    """The document of a page after its scripts have run."""

    def __init__(self, dom: str, log: str) -> None:
        self.dom = dom
        self.log = log

    def requirements(self) -> dict[str, str]:
        """Attributes of each requirement's entry, by id."""
        entries = re.findall(r'<details class="req" id="([A-Z]{3}-\d{3})"([^>]*)>', self.dom)
        return dict(entries)

    def shown(self) -> set[str]:
        return {
            key for key, attributes in self.requirements().items() if "hidden" not in attributes
        }

    def opened(self) -> set[str]:
        return {key for key, flags in self.requirements().items() if " open" in flags}

    def text(self, pattern: str) -> str:
        found = re.search(pattern, self.dom, re.DOTALL)
        assert found, pattern
        return re.sub(r"<[^>]+>", "", found[1]).strip()


@pytest.fixture
def load(chromium: str, tmp_path: Path) -> Callable[..., Page]:
    """Write a report as a page and open it, with a fragment, a part of it replaced by another."""

    def run(
        value: dict[str, Any], fragment: str = "", replaced: tuple[str, str] = ("", "")
    ) -> Page:
        path = tmp_path / "report.html"
        write_report(value, path)
        page = path.read_text(encoding="utf-8")
        assert replaced[0] in page
        path.write_text(page.replace(*replaced, 1), encoding="utf-8")
        done = subprocess.run(
            [
                *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
                *("--disable-background-networking", "--disable-dev-shm-usage"),
                *("--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"),
                path.as_uri() + fragment,
            ],
            text=True,
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return Page(done.stdout, done.stderr)

    return run


def test_red_report(load: Callable[..., Page]) -> None:
    page = load(failed())
    assert page.text(r"<h1>(.*?)</h1>") == "Not conformant"
    assert page.text(r'<p id="sentence">(.*?)</p>').startswith("MUST 1 of 3 pass")
    assert page.shown() == {"GEN-001", "GEN-002", "STR-001", "CLI-007"}
    # What is red shows its evidence without a click.
    assert page.opened() == {"GEN-002", "STR-001"}
    assert page.text(r'(<details class="log">.*?</details>)').endswith("E1 log wanted")
    assert page.text(r'<output[^>]*id="shown"[^>]*>(.*?)</output>') == "4 of 4"
    assert "CONSOLE" not in page.log


def test_green_report(load: Callable[..., Page]) -> None:
    page = load(green())
    assert page.text(r"<h1>(.*?)</h1>") == "Conformant"
    assert page.opened() == set()
    assert "What failed" not in page.dom
    assert "CONSOLE" not in page.log


@pytest.mark.parametrize(
    ("word", "heading", "colour"),
    [("INTERRUPTED", "Interrupted", "red"), ("NOTHING DECIDED", "Nothing decided", "open")],
)
def test_heading_is_the_verdict(
    load: Callable[..., Page], word: str, heading: str, colour: str
) -> None:
    page = load({**green(), "conformant": False, "verdict": f"{word}: 2 checks did not run"})
    assert page.text(r"<h1>(.*?)</h1>") == heading
    assert page.text(r'<header class="card verdict (\w+)">') == colour


@pytest.mark.parametrize(
    ("fragment", "shown"),
    [
        ("#verdict=FAIL", {"GEN-002"}),
        ("#verdict=FAIL,ERROR", {"GEN-002", "STR-001"}),
        ("#level=MAY", {"CLI-007"}),
        ("#group=GEN", {"GEN-001", "GEN-002"}),
        ("#group=GEN&level=MUST&verdict=PASS", {"GEN-001"}),
        ("#q=why+str-001", {"STR-001"}),
        ("#q=E1%20LOG%20wanted", {"GEN-002", "STR-001", "CLI-007"}),
        ("#q=no+such+words", set()),
        ("#verdict=", {"GEN-001", "GEN-002", "STR-001", "CLI-007"}),
        ("#GEN-001", {"GEN-001", "GEN-002", "STR-001", "CLI-007"}),
    ],
)
def test_filter(load: Callable[..., Page], fragment: str, shown: set[str]) -> None:
    page = load(failed(), fragment)
    assert page.shown() == shown
    assert page.text(r'<output[^>]*id="shown"[^>]*>(.*?)</output>') == f"{len(shown)} of 4"
    groups = re.findall(r'<section class="group" id="group-([A-Z]+)"(?! hidden)', page.dom)
    assert set(groups) == {key[:3] for key in shown}
    assert "CONSOLE" not in page.log


def test_fragment_of_a_requirement_opens_it(load: Callable[..., Page]) -> None:
    assert "GEN-001" in load(failed(), "#GEN-001").opened()


# Plays a reader, at the end of the page.
READER = """
const shown = () => [...document.querySelectorAll(".req:not([hidden])")].map((row) => row.id);
const click = (verdict) => document.querySelector(`.tools a[data-verdict="${verdict}"]`).click();
const seen = document.body.dataset;
click("FAIL");
seen.clicked = shown();
click("");
const box = document.getElementById("q");
box.value = "why cli-007";
box.dispatchEvent(new Event("input"));
seen.typed = shown();
seen.fragment = location.hash;
"""


def test_typing_and_clicking_filter(load: Callable[..., Page]) -> None:
    page = load(failed(), "", ("</body>", f"<script>{READER}</script></body>"))
    assert page.text(r'data-clicked="([^"]*)"') == "GEN-002"
    assert page.text(r'data-typed="([^"]*)"') == "CLI-007"
    # What was typed can be linked to.
    assert page.text(r'data-fragment="([^"]*)"') == "#q=why+cli-007"


def test_hostile_texts_stay_texts(load: Callable[..., Page]) -> None:
    page = load(failed(HOSTILE))
    assert page.text(r"<title>(.*?)</title>").startswith("NOT CONFORMANT")
    assert "CONSOLE" not in page.log


def test_without_javascript(load: Callable[..., Page]) -> None:
    page = load(failed(), "#verdict=FAIL", ("script-src 'unsafe-inline'", "script-src 'none'"))
    # The browser says so, and that shows where the other tests would hear of a mistake.
    assert "CONSOLE" in page.log
    assert page.shown() == {"GEN-001", "GEN-002", "STR-001", "CLI-007"}
    assert 'class="js"' not in page.dom
    assert "actual wanted" in page.dom
