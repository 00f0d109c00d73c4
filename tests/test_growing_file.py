"""A file is followed line by line while it grows."""

from __future__ import annotations

from pathlib import Path

from pytest_vllm_triton.growing_file import GrowingFile


def test_each_line_is_told_once_and_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "log"
    growing = GrowingFile(path)
    assert growing.new_lines() == []  # the file is not there yet
    with path.open("ab", buffering=0) as log:
        log.write(b"Collecting to")
        assert growing.new_lines() == []
        log.write(b"rch\n\nzw\xc3")
        assert growing.new_lines() == ["Collecting torch", ""]
        log.write(b"\xb6lf\nnot UTF-8: \xff\n")
        assert growing.new_lines() == ["zwölf", "not UTF-8: \ufffd"]
        assert growing.new_lines() == []
