"""test_dataset_loading.py: the table says what works and what does not, and keeps nothing."""

import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.data_world import rows
from tests.test_data_hub import CSV, DATA, SOURCE, as_parquet, hub  # noqa: F401 - the fixture
from tests.tiny import write_data
from utils.core.files import write_json
from utils.core.paths import Paths
from utils.core.results import write_result
from utils.core.settings import load_settings
from utils.data.hub import Pin, pin_record
from utils.data.preflight import look
from utils.data.registry import DEFAULTS
from utils.operations import validation

ROOT = Path(__file__).resolve().parents[1]


def test_rows_come_by_ranges_from_the_first_place_that_works(hub, tmp_path):  # noqa: F811
    big = {f"default/{split}/0000.parquet": as_parquet(data, tmp_path) for split, data in DATA.items()}
    hub.add("maker/set", {"README.md": b"a script repository", "set.py": b"x"}, {"refs/convert/parquet": big})
    found = look(SOURCE)
    assert found.works and found.where == "maker/set@refs/convert/parquet"
    assert found.rows == "train 20, validation 6" and "loading script" in found.reasons[0]
    hub.add("maker/csv", CSV)
    assert look(replace(SOURCE, repository="maker/csv", mirrors=())).rows == "train 20, validation 6"


def test_what_does_not_work_is_named_with_what_to_do(hub, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("utils.data.preflight.DELAY", 0.01)
    gone = look(replace(SOURCE, repository="nobody/nothing", mirrors=()))
    assert "nobody/nothing" in gone.reasons[0] and "DATASETS_FILE" in gone.advice and not gone.works
    renamed = [{"talk": row["dialogue"], "summary": row["summary"]} for row in rows("dialogsum", "train", 4)]
    data = as_parquet(renamed, tmp_path)
    hub.add("maker/renamed", {f"data/{split}-00000-of-00001.parquet": data for split in DATA})
    found = look(replace(SOURCE, repository="maker/renamed", mirrors=()))
    assert "dialogue" in found.reasons[0] and "talk" in found.reasons[0]
    hub.add("maker/set", {f"data/{split}.parquet": as_parquet(part, tmp_path) for split, part in DATA.items()})
    hub.fault("GET .*[.]parquet", "reset")
    assert look(SOURCE).works  # what passes is tried again
    hub.fault("GET .*[.]parquet", "status", status=503, times=-1)
    broken = look(SOURCE)
    assert "503" in broken.reasons[0] and not broken.hub_down
    hub.gated.add("maker/set")
    hub.faults.clear()
    gated = look(SOURCE)
    assert "/datasets/maker/set, accept its terms, export HF_TOKEN" in gated.advice and not gated.works
    hub.down = True
    down = look(SOURCE)
    assert down.hub_down and "where there is internet" in down.advice
    for found in (gone, broken, gated, down):
        assert not any("\n" in words for words in (*found.reasons, found.advice))


def test_the_command_on_local_files(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MONO_S2S_")}
    environment |= {"MONO_S2S_DATASETS_FILE": str(write_data(tmp_path / "data")), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "test_dataset_loading.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0 and "6 of 6 data sets can be had" in done.stdout, done.stdout + done.stderr
    environment["MONO_S2S_DATASETS_FILE"] = str(tmp_path / "none.json")
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 3 and "none.json" in done.stderr
    assert subprocess.run([*command, "--fast"], capture_output=True).returncode == 2


@pytest.mark.slow
def test_the_command_does_not_go_on_asking_a_hub_that_is_down():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MONO_S2S_", "HF_"))}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "test_dataset_loading.py")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stdout.count("not asked") == 5 and not done.stderr
    assert "0 of 6 data sets can be had" in done.stdout


def test_validate_tells_whether_nodes_without_internet_will_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    paths, done = Paths(tmp_path, tmp_path, cache=tmp_path / "hf_cache"), {0, 1}
    problem_of = lambda stage, *_: None if stage.number in done else "not run"  # noqa: E731
    monkeypatch.setattr(validation, "problem_of", problem_of)

    def said() -> tuple[str, str]:
        (check,) = validation._inputs(load_settings(), paths)
        return check.state, check.text

    for missing, state in (({}, "ok"), ({"samsum": "gone"}, "warning")):
        write_result(paths.results_root / "data_statistics.json", {"missing": missing}, {})
        assert said()[0] == state and "need no network" in said()[1] and all(key in said()[1] for key in missing)
    done.remove(1)
    assert said()[0] == "PROBLEM" and "the hub does not answer" in said()[1]
    for source in DEFAULTS:  # an earlier run asked for all of them
        pin = Pin(source.repository, "main", "0" * 40, ())
        write_json(pin_record(paths.cache, source.repository, "main"), asdict(pin))
    assert said()[0] == "warning" and "stage 1 can take all from" in said()[1]
