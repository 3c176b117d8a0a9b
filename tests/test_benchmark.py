"""The benchmarks at tiny shapes: every case runs, its checks hold, and a way that computes something else is caught."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils.benchmarks import attacks, generation, measure, report, training
from utils.benchmarks.synthetic import SIZES, examples, new_model, tokenizer, word

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "benchmark.py"
TINY = SIZES["tiny"]


@pytest.mark.parametrize("module", [training, generation, attacks], ids=lambda module: module.__name__.split(".")[-1])
def test_case_runs_checks_and_reports(module) -> None:
    for comparison in module.case(TINY, "cpu"):
        assert comparison.checks, comparison.title
        assert all(len(way.seconds) == TINY.rounds for way in comparison.ways)
        text = report.as_text(comparison)
        assert all(way.name in text for way in comparison.ways) and comparison.checks[0] in text
        kept = json.loads(json.dumps(report.as_json(comparison), allow_nan=False))
        assert [row["ratio"] > 0 for row in kept["ways"]] == [True] * len(comparison.ways)
        assert kept["ways"][0]["per_second"] == comparison.ways[0].items / comparison.ways[0].median


def test_a_training_of_other_weights_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = training.load_model

    def other_weights(*arguments):
        model = honest(*arguments)
        with torch.no_grad():
            model.shared.weight += 0.01
        return model

    monkeypatch.setattr(training, "load_model", other_weights)  # the one that Seq2SeqTrainer gets
    with pytest.raises(AssertionError, match="do not agree: mean loss"):
        training.case(TINY, "cpu")


def test_other_summaries_and_other_losses_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    search, loss = generation.beam_search, attacks._loss
    monkeypatch.setattr(generation, "beam_search", lambda *a: [[7, *ids[1:]] for ids in search(*a)])
    with pytest.raises(AssertionError, match="float64 summaries"):
        generation.case(TINY, "cpu")
    monkeypatch.setattr(attacks, "_loss", lambda *a, **k: 1.001 * loss(*a, **k))
    with pytest.raises(AssertionError, match="losses of attacked texts"):
        attacks.case(TINY, "cpu")


def test_ratio_is_of_rates_round_by_round() -> None:
    ways = [measure.Way("ours", lambda: None, 8, seconds=[2.0, 4.0]), measure.Way("other", lambda: None, 2)]
    ways[1].seconds = [1.0, 2.0]  # the second round was slow for both
    comparison = measure.Comparison("made up", "things", ways)
    assert comparison.ratio(ways[1]) == pytest.approx(2.0)
    assert "2.00 x" in report.as_text(comparison)


def test_the_share_of_the_peak_follows_from_the_operations() -> None:
    way = measure.Way("ours", lambda: None, 1, flops=3e9, seconds=[1.0, 3.0, 2.0])
    comparison = measure.Comparison("made up", "things", [way], matmul_peak=2e9)
    assert comparison.share_of_peak(way) == pytest.approx(0.75)
    assert measure.matmul_peak(torch.float32, repetitions=1) > 1e8


def test_operations_of_a_pass_are_those_of_t5s_products() -> None:
    """Counted by hand: every weight matrix a token passes through, and attention, 2 operations a multiplication."""
    hotflip, *_ = attacks.case(TINY, "cpu")
    words = tokenizer(TINY.vocabulary)
    lengths = [
        (len(words("summarize: " + e.document).input_ids), len(words(e.summary).input_ids))
        for e in examples(2, TINY, 3)
    ]
    inner, d, ff, v = TINY.heads * TINY.d_kv, TINY.d_model, TINY.d_ff, TINY.vocabulary

    def operations(source: int, target: int) -> int:
        source, target = min(source, TINY.max_input), min(target, TINY.max_target)
        encoder = source * (4 * d * inner + 2 * d * ff) + 2 * source**2 * inner
        decoder = target * (6 * d * inner + 2 * d * ff + d * v) + source * 2 * d * inner
        return 2 * (encoder + decoder + 2 * target**2 * inner + 2 * target * source * inner)

    expected = sum(operations(*pair) for pair in lengths) / len(lengths)
    assert hotflip.ways[0].flops == pytest.approx(expected * hotflip.ways[0].items)


def test_made_up_words_are_single_tokens() -> None:
    words = tokenizer(TINY.vocabulary)
    assert len(words) == new_model(TINY, "cpu").config.vocab_size - 28
    assert words(f"summarize: {word(0)} {word(5)}.").input_ids == [3, 4, 6, 11, 5, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sorting"], "invalid choice: 'sorting'"),
        (["training", "--rounds", "0"], "--rounds: must be at least 1"),
        (["training", "--json", "/nowhere/x.json"], "is not a directory"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    done = _run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]


def test_help_imports_no_torch_and_cases_write_json(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('imported for nothing')")
    help_text = _run("--help", PYTHONPATH=str(tmp_path))
    assert help_text.returncode == 0
    assert all(name in help_text.stdout for name in ("training", "generation", "attacks", "all", "--size", "--json"))
    file = tmp_path / "kept.json"
    done = _run("generation", "--size", "tiny", "--device", "cpu", "--rounds", "1", "--json", str(file))
    assert done.returncode == 0, done.stderr
    kept = json.loads(file.read_text())
    assert {"date", "commit", "device", "torch"} <= set(kept) and kept["device"] in done.stdout
    assert kept["cases"]["generation"][0]["ways"][1]["ratio"] > 0


def _run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables}, check=False)
