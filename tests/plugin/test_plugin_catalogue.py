"""The catalogue of requirements: what is in the file, and what a broken one says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_vllm_triton.requirements import Level, load_catalogue
from pytest_vllm_triton.session import suite_index

ROW = '[groups]\nGEN = "Generate"\n[GEN-001]\nlevel = "MUST"\nsentence = "a → b"\nsource = "x"\n'


def test_every_row_is_complete() -> None:
    catalogue, checks = load_catalogue(), suite_index.tests_by_requirement()
    assert len(catalogue) > 150
    for key, row in catalogue.items():
        assert re.fullmatch(r"[A-Z]{3}-\d{3}", key)
        assert row.sentence.strip()
        assert row.source.strip()
        assert row.needs in {"cpu", "1 gpu", "2 gpus", "4 gpus", "docker"}
        # A check, or the reason why there is none, and not both.
        assert bool(row.unchecked) == (key not in checks), key
    assert set(catalogue.by_group) == {row.group for row in catalogue.values()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("MUST", "OUGHT"), "GEN-001: 'OUGHT' is not a valid Level"),
        (("sentence", "sentense"), "GEN-001: .*sentense"),
        (('source = "x"\n', ""), "GEN-001: .*source"),
        (('level = "MUST"\n', ""), "GEN-001: 'level'"),
        (("[GEN-001]", "[XYZ-001]"), "XYZ-001: group 'XYZ' is not declared"),
    ],
)
def test_broken_file_names_the_row(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = tmp_path / "requirements.toml"
    path.write_text(ROW.replace(*change))
    with pytest.raises(ValueError, match=message):
        load_catalogue(path)


def test_levels_include_the_more_binding_ones() -> None:
    assert [level for level in Level if Level.SHOULD.includes(level)] == [Level.MUST, Level.SHOULD]
