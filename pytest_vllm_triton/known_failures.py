"""Requirements that the backend under test is known to violate, and what that makes of verdicts.

The file is TOML, one table for each requirement::

    [ERR-009]
    reason = "answers 500 and does not name the unknown parameter"
    link = "https://github.com/…/issues/1"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.requirements import load_catalogue
from pytest_vllm_triton.suggest import did_you_mean
from pytest_vllm_triton.toml_files import read_toml
from pytest_vllm_triton.verdicts import Verdict

_REQUIRED = ("reason", "link")
_KEYS = (*_REQUIRED, "sometimes")


@dataclass(frozen=True)
class KnownFailure:
    """One entry of the list.

    Attributes:
        reason: what the backend does instead.
        link: where it is tracked, or the source that shows it.
        sometimes: it does not fail in every run, so that a pass does not make the entry stale.
    """

    reason: str
    link: str
    sometimes: bool = False

    def judge_check(self, verdict: Verdict) -> Verdict:
        """A failure is expected. An ERROR is not: it says nothing about the backend."""
        return Verdict.XFAIL if verdict is Verdict.FAIL else verdict

    def judge_requirement(self, verdict: Verdict) -> Verdict:
        """Of the checks' combined verdict: a listed requirement that passes is a stale entry."""
        if verdict is Verdict.PASS and not self.sometimes:
            return Verdict.XPASS
        return verdict


def load_known_failures(path: Path) -> dict[str, KnownFailure]:
    """Read and validate a list of known failures.

    Raises:
        UserError: names the file, the entry and what is wrong with it, in one sentence.
    """
    try:
        data = read_toml(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{str(path)!r} cannot be read: {error}.") from None
    except ValueError as error:
        raise UserError(f"{str(path)!r} is not valid TOML: {error}.") from None
    catalogue = load_catalogue()
    for key in data:
        if key not in catalogue:
            raise UserError(
                f"{str(path)!r}: there is no requirement {key!r}.{did_you_mean(key, catalogue)}"
            )
        # It would be neither XFAIL nor XPASS in any run, and so never be found to be out of date.
        if catalogue[key].unchecked:
            raise UserError(f"{str(path)!r}: {key} cannot fail, as the suite has no check of it.")
    return {key: _entry(path, key, entry) for key, entry in data.items()}


def _entry(path: Path, key: str, entry: object) -> KnownFailure:
    where = f"{str(path)!r}: {key}"
    if not isinstance(entry, Mapping):
        raise UserError(f"{where} is no table with a reason and a link.")
    for name in entry:
        if name not in _KEYS:
            raise UserError(f"{where} has an unknown key {name!r}.{did_you_mean(name, _KEYS)}")
    for name in _REQUIRED:
        value = entry.get(name)
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{where} needs a {name}, as text that is not empty.")
    if not entry["link"].startswith(("https://", "http://")):
        raise UserError(f"{where}: the link {entry['link']!r} is no http(s) address.")
    if not isinstance(entry.get("sometimes", False), bool):
        raise UserError(f"{where}: 'sometimes' is true or false.")
    return KnownFailure(**entry)
