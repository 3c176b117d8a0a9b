"""The report against the numbers it is made from: the documented schema, the page, the figures, tables and cards."""

import base64
import copy
import csv
import hashlib
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from transformers import AutoTokenizer

from tests.pipeline_world import ROOT, SEED, in_process
from utils.analysis.final import FinalResults
from utils.core.codec import from_json
from utils.core.settings import Settings, load_settings
from utils.operations import preflight_checks as promises
from utils.reports.examples import AttackedExample, Change, Examples, Mark, excerpt
from utils.reports.experiment_tables import overhead_of_generation, overhead_of_training
from utils.reports.figures import draw_all
from utils.reports.files import text_files
from utils.reports.html import page as html_page
from utils.reports.latex import tex
from utils.reports.table import Table
from utils.reports.tables import all_tables
from utils.reports.template import CSS

pytestmark = pytest.mark.slow

MODELS = ("standard", "baseline", "monotonic")
SETS = {"cnn_dm": "CNN/DM", "xsum": "XSum", "samsum": "SAMSum"}


@pytest.fixture(scope="module")
def final(done):
    return json.loads((done.final / "final_results.json").read_text())


@pytest.fixture(scope="module")
def page(done):
    return (done.final / "report.html").read_text()


# ---- the page ------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Cells of every table by its id, visible text, ids, and what would be fetched from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.words, self.ids, self.fetched, self.unnamed = {}, [], [], [], []
        self.rows, self.cell, self.style, self.files, self.scripts = None, None, False, [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        self.ids += [known["id"]] if "id" in known else []
        links = [known.get(name, "") for name in ("src", "href", "xlink:href", "action", "data")]
        links = [link for link in links if link and not link.startswith("#")]
        if tag == "a":
            self.files += links  # followed by a reader, fetched by nobody
        else:
            self.fetched += links
        self.fetched += [tag] if tag in ("link", "iframe", "object", "base", "img") else []
        self.scripts += [known.get("type", "")] if tag == "script" else []
        self.style = tag in ("style", "script")
        if tag == "svg" and known.get("aria-hidden") != "true":
            self.unnamed.append(tag)  # its caption says the same: a screen reader reads one of them
        if tag == "table":
            self.rows = self.tables[known["aria-labelledby"].removeprefix("table-")] = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.cell = ""

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1].append(self.cell)
            self.cell = None

    def handle_data(self, data):
        if not self.style:
            self.words.append(data)
        if self.cell is not None:
            self.cell += data


def shown(results):
    """(table, row, column, what must stand there): every figure of the page's tables, looked up without its makers."""

    def rounded(value, digits=3, sign=""):
        return format(round(value, digits) + 0.0, f"{sign}.{digits}f")

    def change(value, ends, digits=3):
        low, high = (rounded(end, digits, "+") for end in ends)
        return f"{rounded(value, digits, '+')} [{low}, {high}]"

    def share(value, ends=None):
        return f"{100 * value:.1f} %" + (f" [{100 * ends[0]:.0f}, {100 * ends[1]:.0f}]" if ends else "")

    def p(value):
        return "< 0.001" if value < 0.001 else f"{value:.3f}"

    def test(name, row, cell, digits):
        yield name, row, 1, change(cell["difference"], (cell["lower"], cell["upper"]), digits)
        yield name, row, 2, p(cell["p_value"])
        yield name, row, 3, p(cell["p_value_holm"])
        yield name, row, 4, rounded(cell["cohens_dz"], 2, "+")
        yield name, row, 5, rounded(cell["minimum_detectable_difference"], digits)

    for arm, one in results["matched"]["against_baseline"].items():
        points = one and change(100 * one["difference"], (100 * one["lower"], 100 * one["upper"]), 1) + " points"
        cells = one and (rounded(one["quality"]), share(one["arm"]), share(one["baseline"]), points)
        for column, words in enumerate(cells or ["not available"] * 4, 1):
            yield "quality_curve", f"{arm}: success", column, words
    evaluation, hotflip, uat = results["evaluation"], results["hotflip"], results["uat"]
    metrics = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}
    for key, title in SETS.items():
        for column, metric in enumerate(("rouge1", "rouge2", "rougeL"), 1):
            for model in MODELS:
                cell = evaluation[key][model][metric]
                words = f"{rounded(cell['mean'])} [{rounded(cell['lower'])}, {rounded(cell['upper'])}]"
                yield "rouge", f"{title} {model}", column, words
                if metric == "rougeL":
                    yield "main", model, list(SETS).index(key) + 1, words
            lead = results["data"]["sets"][key]["splits"]["test"]["sampled"]["lead3"][metric]
            yield "rouge", f"{title} lead-3", column, rounded(lead)
            if metric == "rougeL":
                yield "main", "lead-3", list(SETS).index(key) + 1, rounded(lead)
        for metric, words in metrics.items():
            yield from test("rouge_comparison", f"{title} {words}", evaluation["comparisons"][key][metric], 4)
        for model, cell in evaluation["comparisons"][key]["rougeL"]["against_standard"].items():
            yield from test("rouge_against_standard", f"{title} {model}", cell, 4)
    controls = ("random", "greedy", "metric", "own_output", "one_shot", "all_replaced", "double", "protected", "typo")
    for place, model in enumerate(MODELS, 1):
        cell = hotflip[model]
        passes = cell["mean_queries"] + 3 * cell["mean_gradients"]
        trigger = uat[model][uat[model]["worst"]["worst_type"]]
        for row, words in {
            "attacked examples": str(cell["num_attackable"]),
            "ROUGE-L, clean": rounded(cell["clean_rougeL"]),
            "ROUGE-L, attacked": rounded(cell["attacked_rougeL"]),
            "success": share(cell["success_rate"], cell["success_rate_ci"]),
            "success, worst case": share(cell["worst_case"]["success_rate"]),
            "success, random": share(cell["controls"]["random"]["success_rate"]),
            "ROUGE-L drop": share(cell["mean_degradation"], cell["mean_degradation_ci"]),
            "NLL rise, nats": rounded(cell["mean_loss_increase"], 3, "+"),
            "queries": f"{passes:,.0f}",
            "tokens changed": share(cell["perturbed_token_share"]),
            "typable": share(cell["typable_count"] / cell["num_attackable"]),
            "trigger: clean": rounded(trigger["clean"]["rougeL"]["mean"]),
            "trigger: attacked": rounded(trigger["attacked"]["rougeL"]["mean"]),
            "trigger: success": share(trigger["success_rate"], trigger["success_rate_ci"]),
        }.items():
            yield "attack", row, place, words
        yield "hotflip", model, 1, share(cell["success_rate"], cell["success_rate_ci"])
        yield "hotflip", model, 2, share(cell["mean_degradation"], cell["mean_degradation_ci"])
        yield "hotflip", model, 3, change(cell["mean_loss_increase"], cell["mean_loss_increase_ci"])
        yield "hotflip", model, 4, str(cell["num_attackable"])
        yield "hotflip", model, 5, str(cell["num_skipped"])
        yield "hotflip_controls", "attack", place, share(cell["success_rate"])
        for name in controls:
            yield "hotflip_controls", name, place, share(cell["controls"][name]["success_rate"])
        yield "hotflip_controls", "worst case", place, share(cell["worst_case"]["success_rate"])
        yield "hotflip_controls", "noise floor", place, share(cell["noise_floor"]["success_rate"])
        yield "hotflip_controls", "flips on reference words", place, share(cell["reference_flip_share"])
        yield "hotflip_checks", model, 1, f"{cell['gradient_norm']['median']:.3g}"
        yield "hotflip_checks", model, 2, str(cell["zero_gradient_count"])
        panel = results["mechanism"][model]
        yield "mechanism", model, 1, f"{panel['spectral_norm']:.3g}"
        yield "mechanism", model, 2, f"{panel['stable_rank']:.1f}"
        yield "mechanism", model, 6, rounded(panel["loss"])
        yield "order", model, 2, share(panel["order"]["shuffled"])
        yield "order", model, 4, share(panel["order"]["longer_is_stronger"])
        yield "mechanism", model, 7, rounded(panel["loss_zeroed"] - panel["loss"], 3, "+")
        for column, point in enumerate((*cell["budget_curve"], *cell["long_budget_curve"][1:]), 1):
            yield "hotflip_budget", model, column, share(point["success_rate"])
        for column, target in enumerate(MODELS, 1):
            rate = hotflip["transfer_matrix"][model][target]["success_rate"]
            yield "hotflip_transfer", model, column, share(rate)
        for kind in ("lead", "natural"):
            cell = uat[model][kind]
            yield "triggers", f"{model} {kind}", 1, change(cell["delta_rougeL"], cell["delta_rougeL_ci"])
            yield "triggers", f"{model} {kind}", 2, rounded(cell["nll_increase"], 3, "+")
            yield "triggers", f"{model} {kind}", 3, share(cell["success_rate"])
            yield "triggers", f"{model} {kind}", 4, cell["trigger_text"]
            rise = change(cell["nll_increase"], cell["nll_increase_ci"])
            yield "trigger_controls", f"{model} {kind}", 1, rise
            random = cell["random_control"]["nll_increase"]
            yield "trigger_controls", f"{model} {kind}", 2, rounded(random, 3, "+")
            for column, target in enumerate(MODELS, 1):
                rise = uat["transfer_matrix"][kind][model][target]["nll_increase"]
                yield "trigger_transfer", f"{kind}, {model}", column, rounded(rise, 3, "+")
    main = hotflip["comparisons"]["baseline_vs_monotonic"]
    worst = hotflip["comparisons"]["baseline_vs_monotonic_worst_case"]
    random = hotflip["comparisons"]["controls_baseline_vs_monotonic"]["random"]
    for words, success in (
        ("HotFlip", main["success"]),
        ("worst case", worst["success"]),
        ("random", random["success"]),
    ):
        points = change(100 * success["difference"], (100 * success["lower"], 100 * success["upper"]), 1)
        yield "attack_tests", f"{words} success, points", 1, points
        yield "attack_tests", f"{words} success, points", 2, p(success["p_value"])
        corrected = "-" if words == "worst case" else p(success["p_value_holm"])
        yield "attack_tests", f"{words} success, points", 3, corrected
    yield from test("attack_tests", "worst case relative drop", worst["relative_drop"], 3)
    yield from test("attack_tests", "HotFlip NLL rise", main["loss_increase"], 3)
    for kind in ("lead", "natural"):
        yield from test("attack_tests", f"trigger {kind} ROUGE-L change", uat["comparisons"][kind]["delta_rougeL"], 3)
    for arm in ("baseline", "monotonic"):
        history = results[f"{arm}_training"]
        yield "costs", f"training {arm}", 1, f"{history['total_seconds']:.1f} s"
        for name, value in history["settings"].items():
            column = 1 + (arm == "monotonic")
            yield "fairness", name, column, f"{value:g}" if isinstance(value, float) else str(value)
    for entry in results["data"]["sets"].values():
        for split, facts in entry["splits"].items():
            yield "data", f"{entry['title']} {split}", 1, f"{facts['raw']:,}"
            yield "data", f"{entry['title']} {split}", 3, f"{facts['kept']:,}"
            if facts["kept"]:
                yield "texts", f"{entry['title']} {split}", 1, f"{facts['document']['words']['mean']:,.0f}"
                yield "texts", f"{entry['title']} {split}", 5, f"{facts['compression']:.1f}"
                yield "texts", f"{entry['title']} {split}", 8, rounded(facts["sampled"]["lead3"]["rougeL"])


def wrong_cells(tables, results):
    """Where the page does not show what the results say."""
    for name, row, column, wanted in shown(results):
        found = {cells[0]: cells for cells in tables[name]}.get(row)
        if found is None or found[column] != wanted:
            yield f"{name}, {row}, {column}: {found and found[column]!r}, not {wanted!r}"


def test_all_numbers_on_the_page_are_those_of_the_json(final, page):
    tables, results = Page(page).tables, final["results"]
    assert not list(wrong_cells(tables, results))
    looked_at = {(name, row, column) for name, row, column, _ in shown(results)}
    assert len(looked_at) > 250
    assert {name for name, *_ in looked_at} >= set(tables) - {"expected", "removed", "constraint", "sources"}
    other = copy.deepcopy(results)
    other["hotflip"]["monotonic"]["success_rate"] += 0.01
    other["evaluation"]["comparisons"]["xsum"]["rouge1"]["upper"] += 0.001
    assert len(list(wrong_cells(tables, other))) == 4


def test_the_page_needs_nothing_else_and_says_what_it_must(done, final, page):
    read = Page(page)
    assert read.fetched == [] and read.unnamed == [] and "url(http" not in page and "@import" not in page
    assert read.scripts == ["application/json", "application/json", ""]
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)[1]
    allowed = "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src '{allowed}'\"" in page
    assert page.count("<figcaption>") == page.count("<svg")
    linked = {unquote(name) for name in read.files}
    written = {path.relative_to(done.final).as_posix() for path in done.final.rglob("*") if path.is_file()}
    assert linked <= written
    others = written - linked - {"report.html"}  # svg twins of the figures, and what belongs to an exported model
    assert all(name.endswith(".svg") or name.startswith("models/") for name in others), others
    assert "python scripts/verify_results.py DIR" in page and "./run_multi_seed.sh 3 4 5" in page
    assert len(read.ids) == len(set(read.ids))
    words = " ".join(" ".join(read.words).split())
    for link in re.findall(r'href="#([^"]+)"', page):
        assert link in read.ids, link
    for name in ("attack", "triggers", "cost", "doubt"):
        assert final["results"]["verdict"][name] in words
    for line in (*final["results"]["limits"], *(doubt["message"] for doubt in final["results"]["warnings"])):
        assert line in words
    for model in MODELS:
        assert final["_metadata"]["checkpoints"][model] in words
    assert "the network is not" in words and "preliminary" in words
    assert page.count("<svg") == 9 and page.count("<mark>") > 0
    differing = [row for row in Page(page).tables["fairness"][1:] if row[-1]]
    assert [(row[0], row[-1]) for row in differing] == [("warmup_ratio", "differs, as it should")]


def luminance(colour):
    digits = colour.lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_is_readable_in_light_and_dark():
    light, dark = (dict(re.findall(r"--(\w+): (#\w+)", part)) for part in CSS.split("@media", 2)[:2])
    for scheme in (light, dark):
        for ink, paper in (("ink", "paper"), ("ink", "soft"), ("ink", "mark"), ("warn", "paper"), ("link", "paper")):
            low, high = sorted((luminance(scheme[ink]), luminance(scheme[paper])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, paper)  # WCAG 2.2, AA


# ---- text, LaTeX, figures, models --------------------------------------------------------------------------------


def test_the_summary_fits_a_terminal_and_tables_are_latex(done, final):
    lines = (done.final / "experiment_summary.txt").read_text().splitlines()
    for name in ("attack", "triggers", "cost"):
        assert final["results"]["verdict"][name] in " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    assert len(lines) < 150 and " ".join(lines[2:30]).count("For this pair of trainings") >= 1
    latex = {path.stem: path.read_text() for path in (done.final / "tables").glob("*.tex")}
    assert set(latex) == {"main", "attack", "supplement"}
    names = {path.stem for path in (done.final / "tables").glob("*.csv")}
    assert set(re.findall(r"label\{tab:(\w+)\}", "".join(latex.values()))) == names
    assert latex["supplement"].count(r"\begin{longtable}") == len(names) - 2
    for text in (latex["main"], latex["attack"]):
        assert text.count(r"\toprule") == text.count(r"\bottomrule") == text.count(r"\begin{table}") == 1
        body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
        assert all(len(re.findall(r"(?<!\\)&", line)) == 3 for line in body)
    figures = {path.name for path in (done.final / "figures").iterdir()}
    assert len(figures) == 18 and {path.split(".")[1] for path in figures} == {"svg", "pdf"}


def test_an_exported_model_does_what_its_card_says(done, monkeypatch, capsys):
    """The Python of the card, run as it stands on plain transformers: its summary is the evaluation's."""
    directory = done.final / "models" / "monotonic"
    card = (directory / "README.md").read_text()
    rows = [json.loads(line) for line in (done.final / "predictions.jsonl").read_text().splitlines()]
    row = next(row for row in rows if (row["dataset"], row["model"]) == ("xsum", "monotonic"))
    registry = Path(done.environment["MONO_S2S_DATASETS_FILE"])
    lines = (registry.parent / json.loads(registry.read_text())["xsum"]["files"]["test"]).read_text().splitlines()
    text = json.loads(lines[int(row["id"].rsplit("/", 1)[1])])["document"]
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace("this directory", str(directory))
    code += (
        "weights = [p for n, p in model.named_parameters() if 'DenseReluDense' in n]\n"
        "assert len(weights) == 4 and min(float(w.min()) for w in weights) >= 0\n"
    )
    result = done(sys.executable, "-c", f"text = {text!r}\n{code}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == row["prediction"].strip()
    for words in ("## Training", "## Results", "## Limits", "licence", "the network is not", "softplus(V) >= 0"):
        assert words in card
    words = ("--model", "monotonic", "--seed", str(SEED), text)
    code = in_process(monkeypatch, "summarize", *words, environment=done.environment)
    assert (code, capsys.readouterr().out.strip()) == (0, row["prediction"].strip())


def test_summarize_refuses_in_one_line(done, monkeypatch, capsys):
    for words, code, said in (
        (["--seed", "99", "x"], 3, "no model in"),
        (["--seed", "3", " "], 2, "the text is empty"),
        (["--model", "best", "x"], 2, "invalid choice"),
    ):
        assert in_process(monkeypatch, "summarize", *words, environment=done.environment) == code
        assert said in capsys.readouterr().err


def test_control_arms_stand_in_a_table_of_their_own(final):
    results = copy.deepcopy(final["results"])
    assert "attribution" not in {table.name for table in all_tables(from_json(FinalResults, results))}
    for cells in (*(results["evaluation"][key] for key in SETS), results["hotflip"]):
        cells["sign_frozen"] = cells["monotonic"]
    results["hotflip"]["transfer_matrix"]["sign_frozen"] = results["hotflip"]["transfer_matrix"]["monotonic"]
    for table in all_tables(from_json(FinalResults, results)):
        assert ("sign_frozen" in table.text()) == (table.name == "attribution"), table.name


HOSTILE = "</p><script>alert('1')</script> \"q\" & 50 % $x_1$ #~^\\{|}\x00\x07\x85\ud800 =1+1"


def test_texts_of_users_and_models_are_never_markup(final, tmp_path):
    """The same text as title, licence, note, trigger, model source and example: shown everywhere, markup nowhere."""
    written, metadata = copy.deepcopy(final["results"]), copy.deepcopy(final["_metadata"])
    for entry in written["data"]["sets"].values():
        entry |= {"title": HOSTILE, "licence": HOSTILE, "note": HOSTILE, "own": True}
    for model in MODELS:
        for kind in ("lead", "natural"):
            written["uat"][model][kind]["trigger_text"] = HOSTILE
    written["missing_datasets"] = written["data"]["missing"] = {"extra": HOSTILE}
    written["setup"]["model"]["source"] = HOSTILE
    written["warnings"] = [
        {"model": HOSTILE, "warning": "x", "rank": 1, "n": 20, "p_value": None, "margin": None, "message": HOSTILE}
    ]
    written["verdict"] |= dict.fromkeys(("attack", "triggers", "cost", "doubt"), HOSTILE)
    metadata["host"] = HOSTILE
    attacked = AttackedExample(
        HOSTILE, "worst", HOSTILE, 0.5, 0.1, HOSTILE, HOSTILE, HOSTILE, [HOSTILE, Mark(HOSTILE, HOSTILE)]
    )
    results = from_json(FinalResults, written)
    tables, alternative = all_tables(results), draw_all(results, tmp_path)
    rows = {model: [[0, 0.5, 0.1, 1, HOSTILE, HOSTILE, [[0, HOSTILE, HOSTILE]], 1]] for model in MODELS}
    examples = Examples([[HOSTILE] * 3], {HOSTILE: rows}, {HOSTILE: {"baseline": HOSTILE}}, [attacked])
    text = html_page(results, metadata, tables, tmp_path, alternative, examples)
    read = Page(text)
    assert read.fetched == [] and re.findall(r"<(script\b[^>]*)", text) == [
        'script type="application/json" id="copies"', 'script type="application/json" id="example-data"', "script"
    ]  # fmt: skip
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", text) and text.encode()
    shown_as = HOSTILE.replace("\x00\x07\x85\ud800", "?" * 4)
    assert "".join(read.words).count(shown_as) > 40
    for name in alternative:  # figures are XML of their own, too
        ElementTree.parse(tmp_path / f"{name}.svg")
    for table in tables:
        assert tex(table).isascii() and "alert" not in re.findall(r"\\(\w+)", tex(table))
        assert next(csv.reader(io.StringIO(table.csv()))) == list(table.header)
    for content in text_files(results, metadata, tables).values():
        assert content.encode()


@pytest.mark.parametrize(
    ("cell", "kept"),
    [("=SUM(A1)", False), ("@x", False), ("-cmd|x", False), ("+a", False)]
    + [(figure, True) for figure in ("-", "-0.013 [-0.02, +0.01]", "+0.5", "12 %", "text = x", 'a "b", c')],
)
def test_a_csv_cell_is_data_for_spreadsheets(cell, kept):
    (_, row) = csv.reader(io.StringIO(Table("n", "t", ("h", "i"), [("x", cell)]).csv()))
    assert row == ["x", cell if kept else f"'{cell}"]


# ---- the pre-flight ------------------------------------------------------------------------------------------


def test_a_wide_table_of_a_terminal_has_its_last_cells_below_their_heads():
    seeds = range(1, 13)
    rows = [("CNN/DM ROUGE-1 monotonic", *["0.6667"] * 11, "not available"), ("XSum", *["0.1"] * 12)]
    title, rule, *lines = Table("x", "ROUGE", ("set", *[f"seed {n}" for n in seeds]), rows).text().splitlines()
    assert title == "ROUGE" and set(rule) == {"-"} and len(lines) == 6 and max(map(len, [rule, *lines])) <= 80
    heads, first, second = (lines[n] + " " + lines[n + 1] for n in (0, 2, 4))
    ends = [heads.index(f"seed {n}") + len(f"seed {n}") for n in seeds]
    assert [first[end - 6 : end] for end in ends[:-1]] == ["0.6667"] * 11 and first.endswith("   n/a")
    assert [second[end - 6 : end] for end in ends] == ["   0.1"] * 12
    narrow = Table("x", "T", ("model", "why"), [("baseline", "word " * 30)]).text().splitlines()
    assert max(map(len, narrow)) <= 80 and " ".join(narrow).count("word") == 30


def test_the_preflight_keeps_its_promises_and_sees_broken_ones(done):
    result = done(sys.executable, str(ROOT / "test_improvements.py"))
    assert result.returncode == 0 and "5 of 5 promises are kept" in result.stdout, result.stdout + result.stderr
    assert "warm-up 0.1 and 0.15" in result.stdout
    settings = load_settings().all()
    broken = {
        promises.full_test_sets: {"USE_FULL_TEST_SETS": False},
        promises.retries: {"DATASET_MAX_RETRIES": 1},
        promises.fair_settings: {"MONOTONIC_NUM_EPOCHS": settings["NUM_EPOCHS"] + 2},
    }
    for check, change in broken.items():
        assert not check(Settings(**settings | change))[0], check


# ---- attacked examples -----------------------------------------------------------------------------------------------


def test_every_attacked_example_is_there_and_its_changes_give_the_attacked_text(done, page):
    """The marked changes, applied to the text, are what transformers' tokenizer makes of the attacked ids."""
    data = json.loads(re.search(r'id="example-data">(.*?)</script>', page, re.DOTALL)[1])
    tokenizer = AutoTokenizer.from_pretrained(done.final / "models" / "baseline")
    lines = (done.final / "hotflip_records.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines if '"attack/' in line]
    by_key = {(row["model"], row["id"]): row for row in records if row["section"].startswith("attack/")}
    seen = 0
    for model, rows in data["attacks"]["HotFlip"].items():
        for place, *row in rows:
            name, reference, text = data["texts"][place]
            record = by_key.pop((model, name))
            if record["skipped"]:
                assert row == [record["skipped"]]
                continue
            clean, attacked, success, before, after, changes, typable = row
            assert (success, typable) == (int(record["success"]), int(record["typable"]))
            assert [clean, attacked] == pytest.approx([record["clean_rougeL"], record["attacked_rougeL"]], abs=1e-4)
            assert [before, after] == [record["clean_prediction"], record["attacked_prediction"]]
            assert reference == record["reference"] and len(changes) <= record["num_flips"]
            for start, old, new in reversed(changes):
                assert text[start : start + len(old)] == old != new
                text = text[:start] + new + text[start + len(old) :]
            read = tokenizer.decode(record["attacked_ids"], clean_up_tokenization_spaces=False)
            read = read.replace("</s>", "").replace("<unk>", "\u2047").split("summarize:")[-1]
            assert "".join(text.split()) == "".join(read.split())
            seen += 1
    assert not by_key and seen > 5
    assert data["notes"]["universal trigger"].keys() == data["attacks"]["universal trigger"].keys()


def test_whole_words_are_marked_and_excerpts_end_between_words():
    words = [f"word{n}" for n in range(60)]
    text = " ".join(words)
    at = text.index("word30")
    parts = excerpt(text, [Change(at, "word30", "x"), Change(text.index("word32"), "word32", "y")])
    assert parts[1:4] == [Mark("word30", "x"), " word31 ", Mark("word32", "y")]
    for part in (parts[0], parts[4]):
        assert set(part.split()) <= {*words, "\u2026"} and 60 <= len(part) < 90
    assert excerpt("a b", [Change(0, "a", "c")]) == [Mark("a", "c"), " b"]


def test_an_overhead_is_told_only_where_the_clock_can_tell():
    slower = overhead_of_training([10.0, 10.2, 9.8], [12.0, 12.3, 12.1], ["node1"])
    assert slower == (
        "baseline 10.0 s an epoch [9.8, 10.2], monotonic 12.1 s an epoch [12.0, 12.3] (median, range): "
        "1.21 times as long"
    )
    load = overhead_of_training([10.0, 10.2, 9.8], [10.1, 20.0, 30.0], ["node1"])  # its first epoch was as fast
    assert load.endswith("not comparable, the epochs of one arm differ by as much as the arms do") and "2.0" not in load
    assert "different machines (a, b)" in overhead_of_training([10.0], [12.0], ["a", "b"])
    assert overhead_of_training([], [1.0], []) == "not timed"
    assert overhead_of_generation([1.1, 1.3]) == "1.10 to 1.30 times as long over 2 test sets"
    assert overhead_of_generation([0.9, 1.3]).endswith("on both sides of 1")
