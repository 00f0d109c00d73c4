"""The table of faults fits the sources and the catalogue, without any server."""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_document import read_document, write_document
from fault_runner import Outcome, plan
from fault_table import HARMLESS, Fault, StaleFault, copy_sources, load_exempt, load_faults

from pytest_vllm_triton import assets
from pytest_vllm_triton.requirements import Level, load_catalogue

FAULTS = load_faults()
CATALOGUE = load_catalogue()


def source_of(fault: Fault) -> str:
    path = fault.path(assets.backend_dir(), assets.fixtures_dir())
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_fault_fits_the_sources(fault: Fault) -> None:
    source = source_of(fault)
    assert fault.in_text(source) != source


@pytest.mark.parametrize("file", ["backend/model.py", "samples/client.py"])
def test_only_its_file_is_changed(tmp_path: Path, file: str) -> None:
    line = "from __future__ import annotations"
    fault = Fault("f", "what", file.removeprefix("backend/"), line, f"{line}  # f", frozenset())
    before, after = tmp_path / "before", tmp_path / "after"
    assert copy_sources(after, [fault]) == after / "backend"
    copy_sources(before, [])
    names = {str(path.relative_to(before)) for path in before.rglob("*.py")}
    changed = {name for name in names if (before / name).read_text() != (after / name).read_text()}
    assert changed == {file}


def test_stale_fault_is_refused(tmp_path: Path) -> None:
    fault = Fault("gone", "what", "model.py", "no such line", "", frozenset({"GEN-001"}))
    with pytest.raises(StaleFault, match=r"gone: model\.py holds its line 0 times"):
        copy_sources(tmp_path, [fault])


def test_a_name_is_given_once(tmp_path: Path) -> None:
    for group in ("GEN", "STR"):
        (tmp_path / f"{group}.toml").write_text('[one]\nwhat = ""\n')
    with pytest.raises(ValueError, match=r"STR\.toml: one is in another file"):
        load_faults(tmp_path)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_names_of_a_fault(fault: Fault) -> None:
    assert fault.allowed
    assert fault.allowed <= set(CATALOGUE)
    assert fault.checks <= set(CATALOGUE) | set(CATALOGUE.groups)
    assert fault.red <= fault.selection, "its checks do not run what it violates"
    assert fault.gpus >= max(CATALOGUE[key].gpus for key in fault.red)


def test_every_must_has_a_fault() -> None:
    covered = frozenset().union(*(fault.red for fault in FAULTS.values()))
    exempt = load_exempt()
    musts = {
        key
        for key, requirement in CATALOGUE.items()
        if requirement.level is Level.MUST and (requirement.needs == "cpu" or requirement.gpus)
    }
    assert sorted(musts - covered - set(exempt)) == []
    assert sorted(covered & set(exempt)) == [], "these have a fault and are no exemptions"


@pytest.mark.parametrize("alone", [False, True])
def test_plan_keeps_faults_apart(alone: bool) -> None:
    batches = plan(FAULTS.values(), alone)
    names = [fault.name for batch in batches for fault in batch]
    assert sorted(names) == sorted(FAULTS)
    assert (max(map(len, batches)) == 1) is alone
    for batch in batches:
        claimed = [key for fault in batch for key in fault.allowed]
        assert len(claimed) == len(set(claimed))


@pytest.mark.parametrize("batch", plan(FAULTS.values(), alone=False), ids=lambda b: b[0].name)
def test_batches_fit_the_sources(batch: list[Fault]) -> None:
    texts: dict[str, str] = {}
    for fault in batch:
        texts[fault.file] = fault.in_text(texts.get(fault.file) or source_of(fault))


def test_harmless_changes_fit_together(tmp_path: Path) -> None:
    changes = load_faults(HARMLESS)
    (batch,) = plan(changes.values(), alone=False)
    assert [change.name for change in batch] == list(changes)
    assert not any(change.allowed or change.selection for change in batch)
    copy_sources(tmp_path, batch)


def test_the_page_of_faults_can_be_written_again(tmp_path: Path) -> None:
    """What it says of faults that were not run now stays, but for those that were not caught."""
    names = list(FAULTS)[:3]
    seen = {name: Outcome(name, tuple(sorted(FAULTS[name].red))) for name in names[:2]}
    page = tmp_path / "faults.md"
    write_document(page, FAULTS, {**seen, names[2]: Outcome(names[2])})
    assert read_document(page, FAULTS) == seen
