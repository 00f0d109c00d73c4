"""Read the options from command line, environment and ini file, and make `Settings` of them.

The command line wins over the environment, the environment over the ini file. An option that takes
several values is repeated, or its values are separated by commas or line breaks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.options.environment_names import check_environment_names
from pytest_vllm_triton.options.launcher_kinds import LauncherKind
from pytest_vllm_triton.options.launcher_options import Distance, Origin, Selection, select_launcher
from pytest_vllm_triton.options.settings import Settings
from pytest_vllm_triton.options.table import OPTIONS, Option
from pytest_vllm_triton.options.values import BackendSource


@dataclass(frozen=True)
class _Given:
    """An option that was given.

    Attributes:
        text: its value, as it was written.
    """

    option: Option
    text: str
    origin: Origin

    @property
    def selects_suite(self) -> bool:
        return self.option.selects_suite and self.origin.distance is Distance.COMMAND_LINE

    def value(self) -> Any:
        try:
            return self.option.value(self.text)
        except UserError as error:
            raise pytest.UsageError(f"{self.origin.name}: {error}") from None


def add_options(parser: pytest.Parser) -> None:
    """Register every option and its ini twin."""
    group = parser.getgroup("vllm-triton", "vLLM backend of Triton: conformance")
    for option in OPTIONS:
        group.addoption(
            option.flag,
            dest=option.ini,
            metavar=option.metavar,
            action="append" if option.several else "store",
            default=None,
            help=f"{option.help} [ini: {option.ini}, env: {option.env}]",
        )
        parser.addini(option.ini, help=option.help, default=None)


def load_settings(config: pytest.Config) -> Settings:
    """Validate all options.

    Raises:
        pytest.UsageError: names the option, the offending value and, where one is close, the value
            that was probably meant.
    """
    found = (_find(config, option) for option in OPTIONS)
    given = {each.option.ini: each for each in found if each is not None}
    if given:  # else the suite is not in use, as far as is known before the tests are
        check_environment_names()
    defaults = {option.ini: option.default_value for option in OPTIONS}
    values = {**defaults, **{name: each.value() for name, each in given.items()}}
    selection = _select_launcher(values, defaults, given)
    applying = {**values, **{name: defaults[name] for name in selection.ignored}}
    applying["triton_launcher"] = selection.launcher
    settings = Settings(
        # Without a value, the field's own default.
        **{o.field: applying[o.ini] for o in OPTIONS if applying[o.ini] is not None},
        launcher_by=selection.by,
        embedded=selection.embedded,
        model_is_explicit="vllm_model" in given,
        selects_suite=any(each.selects_suite for each in given.values()),
        is_default=not given,
    )
    _check(settings)
    return settings


def _find(config: pytest.Config, option: Option) -> _Given | None:
    """The option as it was given closest, None if it was not."""
    from_command_line = config.getoption(option.ini)
    if from_command_line is not None:
        texts = from_command_line if option.several else [from_command_line]
        text = ",".join(str(text) for text in texts)
        return _Given(option, text, Origin(option.flag, Distance.COMMAND_LINE))
    # An empty variable counts as unset: that is what a CI system passes for an empty input.
    if from_environment := os.environ.get(option.env):
        return _Given(option, from_environment, Origin(option.env, Distance.ENVIRONMENT))
    if from_ini := config.getini(option.ini):
        origin = Origin(f"ini option {option.ini}", Distance.INI_FILE)
        return _Given(option, str(from_ini), origin)
    return None


def _select_launcher(
    values: Mapping[str, Any], defaults: Mapping[str, Any], given: Mapping[str, _Given]
) -> Selection:
    # What equals the default asks for nothing.
    telling = {k: v.origin for k, v in given.items() if values[k] != defaults[k]}
    try:
        return select_launcher(telling, values["triton_launcher"])
    except UserError as error:
        raise pytest.UsageError(str(error)) from None


def _check(settings: Settings) -> None:
    """Refuse what no option shows by itself."""
    if settings.vllm_version is not None:
        _check_accelerator(settings.accelerator, settings.vllm_version)
    if settings.launcher is LauncherKind.ATTACH and settings.url is None:
        raise pytest.UsageError(
            "--triton-launcher attach needs --triton-url, e.g. http://localhost:8000"
        )
    of_image = settings.backend_dir is BackendSource.IMAGE
    if of_image and settings.launcher is not LauncherKind.CONTAINER:
        # Never another backend in its place, not even where `image` was only a default.
        raise pytest.UsageError(
            "--triton-backend-dir image needs an image: --triton-image, or --triton-launcher "
            "container (a folder of this name is ./image)"
        )


def _check_accelerator(accelerator: str, vllm_version: str) -> None:
    from pytest_vllm_triton.runtime.choice import choose_accelerator

    try:
        choose_accelerator(accelerator, vllm_version)
    except UserError as error:
        raise pytest.UsageError(f"--vllm-version: {error}") from None
