"""What stages read from outside the pipeline: the user's own model and data files. Torch-free.

Each reader gives names for messages and flags, and paths; a flag records their content, so the same file under another
spelling of its path is the same input, and an edited one is another.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.core.settings import Settings


def model_directory(settings: Settings) -> Path | None:
    """The directory that MODEL_NAME names; None where it is a hub id, or the model that the demo makes itself."""
    directory = Path(settings.MODEL_NAME)
    made = settings.PROFILE == "demo" and settings.MODEL_NAME == "demo"
    return directory if directory.is_dir() and not made else None


def model_files(settings: Settings) -> dict[str, Path]:
    """Every visible file of the directory that MODEL_NAME names, if it names one."""
    directory = model_directory(settings)
    if directory is None:
        return {}
    return {
        f"MODEL_NAME/{path.name}": path for path in sorted(directory.iterdir()) if _is_visible_file(path, directory)
    }


def absent_parts(directory: Path) -> str:
    """What a T5 directory lacks of configuration, tokenizer and weights (all shards of them); "" if nothing."""
    present = {path.name for path in directory.iterdir() if path.is_file()}
    shards = [found for name in present if (found := re.match(r"model-\d+-of-(\d+)\.safetensors$", name))]
    if "config.json" not in present:
        return "config.json"
    if not present & {"spiece.model", "tokenizer.json"}:
        return "spiece.model or tokenizer.json"
    if not any(name.endswith((".safetensors", ".bin")) for name in present):
        return "model.safetensors or pytorch_model.bin"
    if shards and len(shards) != int(shards[0][1]):
        return f"{int(shards[0][1]) - len(shards)} of the {shards[0][1]} parts of the weights"
    return ""


def data_files(settings: Settings) -> dict[str, Path]:
    """DATASETS_FILE and every file that it names, as utils/data/registry.py reads it (which checks it as well)."""
    if not settings.DATASETS_FILE:
        return {}
    path = Path(settings.DATASETS_FILE)
    inputs = {"DATASETS_FILE": path}
    for name, given in _named(path):
        if given.is_dir():
            files = sorted(file for file in given.rglob("*") if _is_visible_file(file, given))
            inputs |= {f"DATASETS_FILE/{name}/{file.relative_to(given).as_posix()}": file for file in files}
        else:
            inputs[f"DATASETS_FILE/{name}/{given.name}"] = given
    return inputs


def _named(path: Path) -> Iterator[tuple[str, Path]]:
    """Each file or directory in the JSON file, with a name such as dialogsum/train[0]; none in a damaged one."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return
    for key, entry in content.items() if isinstance(content, dict) else ():
        files = entry.get("files") if isinstance(entry, dict) else None
        for split, value in files.items() if isinstance(files, dict) else ():
            for number, item in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(item, str) and item:
                    yield f"{key}/{split}[{number}]", path.parent / Path(item).expanduser()


def _is_visible_file(path: Path, directory: Path) -> bool:
    """Whether `path` is a file, and neither it nor a directory on the way from `directory` is hidden (.git, .cache)."""
    return path.is_file() and not any(part.startswith(".") for part in path.relative_to(directory).parts)
