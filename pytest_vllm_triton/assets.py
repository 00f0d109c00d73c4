"""Where the suite, the backend and the fixtures are: in the installed package or in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def suite_dir() -> Path:
    """The conformance suite."""
    return _first(_PACKAGE / "conformance", _PACKAGE.parent / "conformance")


def is_of_suite(module: Path) -> bool:
    """Whether this file is a module of the conformance suite, and not a user's own tests."""
    return module.parent == suite_dir()


def is_installed() -> bool:
    """Whether this package was installed from a wheel, not linked to a checkout."""
    return suite_dir().parent == _PACKAGE


def backend_dir() -> Path:
    """The vLLM backend of this project."""
    return _first(_PACKAGE / "_assets" / "backend", _PACKAGE.parent / "backend")


def fixtures_dir() -> Path:
    """Sample model repository and other data files."""
    return _first(_PACKAGE / "_assets" / "fixtures", _PACKAGE.parent / "fixtures")


def samples_dir() -> Path:
    """The sample client and its prompts."""
    return fixtures_dir() / "samples"


def known_failures() -> list[Path]:
    """The lists of known failures that this package ships."""
    return sorted((fixtures_dir() / "known-failures").glob("*.toml"))


def _first(*candidates: Path) -> Path:
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"broken installation: none of {[str(c) for c in candidates]} exists")
