"""verify_results.py: a run as it was made matches; a changed number, record or file is named."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.pipeline_world import ROOT


@pytest.fixture
def copied(done, tmp_path):
    return shutil.copytree(done.final, tmp_path / done.final.name)


def verify(directory):
    command = [sys.executable, str(ROOT / "scripts" / "verify_results.py"), str(directory)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/")


def change(path, edit) -> None:
    envelope = json.loads(path.read_text())
    edit(envelope["results"])
    path.write_text(json.dumps(envelope))


def test_an_untouched_run_matches(copied):
    result = verify(copied)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("ok ") == 6 and "everything matches" in result.stdout


def test_a_tampered_number_is_caught_even_where_both_files_were_changed(copied):
    def better(results):
        results["cnn_dm"]["monotonic"]["rougeL"]["mean"] += 0.01

    change(copied / "evaluation_results.json", better)
    change(copied / "final_results.json", lambda results: better(results["evaluation"]))
    result = verify(copied)
    assert result.returncode == 1 and "cnn_dm.monotonic.rougeL.mean" in result.stdout


def test_a_tampered_attack_and_verdict_are_caught(copied):
    change(copied / "hotflip_results.json", lambda results: results["monotonic"].update(success_rate=0.01))
    result = verify(copied)
    assert result.returncode == 1 and "monotonic.success_rate: 0.01 in the file" in result.stdout
    assert "final_results.json holds" in result.stdout.split("MISMATCH")[1]


@pytest.mark.parametrize("name", ["predictions.jsonl", "hotflip_records.jsonl", "uat_records.jsonl"])
def test_a_record_that_is_gone_is_caught(copied, name):
    lines = (copied / name).read_text().splitlines()
    (copied / name).write_text("\n".join(lines[:-1]) + "\n")
    result = verify(copied)
    assert result.returncode != 0 and "Traceback" not in result.stderr, result.stdout + result.stderr


def test_what_is_missing_is_named(copied, tmp_path):
    (copied / "uat_results.json").unlink()
    result = verify(copied)
    assert result.returncode == 3 and "uat_results.json" in result.stderr
    assert verify(tmp_path / "nowhere").returncode == 3
