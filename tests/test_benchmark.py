"""The benchmarks at tiny shapes: every case runs, its checks hold, and a way that computes something else is caught."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils.benchmarks import measure, report, training
from utils.benchmarks.synthetic import SIZES, new_model, tokenizer, word

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "benchmark.py"


@pytest.mark.parametrize("name", ["training", "generation", "hotflip", "rouge", "bootstrap"])
def test_case_runs_checks_and_reports(name: str) -> None:
    found = importlib.import_module(f"utils.benchmarks.{name}").case(SIZES["tiny"], "cpu")
    for comparison in found:
        assert comparison.checks, comparison.title
        assert all(len(way.seconds) == SIZES["tiny"].rounds for way in comparison.ways)
        text = report.as_text(comparison)
        assert all(way.name in text for way in comparison.ways)
    kept = json.loads(json.dumps(report.as_json(report.circumstances("cpu", "tiny"), {name: found}), allow_nan=False))
    assert {"date", "commit", "device", "torch"} <= set(kept)
    assert [row["title"] for row in kept["cases"][name]] == [comparison.title for comparison in found]


def test_losses_that_differ_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = training.padded_steps

    def other_weights(model, *rest):  # type: ignore[no-untyped-def]
        with torch.no_grad():
            model.shared.weight += 0.01
        return honest(model, *rest)

    monkeypatch.setattr(training, "padded_steps", other_weights)
    with pytest.raises(AssertionError, match="do not agree: losses"):
        training.case(SIZES["tiny"], "cpu")


def test_ratio_is_of_rates_round_by_round() -> None:
    ways = [measure.Way("ours", lambda: None, 8, seconds=[2.0, 4.0]), measure.Way("other", lambda: None, 2)]
    ways[1].seconds = [1.0, 2.0]  # a slow second round slowed both
    found = measure.Comparison("made up", "things", ways, targets={"other": 3.0})
    assert found.ratio(ways[1]) == pytest.approx(2.0)
    assert report.missed(found) == ["made up: 2.00 x other, target 3.00 x"]


def test_flops_are_those_of_the_products_forward_and_backward() -> None:
    a, b = torch.randn(3, 5, requires_grad=True), torch.randn(5, 7)

    def work() -> None:
        (gradient,) = torch.autograd.grad((a @ b).sum(), a)
        assert gradient.shape == a.shape

    assert measure.count_flops(work) == 2 * 2 * 3 * 5 * 7
    with torch.inference_mode():
        assert measure.count_flops(lambda: torch.nn.functional.linear(torch.randn(2, 5), torch.randn(4, 5))) == 80
    query, keys = torch.randn(1, 2, 3, 8, requires_grad=True), torch.randn(1, 2, 5, 8)

    def attend() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, keys, keys)

    assert measure.count_flops(attend) == 2 * 2 * 2 * 3 * 5 * 8
    assert measure.count_flops(lambda: attend().sum().backward()) == 7 * 2 * 2 * 3 * 5 * 8


def test_made_up_words_are_single_tokens() -> None:
    words = tokenizer(SIZES["tiny"].vocabulary)
    assert len(words) == new_model(SIZES["tiny"]).config.vocab_size - 28
    ids = words(f"summarize: {word(0)} {word(5)}.").input_ids
    assert ids == [3, 4, 6, 11, 5, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sorting"], "invalid choice: 'sorting'"),
        (["rouge", "--rounds", "0"], "--rounds: must be at least 1"),
        (["rouge", "--threads", "0"], "--threads: must be at least 1"),
        (["rouge", "--json", "/nowhere/x.json"], "is not a directory"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    done = _run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]


def test_help_imports_no_torch_and_cases_write_json(tmp_path: Path) -> None:
    help_text = _run("--help", PYTHONPATH=str(_without_torch(tmp_path)))
    assert help_text.returncode == 0
    for name in ("training", "generation", "hotflip", "uat", "rouge", "bootstrap", "startup", "--size", "--json"):
        assert name in help_text.stdout
    file = tmp_path / "kept.json"
    done = _run("bootstrap", "--size", "tiny", "--device", "cpu", "--rounds", "1", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert json.loads(file.read_text())["cases"]["bootstrap"][0]["ways"][1]["ratio"] > 0


def _without_torch(folder: Path) -> Path:
    (folder / "torch.py").write_text("raise RuntimeError('imported for nothing')")
    return folder


def _run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        check=False,
    )
