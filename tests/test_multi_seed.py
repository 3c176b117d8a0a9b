"""Several seeds together: the sums against closed forms, and every pair that is not two independent runs refused."""

import copy
import html
import json
import shutil

import numpy as np
import pytest
from scipy import stats

from tests.pipeline_world import in_process
from utils.analysis.multi_seed import hierarchical_bootstrap, over_seeds

pytestmark = pytest.mark.slow

SEEDS = (1, 2, 3)


def change(path, edit) -> None:
    envelope = json.loads(path.read_text())
    edit(envelope["results"], envelope["_metadata"])
    path.write_text(json.dumps(envelope))


@pytest.fixture
def seeds(done, tmp_path):
    """Three seeds in permanent storage: a real run, its numbers shifted a little for each seed."""
    root = tmp_path / "project" / "mono_s2s_final_results"

    def shifted(seed):
        def edit(results, metadata):
            metadata["seed"] = seed
            for model in ("baseline", "monotonic"):
                metadata["checkpoints"][model] = f"{model} of seed {seed}"
                for key in ("cnn_dm", "xsum", "samsum"):
                    step = 0.02 if model == "monotonic" else 0.01 + 0.001 * seed
                    results["evaluation"][key][model]["rougeL"]["mean"] += seed * step

        return edit

    for seed in SEEDS:
        shutil.copytree(done.final, root / f"seed_{seed}")
        change(root / f"seed_{seed}" / "final_results.json", shifted(seed))
    return root


@pytest.fixture
def aggregate(seeds, monkeypatch, capsys):
    """The command: (exit code, what it said as an error)."""

    def run(*words):
        environment = {"PROJECT": str(seeds.parent), "SCRATCH": str(seeds.parent / "scratch")}
        code = in_process(monkeypatch, "aggregate_multi_seed", *words, environment=environment)
        return code, capsys.readouterr().err

    return run


def test_means_spreads_and_tests_are_those_of_scipy(seeds, aggregate):
    code, said = aggregate("1", "2", "3")
    assert code == 0, said
    target = seeds.parent / "mono_s2s_multi_seed_results"
    found = json.loads((target / "multi_seed_results.json").read_text())["results"]
    assert found["seeds"] == [1, 2, 3] and found["mixed"] == []
    for model in ("baseline", "monotonic"):
        own = [
            json.loads((seeds / f"seed_{seed}" / "final_results.json").read_text())["results"]["evaluation"]["xsum"][
                model
            ]
            for seed in SEEDS
        ]
        values = [cell["rougeL"]["mean"] for cell in own]
        cell = found["evaluation"]["xsum"][model]["rougeL"]
        assert cell["values"] == pytest.approx(values)
        assert cell["mean"] == pytest.approx(np.mean(values)) and cell["std"] == pytest.approx(np.std(values, ddof=1))
        low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
        assert (cell["lower"], cell["upper"]) == (pytest.approx(low), pytest.approx(high))
    test = found["monotonic_minus_baseline"]["xsum rougeL"]
    sides = [found["evaluation"]["xsum"][m]["rougeL"]["values"] for m in ("monotonic", "baseline")]
    assert test["p_value_t"] == pytest.approx(stats.ttest_rel(*sides).pvalue)
    assert test["p_value_wilcoxon"] == pytest.approx(stats.wilcoxon(np.subtract(*sides)).pvalue)
    assert test["p_value_holm"] >= test["p_value_t"] and test["family_size"] == 3
    page = (target / "report.html").read_text()
    assert found["verdict"] in html.unescape(page) and page.count("<svg") == 3
    assert len(list((target / "figures").iterdir())) == 6
    assert max(map(len, (target / "multi_seed_summary.txt").read_text().splitlines())) <= 110
    assert "http" not in page.replace("http://www.w3.org", "") and f"{values[0]:.4f}" in page
    assert len(list((target / "tables").iterdir())) == 10
    assert "seed 3" in (target / "multi_seed_summary.txt").read_text()


def test_missing_seeds_are_named(seeds, aggregate):
    code, said = aggregate("1", "8", "9")
    assert code == 3 and "seed 8, 9" in said
    assert not (seeds.parent / "mono_s2s_multi_seed_results").exists()


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda r, m: m["checkpoints"].update(monotonic="monotonic of seed 1"), "same monotonic weights"),
        (lambda r, m: m.update(seed=1), "holds the results of seed 1"),
    ],
)
def test_one_run_counted_twice_is_refused_whatever_is_allowed(seeds, aggregate, edit, words):
    change(seeds / "seed_2" / "final_results.json", edit)
    for allow in ([], ["--allow-mixed"]):
        code, said = aggregate("1", "2", *allow)
        assert code == 2 and words in said
    assert not (seeds.parent / "mono_s2s_multi_seed_results").exists()


def test_identical_results_are_refused(seeds, aggregate):
    first = json.loads((seeds / "seed_1" / "final_results.json").read_text())["results"]["evaluation"]
    change(seeds / "seed_2" / "final_results.json", lambda r, m: r.update(evaluation=copy.deepcopy(first)))
    code, said = aggregate("1", "2")
    assert code == 2 and "identical results" in said


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda r, m: m["settings"].update(LEARNING_RATE=9.0), "LEARNING_RATE"),
        (lambda r, m: m.update(profile="quick"), "profile full and quick"),
        (lambda r, m: r["data"].update(prepared={}), "other prepared data"),
        (lambda r, m: m["code"].update(commit="0" * 40), "code revision"),
        (lambda r, m: m["checkpoints"].update(standard="another"), "pretrained model"),
    ],
    ids=["settings", "profile", "data", "code", "model"],
)
def test_mixed_runs_are_refused_or_said_on_every_page(seeds, aggregate, edit, words):
    change(seeds / "seed_3" / "final_results.json", edit)
    code, said = aggregate("1", "2", "3")
    assert code == 2 and words in said and "seeds 1 and 3" in said
    code, said = aggregate("1", "2", "3", "--allow-mixed")
    assert code == 0, said
    for name in ("multi_seed_summary.txt", "report.html", "tables/rouge.tex"):
        said = (seeds.parent / "mono_s2s_multi_seed_results" / name).read_text()
        assert words in " ".join(said.split()).replace(r"\_", "_")


def test_a_set_that_no_seed_had_is_named_and_its_figures_are_not_available(seeds, aggregate):
    def without(results, metadata):
        results["missing_datasets"] = {"samsum": "no such repository"}
        del results["evaluation"]["samsum"]

    for seed in SEEDS:
        change(seeds / f"seed_{seed}" / "final_results.json", without)
    code, said = aggregate("1", "2", "3")
    assert code == 0, said
    target = seeds.parent / "mono_s2s_multi_seed_results"
    for name in ("multi_seed_summary.txt", "report.html"):
        assert "Missing data set: samsum (no such repository)." in (target / name).read_text()
    envelope = json.loads((target / "multi_seed_results.json").read_text())
    assert envelope["results"]["missing_datasets"] == {"samsum": "no such repository"}
    for name, rows in (("rouge", 3), ("comparison", 1)):
        table = (target / "tables" / f"{name}.csv").read_text().splitlines()
        of_it = [line.split(",") for line in table if line.lower().startswith("samsum")]
        assert len(of_it) == rows and all(cell == "not available" for row in of_it for cell in row[1:])


@pytest.mark.parametrize("words", [["1"], ["1", "1"], ["x", "1"], ["1", "2", "--fast"]])
def test_wrong_usage(aggregate, words):
    assert aggregate(*words)[0] == 2


def test_the_t_interval_covers_as_it_says():
    rng = np.random.default_rng(0)
    draws = rng.normal(0.3, 0.02, size=(1000, 5))
    inside = 0
    for values in draws:
        figure = over_seeds(list(values))
        inside += figure.lower <= 0.3 <= figure.upper
    assert 930 <= inside <= 970


def test_the_hierarchical_bootstrap_covers():
    rng = np.random.default_rng(2)
    inside = 0
    for number in range(400):
        examples = [rng.normal(0.1 + rng.normal(0, 0.02), 0.2, 60) for _ in range(4)]
        found = hierarchical_bootstrap(examples, samples=100, seed=number)
        inside += found.lower <= 0.1 <= found.upper
    assert 364 <= inside <= 396  # 91 to 99 %


def test_the_hierarchical_bootstrap_sees_both_spreads():
    rng = np.random.default_rng(1)
    examples = [rng.normal(0.1, 0.2, 400) for _ in range(5)]
    apart = [values + shift for values, shift in zip(examples, (-0.1, -0.05, 0.0, 0.05, 0.1), strict=True)]
    narrow = hierarchical_bootstrap(examples, samples=500, seed=0)
    wide = hierarchical_bootstrap(apart, samples=500, seed=0)
    assert narrow.lower < 0.1 < narrow.upper
    assert wide.upper - wide.lower > 2 * (narrow.upper - narrow.lower)
    assert hierarchical_bootstrap(apart, samples=500, seed=0) == wide
