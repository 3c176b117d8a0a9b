"""What the settings name is there before anything starts, not when a stage reads it hours later. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from utils.core.errors import InputError, UsageError
from utils.core.paths import check_directory
from utils.core.settings import Settings
from utils.data.registry import DatasetSource, chosen_sources, sources
from utils.pipeline.external_inputs import absent_parts, data_files, model_directory
from utils.pipeline.stages import Stage

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def check_inputs(stages: Iterable[Stage], settings: Settings) -> None:
    """Look at all that these stages take from outside the pipeline, without a network.

    UsageError for a setting (or a DATASETS_FILE) that says nonsense, InputError for a file that is not there.
    """
    numbers = {stage.number for stage in stages}
    if 0 in numbers:
        _check_model(settings)
    if 1 in numbers:
        own_sources(settings)
    if numbers & {0, 1} and settings.HF_CACHE_DIR:
        cache = Path(settings.HF_CACHE_DIR)
        if not cache.is_dir():  # one that may only be read is fine: what is in it is used
            check_directory("HF_CACHE_DIR", cache)


def own_sources(settings: Settings) -> list[DatasetSource]:
    """The data sets that the experiment uses, as the settings and DATASETS_FILE describe them (not the demo's own)."""
    file = Path(settings.DATASETS_FILE) if settings.DATASETS_FILE else None
    if file is None and settings.PROFILE == "demo":
        return []
    keys = settings.TRAIN_DATASETS, settings.TEST_DATASETS, settings.ATTACK_DATASET
    try:
        return list(chosen_sources(sources(file), *keys).values())
    except ModuleNotFoundError:  # a directory is looked into by `datasets`, which this Python may lack
        for name, path in data_files(settings).items():
            if not path.exists():
                raise InputError(f"{path}: no such file ({name}).") from None
        return []


def _check_model(settings: Settings) -> None:
    name, directory = settings.MODEL_NAME, model_directory(settings)
    if settings.PROFILE == "demo" and name == "demo":
        return
    if directory is None:
        if name.startswith("/"):
            raise InputError(f"MODEL_NAME={name}: no such directory.")
        if not _HUB_ID.fullmatch(name):
            raise UsageError(f"MODEL_NAME={name}: neither a directory nor a hub id such as google-t5/t5-small.")
    elif absent := absent_parts(directory):
        raise InputError(f"MODEL_NAME={name}: it lacks {absent}. It must hold a whole T5 and its tokenizer.")
