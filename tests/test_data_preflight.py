"""test_dataset_loading.py: the table says what works and what does not, and keeps nothing."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from tests.data_world import rows
from tests.test_data_hub import CSV, DATA, SOURCE, as_parquet, hub  # noqa: F401 - the fixture
from tests.tiny import write_data
from utils.data_preflight import look

ROOT = Path(__file__).resolve().parents[1]


def test_rows_come_by_ranges_from_the_first_place_that_works(hub, tmp_path):  # noqa: F811
    big = {f"default/{split}/0000.parquet": as_parquet(data, tmp_path) for split, data in DATA.items()}
    hub.add("maker/set", {"README.md": b"a script repository", "set.py": b"x"}, {"refs/convert/parquet": big})
    found = look(SOURCE)
    assert not found.problem and found.where == "maker/set@refs/convert/parquet"
    assert found.rows == "train 3, validation 3" and "loading script" in found.advice
    hub.add("maker/csv", CSV)
    assert look(replace(SOURCE, repository="maker/csv", mirrors=())).rows == "train 3, validation 3"


def test_what_does_not_work_is_named_with_what_to_do(hub, tmp_path):  # noqa: F811
    gone = look(replace(SOURCE, repository="nobody/nothing", mirrors=()))
    assert "nobody/nothing" in gone.problem and "DATASETS_FILE" in gone.advice
    renamed = [{"talk": row["dialogue"], "summary": row["summary"]} for row in rows("dialogsum", "train", 4)]
    data = as_parquet(renamed, tmp_path)
    hub.add("maker/renamed", {f"data/{split}-00000-of-00001.parquet": data for split in DATA})
    found = look(replace(SOURCE, repository="maker/renamed", mirrors=()))
    assert "dialogue" in found.problem and "talk" in found.problem
    hub.down = True
    assert look(SOURCE).problem


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
