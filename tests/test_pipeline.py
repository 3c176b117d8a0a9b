"""The whole experiment on local files with a tiny T5, as `./run_all.sh --local` runs it: every contract file is there.

This is also the proof of "your own data and model": nothing here can reach a hub.
"""

import csv
import json
import math
import os
import re
import sys
from pathlib import Path

import pytest

from tests.pipeline_world import ROOT, SEED

pytestmark = pytest.mark.slow


def test_every_file_of_the_contract_is_there(done):
    names = [
        "setup_complete.json",
        "data_statistics.json",
        "baseline_training_history.json",
        "monotonic_training_history.json",
        "evaluation_results.json",
        "predictions.jsonl",
        "uat_results.json",
        "learned_triggers.csv",
        "hotflip_results.json",
        "final_results.json",
        "experiment_summary.txt",
        "report.html",
    ]
    for name in names:
        assert (done.results / name).stat().st_size > 0, name
        assert (done.final / name).read_bytes() == (done.results / name).read_bytes(), name
    for model in ("baseline_model", "monotonic_model"):
        folder = done.work / f"seed_{SEED}" / model
        assert (folder / "epoch_1").is_dir() and (folder / "best" / "config.json").is_file()
    flags = {path.name for path in done.work.glob("*.flag")}
    assert {"stage_0_setup.flag", "stage_1_prepare_data.flag", f"stage_7_aggregate_seed{SEED}.flag"} <= flags


def test_metadata_lead_from_every_number_to_what_made_it(done):
    for path in done.results.glob("*.json"):
        facts = json.loads(path.read_text())["_metadata"]
        assert {"timestamp", "run_id", "seed", "unix_timestamp", "code", "config_fingerprint"} <= set(facts), path
    facts = json.loads((done.results / "evaluation_results.json").read_text())["_metadata"]
    assert set(facts["checkpoints"]) == {"standard", "baseline", "monotonic"}
    assert len(set(facts["checkpoints"].values())) == 3
    assert facts["seed"] == SEED and facts["profile"] == "full"


def test_evaluation_has_means_with_intervals_and_every_summary(done):
    results = done.result("evaluation_results.json")
    for dataset in ("cnn_dm", "xsum", "samsum"):
        for model in ("standard", "baseline", "monotonic"):
            assert results[dataset][model]["num_examples"] == 12
            for metric in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
                interval = results[dataset][model][metric]
                assert 0 <= interval["lower"] <= interval["mean"] <= interval["upper"] <= 1
        assert set(results["comparisons"][dataset]) == {"rouge1", "rouge2", "rougeL", "rougeLsum"}
    rows = [json.loads(line) for line in (done.results / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * 3 * 12
    mine = [row["rougeL"] for row in rows if (row["dataset"], row["model"]) == ("xsum", "baseline")]
    assert math.isclose(sum(mine) / len(mine), results["xsum"]["baseline"]["rougeL"]["mean"], abs_tol=1e-9)


def test_training_histories_differ_in_the_warm_up_alone(done):
    baseline, monotonic = (done.result(f"{arm}_training_history.json") for arm in ("baseline", "monotonic"))
    different = {name for name in baseline["settings"] if baseline["settings"][name] != monotonic["settings"].get(name)}
    assert different == {"warmup_ratio"}
    assert len(baseline["epochs"]) == len(monotonic["epochs"]) == 2
    for epoch in monotonic["epochs"]:
        assert epoch["train_loss"] > 0 and epoch["validation_loss"] > 0 and epoch["cumulative_seconds"] > 0


def test_attacks_cover_all_models_and_types(done):
    hotflip, uat = done.result("hotflip_results.json"), done.result("uat_results.json")
    for model in ("standard", "baseline", "monotonic"):
        assert {"mean_degradation", "success_rate", "num_attackable", "num_skipped", "mean_loss_increase"} <= set(
            hotflip[model]
        )
        assert hotflip[model]["mean_loss_increase"] >= 0
        for kind in ("lead", "natural"):
            cell = uat[model][kind]
            assert {"trigger_text", "trigger_ids", "clean", "attacked", "delta_rougeL", "nll_increase"} <= set(cell)
            assert len(cell["trigger_ids"]) == 5
            assert set(uat["transfer_matrix"][kind][model]) == {"standard", "baseline", "monotonic"}
        assert set(hotflip["transfer_matrix"][model]) == {"standard", "baseline", "monotonic"}
    with (done.results / "learned_triggers.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == ["model", "trigger_type", "trigger_text", "trigger_ids"] and len(rows) == 6


def test_clean_summaries_are_made_once_by_stage_4(done):
    rows = [json.loads(line) for line in (done.results / "predictions.jsonl").read_text().splitlines()]
    said = {(row["model"], row["id"]): row["prediction"] for row in rows if row["dataset"] == "cnn_dm"}
    attacks = [json.loads(line) for line in (done.results / "hotflip_records.jsonl").read_text().splitlines()]
    attacks = [row for row in attacks if row["section"] == f"attack/{row['model']}"]
    assert len(attacks) == 3 * len({row["id"] for row in attacks}) > 0
    assert all(row["clean_prediction"] == said[row["model"], row["id"]] for row in attacks)
    units = done.work / f"seed_{SEED}" / "hotflip_units"
    made = list(units.rglob("clean.jsonl"))  # those of training's snapshots, which stage 4 never saw
    assert units.is_dir() and all(units / "quality" in path.parents for path in made)


def test_a_second_run_finds_all_done(done):
    result = done.all()
    assert result.returncode == 0 and "done" in result.stdout


def test_a_changed_setting_reruns_its_stages_and_says_why(done):
    result = done.all("--dry-run", MONO_S2S_LEARNING_RATE="2e-2")
    assert result.returncode == 0
    assert "LEARNING_RATE 0.01 -> 0.02" in result.stdout


def test_a_stage_refuses_stale_inputs_with_exit_3(done):
    script = str(ROOT / "scripts" / "stage_4_evaluate.py")
    result = done(sys.executable, script, "--seed", str(SEED), MONO_S2S_LEARNING_RATE="2e-2")
    assert result.returncode == 3 and "LEARNING_RATE" in result.stdout


@pytest.mark.parametrize(
    ("change", "words", "code"),
    [
        (lambda data: data["xsum"]["files"].update(test="nowhere.jsonl"), "nowhere.jsonl", 3),
        (lambda data: data["xsum"].update(document="text"), "text", 1),
    ],
    ids=["missing file", "missing column"],
)
def test_bad_data_is_one_clear_line(done, tmp_path, change, words, code):
    original = Path(done.environment["MONO_S2S_DATASETS_FILE"])
    data = json.loads(original.read_text())
    for entry in data.values():
        entry["files"] = {split: str(original.parent / name) for split, name in entry["files"].items()}
    change(data)
    (tmp_path / "datasets.json").write_text(json.dumps(data))
    scratch = tmp_path / "scratch"
    environment = {"SCRATCH": str(scratch), "MONO_S2S_DATASETS_FILE": str(tmp_path / "datasets.json")}
    python = (sys.executable, "-B")
    assert done(*python, str(ROOT / "scripts" / "stage_0_setup.py"), **environment).returncode == 0
    result = done(*python, str(ROOT / "scripts" / "stage_1_prepare_data.py"), **environment)
    assert result.returncode == code, result.stdout + result.stderr
    assert words in result.stdout.splitlines()[-1] and "Traceback" not in result.stdout + result.stderr
    assert not (scratch / "mono_s2s_work" / "prepared_data").exists()


def test_a_data_file_that_was_cut_in_half_is_seen_by_the_next_command(done):
    path = next(Path(done.environment["MONO_S2S_DATASETS_FILE"]).parent.rglob("train.jsonl"))
    content, stat = path.read_bytes(), path.stat()
    try:
        path.write_bytes(content[: len(content) // 2])
        planned = done.all("--dry-run").stdout
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert re.search(rf"1_prepare_data +will run: its input DATASETS_FILE/.*{path.name} was changed", planned), planned
    assert re.search(r"1_prepare_data +done\n", done.all("--dry-run").stdout)
