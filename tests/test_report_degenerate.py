"""Whatever the outcome, stage 7 ends: results of experiments that came to little go through every table, figure, card,
text, page and verification, and nothing is said of what could not be measured.

The cases cover every pair of degenerate kinds; the results are made by the product from records.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest

from tests.degenerate_world import DIMENSIONS, MODELS, Case, cover, make
from utils.analysis.aggregate import hashes_below
from utils.analysis.combined import COMBINED, inputs_of
from utils.analysis.multi_seed import SeedRun, load_run
from utils.core.codec import to_json
from utils.core.results import write_result
from utils.reports.multi_seed import combined, write_report
from utils.reports.table import NOT_AVAILABLE
from utils.reports.tables import all_tables
from utils.verification import numbers
from utils.verification.numbers import checks_of_numbers
from utils.verification.provenance import SeedDirectory, chain, settings
from utils.verification.several_seeds import verify_seeds
from utils.verification.written import differing_files

pytestmark = pytest.mark.slow

CASES = cover()
NOT_MEASURED = re.compile(r"\bNone\b|(?<![a-z])nan(?![a-z])|\bNaN\b|\binf\b")

SUCCESS = re.compile(r"(?i)success[^.|,;<\n]{0,40}?\b(?:0\.0|100\.0) %")


def not_measured(text: str) -> str:
    """What stands around a figure that is none; empty where there is none."""
    shown = re.sub(r"<svg.*?</svg>|<style.*?</style>|<script.*?</script>", "", text, flags=re.DOTALL)
    shown = re.sub(r"(?m)^- \w+: None$", "", shown)  # a setting that is not set, on a model card
    found = NOT_MEASURED.search(shown)
    return shown[max(0, found.start() - 80) : found.end() + 20] if found else ""


def test_every_pair_of_kinds_is_among_the_cases() -> None:
    rows = [tuple(vars(case).values()) for case in CASES]
    for a, b in itertools.combinations(range(len(DIMENSIONS)), 2):
        seen = {(row[a], row[b]) for row in rows}
        assert seen == {(x, y) for x in DIMENSIONS[a] for y in DIMENSIONS[b]}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_piece_of_the_report_can_be_made_and_verified(done, tmp_path, monkeypatch, case: Case) -> None:
    # The curve of equal quality is that of the finished run, whose examples and summaries are others than the case's.
    monkeypatch.setattr(numbers, "of_quality", lambda *_: iter(()))
    folder = tmp_path / "seed_3"
    final = make(case, done.final, folder)
    checks = [chain(run := SeedDirectory(folder)), *checks_of_numbers(run)]
    assert not [line for check in checks for line in check.problems] and not list(settings(run))

    texts = {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.suffix in (".txt", ".csv", ".tex", ".html", ".md") and path.name != "learned_triggers.csv"
    }
    for name, text in texts.items():
        assert not not_measured(text), f"{name}: {not_measured(text)}"
    attacked = {model: final.hotflip.models[model].num_attackable for model in MODELS}
    tables = {table.name: table for table in all_tables(final)}
    for row in tables["hotflip"].rows:
        if row[0] in attacked:
            assert (NOT_AVAILABLE in row[1]) == (not attacked[row[0]]), row
    for sentence in (final.verdict.attack, final.verdict.triggers):
        if not attacked["baseline"] or not attacked["monotonic"]:
            assert "0.0 %" not in sentence and "harder" not in sentence and "easier" not in sentence, sentence
    for arm in ("baseline", "monotonic"):
        card = texts[f"models/{arm}/README.md"]
        line = next(line for line in card.splitlines() if "HotFlip on" in line)
        assert (NOT_AVAILABLE in line) == (not attacked[arm])
    if not any(attacked.values()):
        # Equal quality has examples of its own, which this run could attack.
        apart = r"\s+".join(map(re.escape, final.verdict.matched.split())) if final.verdict.matched else "(?!)"
        for name, text in texts.items():
            found = SUCCESS.search(re.sub(apart, "", text))
            assert not found, f"{name}: {found[0]}"


def seeds_of(folder: Path, root: Path) -> list[SeedRun]:
    """The results in `folder` as those of three seeds, whose only difference is the name of the weights."""
    runs = []
    for seed in (3, 4, 5):
        own = shutil.copytree(folder, root / f"seed_{seed}")
        whole = json.loads((own / "final_results.json").read_text())
        whole["_metadata"]["seed"] = seed
        for model in ("baseline", "monotonic"):
            whole["_metadata"]["checkpoints"][model] = f"{seed:064d}"
        (own / "final_results.json").write_text(json.dumps(whole))
        runs.append(load_run(seed, own))
    return runs


@pytest.mark.parametrize("case", CASES, ids=str)
def test_several_seeds_of_it_can_be_put_together_and_verified(done, tmp_path, case: Case) -> None:
    make(case, done.final, tmp_path / "one", report=False)
    runs = seeds_of(tmp_path / "one", tmp_path / "project" / "mono_s2s_final_results")
    target = tmp_path / "project" / "mono_s2s_multi_seed_results"
    results = to_json(combined(runs, 0.95, []))
    metadata = runs[0].metadata | {"seed": [3, 4, 5], "settings": {"CONFIDENCE": 0.95}, "inputs": inputs_of(runs)}
    write_report(results, metadata, target)
    metadata["files"] = hashes_below(target, without=COMBINED)
    write_result(target / COMBINED, results, metadata)
    found = [line for check in itertools.islice(verify_seeds(target), 2) for line in check.problems]
    assert all("identical results" in line for line in found), found  # three seeds of one run: the one thing wrong
    attacked = [runs[0].results.hotflip.models[model].num_attackable for model in ("baseline", "monotonic")]
    said = " ".join(results["verdict"][name] for name in ("attack", "triggers"))
    if not all(attacked):
        assert "0.0 %" not in said and "harder" not in said and "easier" not in said, said
    for path in target.rglob("*"):
        if path.suffix in (".txt", ".csv", ".tex", ".html"):
            unsaid = not_measured(path.read_text())
            assert not unsaid, f"{path.name}: {unsaid}"
            if not any(attacked):
                assert not SUCCESS.search(re.sub(r"[^\n]*standard[^\n]*", "", path.read_text())), path.name


def test_a_report_that_shows_another_outcome_is_found(done, tmp_path) -> None:
    """The files of two cases differ: the comparison that verification makes can fail."""
    one, other = (make(case, done.final, Path(tmp_path / str(n))) for n, case in enumerate(CASES[:2]))
    assert json.dumps(str(one)) != json.dumps(str(other))
    assert list(differing_files(tmp_path / "0" / "tables", tmp_path / "1" / "tables", same_figures=True))
