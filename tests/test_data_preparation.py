"""Preparing local data sets: what is written, what is removed, what happens when it is interrupted."""

from __future__ import annotations

import copy
import os
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.data_world import COLUMNS, all_rows, arguments, rows, tokenizer, write_sets
from tests.forks import FORKS
from utils.core.errors import InputError, StageError
from utils.core.files import read_jsonl, sha256_of
from utils.data.preparation import load_prepared, missing_datasets, prepare, read_manifest
from utils.data.registry import sources

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Six clean sets, prepared."""
    directory = tmp_path_factory.mktemp("plain")
    return directory, prepare(**arguments(directory, sources(write_sets(directory, all_rows()))))


def prepared(directory: Path, data: dict, **changes: object) -> dict:
    return prepare(**arguments(directory, sources(write_sets(directory / "data", data)), **changes))


def test_every_set_is_there_with_its_columns(plain):
    directory, statistics = plain
    for name in ("train", "validation"):
        data = load_prepared(directory / "prepared", name)
        assert data.column_names == ["id", "dataset", "input_ids", "labels"]
    assert len(load_prepared(directory / "prepared", "train")) == 90
    assert len(load_prepared(directory / "prepared", "validation")) == 18
    for name, count in (("test_cnn_dm", 20), ("test_xsum", 12), ("test_samsum", 12), ("attack_evaluate", 10)):
        data = load_prepared(directory / "prepared", name)
        assert data.column_names == ["id", "dataset", "document", "summary", "input_ids", "labels"]
        assert len(data) == count == statistics["prepared"][name]["rows"]
    assert missing_datasets(directory / "prepared") == {}
    assert statistics["overlap"] == statistics["duplicates"] == statistics["warnings"] == []


def test_ids_and_tokens_are_those_of_the_tokenizer(plain):
    directory, _ = plain
    source, own = rows("cnn_dm", "test", 20), tokenizer()
    data = load_prepared(directory / "prepared", "test_cnn_dm")
    assert data["id"] == [f"cnn_dm/test/{number}" for number in range(20)]
    for row, made in zip(source, data, strict=True):
        assert made["document"] == row["article"]
        assert made["input_ids"] == own("summarize: " + row["article"], truncation=True, max_length=96).input_ids
        assert made["labels"] == own(row["highlights"], truncation=True, max_length=16).input_ids
        assert made["input_ids"][-1] == made["labels"][-1] == own.eos_token_id


def test_attack_sets_are_seeded_samples_of_different_splits(plain):
    directory, _ = plain
    optimise = load_prepared(directory / "prepared", "attack_optimize")
    evaluate = load_prepared(directory / "prepared", "attack_evaluate")
    assert all(id_.startswith("cnn_dm/validation/") for id_ in optimise["id"]) and len(optimise) == 8
    assert all(id_.startswith("cnn_dm/test/") for id_ in evaluate["id"])
    numbers = [int(id_.rsplit("/", 1)[1]) for id_ in evaluate["id"]]
    assert numbers != list(range(10)) and numbers == sorted(numbers)  # not the first ones


def test_the_same_input_gives_the_same_files(plain, tmp_path):
    directory, _ = plain
    again = prepare(**arguments(tmp_path, sources(directory / "datasets.json")))
    other = prepare(**arguments(tmp_path, sources(directory / "datasets.json"), output_dir=tmp_path / "b", seed=1))
    assert sha256_of(tmp_path / "prepared") == sha256_of(directory / "prepared")
    assert again["prepared"]["attack_evaluate"] != other["prepared"]["attack_evaluate"]
    assert again["prepared"]["train"] == other["prepared"]["train"]
    keys = [read_manifest(path)["key"] for path in (tmp_path / "prepared", tmp_path / "b")]
    assert keys[0] != keys[1]


def test_several_processes_give_the_same_files(plain, tmp_path, monkeypatch):
    directory, _ = plain
    monkeypatch.setattr("utils.data.rows.BYTES_WORTH_PROCESSES", 10_250)  # the three training sets and a held-out one
    monkeypatch.setattr("utils.data.rows.ROWS_PER_TASK", 7)
    prepare(**arguments(tmp_path, sources(directory / "datasets.json"), workers=2))
    assert sha256_of(tmp_path / "prepared") == sha256_of(directory / "prepared")


def test_held_out_text_leaves_training_and_stays_in_the_test(tmp_path):
    data = all_rows()
    article, dialogue = COLUMNS["cnn_dm"][0], COLUMNS["dialogsum"][0]
    leaked = data["cnn_dm"]["test"][3][article]
    data["dialogsum"]["train"][1][dialogue] = leaked.upper().replace("\n", "  ")  # the same after normalisation
    changed = leaked.split()
    changed[10], changed[30] = "other", "word"
    data["highlightsum"]["train"][2][dialogue] = " ".join(changed)  # a near copy
    data["dialogsum"]["validation"][0][dialogue] = leaked
    data["arxiv"]["train"][4]["article"] = data["highlightsum"]["validation"][5][dialogue]
    data["cnn_dm"]["validation"][7][article] = data["xsum"]["test"][0]["document"]
    statistics = prepared(tmp_path, data)
    gone = {row["id"]: row for row in read_jsonl(tmp_path / "prepared" / "removed_examples.jsonl")}
    assert {(id_, row["with"], row["kind"]) for id_, row in gone.items()} == {
        ("dialogsum/train/1", "cnn_dm/test/3", "exact"),
        ("highlightsum/train/2", "cnn_dm/test/3", "near"),
        ("dialogsum/validation/0", "cnn_dm/test/3", "exact"),
        ("arxiv/train/4", "highlightsum/validation/5", "exact"),
        ("cnn_dm/validation/7", "xsum/test/0", "exact"),
    }
    assert {"of": "highlightsum/train", "with": "cnn_dm/test", "kind": "near", "rows": 1} in statistics["overlap"]
    assert statistics["sets"]["arxiv"]["splits"]["train"]["removed"] == {"overlap:highlightsum/validation": 1}
    assert len(load_prepared(tmp_path / "prepared", "test_cnn_dm")) == 20
    left = {id_ for name in ("train", "validation") for id_ in load_prepared(tmp_path / "prepared", name)["id"]}
    assert not left & set(gone) and len(left) == 90 + 18 - 4


@pytest.mark.parametrize("deduplicate", [True, False])
def test_a_doubled_set_counts_once_and_is_reported(tmp_path, deduplicate):
    data = all_rows()
    data["highlightsum"] = copy.deepcopy(data["dialogsum"])
    data["xsum"]["test"][1] = dict(data["xsum"]["test"][0])
    statistics = prepared(tmp_path, data, deduplicate_training=deduplicate)
    twice = {(item["of"], item["with"]): item["rows"] for item in statistics["duplicates"]}
    assert twice == {
        ("highlightsum/train", "dialogsum/train"): 30,
        ("highlightsum/validation", "dialogsum/validation"): 6,
        ("xsum/test", "xsum/test"): 1,
    }
    assert len(load_prepared(tmp_path / "prepared", "train")) == (60 if deduplicate else 90)
    assert len(load_prepared(tmp_path / "prepared", "test_xsum")) == 12
    assert statistics["sets"]["samsum"]["in_domain"] == ["highlightsum"]


def test_empty_and_short_rows_are_dropped_and_counted(tmp_path):
    data = all_rows()
    train, test = data["dialogsum"]["train"], data["xsum"]["test"]
    train[0]["dialogue"], train[1]["summary"], train[2]["summary"] = " \n\t ", "\u200b", "yes"
    train[3]["dialogue"] = "too short"
    test[0]["document"], test[1]["document"] = "", "short but a test row"
    statistics = prepared(tmp_path, data)
    counts = statistics["sets"]["dialogsum"]["splits"]["train"]
    assert counts["removed"] == {"empty_document": 1, "empty_summary": 1, "too_short": 2}
    assert (counts["raw"], counts["usable"], counts["kept"]) == (30, 26, 26)
    assert load_prepared(tmp_path / "prepared", "test_xsum")["id"] == [f"xsum/test/{n}" for n in range(1, 12)]


def test_nothing_to_train_on_is_an_error_and_leaves_nothing(tmp_path):
    data = all_rows()
    for key in ("dialogsum", "highlightsum", "arxiv"):
        for row in data[key]["train"]:
            row[COLUMNS[key][0]] = ""
    with pytest.raises(StageError, match=r"dialogsum/train: nothing is left of 30 rows \(30 empty document\)"):
        prepared(tmp_path, data)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".prepared.lock", "data"]


def test_quick_sizes(tmp_path):
    statistics = prepared(tmp_path, all_rows(), use_full_test_sets=False, max_train_examples=11)
    sizes = {name: entry["rows"] for name, entry in statistics["prepared"].items()}
    assert sizes["train"] == 11 and sizes["test_xsum"] == sizes["test_samsum"] == sizes["test_cnn_dm"] == 5
    assert sizes["attack_evaluate"] == 10
    keys = set(load_prepared(tmp_path / "prepared", "train")["dataset"])
    assert len(keys) > 1  # drawn from all of them


def test_too_few_examples_for_the_attacks_are_said_to_be(tmp_path):
    statistics = prepared(tmp_path, all_rows(), attack_evaluate_size=500)
    assert statistics["warnings"] == ["attack_evaluate: 500 examples asked for, only 20 are there"]


def test_an_old_preparation_stays_until_the_new_one_is_whole(plain, tmp_path):
    directory, _ = plain
    prepare(**arguments(tmp_path, sources(directory / "datasets.json")))
    before = sha256_of(tmp_path / "prepared")
    data = all_rows()
    data["arxiv"]["train"][29]["article"] = 5
    with pytest.raises(StageError, match=r"arxiv/train.jsonl, line 30: column 'article' holds something"):
        prepared(tmp_path, data)
    assert sha256_of(tmp_path / "prepared") == before


def test_loading_what_is_not_there(plain, tmp_path):
    directory, _ = plain
    with pytest.raises(InputError, match="Run stage 1 first"):
        load_prepared(tmp_path, "train")
    with pytest.raises(InputError, match="no nonsense"):
        load_prepared(directory / "prepared", "nonsense")


def _prepare_slowly(directory: Path, pause: float) -> None:
    import utils.data.splits

    original = utils.data.splits.Build._training

    def slow(self: object, split: str, keys: list[str]) -> None:
        (directory / f"reached_{os.getpid()}").touch()
        time.sleep(pause)
        original(self, split, keys)

    utils.data.splits.Build._training = slow
    prepare(**arguments(directory, sources(directory / "datasets.json")))


def _start(directory: Path, pause: float) -> BaseProcess:
    process = FORKS.Process(target=_prepare_slowly, args=(directory, pause))
    process.start()
    return process


def test_killed_in_the_middle_it_starts_again_and_cleans_up(plain, tmp_path):
    write_sets(tmp_path, all_rows())
    process = _start(tmp_path, 60)
    while not (tmp_path / f"reached_{process.pid}").exists():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "prepared").exists() and list(tmp_path.glob(".prepared.*.tmp"))
    prepare(**arguments(tmp_path, sources(tmp_path / "datasets.json")))
    assert not list(tmp_path.glob(".prepared.*.tmp"))
    sets = read_manifest(tmp_path / "prepared")["sets"]
    assert sets == read_manifest(plain[0] / "prepared")["sets"]


def test_two_at_once_end_with_one_whole_preparation(plain, tmp_path):
    write_sets(tmp_path, all_rows())
    processes = [_start(tmp_path, 0.5) for _ in range(2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(list(tmp_path.glob("reached_*"))) == 1  # the second one used what the first had made
    assert read_manifest(tmp_path / "prepared")["sets"] == read_manifest(plain[0] / "prepared")["sets"]
    for name, entry in read_manifest(tmp_path / "prepared")["sets"].items():
        assert len(load_prepared(tmp_path / "prepared", name)) == entry["rows"]
