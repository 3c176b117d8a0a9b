"""Which files of a directory or a hub repository hold which split: decided by `datasets`, from the names alone.

The library knows the layouts (train/validation/val/dev/test in names or folders, shards, configurations and data_files
in the YAML of README.md) and what is no data (hidden files, dataset_infos.json). It looks at a directory, so it gets
one with empty files of these names: a repository then needs no download and no second set of rules.
"""

from __future__ import annotations

import fnmatch
import glob
import json
import re
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath

from utils.data.readers import format_of

SPLITS = ("train", "validation", "test")
_PREFERRED = ("parquet", "csv", "tsv", "json", "arrow")  # where a repository has its rows in several formats
_SHARD_OF = re.compile(r"-of-(\d+)")


class NoFiles(Exception):
    """There are no files for a split, or it is not clear which; the message says why, without the place."""


def split_names(names: Sequence[str], split: str, *, config: str = "", readme: str | None = None) -> list[str]:
    """The files of one split among `names` (relative, with /), in order; NoFiles if there are none or too many.

    `split` is a split as `datasets` calls it (validation also means val, valid and dev, too), or a file name or
    pattern. `config` is a configuration of the text `readme`, or a folder that is looked at alone.
    """
    if any(mark in split for mark in "./*"):
        chosen = sorted(name for name in names if fnmatch.fnmatchcase(name, split) and format_of(name))
        if not chosen:
            raise NoFiles(f"no file {split}; there are {_listed(names)}")
        return _complete(chosen)
    inside = [name for name in names if config and name.startswith(f"{config}/")]
    described = readme and re.search(rf"config_name: *['\"]?{re.escape(config)}['\"]? *$", readme, re.MULTILINE)
    if inside and not described:
        prefix = f"{config}/"
        rest = tuple(name.removeprefix(prefix) for name in inside)
        return [prefix + name for name in _of_split(rest, split, "", None)]
    return _of_split(tuple(names), split, config, readme)


def directory_files(directory: Path, split: str, *, config: str = "") -> list[Path]:
    """The files of one split in a local directory; also one that `datasets` wrote with save_to_disk.

    Where no name tells a split, the directory is that split: all its files. NoFiles as `split_names`.
    """
    try:
        if (directory / "dataset_dict.json").is_file():
            saved = json.loads((directory / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
            return directory_files(directory / _called(split, saved), split)
        if (directory / "state.json").is_file() and (directory / "dataset_info.json").is_file():
            state = json.loads((directory / "state.json").read_text(encoding="utf-8"))
            return [directory / file["filename"] for file in state["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise NoFiles(f"what save_to_disk wrote there is damaged ({type(error).__name__}: {error})") from None
    # Unlike Path.rglob it enters folders that are links, and lists links to nothing.
    every = glob.glob("**", root_dir=directory, recursive=True)  # noqa: PTH207
    names = sorted(name for name in every if not (directory / name).is_dir())
    if broken := [name for name in names if not (directory / name).exists()]:
        raise NoFiles(f"{broken[0]} is a link to nothing")
    readme = directory / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else None
    if not any(format_of(name) for name in names if not _ignored(name)):
        raise NoFiles("no .csv, .tsv, .jsonl, .json, .parquet or .arrow file in it")
    known = _splits(tuple(names), config, text)
    chosen = [name for files in known.values() for name in files]
    if text is None and len(known) == 1 and not any(_tells(name, word) for name in chosen for word in SPLITS):
        return [directory / name for name in chosen]
    chosen = split_names(names, split, config=config, readme=text)
    others = [name for name in names if format_of(name) not in (None, format_of(chosen[0])) and not _ignored(name)]
    if text is None and (also := [name for name in others if _tells(name, split)]):
        raise NoFiles(f"both {chosen[0]} and {also[0]} could be {split}")
    return [directory / name for name in chosen]


def _of_split(names: tuple[str, ...], split: str, config: str, readme: str | None) -> list[str]:
    known = _splits(names, config, readme)
    chosen = list(known[_called(split, known)])
    by_name = readme is None or "data_files" not in readme
    if by_name and len({_series(name, split) for name in chosen}) > 1:
        raise NoFiles(f"several files could be {split}: {_listed(chosen)}. Name one of them")
    return _complete(chosen)


def _series(name: str, split: str) -> str:
    """What the files of one split have in common: the folder that tells the split, or the name but for its numbers."""
    path = PurePosixPath(name)
    for folder in path.parents:
        if _tells(folder.name, split):
            return f"{folder}/"
    return str(path.with_name(re.sub(r"\d+", "#", path.stem)))


@lru_cache(maxsize=32)
def _splits(names: tuple[str, ...], config: str, readme: str | None) -> dict[str, tuple[str, ...]]:
    """The files of every split that `datasets` sees, in the first format that it can use."""
    from yaml import YAMLError  # of the README

    problem = f"no data files; there are {_listed(names)}"
    for kind in _PREFERRED:
        chosen = [name for name in names if format_of(name) == kind and not _ignored(name)]
        if not chosen:
            continue
        try:
            return _asked(chosen, config, readme)
        except (ValueError, OSError, YAMLError) as error:  # DataFilesNotFoundError, a configuration that is not there
            problem = " ".join(str(error).split()).split(" Example")[0].rstrip(".") or "unreadable"
    raise NoFiles(problem)


def _asked(names: Sequence[str], config: str, readme: str | None) -> dict[str, tuple[str, ...]]:
    from datasets import load_dataset_builder

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "files"
        # Lower case: the library does not take Train.csv for a split, and would put it together with Val.csv.
        original = {name.lower() if readme is None else name: name for name in names}
        for name in original:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        if readme is not None:
            (root / "README.md").write_text(readme, encoding="utf-8")
        wanted = config if readme is not None and config not in ("", "default") else None
        builder = load_dataset_builder(str(root), name=wanted, cache_dir=str(Path(folder) / "cache"))
        found = builder.config.data_files or {}
        return {
            str(split): tuple(sorted(original[Path(file).relative_to(root).as_posix()] for file in files))
            for split, files in found.items()
        }


def _called(split: str, known: Sequence[str] | dict[str, tuple[str, ...]]) -> str:
    """The name under which `split` is among the known ones."""
    if split in known:
        return split
    alike = [name for name in known if _means(split, name)]
    if len(alike) != 1:
        raise NoFiles(f"no split {split}; there are {', '.join(known)}")
    return alike[0]


def _means(split: str, word: str) -> bool:
    from datasets.data_files import SPLIT_KEYWORDS

    words = {str(name): keywords for name, keywords in SPLIT_KEYWORDS.items()}
    return word.lower() == split or word.lower() in words.get(split, ())


def _tells(name: str, split: str) -> bool:
    """Whether a word of the path is a name of the split."""
    return any(_means(split, word) for word in re.split(r"[-._ 0-9/]", name))


def _complete(names: list[str]) -> list[str]:
    counts = {int(found[1]) for name in names if (found := _SHARD_OF.search(name))}
    if counts and counts != {len(names)}:
        raise NoFiles(f"{len(names)} files like {names[0]}: shards are missing")
    return names


def _ignored(name: str) -> bool:
    """Hidden files (also ._train.csv, which macOS leaves) and descriptions of data."""
    from datasets.data_files import FILES_TO_IGNORE

    *_, last = parts = name.split("/")
    return last in (*FILES_TO_IGNORE, "state.json") or any(part.startswith(".") for part in parts)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) or "nothing") + more
