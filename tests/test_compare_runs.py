"""Two runs side by side, worked out by hand: two small directories whose figures fit on paper.

ROUGE-L of model baseline on XSum. Example 3 has another reference in the second run, 4 and 5 are in one run alone:

    example     1     2     3     4     5
    run A       0.2   0.4   0.6   0.8         mean of A: 0.5
    run B       0.5   0.6   0.1         0.4   mean of B: 0.4
    B - A       0.3   0.2   -                 paired: 0.25 over 2 examples

HotFlip on monotonic, six examples with the same references; the sixth is skipped in B. Relative drops (15 % succeeds):

    example     1      2      3     4     5     6
    run A       0.50   0.15   0.3   0.2   0.9   0.0    5 of 6 succeed
    run B       0.10   0.14   0.0   0.1   0.9   -      1 of 5 succeeds
    common: five; A alone succeeds on four, B alone on none: McNemar p = 2 * (1/2)^4 = 0.125; B - A = -80 points
    loss rises: A 1.0 each, B 0.5 each: B - A = -0.5
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from tests.pipeline_world import in_process
from utils.analysis.comparisons import PairedTest, SuccessTest
from utils.analysis.run_comparison import compare_runs
from utils.core.files import write_jsonl

SCORES = {"A": {1: 0.2, 2: 0.4, 3: 0.6, 4: 0.8}, "B": {1: 0.5, 2: 0.6, 3: 0.1, 5: 0.4}}
DROPS = {"A": [0.5, 0.15, 0.3, 0.2, 0.9, 0.0], "B": [0.1, 0.14, 0.0, 0.1, 0.9, None]}
SETTINGS = {"ATTACK_SUCCESS_THRESHOLD": 0.15, "BOOTSTRAP_SAMPLES": 200, "DATA_SEED": 0, "CONFIDENCE": 0.95}


def prediction(run: str, number: int, score: float) -> dict[str, Any]:
    reference = f"reference {number}" + (" of B" if (run, number) == ("B", 3) else "")
    scores = dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum"), score)
    names = {"dataset": "xsum", "model": "baseline", "id": f"xsum/test/{number}"}
    return names | {"prediction": "p", "reference": reference} | scores


def attack(run: str, number: int, drop: float | None) -> dict[str, Any]:
    row = {"section": "attack/monotonic", "id": str(number), "model": "monotonic", "method": "gradient"}
    if drop is None:
        return row | {"skipped": "no room"}
    rise = 1.0 if run == "A" else 0.5
    figures = {"clean_rougeL": 0.5, "attacked_rougeL": 0.5 * (1 - drop), "relative_drop": drop, "success": drop >= 0.15}
    return row | {"skipped": None, "loss_increase": rise, "reference": f"r {number}"} | figures


def directory(root: Path, run: str, **settings: object) -> Path:
    metadata = {
        "seed": 1, "profile": "full", "code": {"commit": "c" * 40, "dirty": False}, "device": "CPU",
        "missing_datasets": {},
        "checkpoints": {"standard": "0" * 64, "baseline": run * 64, "monotonic": f"m{run}"}, "versions": {"torch": "2"},
        "settings": SETTINGS | settings,
    }  # fmt: skip
    path = root / run
    path.mkdir()
    (path / "final_results.json").write_text(json.dumps({"results": {}, "_metadata": metadata}))
    prepared = {"prepared": {"train": {"rows": 3, "sha256": "1"}}}
    (path / "data_statistics.json").write_text(json.dumps({"results": prepared, "_metadata": metadata}))
    write_jsonl(path / "predictions.jsonl", [prediction(run, n, score) for n, score in SCORES[run].items()])
    write_jsonl(path / "hotflip_records.jsonl", [attack(run, n, drop) for n, drop in enumerate(DROPS[run])])
    search = {"section": "search/lead/baseline", "written_by": "another revision"}  # not looked at
    write_jsonl(path / "uat_records.jsonl", [search])
    return path


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [directory(tmp_path, "A", LEARNING_RATE=5e-5), directory(tmp_path, "B", LEARNING_RATE=1e-4)]


def test_figures_are_those_worked_out_by_hand(runs: list[Path]) -> None:
    comparison = compare_runs(*runs)
    quality, success, rise = comparison.rows
    assert quality.place == ("xsum", "baseline") and quality.sizes == (4, 4) and quality.common == 2
    assert (quality.a, quality.b) == (pytest.approx(0.5), pytest.approx(0.4))
    assert isinstance(quality.test, PairedTest) and quality.test.difference == pytest.approx(0.25)
    assert success.place == ("HotFlip", "monotonic") and success.sizes == (6, 5) and success.common == 5
    assert (success.a, success.b) == (pytest.approx(5 / 6), pytest.approx(1 / 5))
    assert isinstance(success.test, SuccessTest) and success.test.difference == pytest.approx(-0.8)
    assert success.test.p_value == pytest.approx(stats.binomtest(4, 4).pvalue) == pytest.approx(0.125)
    assert isinstance(rise.test, PairedTest) and rise.test.difference == pytest.approx(-0.5)
    # Holm over the three rows: every corrected p is at least the raw one, the smallest is three times it.
    ps = sorted((row.test.p_value, row.test.p_value_holm) for row in comparison.rows if row.test)
    assert ps[0][1] == pytest.approx(min(1.0, 3 * ps[0][0])) and all(raw <= holm for raw, holm in ps)
    turned = compare_runs(*reversed(runs)).rows
    assert [row.test.difference for row in turned if row.test] == pytest.approx([-0.25, 0.8, 0.5])


def test_what_differs_is_said_in_words(runs: list[Path], tmp_path: Path) -> None:
    assert compare_runs(*runs).differences == ["LEARNING_RATE: 5e-05 and 0.0001"]
    envelope = json.loads((runs[1] / "final_results.json").read_text())
    metadata = envelope["_metadata"]
    metadata |= {"seed": 2, "device": "GPU", "versions": {"torch": "3"}}
    metadata["checkpoints"] = {"standard": "9" * 64, "baseline": "A" * 64}
    del metadata["settings"]["LEARNING_RATE"]
    (runs[1] / "final_results.json").write_text(json.dumps(envelope))
    statistics = json.loads((runs[1] / "data_statistics.json").read_text())
    statistics["results"]["prepared"]["train"]["rows"] = 4
    (runs[1] / "data_statistics.json").write_text(json.dumps(statistics))
    assert compare_runs(*runs).differences == [
        "seed: 1 and 2",
        "pretrained weights: 000000000000... and 999999999999...",
        "device: CPU and GPU",
        "LEARNING_RATE: 5e-05 and not set",
        "torch: version 2 and 3",
        "data: other rows in train",
        "the weights of baseline are the same in both",
    ]


def test_the_command_prints_tables_and_refuses_in_a_line(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: object) -> tuple[int, str, str]:
        code = in_process(monkeypatch, "compare_runs", *map(str, words))
        return (code, *capsys.readouterr())

    code, out, _ = run(*runs)
    assert code == 0 and "- LEARNING_RATE: 5e-05 and 0.0001" in out
    line = next(line for line in out.splitlines() if line.startswith("XSum baseline"))
    assert "0.500" in line and "0.400" in line and "+0.250 [" in line and max(map(len, out.splitlines()[1:])) <= 110
    assert "83.3 %" in out and "20.0 %" in out and "-80.0 [" in out and "5, 6, 5" in out
    assert "| XSum baseline | 0.500 | 0.400 | +0.250 [" in run(*runs, "--format", "markdown")[1]
    assert r"\label{tab:runs_attacks}" in run(*runs, "--format", "latex")[1]
    assert run(runs[0])[0] == 2 and run(runs[0], runs[0])[0] == 2 and run(*runs, "--format", "x")[0] == 2
    code, _, problem = run(runs[0], runs[0].parent / "nowhere")
    assert code == 3 and problem.startswith("compare_runs.py: ") and "nowhere: no such directory" in problem
    (runs[1] / "predictions.jsonl").unlink()
    assert run(*runs)[0] == 3
