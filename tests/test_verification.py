"""verify_results.py: a run as it was made matches; whatever is changed on the way from data to tables is named."""

import json
import shutil

import pytest

from tests.pipeline_world import in_process
from utils.reports.verification import verify

pytestmark = pytest.mark.slow

EVERYTHING = 12  # checks


@pytest.fixture
def copied(done, tmp_path):
    return shutil.copytree(done.final, tmp_path / done.final.name)


def found(directory) -> dict[str, list[str]]:
    """Problems by the check that saw them, where there are any."""
    return {check.title: check.problems for check in verify(directory) if check.problems}


def change(path, edit) -> None:
    envelope = json.loads(path.read_text())
    edit(envelope["results"], envelope["_metadata"])
    path.write_text(json.dumps(envelope))


def change_row(path, edit, number=0) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    edit(rows[number])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_an_untouched_run_matches_and_a_changed_one_does_not(copied, tmp_path, monkeypatch, capsys):
    def run(directory):
        return in_process(monkeypatch, "verify_results", str(directory)), *capsys.readouterr()

    code, out, _ = run(copied)
    assert (code, out.count("ok ")) == (0, EVERYTHING) and "everything matches" in out, out
    change(copied / "hotflip_results.json", lambda r, m: r["monotonic"].update(success_rate=0.01))
    code, out, _ = run(copied)
    assert code == 1 and "monotonic.success_rate: 0.01 in the file" in out
    (copied / "uat_results.json").unlink()
    code, _, problem = run(copied)
    assert code == 3 and "uat_results.json" in problem
    assert run(tmp_path / "nowhere")[0] == 3


# Every link of the chain, with the later ones changed to fit where a forger could: (files, what must be named).
def forge_data(folder):
    def edit(results, metadata):
        results["sets"]["cnn_dm"]["splits"]["test"]["raw"] += 1

    change(folder / "data_statistics.json", edit)
    change(folder / "final_results.json", lambda r, m: edit(r["data"], m))


def forge_history(folder):
    def edit(results, metadata):
        results["epochs"][0]["train_loss"] = 0.1

    change(folder / "monotonic_training_history.json", edit)
    change(folder / "final_results.json", lambda r, m: edit(r["monotonic_training"], m))


def forge_weights(folder):
    path = folder / "models" / "monotonic" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def forge_prediction(folder):
    change_row(folder / "predictions.jsonl", lambda row: row.update(prediction=row["reference"]))


def forge_score(folder):
    change_row(folder / "hotflip_records.jsonl", lambda row: row.update(attacked_rougeL=0.5))


def forge_drop(folder):
    change_row(folder / "uat_records.jsonl", lambda row: row.update(relative_drop=0.5), number=-1)


def forge_evaluation(folder):
    def edit(results, metadata):
        results["cnn_dm"]["monotonic"]["rougeL"]["mean"] += 0.01

    change(folder / "evaluation_results.json", edit)
    change(folder / "final_results.json", lambda r, m: edit(r["evaluation"], m))


def forge_verdict(folder):
    change(folder / "final_results.json", lambda r, m: r["verdict"].update(attack="Monotonic is unbreakable."))


def forge_table(folder):
    path = folder / "tables" / "main.tex"
    path.write_text(path.read_text().replace("monotonic", "monotonic and better"))


def forge_page(folder):
    path = folder / "report.html"
    path.write_text(path.read_text().replace(" %", "0 %"))


def forge_figure(folder):
    path = folder / "figures" / "trade_off.svg"
    path.write_text(path.read_text().replace("monotonic", "baseline"))


def forge_card(folder):
    path = folder / "models" / "monotonic" / "README.md"
    path.write_text(path.read_text().replace("Limits", "Praise"))


def forge_triggers(folder):
    path = folder / "learned_triggers.csv"
    path.write_text(path.read_text().replace("lead", "tail"))


@pytest.mark.parametrize(
    ("forge", "where", "words"),
    [
        (forge_data, "hashes", "data_statistics.json was changed"),
        (forge_history, "hashes", "monotonic_training_history.json is not what evaluation_results.json"),
        (forge_weights, "weights", "models/monotonic is"),
        (forge_prediction, "scores in predictions.jsonl", "from its text"),
        (forge_score, "scores in hotflip_records.jsonl", "attacked: rougeL 0.5 in the file"),
        (forge_drop, "scores in uat_records.jsonl", "relative_drop 0.5 in the file"),
        (forge_evaluation, "evaluation_results.json from", "cnn_dm.monotonic.rougeL.mean"),
        (forge_verdict, "verdict", "verdict.attack"),
        (forge_table, "tables", "tables/main.tex differs"),
        (forge_page, "tables", "report.html does not show hotflip"),
        (forge_figure, "hashes", "figures/trade_off.svg was changed"),
        (forge_card, "tables", "models/monotonic/README.md differs"),
        (forge_triggers, "learned_triggers.csv", "differs"),
    ],
)
def test_a_forged_link_of_the_chain_is_named(copied, forge, where, words):
    forge(copied)
    problems = found(copied)
    named = [line for what, lines in problems.items() if what.startswith(where) for line in lines]
    assert any(words in line for line in named), problems


@pytest.mark.parametrize("name", ["predictions.jsonl", "hotflip_records.jsonl", "uat_records.jsonl"])
def test_a_record_that_is_gone_is_caught(copied, name):
    lines = (copied / name).read_text().splitlines()
    (copied / name).write_text("\n".join(lines[:-1]) + "\n")
    assert any(name in what and "results.json from" in what for what in found(copied))


def test_files_of_another_run_and_inputs_that_are_gone_are_said(copied):
    (copied / "tables" / "old.csv").write_text("an earlier run\n")
    change(copied / "hotflip_results.json", lambda r, m: m["inputs"].update({"/gone/best": "0" * 64}))
    (check, *_) = verify(copied)
    assert "tables/old.csv is not of this run" in check.problems
    assert check.unseen == ["/gone/best"]
