"""``pytest-vllm-triton list`` and ``explain``: the catalogue of requirements on the terminal."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any

from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.requirements import Level, load_catalogue
from pytest_vllm_triton.session.suite_index import tests_by_requirement
from pytest_vllm_triton.suggest import did_you_mean
from pytest_vllm_triton.texts import cut

_WIDTH = 100


def add_parser(commands: Any) -> None:
    """Add both sub-commands."""
    listing: argparse.ArgumentParser = commands.add_parser(
        "list", help="list the requirements, by group"
    )
    listing.add_argument("group", nargs="*", help="only these groups, such as GEN or STR")
    listing.add_argument("--level", choices=[level.value.lower() for level in Level], default="may")
    listing.set_defaults(run=run_list)
    explain: argparse.ArgumentParser = commands.add_parser(
        "explain", help="say what a requirement asks for, and which tests check it"
    )
    explain.add_argument("id", nargs="+", help="such as GEN-001")
    explain.set_defaults(run=run_explain)


def run_list(arguments: argparse.Namespace) -> int:
    catalogue = load_catalogue()
    checks = tests_by_requirement()
    wanted = [group.upper() for group in arguments.group] or list(catalogue.groups)
    for group in wanted:
        if group not in catalogue.groups:
            raise UserError(f"There is no group {group}.{did_you_mean(group, catalogue.groups)}")
        print(f"{group}  {catalogue.groups[group]}")
        for requirement in catalogue.by_group[group]:
            if not Level[arguments.level.upper()].includes(requirement.level):
                continue
            checked = "" if requirement.id in checks else "  (no check)"
            sentence = " ".join(requirement.sentence.split())
            shown = cut(sentence, _WIDTH - 19 - len(checked))
            print(f"  {requirement.id} {requirement.level.value:<6} {shown}{checked}")
    return 0


def run_explain(arguments: argparse.Namespace) -> int:
    catalogue = load_catalogue()
    checks = tests_by_requirement()
    for position, name in enumerate(arguments.id):
        key = name.upper()
        if key not in catalogue:
            raise UserError(f"There is no requirement {key}.{did_you_mean(key, catalogue)}")
        requirement = catalogue[key]
        print("\n" * bool(position) + f"{key}  {requirement.level.value}")
        print(textwrap.fill(requirement.sentence, _WIDTH, break_long_words=False))
        rows = {
            "source": requirement.source,
            "needs": {"cpu": "any host"}.get(requirement.needs, requirement.needs),
            "upstream": requirement.upstream or "nothing known to differ",
            "checked by": ", ".join(checks.get(key, ())) or f"no check: {requirement.unchecked}",
        }
        for title, value in rows.items():
            print(textwrap.fill(f"{title:<11}{value}", _WIDTH, subsequent_indent=" " * 11))
    return 0
