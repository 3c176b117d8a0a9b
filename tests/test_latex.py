"""LaTeX of the reports: whatever a trigger holds compiles with plain pdflatex, and no table is wider than its place."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.pipeline_world import Run
from utils.reports.latex import escape, supplement, tex
from utils.reports.table import Table

PDFLATEX = shutil.which("pdflatex")
# What a T5 vocabulary holds: English, German, French, Romanian, signs, and what a byte or sentencepiece decodes to.
TOKENS = [
    *"\\{}$&#%_^~<>|\"'`,;:!?*[]()@=+-/",
    *"\u201e\u201c\u201d\u201a\u2018\u2019\u00ab\u00bb\u2013\u2014\u2026\u2022\u20ac\u00a3\u00a7\u00b0\u00b5\u00bd\u2122\u00ae\u00df",
    *"\u00e4\u00d6\u00fc\u00e9\u00c8\u00ea\u00e7\u0103\u00ee\u0219\u021b\u015f\u0163\u0218\u0151\u016f\u0142\u0131\u00ef\u0153\u00e6\u1e69",
    *"\u0414\u0436\u4e2d\u6587\u3042\u0627\u05d0\u0950\u2605\u2713\u2581\U0001f600\ufffd\u0301\u200b\u200d\ufe0f\u00ad\u2028\u3000",
    "\\end{table}", "\\input{/etc/passwd}", "$$", "%%", "--", "---", "''", ",,", "?`", "!`", "^^41", "[1]", "*",
    "\\\\", "&&", "Donaudampfschifffahrtsgesellschaftskapit\u00e4n", "a" * 90, "x_1^2",
    "https://example.org/a/very/long/path?q=1&r=2#top",
]  # fmt: skip


def test_minus_signs_escapes_and_ascii() -> None:
    assert escape("-0.222 [-0.25, +0.1]", numbers=True) == "$-$0.222 [$-$0.25, +0.1]"
    assert escape("CNN/DM lead-3 and 2-5", numbers=True) == "CNN/DM lead-3 and 2-5"  # no minus between words or digits
    assert escape("-5") == "-5"  # a trigger is text
    assert escape("\u00fc\u0219\u00df") == '\\"{u}\\c {s}\\ss{}'
    assert escape("\u0414") == r"\allowbreak{}\texttt{U+0414}"
    assert escape("--") == "-{}-" and escape("[a]").startswith("{}[") and escape("*") == "{}*"
    for token in TOKENS:
        assert escape(token).isascii(), token


def checked(text: str) -> None:
    """What a checker without LaTeX can see: ASCII, balanced groups, every row with the columns of its table."""
    assert text.isascii()
    bare = re.sub(r"\\[\\{}$&#%_^~]|\\char\d+", "", text)
    depth = 0
    for sign in bare:
        depth += (sign == "{") - (sign == "}")
        assert depth >= 0
    assert depth == 0 and "#" not in bare and bare.count("$") % 2 == 0


def hostile_tables() -> list[Table]:
    rng = random.Random(0)
    triggers: list[tuple[str, ...]] = [
        (f"monotonic {number}", "-0.170 [-0.200, -0.118]", "+0.674", "66.7 %", " ".join(rng.sample(TOKENS, 5)))
        for number in range(30)
    ]
    triggers += [(token, "-0.170", "+0.674", "not available", token) for token in TOKENS]
    header = ("model, type", "ROUGE-L change [95 %]", "NLL rise", "success", "trigger")
    wide = [("a data set of some length, model", *(["not available"] * 9)) for _ in range(70)]
    return [
        Table("triggers", "Universal triggers & more", header, triggers, "Note: 50 % of $5, a_b; -0.1."),
        Table("wide", "Wide", ("data set, model", *(f"all_replaced {n}" for n in range(9))), wide),
        Table("none", "Nothing", ("a", "b"), []),
    ]


def paper_tables() -> list[Table]:
    titles = ("CNN/DM", "Unsere sehr langen Gespr\u00e4che & Protokolle", "Donaudampfschifffahrtsgesellschaft")
    cells = ("0.268 [0.251, 0.284]",) * 3
    rows = [(model, *cells) for model in ("standard", "baseline", "monotonic")]
    rows.append(("success, worst case", "100.0 % [100, 100]", "not available", "+10.503"))
    return [
        Table("main", "ROUGE-L", ("model", *titles), rows, "Note; " + "long " * 60, one_column=True),
        Table("nothing", "Nothing", ("model", *titles), [], one_column=True),
    ]


def test_a_checker_finds_nothing_wrong() -> None:
    for table in (*hostile_tables(), *paper_tables()):
        text = tex(table, "DEMO: 100 % & not the experiment.")
        checked(text)
        assert rf"\label{{tab:{table.name}}}" in text and "experiment" in text.split(r"\bottomrule")[1]
    checked(supplement(hostile_tables(), "seed_1 & more"))


def compiled(directory: Path, name: str, text: str, runs: int) -> list[float]:
    """Points by which lines are too wide, in the last run of pdflatex; the test fails where it does."""
    (directory / f"{name}.tex").write_text(text, encoding="ascii")
    command = [str(PDFLATEX), "-interaction=nonstopmode", "-halt-on-error", f"{name}.tex"]
    for _ in range(runs):
        result = subprocess.run(command, cwd=directory, capture_output=True, timeout=120)
    log = (directory / f"{name}.log").read_text(errors="replace")
    assert result.returncode == 0, log[-2000:]
    assert "Missing character" not in log and "Undefined control sequence" not in log
    return [float(points) for points in re.findall(r"Overfull \\hbox \(([\d.]+)pt", log)]


def two_columns(body: str) -> str:
    """A paper whose columns are the narrowest of the usual styles: 219 points, with 17 between them."""
    return (
        r"\documentclass[10pt,twocolumn]{article}\usepackage{booktabs}\setlength{\textwidth}{455pt}"
        r"\setlength{\columnsep}{17pt}\begin{document}" + body + r"x\end{document}"
    )


@pytest.mark.slow
@pytest.mark.skipif(PDFLATEX is None, reason="no pdflatex")
def test_the_tables_of_a_run_fit(done: Run, tmp_path: Path) -> None:
    text = {path.stem: path.read_text(encoding="ascii") for path in (done.final / "tables").glob("*.tex")}
    assert max(compiled(tmp_path, "supplement", text["supplement"], runs=2), default=0.0) < 3
    assert not compiled(tmp_path, "paper", two_columns(text["main"] + text["attack"]), runs=1)


@pytest.mark.slow
@pytest.mark.skipif(PDFLATEX is None, reason="no pdflatex")
def test_every_token_compiles_and_nothing_is_too_wide(tmp_path: Path) -> None:
    document = supplement(hostile_tables(), "mono-s2s, seed_1: 100 % & more", "DEMO.")
    # 3 pt is less than a letter; a word of 90 letters without a place to break would stick out by hundreds.
    assert max(compiled(tmp_path, "supplement", document, runs=2), default=0.0) < 3
    body = "\n".join(tex(table, "DEMO.") for table in paper_tables())
    assert not compiled(tmp_path, "paper", two_columns(body), runs=1)
