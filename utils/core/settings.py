"""The settings of this process as one read-only object, and frozen files of them. Torch-free."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from utils.core.errors import UsageError
from utils.core.files import write_json


class Settings:
    """Every upper-case constant of configs/experiment_config.py as an attribute; nothing can change them.

    Stages, plan and flags compare them by name: a value that changed after it was compared would make a flag lie.
    """

    __slots__ = ("_values",)
    _values: Mapping[str, Any]

    def __init__(self, **values: Any) -> None:
        object.__setattr__(self, "_values", MappingProxyType(dict(values)))

    def __getattr__(self, name: str) -> Any:
        """The setting of that name; AttributeError where there is none."""
        if name == "_values" or name not in self._values:
            raise AttributeError(f"there is no setting {name}")
        return self._values[name]

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"settings are read-only: {name} cannot be set to {value!r}; use replaced()")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"settings are read-only: {name} cannot be removed")

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_values, (dict(self._values),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Settings) and dict(self._values) == dict(other._values)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self._values.items())})"

    def replaced(self, **changes: Any) -> Settings:
        """Other settings: these with `changes`."""
        return type(self)(**{**self._values, **changes})

    def subset(self, names: Iterable[str]) -> dict[str, Any]:
        """The named settings as a JSON-ready dict."""
        return {name: _plain(self._values[name]) for name in names}

    def all(self) -> dict[str, Any]:
        """Every setting as a JSON-ready dict."""
        return self.subset(sorted(self._values))


@contextlib.contextmanager
def settings_with(variables: Mapping[str, str]) -> Iterator[None]:
    """Within it `load_settings` gives those of an environment that has these MONO_S2S_ variables besides its own."""
    before = dict(os.environ)
    module = sys.modules.pop("configs.experiment_config", None)  # it reads the environment once
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)
            os.environ.update({name: before[name]} if name in before else {})
        sys.modules.pop("configs.experiment_config", None)
        if module is not None:
            sys.modules["configs.experiment_config"] = module


def load_settings() -> Settings:
    """The settings of this process (constants, profile, environment or frozen file); UsageError if they are wrong."""
    from configs.overrides import SettingsError

    try:
        module = importlib.import_module("configs.experiment_config")
    except SettingsError as error:
        raise UsageError(str(error)) from None
    return Settings(**{name: value for name, value in vars(module).items() if name.isupper()})


# A command of the checkout in a message, with the variables before it; and where the words that belong to it end.
_COMMAND = re.compile(
    r"((?:MONO_S2S_\w+=\S+ )*)(?<![\w/])"
    r"(\./(?:run_all|run_multi_seed|check_training_status|diagnose_and_recover|validate_setup|clean_\w+)\.sh)\b"
)
_END = re.compile(r"[\n;,)]|  | && | \./|$")


def run_command(settings: Settings) -> str:
    """What a user types to run the experiment of this profile, as messages name it; a seed may follow."""
    return for_experiment("./run_all.sh", settings.EXPERIMENT, settings.PROFILE)


def for_experiment(text: str, experiment: str, profile: str = "full") -> str:
    """`text` with every command of the checkout in it as it has to be typed to concern this profile and experiment."""
    variables = {"MONO_S2S_PROFILE": "quick" if profile == "quick" else "", "MONO_S2S_EXPERIMENT": experiment}

    def typed(command: re.Match[str]) -> str:
        before, name = command.groups()
        before += "".join(f"{key}={value} " for key, value in variables.items() if value and f"{key}=" not in before)
        end = _END.search(text, command.end())
        words = text[command.end() : end.start() if end else None]
        return before + name + (" --demo" if profile == "demo" and "--demo" not in words else "")

    return _COMMAND.sub(typed, text)


def as_typed(text: str) -> str:
    """A message with its commands `for_experiment` of this process; as it is where the settings are wrong."""
    try:
        settings = load_settings()
    except UsageError:
        return text
    return for_experiment(text, settings.EXPERIMENT, settings.PROFILE)


def variable_text(value: Any) -> str:
    """A setting as the text of its variable."""
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def freeze(settings: Settings, path: Path) -> None:
    """Write every setting to `path`; jobs that get this file use these values and nothing else."""
    write_json(path, {"settings": settings.all()})


def _from_values(values: dict[str, Any]) -> Settings:
    return Settings(**values)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
