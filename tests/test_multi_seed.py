"""Several seeds together: the sums against closed forms, and every pair that is not two independent runs refused."""

import copy
import dataclasses
import html
import json
import shutil

import numpy as np
import pytest
from scipy import stats

from tests.pipeline_world import in_process
from utils.analysis.evaluation_summary import evaluation_results
from utils.analysis.multi_seed import over_seeds
from utils.analysis.records import Prediction
from utils.analysis.seed_differences import crossed_share, crossed_test
from utils.analysis.statistics import crossed_difference
from utils.core.codec import from_json, to_json
from utils.core.files import read_jsonl, write_jsonl

pytestmark = pytest.mark.slow

SEEDS = (1, 2, 3)


def change(path, edit) -> None:
    envelope = json.loads(path.read_text())
    edit(envelope["results"], envelope["_metadata"])
    path.write_text(json.dumps(envelope))


@pytest.fixture
def seeds(done, tmp_path):
    """Three seeds in permanent storage: a real run, whose summaries' scores differ a little from seed to seed."""
    root = tmp_path / "project" / "mono_s2s_final_results"
    sampling = {"samples": 100, "seed": 0}
    for seed in SEEDS:
        directory = root / f"seed_{seed}"
        shutil.copytree(done.final, directory)
        rng = np.random.default_rng(seed)
        rows = [from_json(Prediction, row) for row in read_jsonl(directory / "predictions.jsonl")]
        for number, row in enumerate(rows):
            if row.model != "standard":
                moved = row.rougeL + 0.02 * seed + (0.03 if row.model == "monotonic" else 0) + 0.05 * rng.random()
                rows[number] = dataclasses.replace(row, rougeL=min(1.0, moved))
        write_jsonl(directory / "predictions.jsonl", map(to_json, rows))

        def edit(results, metadata, seed=seed, rows=rows):
            metadata["seed"] = seed
            for model in ("baseline", "monotonic"):
                metadata["checkpoints"][model] = f"{model} of seed {seed}"
            results["evaluation"] = to_json(evaluation_results(rows, ["cnn_dm", "xsum", "samsum"], **sampling))

        change(directory / "final_results.json", edit)
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
    by_seed = []
    for seed in SEEDS:
        rows = [json.loads(line) for line in (seeds / f"seed_{seed}" / "predictions.jsonl").read_text().splitlines()]
        scores = {(row["model"], row["id"]): row["rougeL"] for row in rows if row["dataset"] == "xsum"}
        names = sorted(name for model, name in scores if model == "baseline")
        by_seed.append([scores["monotonic", name] - scores["baseline", name] for name in names])
    test, wanted = found["monotonic_minus_baseline"]["xsum rougeL"], crossed_difference(by_seed)
    assert {name: test[name] for name in wanted} == pytest.approx(wanted)
    assert test["differences"] == pytest.approx(np.mean(by_seed, axis=1)) and test["agree"] == 3
    assert test["num_common"] == len(names) and test["num_left_out"] == 0
    assert next(iter(found["monotonic_minus_baseline"])) == "worst-case success"
    families = {name: cell.get("family_size") for name, cell in found["monotonic_minus_baseline"].items()}
    # Three data sets, HotFlip's two, two trigger types (and each model's worst one, where it is not both models' same
    # type, for that is one test twice); the worst case's other two; and the primary one alone.
    assert families.pop("worst-case success") is None
    assert families.pop("worst-case ROUGE-L drop") == families.pop("worst-case loss rise") == 2
    assert set(families.values()) in ({7}, {8}) and len(families) == 8
    for attack, cell in found["found_of_possible"].items():
        wanted = []
        for seed in SEEDS:
            lines = (seeds / f"seed_{seed}" / f"{attack}_records.jsonl").read_text().splitlines()
            rows = [row for row in map(json.loads, lines) if row["section"].startswith("ceiling/")]
            rises: dict[tuple[str, str], list[tuple[float, float]]] = {}
            for row in rows:
                part, model = row["section"].rsplit("/", 1)
                pair = row["found_loss_increase"], row["best_loss_increase"]
                rises.setdefault((model, part if attack == "uat" else row["id"]), []).append(pair)
            ratios = {key: np.divide(*np.mean(pairs, axis=0)) for key, pairs in rises.items()}
            units = sorted({unit for model, unit in ratios if model == "baseline"})
            assert units and all(("monotonic", unit) in ratios for unit in units)
            wanted.append(np.mean([ratios["monotonic", unit] - ratios["baseline", unit] for unit in units]))
        assert cell["difference"]["values"] == pytest.approx(wanted, abs=1e-6), attack
        assert cell["models"]["baseline"]["n"] == 3 and cell["models"]["standard"]["std"] is None
    untrained = found["evaluation"]["xsum"]["standard"]["rougeL"]
    assert untrained["mean"] > 0 and untrained["std"] is untrained["lower"] is untrained["upper"] is None
    page = (target / "report.html").read_text()
    for name in ("attack", "cost", "triggers"):
        assert found["verdict"][name].startswith("Over 3 seeds") or "ceiling" in found["verdict"][name]
        assert found["verdict"][name] in html.unescape(page)
    assert page.count("<svg") == 3 and "± 0" not in page
    assert len(list((target / "figures").iterdir())) == 6
    assert max(map(len, (target / "multi_seed_summary.txt").read_text().splitlines())) <= 110
    assert "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "") and f"{values[0]:.4f}" in page
    assert len(list((target / "tables").iterdir())) == 12
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
        del results["evaluation"]["samsum"], results["evaluation"]["comparisons"]["samsum"]

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


def test_a_share_has_no_interval_beyond_0_and_1():
    assert over_seeds([0.01, 0.0, 0.05], share=True).lower == 0.0 and over_seeds([0.01, 0.0, 0.05]).lower < 0
    assert over_seeds([0.99, 1.0, 0.9], share=True).upper == 1.0


def test_results_that_are_not_those_of_the_records_are_refused(seeds, aggregate):
    def more(results, metadata):
        results["hotflip"]["comparisons"]["baseline_vs_monotonic_worst_case"]["success"]["difference"] += 0.01

    change(seeds / "seed_2" / "final_results.json", more)
    code, said = aggregate("1", "2", "3")
    assert code == 3 and "seed_2" in said and "worst-case success" in said and "verify_results.py" in said


def test_examples_that_a_seed_could_not_attack_are_left_out_and_counted():
    """Two seeds: example c is attackable in the first only, d on one model only, e in the second only."""
    first = {"baseline": {"a": 1.0, "b": 0.0, "c": 1.0, "d": 1.0}, "monotonic": {"a": 0.0, "b": 0.0, "c": 0.0}}
    second = {"baseline": {"a": 1.0, "b": 1.0, "e": 1.0}, "monotonic": {"a": 1.0, "b": 0.0, "e": 1.0, "c": 1.0}}
    test = crossed_test([first, second], confidence=0.95)
    assert (test.num_common, test.num_left_out) == (2, 2)
    assert test.differences == [-0.5, -0.5] and test.agree == 2  # a: -1 and 0, b: 0 and -1
    assert (test.mean_a, test.mean_b, test.difference) == (0.75, 0.25, -0.5)
    wanted = crossed_difference([[-1, 0], [0, -1]])
    assert test.p_value == wanted["p_value"] and wanted["lower"] == wanted["upper"]  # no variance is left
    # One seed's: one of two succeeds on a alone, -1 / 4 -+ 1.96 sqrt(2 - 1 / 4) / 4 (Agresti and Min).
    assert (test.lower, test.upper) == pytest.approx((-0.8982, 0.3982), abs=1e-4)
    nothing = crossed_test([first, {"baseline": {"z": 1.0}, "monotonic": {"z": 1.0}}], confidence=0.95)
    assert nothing.num_common == 0 and nothing.p_value is None and nothing.outcome() is None


def test_the_page_of_variants_has_every_cell_and_names_what_is_missing(seeds, monkeypatch, capsys):
    for name in ("a", "b"):
        shutil.copytree(seeds, seeds.with_name(f"mono_s2s_final_results_{name}"))
    shutil.rmtree(seeds.with_name("mono_s2s_final_results_b") / "seed_2")
    environment = {"PROJECT": str(seeds.parent), "SCRATCH": str(seeds.parent / "scratch")}
    words = "--variants", "a,b", "1", "2"
    assert in_process(monkeypatch, "compare_variants", *words, environment=environment) == 3
    assert "not finished: b, seed 2." in capsys.readouterr().err
    target = seeds.parent / "mono_s2s_variants"
    rows = [line.split(",") for line in (target / "variants.csv").read_text().splitlines()]
    own = [json.loads((seeds / f"seed_{n}" / "final_results.json").read_text())["results"] for n in (1, 2)]
    rouge = [r["evaluation"]["cnn_dm"]["monotonic"]["rougeL"]["mean"] for r in own]
    found = next(row for row in rows if row[:2] == ["a", "monotonic"])
    assert found[2].strip('"').startswith(f"{np.mean(rouge):.4f} [{min(rouge):.4f}")
    worst = 100 * own[0]["hotflip"]["monotonic"]["worst_case"]["success_rate"]
    assert f"{worst:.1f}" in ",".join(next(row for row in rows if row[:2] == ["b", "monotonic"]))
    page = (target / "report.html").read_text()
    assert "Not finished: b, seed 2." in page and "<svg" in page


def test_the_interval_of_a_share_over_seeds_covers_it():
    """Trainings and examples drawn again and again; the arm does half of what monotonic does."""
    covered, n, worlds = 0, 60, 150
    for number in range(worlds):
        rng = np.random.default_rng(number)
        example = rng.normal(0, 0.3, n)
        seeds = []
        for _ in range(3):
            values = {
                "baseline": 0.0,
                "monotonic": -0.4 + rng.normal(0, 0.02),
                "sign_frozen": -0.2 + rng.normal(0, 0.02),
            }
            drawn = {model: value + example + rng.normal(0, 0.3, n) for model, value in values.items()}
            seeds.append({model: {f"e{i:02}": float(x) for i, x in enumerate(one)} for model, one in drawn.items()})
        one = crossed_share(seeds, "sign_frozen", confidence=0.95)
        covered += one is not None and one.lower <= 0.5 <= one.upper
    assert 0.90 * worlds <= covered < worlds


def test_a_share_over_seeds_of_nothing_is_none_and_of_equal_arms_is_one():
    seeds = [{"baseline": {str(i): 0.01 * (i % 7) for i in range(9)}, "monotonic": {str(i): 1.0 for i in range(9)}}] * 2
    same = [scores | {"sign_frozen": scores["monotonic"]} for scores in seeds]
    one = crossed_share(same, "sign_frozen", confidence=0.95)
    assert (one.share, one.lower, one.upper) == pytest.approx((1.0, 1.0, 1.0), abs=1e-5)
    nothing = [scores | {"monotonic": scores["baseline"], "sign_frozen": scores["monotonic"]} for scores in seeds]
    assert crossed_share(nothing, "sign_frozen", confidence=0.95) is None
