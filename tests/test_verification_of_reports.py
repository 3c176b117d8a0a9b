"""verify_results.py: tables, figures, cards and the page are made again, and whatever was changed in them is named."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from tests.test_verification import Edit, in_text
from utils.analysis.final import FinalResults
from utils.core.codec import from_json
from utils.reports.files import write_report
from utils.verification.written import differing_files, same_picture

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def remade(done, tmp_path_factory):
    folder = tmp_path_factory.mktemp("remade")
    final = json.loads((done.final / "final_results.json").read_text())
    write_report(from_json(FinalResults, final["results"]), final["_metadata"], done.final, folder)
    return folder


def cell_of_a_table(folder: Path) -> None:
    path = folder / "tables" / "hotflip.csv"
    table = list(csv.reader(path.open()))
    table[1][1] = "0.0 %"
    with path.open("w", newline="") as handle:
        csv.writer(handle, lineterminator="\n").writerows(table)


REPORT: dict[str, tuple[Edit, str]] = {
    "a second verdict": (in_text("report.html", "<h2", "<div>Unbreakable.</div><h2"), "report.html differs"),
    "a warning left out": (in_text("report.html", "Treat the result as preliminary.", ""), "report.html differs"),
    "a number of the page": (in_text("report.html", " %", "0 %"), "report.html differs"),
    "an inline figure": (in_text("report.html", "<path ", "<path id='x' "), "report.html shows another figure"),
    "a figure's text": (in_text("figures/rouge.svg", "monotonic", "baseline"), "figures/rouge.svg is not the figure"),
    "a point of a figure": (in_text("figures/rouge.svg", 'd="M ', 'd="M 1'), "figures/rouge.svg is not the figure"),
    "a PDF": (
        lambda f: shutil.copy(f / "figures" / "rouge.pdf", f / "figures" / "training.pdf") and None,
        "training.pdf is not",
    ),
    "a figure gone": (lambda f: (f / "figures" / "rouge.pdf").unlink(), "figures/rouge.pdf is not there"),
    "a CSV table": (cell_of_a_table, "tables/hotflip.csv differs: line 2: "),
    "a LaTeX table": (in_text("tables/main.tex", "monotonic", "monotonic and better"), "tables/main.tex differs"),
    "the summary": (in_text("experiment_summary.txt", "seed", "seeds"), "experiment_summary.txt differs"),
    "a model card": (in_text("models/monotonic/README.md", "Limits", "Praise"), "models/monotonic/README.md differs"),
}


@pytest.mark.parametrize("case", REPORT)
def test_a_tampered_report_is_named(copied, remade, case):
    edit, words = REPORT[case]
    assert not list(differing_files(remade, copied, same_figures=True))
    edit(copied)
    found = list(differing_files(remade, copied, same_figures=True))
    assert len(found) == 1 and words in found[0], found


def test_a_picture_may_differ_in_the_last_digit_alone(remade):
    for name in ("rouge.svg", "rouge.pdf"):
        content = (remade / "figures" / name).read_bytes()
        assert same_picture(content, content)
    svg = b'<path d="M 10.000001 20"/><text>98</text>'
    assert same_picture(svg, svg.replace(b"10.000001", b"10.000002"))
    assert not same_picture(svg, svg.replace(b"98", b"97")) and not same_picture(svg, svg.replace(b"path", b"line"))


def test_figures_of_another_matplotlib_are_not_called_forged(copied, remade):
    (copied / "figures" / "rouge.svg").write_text("<svg/>")
    assert not list(differing_files(remade, copied, same_figures=False))
