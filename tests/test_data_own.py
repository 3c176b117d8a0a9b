"""Own data: added under any key, called by their own name everywhere; the examples of docs/own-data.md work."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.data_world import arguments, rows, write_file
from tests.pipeline_world import ROOT, Run, run_script
from tests.test_data_hub import DATA, as_csv, check_rows, get, hub  # noqa: F401 - fixture
from tests.tiny import example as example_row
from tests.tiny import write_data, write_model
from utils.core.codec import from_json
from utils.core.errors import InputError, StageError, UsageError
from utils.data.preparation import load_prepared, prepare
from utils.data.records import DataStatistics
from utils.data.registry import DEFAULTS, chosen_sources, sources
from utils.pipeline.stages import STAGES
from utils.reports.data_tables import texts
from utils.reports.html import _origins
from utils.reports.table import set_titles

pytestmark = pytest.mark.slow

SPLITS = {"train": 30, "val": 8, "test": 12}


def example(name: str) -> str:
    """The JSON of an example in the documentation."""
    found = re.search(rf"<!-- example: {name} -->\n```json\n(.*?)```", (ROOT / "docs/own-data.md").read_text(), re.S)
    assert found
    return found[1]


def news(directory: Path) -> Path:
    """The CSV example of the documentation, with files; returns its DATASETS_FILE."""
    for split, count in SPLITS.items():
        data = [{"id": r["id"], "text": r["document"], "abstract": r["summary"]} for r in rows("xsum", split, count)]
        write_file(directory / "news" / f"{split}.csv", data)
    (directory / "datasets.json").write_text(example("csv"))
    return directory / "datasets.json"


def written(directory: Path, content: Any) -> Path:
    path = directory / "datasets.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_csv_example_as_the_only_set_is_prepared_under_its_own_name(tmp_path):
    path = news(tmp_path)
    options = {"train_keys": ("news",), "test_keys": ("news",), "attack_dataset": "news", "attack_optimize_size": 5}
    statistics = prepare(**arguments(tmp_path, sources(path), **options))
    sizes = {name: entry["rows"] for name, entry in statistics["prepared"].items()}
    assert sizes == {"attack_evaluate": 10, "test_news": 12, "attack_optimize": 4, "validation": 4, "train": 30}
    assert load_prepared(tmp_path / "prepared", "attack_evaluate")["id"][0].startswith("news/test/")
    entry = statistics["sets"]["news"]
    assert (entry["title"], entry["licence"], entry["own"]) == ("Local news", "CC BY 4.0", True)
    assert entry["in_domain"] == ["news"] and statistics["attack_dataset"] == "news"
    results = SimpleNamespace(data=from_json(DataStatistics, statistics), missing_datasets={})
    assert set_titles(results) == {"news": "Local news"}
    assert any(row[0] == "Local news test" for row in texts(results).rows)
    assert "CC BY 4.0" in _origins(results)[0] and "Local news" in _origins(results)[0]


def test_the_csv_example_by_the_commands_of_the_documentation(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MONO_S2S_")}
    settings = {
        **{"DATASETS_FILE": str(news(tmp_path)), "TRAIN_DATASETS": "news", "TEST_DATASETS": "news"},
        **{"ATTACK_DATASET": "news", "DEVICE": "cpu", "MODEL_NAME": str(write_model(tmp_path / "model"))},
        **{"TRIGGER_OPTIMIZE_SIZE_FULL": "5", "TRIGGER_EVAL_SIZE_FULL": "10", "MAX_INPUT_LENGTH": "64"},
    }
    environment |= {f"MONO_S2S_{name}": value for name, value in settings.items()}
    environment |= {"HF_HUB_OFFLINE": "1", "SCRATCH": str(tmp_path / "s"), "PROJECT": str(tmp_path / "p")}

    def run(*command: str) -> str:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "1 of 1 data sets can be had" in run(sys.executable, "test_dataset_loading.py")
    run("./run_all.sh", "42", "--local", "--stop-stage", "1")
    file = next(tmp_path.rglob("data_statistics.json"))
    assert json.loads(file.read_text())["results"]["sets"]["news"]["title"] == "Local news"
    environment["MONO_S2S_ATTACK_DATASET"] = "cnn_dm"
    with pytest.raises(AssertionError, match="cnn_dm must be among them"):
        run(sys.executable, "test_dataset_loading.py")
    environment |= {"MONO_S2S_ATTACK_DATASET": "news", "MONO_S2S_TRAIN_DATASETS": "news, nonsense"}
    with pytest.raises(AssertionError, match=r"give some of .*news"):
        run(sys.executable, "test_dataset_loading.py")


def test_the_hub_example(hub, tmp_path):  # noqa: F811
    files = {f"v2/{split}.csv": as_csv(DATA[part]) for split, part in (("train", "train"), ("other", "validation"))}
    yaml = (
        "---\nconfigs:\n- config_name: v2\n  data_files:\n  - {split: train, path: v2/train.csv}\n"
        "  - {split: held_out, path: v2/other.csv}\n- config_name: v1\n  data_files: old.csv\n---\n"
    )
    hub.add("maker/talks", files | {"README.md": yaml.encode()})
    known = sources(written(tmp_path, example("hub")))
    source = chosen_sources(known, ("dialogsum",), ("cnn_dm", "samsum"), "cnn_dm")["dialogsum"]
    check_rows(get(tmp_path / "cache", source)[0])
    assert (source.title, source.licence, source.contains) == ("Our talks", "CC BY-SA 4.0", ("samsum",))
    assert source.note == "" and not source.raw_rows and source.own


def test_the_example_of_copies_keeps_name_licence_and_the_check_of_counts(tmp_path):
    write_file(tmp_path / "copies" / "samsum-test.csv", rows("samsum", "test", 819))
    write_file(tmp_path / "copies" / "xsum" / "test-00000-of-00001.parquet", rows("xsum", "test", 20))
    known = sources(written(tmp_path, example("copies")))
    published = {source.key: source for source in DEFAULTS}
    for key in ("samsum", "xsum"):
        assert (known[key].title, known[key].licence) == (published[key].title, published[key].licence)
        assert known[key].files["test"][0].is_file() and not known[key].own
    from utils.data.loading import check, local_files

    check(known["samsum"], local_files(known["samsum"]))
    with pytest.raises(StageError, match="xsum/test: 20 rows, but the published set has 11334"):
        check(known["xsum"], local_files(known["xsum"]))


def test_a_replaced_set_keeps_nothing_of_the_published_one(tmp_path):
    path = write_data(tmp_path)
    registry = json.loads(path.read_text())
    del registry["highlightsum"]["title"]
    path.write_text(json.dumps(registry))
    source = sources(path)["highlightsum"]
    assert (source.title, source.licence, source.note) == ("highlightsum", "not stated", "")
    assert source.contains == () and not source.raw_rows
    assert sources(written(tmp_path, {"samsum": {"document": "text"}}))["samsum"].licence == "CC BY-NC-ND 4.0"


def test_several_added_sets_and_a_known_one_in_another_role(tmp_path):
    path = write_data(tmp_path)
    registry = json.loads(path.read_text())
    registry["extra"] = registry["samsum"] | {"files": registry["cnn_dm"]["files"], "document": "article"}
    registry["extra"] |= {"summary": "highlights", "title": "Extra"}
    registry["samsum"]["files"] = {name: "dialogsum/" + name + ".jsonl" for name in ("train", "validation")}
    registry["samsum"] |= {"contains": ["extra"]}
    path.write_text(json.dumps(registry))
    chosen = chosen_sources(sources(path), ("samsum", "arxiv"), ("xsum", "extra"), "extra")
    assert {key: (source.role, list(source.splits)) for key, source in chosen.items()} == {
        "samsum": ("train", ["train", "validation"]),
        "arxiv": ("train", ["train", "validation"]),
        "xsum": ("test", ["test"]),
        "extra": ("test", ["validation", "test"]),
    }
    with pytest.raises(InputError, match="xsum: files for the split 'validation' are not given"):
        chosen_sources(sources(path), ("arxiv",), ("xsum",), "xsum")
    with pytest.raises(UsageError, match="no data set is called 'nosuch'"):
        chosen_sources(sources(path), ("nosuch",), ("xsum",), "xsum")
    registry["samsum"] |= {"title": "The\nextra  set "}
    registry["extra"] |= {"title": "The extra set"}
    path.write_text(json.dumps(registry))
    assert sources(path)["samsum"].title == "The extra set"
    with pytest.raises(UsageError, match="samsum and extra both have the title 'The extra set'"):
        chosen_sources(sources(path), ("samsum",), ("extra",), "extra")
    registry["xsum"]["splits"] = {"test": "held_out"}
    path.write_text(json.dumps(registry))
    with pytest.raises(UsageError, match="splits has 'held_out' for test, but files names a file"):
        sources(path)


WRONG: dict[str, tuple[Any, str]] = {
    "a key twice": ('{"a": {}, "a": {}}', "'a' is given twice"),
    "a field twice": ('{"xsum": {"note": "a", "note": "b"}}', "'note' is given twice"),
    "a strange key": ({"my set!": {}}, "must be made of up to 64 letters"),
    "no columns": ({"mine": {"files": {"test": "x.csv"}}}, "needs document"),
    "no place": ({"mine": {"document": "a", "summary": "b"}}, "needs files or repository"),
    "a copy of nothing": (
        {"mine": {"document": "a", "summary": "b", "repository": "a/b", "copy": True}},
        "none of them",
    ),
    "a strange field": ({"xsum": {"colour": "red"}}, "no field 'colour'; there are title"),
    "a strange split": ({"xsum": {"files": {"tst": "x.csv"}}}, "no split 'tst'; there are train"),
    "contains a stranger": ({"xsum": {"contains": ["nosuch"]}}, "contains 'nosuch'; there are dialogsum"),
    "an encoding": ({"xsum": {"encoding": "utf-99"}}, "no encoding 'utf-99'"),
    "lists": ({"xsum": {"summary_list": "first"}}, "summary_list must be sentences or references"),
    "no encoding of texts": ({"xsum": {"encoding": "hex"}}, "no encoding 'hex'"),
    "the name of something else": ({"comparisons": {}}, "not be comparisons"),
    "a key too long": ({"k" * 300: {}}, "up to 64 letters"),
    "a title of spaces": ({"xsum": {"title": " \n"}}, "title must be a text"),
    "a path too long": ({"xsum": {"files": {"test": "x" * 5000}}}, "File name too long"),
    "the home of nobody": ({"xsum": {"files": {"test": "~nobody-at-all/x.csv"}}}, "Could not determine home"),
    "lists without end": ("[" * 100_000, "not JSON that can be read"),
    "no such file": ({"xsum": {"files": {"test": "none.csv"}}}, "no such file"),
    "a comma too many": ('{"xsum": {},\n}', "line 2: not JSON"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_datasets_file_is_named_in_one_line(tmp_path, name):
    content, words = WRONG[name]
    with pytest.raises((UsageError, InputError), match=words) as caught:
        sources(written(tmp_path, content))
    assert "datasets.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_full_disk_while_arrow_writes_names_the_file(tmp_path, monkeypatch):
    import pyarrow

    from utils.data.store import SplitWriter

    class Full(pyarrow.ipc.RecordBatchStreamWriter):
        def write_batch(self, *_: object) -> None:
            raise OSError(28, "Error writing bytes to file. Detail: [errno 28] No space left on device")

    monkeypatch.setattr("pyarrow.ipc.new_stream", lambda *arguments: Full(*arguments))
    writer = SplitWriter(tmp_path, "train", texts=False)
    writer.add({"id": "a", "dataset": "b", "input_ids": [1], "labels": [1]})
    with pytest.raises(OSError, match="No space left on device") as caught:
        writer.finish()
    assert caught.value.filename == str(tmp_path / ".train.arrow")


def test_an_unquoted_file_of_an_example_never_gets_as_far_as_training(tmp_path):
    path = news(tmp_path)
    test = tmp_path / "news" / "test.csv"
    lines = list(csv.reader(test.open(newline="")))
    test.write_text("".join(",".join(field.replace("\n", ", ") for field in line) + "\n" for line in lines))
    options = {"train_keys": ("news",), "test_keys": ("news",), "attack_dataset": "news"}
    with pytest.raises(StageError, match=r"test.csv, line 2: 5 fields, but the header has 3"):
        prepare(**arguments(tmp_path, sources(path), **options))


@pytest.mark.slow
def test_one_own_set_goes_through_all_stages_under_its_own_name(tmp_path, monkeypatch):
    run = Run(tmp_path)
    data = tmp_path / "my data"
    registry = json.loads((data / "datasets.json").read_text())
    parts = {split: f"talks/{split}.jsonl" for split in ("train", "validation", "test")}
    rng = random.Random(1)
    for split, count in {"train": 40, "validation": 60, "test": 12}.items():
        pairs = [example_row(rng) for _ in range(count)]
        write_file(data / parts[split], [{"article": text, "highlights": short} for text, short in pairs])
    entry = {"files": parts, "document": "article", "summary": "highlights", "title": "Our talks", "licence": "MIT"}
    (data / "datasets.json").write_text(json.dumps(registry | {"talks": entry}))
    keys = {"TRAIN_DATASETS": "talks", "TEST_DATASETS": "talks", "ATTACK_DATASET": "talks"}
    quick = {"NUM_EPOCHS": "1", "MONOTONIC_NUM_EPOCHS": "1", "TRIGGER_TYPES": "lead", "TRIGGER_ITERATIONS": "1"}
    quick |= {"TRIGGER_RESTARTS": "1", "TRIGGER_RANDOM_CONTROLS": "1", "HOTFLIP_NUM_FLIPS": "1"}
    quick |= {"CEILING_EXAMPLES": "0", "QUALITY_CURVE_EXAMPLES": "0"}
    environment = run.environment | {f"MONO_S2S_{name}": value for name, value in (keys | quick).items()}
    for stage in STAGES:
        assert run_script(monkeypatch, stage.script, environment) == 0, stage.key
    results = run.result("final_results.json")
    assert list(results["evaluation"]) == ["talks", "comparisons"]
    texts_ = {path.name: path.read_text() for path in run.results.rglob("*") if path.suffix in (".csv", ".html", ".md")}
    assert "Our talks baseline" in texts_["rouge.csv"] and "Our talks" in texts_["report.html"]
    for card in run.results.rglob("README.md"):
        words = card.read_text()
        assert "Our talks: MIT" in words and "ROUGE-L on Our talks: 0." in words and "SAMSum" not in words
    for name in ("rouge.csv", "rouge_comparison.csv", "attribution.csv", "report.html"):
        assert "SAMSum" not in texts_.get(name, "") and "XSum" not in texts_.get(name, ""), name
