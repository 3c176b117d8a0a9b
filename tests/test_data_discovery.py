"""Which files are which split: as `datasets` decides it, for directories, hub repositories and saved data sets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.data_world import rows, write_file
from tests.test_data_hub import DATA, SOURCE, as_csv, as_parquet, check_rows, get, hub  # noqa: F401 - fixture
from utils.core.errors import InputError, StageError
from utils.data.discovery import NoFiles, directory_files, split_names
from utils.data.readers import read_rows
from utils.data.registry import chosen_sources, sources

PARTS = {"train": 12, "validation": 5, "test": 7}


def layout(directory: Path, names: dict[str, str]) -> Path:
    """A directory with a file for each name, holding the rows of the split that it should be."""
    for name, split in names.items():
        write_file(directory / name, rows("xsum", split, PARTS.get(split, 3)))
    return directory


LAYOUTS = {
    "the hub's shards": {f"data/{split}-00000-of-00001.parquet": split for split in PARTS},
    "names": {"train.csv": "train", "dev.csv": "validation", "test.csv": "test"},
    "val": {"train.jsonl": "train", "val.jsonl": "validation", "test.jsonl": "test"},
    "valid, upper case": {"Train.csv": "train", "Valid.csv": "validation", "TEST.csv": "test"},
    "folders": {"train/0000.parquet": "train", "validation/0000.parquet": "validation", "test/0000.parquet": "test"},
    "behind a name": {f"xsum_{split}.csv": split for split in PARTS},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_directory_for_every_split_gives_what_datasets_gives(tmp_path, name):
    from datasets import load_dataset

    layout(tmp_path / "set", LAYOUTS[name])
    write_file(tmp_path / "set" / "._train.jsonl", rows("xsum", "x", 2))  # what macOS leaves
    (tmp_path / "set" / "dataset_infos.json").write_text("{}")
    entry = {"files": dict.fromkeys(PARTS, "set"), "document": "document", "summary": "summary"}
    (tmp_path / "sets.json").write_text(json.dumps({"xsum": entry}))
    source = sources(tmp_path / "sets.json")["xsum"]
    for split, files in source.files.items():
        assert [row.document for row in read_rows(files, "document", "summary")] == [
            row["document"] for row in rows("xsum", split, PARTS[split])
        ], split
    if "upper" not in name:  # there the library takes all files for train
        theirs = load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
        assert {split: len(part) for split, part in theirs.items()} == PARTS


def test_a_directory_without_split_names_is_the_split_that_it_is_given_for(tmp_path):
    layout(tmp_path / "mine", {"part-0.jsonl": "a", "part-1.jsonl": "b"})
    (tmp_path / "sets.json").write_text(json.dumps({"xsum": {"files": {"test": "mine"}}}))
    assert len(sources(tmp_path / "sets.json")["xsum"].files["test"]) == 2


@pytest.mark.parametrize("saved", ["one", "all"])
def test_save_to_disk_is_read(tmp_path, saved):
    from datasets import Dataset, DatasetDict

    parts = {split: Dataset.from_list(rows("xsum", split, count)) for split, count in PARTS.items()}
    if saved == "one":
        parts["test"].save_to_disk(str(tmp_path / "set"), num_shards=2)
    else:
        DatasetDict(parts).save_to_disk(str(tmp_path / "set"))
    (tmp_path / "sets.json").write_text(json.dumps({"xsum": {"files": {"test": "set"}}}))
    files = sources(tmp_path / "sets.json")["xsum"].files["test"]
    assert [row.summary for row in read_rows(files, "document", "summary")] == parts["test"]["summary"]


UNCLEAR: dict[str, tuple[list[str], str, str]] = {
    "two sets share a word": (["samsum_test.csv", "xsum_test.csv", "xsum_train.csv"], "test", "several files could be"),
    "two sets in folders of their own": (["samsum/test.csv", "xsum/test.csv"], "test", "several files could be"),
    "an old copy of the folder": (["test/part1.csv", "backup/test/part1.csv"], "test", "several files could be"),
    "another split": (["train.csv", "test.csv"], "validation", "no split validation; there are train, test"),
    "a shard is missing": (["data/test-00000-of-00002.parquet"], "test", "shards are missing"),
    "no data": (["README.md", "x.py"], "test", "no data files; there are README.md, x.py"),
    "only hidden and descriptions": ([".test.csv", "dataset_infos.json", "a/.b/test.csv"], "test", "no data files"),
}


UNCLEAR_HERE: dict[str, tuple[dict[str, str], str]] = {
    "two formats": ({"test.csv": "", "test_more.jsonl": ""}, "both test.csv and test_more.jsonl could be test"),
    "a link to nothing": ({"test.csv": "", "test-2.csv": "-> gone.csv"}, "test-2.csv is a link to nothing"),
    "YAML that is none": ({"a.csv": "", "README.md": "---\nconfigs: [: :\n---\n"}, "while parsing"),
    "save_to_disk, cut off": ({"state.json": "{}", "dataset_info.json": "{}"}, "save_to_disk wrote there is damaged"),
    "save_to_disk, torn": ({"dataset_dict.json": "[1"}, "save_to_disk wrote there is damaged"),
}


@pytest.mark.parametrize("name", UNCLEAR_HERE)
def test_what_is_not_clear_in_a_directory_is_refused(tmp_path, name):
    files, words = UNCLEAR_HERE[name]
    for file, content in files.items():
        if content.startswith("-> "):
            (tmp_path / file).symlink_to(content[3:])
        else:
            (tmp_path / file).write_text(content)
    with pytest.raises(NoFiles, match=words):
        directory_files(tmp_path, "test")


def test_folders_that_are_links_are_entered_and_descriptions_are_no_second_format(tmp_path):
    layout(tmp_path / "set", {"test/2019/a.csv": "test", "train.csv": "train"})
    layout(tmp_path / "far", {"b.csv": "more"})
    (tmp_path / "set" / "test" / "2020").symlink_to(tmp_path / "far")
    (tmp_path / "set" / "labels.json").write_text("{}")
    assert [file.name for file in directory_files(tmp_path / "set", "test")] == ["a.csv", "b.csv"]


@pytest.mark.parametrize("name", UNCLEAR)
def test_what_is_not_clear_is_refused_with_what_there_is(name):
    names, split, words = UNCLEAR[name]
    with pytest.raises(NoFiles, match=words):
        split_names(names, split)


def test_the_splits_field_names_a_split_a_file_or_a_pattern(tmp_path):
    layout(tmp_path / "set", {"samsum_test.csv": "a", "xsum_test.csv": "test", "old/xsum_test.csv": "b"})
    for name in ("xsum_test.csv", "x*_test.csv"):
        entry = {"files": {"test": "set"}, "splits": {"test": name}}
        (tmp_path / "sets.json").write_text(json.dumps({"xsum": entry}))
        (file,) = sources(tmp_path / "sets.json")["xsum"].files["test"]
        assert file == tmp_path / "set" / "xsum_test.csv"
    (tmp_path / "sets.json").write_text(json.dumps({"xsum": {"files": {"test": "set"}}}))
    with pytest.raises(InputError, match=r"several files could be test.*\"splits\""):
        sources(tmp_path / "sets.json")


def own(tmp_path: Path, **entry: Any) -> Any:
    fields = {"repository": "maker/own", "document": "dialogue", "summary": "summary"} | entry
    (tmp_path / "sets.json").write_text(json.dumps({"mine": fields}))
    known = sources(tmp_path / "sets.json")
    return chosen_sources(known, ("mine",), ("cnn_dm",), "cnn_dm")["mine"]


YAML = b"""---
configs:
- config_name: clean
  data_files:
  - split: train
    path: good/one.csv
  - split: held_out
    path: good/two.csv
- config_name: raw
  data_files:
  - {split: train, path: bad.csv}
---
"""


def test_own_repositories_in_every_layout(hub, tmp_path):  # noqa: F811
    train, validation = as_csv(DATA["train"]), as_csv(DATA["validation"])
    hub.add("maker/own", {"train.csv": train, "dev.csv": validation, "README.md": b"# mine"})
    check_rows(get(tmp_path / "a", own(tmp_path))[0])
    hub.add("maker/own", {"good/one.csv": train, "good/two.csv": validation, "bad.csv": b"x", "README.md": YAML})
    check_rows(get(tmp_path / "b", own(tmp_path, config="clean", splits={"validation": "held_out"}))[0])
    with pytest.raises(StageError, match=r"Config name is missing.*'clean', 'raw'"):
        get(tmp_path / "c", own(tmp_path))
    with pytest.raises(StageError, match="no split validation; there are train, held_out"):
        get(tmp_path / "d", own(tmp_path, config="clean"))
    shards = {f"v1/train-0000{n}-of-00002.parquet": as_parquet(DATA["train"][n * 15 :][:15], tmp_path) for n in (0, 1)}
    hub.add("maker/own", shards | {"v1/valid-00000-of-00001.parquet": as_parquet(DATA["validation"], tmp_path)})
    check_rows(get(tmp_path / "e", own(tmp_path, config="v1"))[0])
    hub.add("maker/own", {"sam_train.csv": train, "dialog_train.csv": train, "val.csv": validation})
    with pytest.raises(StageError, match="several files could be train"):
        get(tmp_path / "f", own(tmp_path))
    check_rows(get(tmp_path / "f", own(tmp_path, splits={"train": "sam_train.csv"}))[0])


def test_published_layouts_need_no_readme(hub, tmp_path):  # noqa: F811
    hub.add("maker/set", {f"{split}.csv": as_csv(data) for split, data in DATA.items()} | {"README.md": YAML})
    check_rows(get(tmp_path, replace(SOURCE, mirrors=()))[0])
    assert not [request for request in hub.requests if "README" in request]
