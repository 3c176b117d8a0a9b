"""verify_results.py: a run as it was made matches; whatever is changed on the way from data to page is named.

A tampering is asserted where it must be seen even by somebody who made every later hash and number fit: a changed row
by the checks of rows, a changed page by making the page again. Hashes catch it as well, but a forger can write them.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline_world import SEED, in_process
from utils.core.files import sha256_of
from utils.core.fingerprint import fingerprint
from utils.verification.models import audits, regenerated, texts_of_mechanism, weights_of_mechanism
from utils.verification.provenance import SeedDirectory, identity
from utils.verification.seed import verify
from utils.verification.written import checks_of_report

pytestmark = pytest.mark.slow

Edit = Callable[[Path], None]


def envelope(path: Path, edit: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    whole = json.loads(path.read_text())
    edit(whole["results"], whole["_metadata"])
    path.write_text(json.dumps(whole))


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows(
    path: Path, edit: Callable[[dict[str, Any]], object], wanted: Callable[[dict[str, Any]], bool], most=1
) -> None:
    """Edit the first `most` rows that are wanted; there must be one."""
    every = rows_of(path)
    chosen = [row for row in every if wanted(row)][:most]
    assert chosen
    for row in chosen:
        edit(row)
    write_rows(path, every)


def problems(directory: Path, title: str) -> Iterator[str]:
    """Those of the checks whose title holds `title`; what comes after them is not looked at."""
    seen = False
    late = title.startswith("verdict")
    for check in checks_of_report(SeedDirectory(directory)) if late else verify(directory):
        if title in check.title:
            seen = True
            yield from check.problems
        elif seen:
            return
    assert seen, f"no check is called {title!r}"


def test_an_untouched_run_matches_and_a_changed_one_does_not(copied, done, tmp_path, monkeypatch, capsys):
    def run(directory, *words):
        return in_process(monkeypatch, "verify_results", str(directory), *words), *capsys.readouterr()

    code, out, _ = run(done.final, "--regenerate", "6")
    anchor = f"sha256 of final_results.json: {sha256_of(done.final / 'final_results.json')}"
    assert code == 0 and "MISMATCH" not in out and "everything matches" in out and anchor in out, out
    assert "not looked at" not in out, out  # the work directory is here: nothing is taken on trust
    log = (done.work / "stage_logs" / f"stage_7_aggregate_seed{SEED}.log").read_text()
    assert anchor in log
    envelope(copied / "hotflip_results.json", lambda r, m: r["monotonic"].update(success_rate=0.01))
    code, out, _ = run(copied)
    assert code == 1 and "monotonic.success_rate: 0.01 in the file" in out
    (copied / "uat_results.json").unlink()
    code, _, problem = run(copied)
    assert code == 3 and "uat_results.json" in problem
    assert run(tmp_path / "nowhere")[0] == 3 and run(copied, "--regenerate", "-1")[0] == 2


# ---- rows: each contradicts itself, another row, or the prepared data ------------------------------------------------


def attack(model: str) -> Callable[[dict[str, Any]], bool]:
    return lambda row: row["section"] == f"attack/{model}"


def trigger(row: dict[str, Any]) -> bool:
    return row["section"].startswith("attack/") and row.get("relative_drop") is not None


def other(model: str) -> str:
    return {"baseline": "monotonic", "monotonic": "baseline"}.get(model, model)


def swap_labels(folder: Path) -> None:
    rows(folder / "predictions.jsonl", lambda r: r.update(model=other(r["model"])), lambda r: True, most=10**6)


def reverse_monotonic(folder: Path) -> None:
    """The rows of monotonic's cnn_dm in the opposite order, with the ids of the old one."""
    path = folder / "predictions.jsonl"
    every = rows_of(path)
    places = [i for i, r in enumerate(every) if (r["model"], r["dataset"]) == ("monotonic", "cnn_dm")]
    ids = [every[i]["id"] for i in places]
    for place, row, name in zip(places, [every[i] for i in reversed(places)], ids, strict=True):
        every[place] = row | {"id": name}
    write_rows(path, every)


def swap_sections(folder: Path) -> None:
    path = folder / "hotflip_records.jsonl"

    def edit(row: dict[str, Any]) -> None:
        part, model = row["section"].rsplit("/", 1)
        row["section"] = f"{part}/{other(model)}"

    rows(path, edit, lambda r: r["section"].startswith(("attack/", "greedy/")), most=10**6)


def swap_models_of_attacks(folder: Path) -> None:
    """Consistently: sections and models, so that only the summaries of stage 4 know better."""

    def edit(row: dict[str, Any]) -> None:
        part, model = row["section"].rsplit("/", 1)
        row.update(section=f"{part}/{other(model)}", model=other(row["model"]))

    rows(folder / "hotflip_records.jsonl", edit, lambda r: r["section"].count("/") == 1, most=10**6)


def swap_transfers(folder: Path) -> None:
    names = {"transfer/baseline/standard": "transfer/monotonic/standard"}
    names |= {new: old for old, new in names.items()}
    path = folder / "hotflip_records.jsonl"
    rows(path, lambda r: r.update(section=names[r["section"]]), lambda r: r["section"] in names, most=10**6)


def twice(folder: Path) -> None:
    every = rows_of(folder / "predictions.jsonl")
    write_rows(folder / "predictions.jsonl", [*every[:-1], every[-2]])


def renumber(folder: Path) -> None:
    """The second attacked example is gone from every section, and the last one has its name."""
    for name in ("hotflip_records.jsonl", "uat_records.jsonl"):
        every = rows_of(folder / name)
        ids = list(dict.fromkeys(row["id"] for row in every if "id" in row))
        kept = [row for row in every if row.get("id") != ids[1]]
        write_rows(folder / name, [r | {"id": ids[1]} if r.get("id") == ids[-1] else r for r in kept])


def gone_everywhere(folder: Path) -> None:
    every = rows_of(folder / "predictions.jsonl")
    name = every[0]["id"]
    write_rows(folder / "predictions.jsonl", [row for row in every if row["id"] != name])


HOTFLIP, TRIGGERS, PREDICTIONS = "hotflip_records.jsonl", "uat_records.jsonl", "predictions.jsonl"


def of(
    file: str, edit: Callable[[dict[str, Any]], object], wanted: Callable[[dict[str, Any]], bool], most: int = 1
) -> Edit:
    return lambda folder: rows(folder / file, edit, wanted, most)


def bad_score(row: dict[str, Any]) -> None:
    row["prediction"] = row["reference"]  # its scores stay


ROWS: dict[str, tuple[Edit, str, str]] = {
    "labels of two models swapped": (swap_labels, HOTFLIP, "clean_prediction is not the summary in predictions.jsonl"),
    "rows of a model reversed": (reverse_monotonic, PREDICTIONS, "reference is not that of other rows"),
    "summary replaced by its reference": (of(PREDICTIONS, bad_score, lambda r: True), PREDICTIONS, "from its text"),
    "summary edited, scores made to fit": (
        of(
            PREDICTIONS,
            lambda r: r.update(prediction=r["prediction"].upper()),
            lambda r: r["dataset"] == "cnn_dm" and r["prediction"].upper() != r["prediction"],
            10**6,
        ),
        HOTFLIP,
        "clean_prediction is not the summary",
    ),
    "reference edited": (
        of(PREDICTIONS, lambda r: r.update(reference=r["prediction"]), lambda r: r["model"] == "monotonic"),
        PREDICTIONS,
        "reference is not that of other rows",
    ),
    "references of all models edited": (
        of(PREDICTIONS, lambda r: r.update(reference=r["reference"] + " too"), lambda r: r["dataset"] == "xsum", 10**6),
        "ids and references",
        "reference is not the prepared summary",
    ),
    "success marked as skipped": (
        of(HOTFLIP, lambda r: r.update(skipped="clean_rouge_below_minimum"), attack("monotonic")),
        HOTFLIP,
        "skipped is 'clean_rouge_below_minimum', clean ROUGE-L",
    ),
    "loss rise edited": (
        of(HOTFLIP, lambda r: r.update(loss_increase=9.0), attack("baseline")),
        HOTFLIP,
        "loss_increase 9.0",
    ),
    "loss of a trigger edited": (
        of(TRIGGERS, lambda r: r.update(attacked_loss=9.0), trigger),
        TRIGGERS,
        "from its losses",
    ),
    "drop by budget edited": (
        of(HOTFLIP, lambda r: r.update(budget_drop=[0.0] * 2), lambda r: any(r.get("budget_drop", []))),
        HOTFLIP,
        "budget_drop is not the drop of its scores",
    ),
    "success edited": (
        of(HOTFLIP, lambda r: r.update(success=not r["success"]), attack("baseline")),
        HOTFLIP,
        "success is",
    ),
    "success of a trigger edited": (
        of(TRIGGERS, lambda r: r.update(success=not r["success"]), trigger),
        TRIGGERS,
        "success is",
    ),
    "drop edited": (
        of(TRIGGERS, lambda r: r.update(relative_drop=0.5), trigger),
        TRIGGERS,
        "relative_drop 0.5 in the file",
    ),
    "score edited": (
        of(HOTFLIP, lambda r: r.update(attacked_rougeL=0.53), attack("baseline")),
        HOTFLIP,
        "attacked: rougeL 0.53",
    ),
    "sections of two models swapped": (swap_sections, HOTFLIP, "the row is of model"),
    "two models swapped throughout": (swap_models_of_attacks, HOTFLIP, "clean_prediction is not the summary"),
    "transfers of two sources swapped": (swap_transfers, HOTFLIP, "the row holds flips of"),
    "trigger's text edited": (
        of(TRIGGERS, lambda r: r.update(trigger_text="of the"), lambda r: r["section"].startswith("search/")),
        TRIGGERS,
        "trigger_text 'of the', by its trigger_ids",
    ),
    "type of a trigger edited": (
        of(TRIGGERS, lambda r: r.update(trigger_type="tail"), trigger),
        TRIGGERS,
        "is of trigger type tail",
    ),
    "source of a trigger edited": (
        of(TRIGGERS, lambda r: r.update(source=other(r["source"])), lambda r: trigger(r) and r["source"] != "standard"),
        TRIGGERS,
        "the row's trigger was found on",
    ),
    "flips counted wrongly": (
        of(HOTFLIP, lambda r: r.update(num_flips=0), lambda r: attack("baseline")(r) and r["num_flips"]),
        HOTFLIP,
        "num_flips is 0",
    ),
    "clean loss of one section edited": (
        of(
            HOTFLIP,
            lambda r: r.update(clean_loss=1.0, attacked_loss=1.0 + r["loss_increase"]),
            lambda r: r["section"] == "random/baseline",
        ),
        HOTFLIP,
        "clean_loss is not that of other sections on baseline",
    ),
    "unknown field": (of(HOTFLIP, lambda r: r.update(robust=True), attack("baseline")), HOTFLIP, "robust is not a key"),
    "row twice, another gone": (twice, "each once", "is there 2 times"),
    "row gone everywhere": (gone_everywhere, "each once", "are due"),
    "attacked example gone, another renamed": (renumber, "each once", "rows, 8 are due"),
    "name of an example that was not drawn": (
        of(HOTFLIP, lambda r: r.update(id="cnn_dm/test/999"), attack("baseline")),
        "each once",
        "cnn_dm/test/999",
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_tampered_row_is_named(copied, case):
    edit, title, words = ROWS[case]
    edit(copied)
    found = list(problems(copied, title))
    assert any(words in line for line in found), found


@pytest.mark.parametrize("name", [PREDICTIONS, HOTFLIP, TRIGGERS])
def test_a_record_that_is_gone_is_caught(copied, name):
    lines = (copied / name).read_text().splitlines()
    (copied / name).write_text("\n".join(lines[:-1]) + "\n")
    assert list(problems(copied, f"from {name}"))


# ---- envelopes: settings, seeds, hashes, models ----------------------------------------------------------------------


def setting(name: str, value: object, *files: str, made_to_fit: bool = False) -> Edit:
    def edit(results: dict[str, Any], metadata: dict[str, Any]) -> None:
        metadata["settings"][name] = value
        if made_to_fit:
            metadata["config_fingerprint"] = fingerprint(metadata["settings"])

    def forge(folder: Path) -> None:
        for path in [folder / file for file in files] or folder.glob("*.json"):
            if name in json.loads(path.read_text())["_metadata"]["settings"]:
                envelope(path, edit)

    return forge


def in_file(name: str, edit: Callable[[dict[str, Any], dict[str, Any]], object]) -> Edit:
    return lambda folder: envelope(folder / name, lambda results, metadata: edit(results, metadata) and None)


def in_text(name: str, old: str, new: str) -> Edit:
    def forge(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text, f"{name} has no {old!r}"
        (folder / name).write_text(text.replace(old, new, 1))

    return forge


def flip_a_bit(folder: Path) -> None:
    path = folder / "models" / "monotonic" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def swap_models(folder: Path) -> None:
    models = folder / "models"
    (models / "baseline").rename(models / "x")
    (models / "monotonic").rename(models / "baseline")
    (models / "x").rename(models / "monotonic")


def losses(folder: Path) -> None:
    """A lower validation loss in every epoch, and the best of them: nothing in the history contradicts it."""

    def edit(history: dict[str, Any], metadata: dict[str, Any]) -> None:
        history["best_validation_loss"] /= 2
        for row in history["epochs"]:
            row["validation_loss"] /= 2

    envelope(folder / "monotonic_training_history.json", edit)


SETTINGS = "settings, fingerprints, seeds"
WEIGHTS = "weights: set-up"
ENVELOPES: dict[str, tuple[Edit, str, str]] = {
    "learning rate in the final settings": (
        setting("LEARNING_RATE", 1.0, "final_results.json"),
        SETTINGS,
        "LEARNING_RATE is 1.0",
    ),
    "the same, its fingerprint made to fit": (
        setting("LEARNING_RATE", 1.0, "final_results.json", made_to_fit=True),
        SETTINGS,
        "LEARNING_RATE is 1.0",
    ),
    "confidence in every file": (setting("CONFIDENCE", 0.6), SETTINGS, "is not that of its settings"),
    "confidence in every file, made to fit": (
        setting("CONFIDENCE", 0.6, made_to_fit=True),
        "evaluation_results.json from",
        "comparisons.cnn_dm.rouge1",
    ),
    "data seed in every file, made to fit": (
        setting("DATA_SEED", 77, made_to_fit=True),
        "evaluation_results.json from",
        "rougeL.lower",
    ),
    "seed of one part": (
        in_file(
            "evaluation_results.json", lambda r, m: m.update(seed=9, run_id=m["run_id"].replace(f"seed{SEED}", "seed9"))
        ),
        SETTINGS,
        f"evaluation_results.json is of seed 9, the others of {SEED}",
    ),
    "seed without its run id": (in_file("uat_results.json", lambda r, m: m.update(seed=9)), SETTINGS, "is not of"),
    "profile": (in_file("hotflip_results.json", lambda r, m: m.update(profile="quick")), SETTINGS, "profile quick"),
    "time": (
        in_file("final_results.json", lambda r, m: m.update(timestamp="2020-01-01 00:00:00")),
        SETTINGS,
        "is not of 2020",
    ),
    "other weights in the evaluation": (
        in_file("uat_results.json", lambda r, m: m["checkpoints"].update(baseline="0" * 64)),
        WEIGHTS,
        "uat_results.json: baseline is 0000",
    ),
    "a bit of the weights": (flip_a_bit, WEIGHTS, "models/monotonic is"),
    "models swapped": (swap_models, WEIGHTS, "models/baseline is"),
    "the tokenizer": (
        in_text("models/monotonic/tokenizer_config.json", "{", '{"x": 1, '),
        WEIGHTS,
        "models/monotonic: its files",
    ),
    "the configuration": (in_text("models/baseline/config.json", "0.1", "0.2"), WEIGHTS, "models/baseline: its files"),
    "the generation configuration": (
        in_text("models/monotonic/generation_config.json", "{", '{"x": 1, '),
        WEIGHTS,
        "its files",
    ),
    "best loss of a training": (
        in_file("baseline_training_history.json", lambda r, m: r.update(best_validation_loss=0.1)),
        "trainings",
        "best_validation_loss is 0.1",
    ),
    "a setting of a training": (
        in_file("monotonic_training_history.json", lambda r, m: r["settings"].update(learning_rate=1.0)),
        "trainings",
        "settings.learning_rate is 1.0",
    ),
    "every loss of a training": (losses, "whose results", "monotonic_training_history.json is not what stage 3 left"),
    "rows of the data": (
        in_file("data_statistics.json", lambda r, m: r["prepared"]["train"].update(rows=1)),
        "against the prepared data",
        "train not as in the manifest",
    ),
    "removed examples": (
        lambda folder: (folder / "removed_examples.jsonl").write_text(""),
        "against the prepared data",
        "removed_examples.jsonl is not the one",
    ),
    "a number of the evaluation": (
        in_file("evaluation_results.json", lambda r, m: r["cnn_dm"]["monotonic"]["rougeL"].update(mean=0.9)),
        "evaluation_results.json from",
        "cnn_dm.monotonic.rougeL.mean: 0.9 in the file",
    ),
    "an interval of the triggers": (
        in_file("uat_results.json", lambda r, m: r["baseline"]["lead"].update(success_rate_ci=[0, 0.01])),
        "uat_results.json from",
        "baseline.lead.success_rate_ci",
    ),
    "the verdict": (
        in_file("final_results.json", lambda r, m: r["verdict"].update(attack="Unbreakable.")),
        "verdict",
        "verdict.attack",
    ),
    "a limit": (in_file("final_results.json", lambda r, m: r["limits"].pop()), "verdict and limits", "limits"),
    "a figure of final_results.json alone": (
        in_file("final_results.json", lambda r, m: r["data"]["sets"]["cnn_dm"]["splits"]["test"].update(raw=99999)),
        "final_results.json from its parts",
        "data.sets.cnn_dm.splits.test.raw: 99999",
    ),
    "a learned trigger": (in_text("learned_triggers.csv", "lead", "tail"), "learned_triggers.csv from", "in the file"),
    "another run's table": (
        lambda f: (f / "tables" / "old.csv").write_text("x"),
        "hashes",
        "tables/old.csv is not of this run",
    ),
    "a history's hash": (
        in_file(
            "evaluation_results.json",
            lambda r, m: m["inputs"].update({k: "0" * 64 for k in m["inputs"] if "history" in k}),
        ),
        "hashes",
        "is not what evaluation_results.json was made from",
    ),
}


@pytest.mark.parametrize("case", ENVELOPES)
def test_a_tampered_envelope_is_named(copied, case):
    edit, title, words = ENVELOPES[case]
    edit(copied)
    found = list(problems(copied, title))
    assert any(words in line for line in found), found


def test_inputs_that_are_gone_are_said(copied):
    envelope(copied / "hotflip_results.json", lambda r, m: m["inputs"].update({"/gone/best": "0" * 64}))
    assert any("/gone/best" in check.unseen for check in verify(copied) if check.title.startswith("hashes"))


def test_the_audit_is_made_again(copied):
    envelope(copied / "monotonic_training_history.json", lambda r, m: r["audit"].update(min_weight=0.5, violations=3))
    envelope(copied / "baseline_training_history.json", lambda r, m: r.update(min_ffn_weight=0.0))
    found = audits(SeedDirectory(copied)).problems
    for words in ("audit.min_weight: 0.5", "audit.violations: 3", "baseline_training_history.json.min_ffn_weight: 0.0"):
        assert any(words in line for line in found), found
    for path in copied.glob("*.json"):  # as on a machine that has this directory alone
        envelope(path, lambda r, m: m.update(inputs={}))
    check = audits(SeedDirectory(copied))
    assert not check.problems and "baseline_training_history.json (the model standard is not here" in check.unseen[0]


def test_what_the_mechanism_panel_says_of_the_weights_is_made_again(copied):
    def edit(results, metadata):
        results["monotonic"]["spectral_norm"] *= 2
        results["baseline"]["ffn_change"] += 0.1
        next(iter(results["baseline"]["matrices"].values()))["stable_rank"] += 1

    assert not weights_of_mechanism(SeedDirectory(copied)).problems
    envelope(copied / "mechanism_results.json", edit)
    found = weights_of_mechanism(SeedDirectory(copied)).problems
    for words in ("monotonic.spectral_norm", "baseline.ffn_change:", "baseline.matrices"):
        assert any(words in line for line in found), found
    assert len(found) == 3, found


def test_summaries_that_the_model_did_not_write_are_found(copied):
    """An edit that every file agrees on: only the model knows better."""
    rows(
        copied / PREDICTIONS, lambda r: r.update(prediction="It is so."), lambda r: r["model"] != "standard", most=10**6
    )
    check = regenerated(SeedDirectory(copied), 40)
    assert any("'It is so.' in the file, '" in words for words in [*check.problems, *check.unseen])
    assert check.problems


def test_losses_that_the_model_does_not_give_are_found(copied):
    """All losses of a model halved, rises and curves with them: no two of them contradict each other."""

    def halve(row):
        for name in ("clean_loss", "attacked_loss", "loss_increase"):
            row[name] /= 2
        if row.get("search"):
            row["search"]["losses"] = [loss / 2 for loss in row["search"]["losses"]]

    def attacked(row):
        return row["model"] == "monotonic" and row.get("loss_increase") is not None

    rows(copied / HOTFLIP, halve, attacked, most=10**6)
    found = regenerated(SeedDirectory(copied), 40).problems
    assert found and all("monotonic" in words and "by the model" in words for words in found)
    assert any(re.search(r"loss [\d.]+ in the file, [\d.]+ by the model", words) for words in found), found


def test_what_the_mechanism_panel_says_of_texts_is_made_again(copied):
    def edit(results, metadata):
        results["monotonic"]["loss_zeroed"] += 0.1
        results["baseline"]["premise"]["comparable"] += 1
        results["baseline"]["gain"]["median"] += 1  # takes minutes, and is not made again: docs/results.md

    assert not texts_of_mechanism(SeedDirectory(copied)).problems
    envelope(copied / "mechanism_results.json", edit)
    found = texts_of_mechanism(SeedDirectory(copied)).problems
    assert [words.split(":")[0].split(", ")[1] for words in found] == ["baseline.premise.comparable",
                                                                      "monotonic.loss_zeroed"]  # fmt: skip
    envelope(copied / "mechanism_results.json", lambda r, m: m["versions"].update(torch="0"))
    check = texts_of_mechanism(SeedDirectory(copied))  # there a unit may fire by a hair; a loss is still one
    assert ["loss_zeroed" in words for words in check.problems] == [True]
    assert "premise.comparable" in check.unseen[0] and "other rounding? torch 0" in check.unseen[0]


# ---- whose results ---------------------------------------------------------------------------------------------------


def test_intact_results_of_another_run_are_not_this_seeds(done, tmp_path):
    home = tmp_path / "mono_s2s_final_results"
    stranger = shutil.copytree(done.final, home / "seed_42")
    assert identity(SeedDirectory(stranger)).problems[0].startswith(f"seed_42 holds final_results.json of seed {SEED}")
    own = shutil.copytree(done.final, home / f"seed_{SEED}")
    assert not identity(SeedDirectory(own)).problems
    other_run = {"timestamp": "2026-01-02 03:04:05", "run_id": f"20260102_030405_seed{SEED}"}
    envelope(own / "final_results.json", lambda r, m: m.update(other_run))
    assert "the flag of stage 7" in identity(SeedDirectory(own)).problems[0]
    elsewhere = shutil.copytree(own, tmp_path / "archive")  # an older run that somebody kept
    check = identity(SeedDirectory(elsewhere))
    assert not check.problems and "the flag of stage 7" in check.unseen[0]


def test_the_flag_is_the_anchor(copied):
    envelope(copied / "final_results.json", lambda r, m: m.update(host="elsewhere"))
    assert "final_results.json is not what stage 7 left" in identity(SeedDirectory(copied)).problems[0]
