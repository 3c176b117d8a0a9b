"""What is counted is judged: nothing left is an error, an odd share a warning that reaches statistics and report."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.data_world import COLUMNS, all_rows, arguments, write_file, write_sets
from utils.core.codec import from_json
from utils.core.errors import StageError, UsageError
from utils.data.preflight import look
from utils.data.preparation import load_prepared, prepare
from utils.data.records import DataStatistics
from utils.data.registry import chosen_sources, sources
from utils.reports.data_tables import doubts

KEYS = (("dialogsum", "highlightsum", "arxiv"), ("cnn_dm", "xsum", "samsum"), "cnn_dm")
CHINESE = "昨天下午三点钟左右我们在学校门口见到了老师他说明天不上课所以大家都很高兴然后一起去公园里玩了很久才回家吃饭。"


def prepared(directory: Path, data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return prepare(**arguments(directory, sources(write_sets(directory / "data", data)), **changes))


def looked_at(directory: Path, key: str) -> Any:
    return look(chosen_sources(sources(directory / "data" / "datasets.json"), *KEYS)[key])


def emptied(data: dict[str, Any], key: str, split: str) -> None:
    for row in data[key][split]:
        row[COLUMNS[key][1]] = ""


@pytest.mark.parametrize(
    ("key", "split", "reason"),
    [
        ("dialogsum", "train", r"dialogsum/train: nothing is left of 30 rows \(30 empty summary\)"),
        ("dialogsum", "validation", r"dialogsum/validation: nothing is left of 6 rows"),
        ("xsum", "test", r"xsum/test: nothing is left of 12 rows"),
    ],
)
def test_a_set_of_which_nothing_is_left_is_an_error_or_missing(tmp_path, key, split, reason):
    data = all_rows()
    emptied(data, key, split)
    with pytest.raises(StageError, match=reason) as caught:
        prepared(tmp_path, data)
    assert "DATASET_ALLOW_PARTIAL" in str(caught.value) and not (tmp_path / "prepared").exists()
    statistics = prepared(tmp_path, data, allow_partial=True)
    assert list(statistics["missing"]) == [key] and "nothing is left" in statistics["missing"][key]
    assert key not in statistics["sets"] and f"test_{key}" not in statistics["prepared"]
    for name in ("train", "validation"):
        assert key not in load_prepared(tmp_path / "prepared", name)["dataset"]
    finding = looked_at(tmp_path, key)
    assert not finding.works and f"{key}/{split}: none of the first" in finding.reasons[0]


def test_the_attack_set_can_never_be_missing(tmp_path):
    data = all_rows()
    emptied(data, "cnn_dm", "validation")
    with pytest.raises(StageError, match="attacks are measured on cnn_dm"):
        prepared(tmp_path, data, allow_partial=True)


def test_an_exporters_trailing_comma_is_refused_by_pre_flight_and_stage(tmp_path):
    path = write_sets(tmp_path / "data", all_rows(), ".csv")
    train = tmp_path / "data" / "dialogsum" / "train.csv"
    lines = list(csv.reader(train.open(newline="", encoding="utf-8")))
    with train.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([lines[0], *([*line, ""] for line in lines[1:])])
    finding = looked_at(tmp_path, "dialogsum")
    assert not finding.works and "4 fields, but the header has 3" in finding.reasons[0]
    with pytest.raises(StageError, match="4 fields, but the header has 3"):
        prepare(**arguments(tmp_path, sources(path)))


def test_training_and_validation_from_one_file_or_its_copy(tmp_path):
    path = write_sets(tmp_path / "data", all_rows())
    shutil.copy(tmp_path / "data/dialogsum/train.jsonl", tmp_path / "data/dialogsum/validation.jsonl")
    with pytest.raises(StageError, match="dialogsum: train and validation have the same content"):
        prepare(**arguments(tmp_path, sources(path)))
    assert "the same content" in looked_at(tmp_path, "dialogsum").reasons[0]
    data = all_rows()
    data["dialogsum"]["validation"] = data["dialogsum"]["train"][::-1]  # the same rows in another file
    with pytest.raises(StageError, match=r"dialogsum/train: nothing is left of 30 rows \(30 overlap:dialogsum"):
        prepared(tmp_path / "b", data)


def swapped(data: dict[str, Any]) -> None:
    for row in data["dialogsum"]["train"]:
        row["dialogue"], row["summary"] = row["summary"] + " and more words", row["dialogue"]


def copied(data: dict[str, Any]) -> None:
    for row in data["dialogsum"]["train"][:5]:
        row["summary"] = row["dialogue"]


def mostly_empty(data: dict[str, Any]) -> None:
    for row in data["dialogsum"]["train"][:12]:
        row["summary"] = "-"


def written_lists(data: dict[str, Any]) -> None:
    for row in data["dialogsum"]["train"]:
        row["summary"] = str([row["summary"], "more"])


def in_quotes(data: dict[str, Any]) -> None:
    for row in data["dialogsum"]["train"]:
        row["summary"] = f"'{row['summary']}'"


def tagged(data: dict[str, Any]) -> None:
    for row in data["dialogsum"]["train"]:
        row["summary"] = f"<S> {row['summary']} </S> <S> more </S>"


def labels(data: dict[str, Any]) -> None:
    for number, row in enumerate(data["dialogsum"]["train"]):
        row["summary"] = f"about topic {'abc'[number % 3]}"


ODD = {
    "single quotes": (in_quotes, "100% of the texts are lists written as text, such as ['a', 'b'], or all in quotes"),
    "tags of sentences": (tagged, "100% of the texts are lists written as text"),
    "a column of labels": (labels, "33% of the rows have one and the same summary"),
    "swapped columns": (swapped, "dialogsum/train: 100% of the summaries are longer than their documents"),
    "document = summary": (copied, "dialogsum/train: in 17% of the rows the summary is the document"),
    "dropped rows": (mostly_empty, "dialogsum/train: 12 of 30 rows were dropped (12 too short)"),
    "lists as text": (written_lists, "100% of the texts are lists written as text"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_shares_are_warnings_in_statistics_report_and_pre_flight(tmp_path, name):
    change, words = ODD[name]
    data = all_rows()
    change(data)
    statistics = prepared(tmp_path, data)
    assert [text for text in statistics["warnings"] if words in text], statistics["warnings"]
    report = doubts(SimpleNamespace(missing_datasets={}, data=from_json(DataStatistics, statistics)))
    assert any(words in line for line in report)
    finding = looked_at(tmp_path, "dialogsum")
    assert finding.works and len(finding.warnings) >= 1


def test_plain_rows_are_no_reason_for_a_warning(tmp_path):
    assert prepared(tmp_path, all_rows())["warnings"] == []


def test_repeats_in_and_between_test_sets_and_files_given_twice(tmp_path):
    data = all_rows()
    for row in data["samsum"]["test"]:
        row["dialogue"] = data["xsum"]["test"][0]["document"]
    warnings = prepared(tmp_path, data)["warnings"]
    assert "samsum/test: 11 of 12 rows have a document that came before" in warnings
    assert "samsum/test: 1 documents are in other test sets, too" in warnings
    registry = json.loads((tmp_path / "data/datasets.json").read_text())
    shutil.copy(tmp_path / "data/xsum/test.jsonl", tmp_path / "data/xsum/test (1).jsonl")
    for second in ("xsum/test.jsonl", "xsum/test (1).jsonl"):
        registry["xsum"]["files"]["test"] = ["xsum/test.jsonl", second]
        (tmp_path / "data/datasets.json").write_text(json.dumps(registry))
        with pytest.raises(StageError, match=r"xsum/test: .* is there twice"):
            prepare(**arguments(tmp_path, sources(tmp_path / "data/datasets.json")))
        assert "is there twice" in looked_at(tmp_path, "xsum").reasons[0]


def test_text_that_the_vocabulary_cannot_read_is_told_with_its_share(tmp_path):
    data = all_rows()
    for number, row in enumerate(data["samsum"]["test"]):
        row["dialogue"], row["summary"] = CHINESE[number:] + CHINESE[:number], CHINESE[number:][:12]
    statistics = prepared(tmp_path, data)
    facts = statistics["sets"]["samsum"]["splits"]["test"]
    assert facts["kept"] == 12 and facts["unknown"]["characters"] > 0.95
    assert set(facts["unknown"]["examples"]) <= set(CHINESE) and len(facts["unknown"]["examples"]) == 20
    (warning,) = [text for text in statistics["warnings"] if text.startswith("samsum/test: ")]
    assert "<unk>" in warning and "ROUGE counts only Latin" in warning
    assert "<unk>" in looked_at(tmp_path, "samsum").warnings[0]


def test_the_share_is_counted_by_characters_as_the_tokenizer_reads_them_one_by_one():
    from tests.data_world import tokenizer
    from utils.data.rows import Encoding

    own = tokenizer()
    encoding = Encoding.of(own, "summarize: ", 96, 16)
    text = "ka lo 昨天 mi é. {昨}"
    unknown = {c: text.count(c) for c in set(text) - {" "} if own.unk_token_id in own(c).input_ids}
    assert encoding.unreadable(text) == unknown and unknown["昨"] == 2


def test_references_are_told_in_training_and_refused_where_they_would_be_scored(tmp_path):
    data = all_rows()
    for key, split in (("xsum", "test"), ("dialogsum", "train"), ("dialogsum", "validation")):
        for row in data[key][split]:
            row["summary"] = [row["summary"], "another one"]
    path = write_sets(tmp_path / "data", data)
    registry = json.loads(path.read_text())
    registry["dialogsum"]["summary_list"] = registry["xsum"]["summary_list"] = "references"
    path.write_text(json.dumps(registry))
    with pytest.raises(UsageError, match="xsum: a test set with several references a row is not scored here"):
        prepare(**arguments(tmp_path, sources(path)))
    rows = [dict(row, summary=summary) for row in data["xsum"]["test"] for summary in row["summary"]]
    write_file(path.parent / registry["xsum"]["files"]["test"], rows)  # what the message tells to do
    del registry["xsum"]["summary_list"]
    path.write_text(json.dumps(registry))
    statistics = prepare(**arguments(tmp_path, sources(path)))
    assert statistics["sets"]["xsum"]["splits"]["test"]["kept"] == len(rows)
    told = statistics["sets"]["dialogsum"]["splits"]["train"]["several_references"]
    assert told > 1
    assert f"dialogsum/train: {told} rows have several references; the first is used" in statistics["warnings"]


def test_one_column_for_both_is_refused(tmp_path):
    write_file(tmp_path / "a.jsonl", [{"text": "a"}])
    entry = {"files": {"test": "a.jsonl"}, "document": "text", "summary": "text"}
    (tmp_path / "sets.json").write_text(json.dumps({"xsum": entry}))
    with pytest.raises(Exception, match="document and summary are the same column"):
        sources(tmp_path / "sets.json")
