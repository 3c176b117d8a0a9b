"""The settings of this process as one read-only object, and frozen files of them. Torch-free."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from utils.core.errors import UsageError
from utils.core.files import write_json


class Settings(SimpleNamespace):
    """Every upper-case constant of configs/experiment_config.py as an attribute."""

    def subset(self, names: Iterable[str]) -> dict[str, Any]:
        """The named settings as a JSON-ready dict."""
        return {name: _plain(getattr(self, name)) for name in names}

    def all(self) -> dict[str, Any]:
        """Every setting as a JSON-ready dict."""
        return self.subset(sorted(vars(self)))


def load_settings() -> Settings:
    """The settings of this process (constants, profile, environment or frozen file); UsageError if they are wrong."""
    from configs.overrides import SettingsError

    try:
        module = importlib.import_module("configs.experiment_config")
    except SettingsError as error:
        raise UsageError(str(error)) from None
    return Settings(**{name: value for name, value in vars(module).items() if name.isupper()})


def freeze(settings: Settings, path: Path) -> None:
    """Write every setting to `path`; jobs that get this file use these values and nothing else."""
    write_json(path, {"settings": settings.all()})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
