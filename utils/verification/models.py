"""What only the exported models can tell: what their weights are, summaries made again. Loads torch when asked."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from utils.analysis.aggregate import file_of
from utils.analysis.bootstrap import Resampling
from utils.analysis.records import HotFlipRecord, Prediction, hotflip_row, read_rows
from utils.core.codec import from_json, to_json
from utils.core.files import read_jsonl
from utils.core.names import ARMS, STANDARD
from utils.verification.check import Check, other_surroundings, tried, unequal
from utils.verification.numbers import HOTFLIP, PREDICTIONS
from utils.verification.provenance import SeedDirectory
from utils.verification.searches import near

SAME_LOSS = 1e-3  # relative: of a pass over texts on another processor
SAME_START = 1e-4  # relative: a GPU's softplus, where training started, is not the CPU's in the last digits


def audits(run: SeedDirectory) -> Check:
    """Audit and counts of a training history from the exported and the pretrained model, where they are here."""
    check = Check("audit and smallest weights in the training histories from the exported models", [])
    directories = _directories(run)
    for section in (name for name in run.parts if name.endswith("_training")):
        arm = section.removesuffix("_training")
        lacking = [name for name in (arm, STANDARD) if name not in directories]
        if lacking:
            check.unseen.append(f"{file_of(section)} (the model {' and '.join(lacking)} is not here: taken on trust)")
        else:
            check.problems += tried(lambda s=section, a=arm: _audit(run, s, a, directories))  # type: ignore[misc]
    return check


def weights_of_mechanism(run: SeedDirectory) -> Check:
    """The panel's figures that the weights alone decide; the others need the validation data, and minutes."""
    file = file_of("mechanism")
    check = Check(f"spectra and changes of weights in {file} from the exported models", [])
    directories = _directories(run)
    for model in run.models:
        if lacking := [name for name in dict.fromkeys((model, STANDARD)) if name not in directories]:
            check.unseen.append(f"{model} in {file} (the model {' and '.join(lacking)} is not here: taken on trust)")
        else:
            check.problems += tried(lambda m=model: _weights(run, m, directories))  # type: ignore[misc]
    return check


def _weights(run: SeedDirectory, model: str, directories: Mapping[str, Path]) -> Iterator[str]:
    from utils.evaluation.mechanism import weight_figures
    from utils.modeling.models import load_model

    part = run.parts["mechanism"]
    made = weight_figures(
        load_model(directories[model]),
        load_model(directories[STANDARD]),
        model if model in ARMS else None,
        part["_metadata"]["settings"]["MONOTONIC_EPSILON"],
    )
    written = part["results"][model]
    known = {name: written[name] for name in made}
    yield from unequal(to_json(made), known, f"{file_of('mechanism')}, {model}", SAME_START)


def texts_of_mechanism(run: SeedDirectory) -> Check:
    """The panel's figures of the models' passes over validation texts and the order test, but for the gain."""
    file = file_of("mechanism")
    check = Check(f"losses, firing and premise in {file}, made again by the exported models (not the gain)", [])
    prepared, directories = run.input_named("prepared_data"), _directories(run)
    if prepared is None:
        check.unseen.append(f"{file} (the prepared data are not here)")
        return check
    elsewhere = _elsewhere(run.parts["mechanism"]["_metadata"])
    for model in run.models:
        if model not in directories:
            check.unseen.append(f"{model} in {file} (the model is not here: taken on trust)")
            continue
        found = tried(lambda m=model: _texts(run, m, directories[m], prepared))  # type: ignore[misc]
        # Elsewhere a unit may fire by a hair or not; a loss is the same within the margin.
        counted = [words for words in found if not elsewhere or "loss" in words]
        check.problems += counted
        check.unseen += [f"{words} (other rounding? {elsewhere[0]})" for words in found if words not in counted]
    return check


def _texts(run: SeedDirectory, model: str, directory: Path, prepared: Path) -> Iterator[str]:
    from utils.data.store import load_prepared
    from utils.evaluation.mechanism import PanelSize, drawn_examples, order_of, text_figures
    from utils.modeling.models import load_model
    from utils.modeling.tokenizer import load_tokenizer

    rows, seed = load_prepared(prepared, "validation"), run.metadata["settings"]["DATA_SEED"]
    examples = drawn_examples(rows["input_ids"], rows["labels"], seed, PanelSize())
    loaded, settings = load_model(directory), run.parts["mechanism"]["_metadata"]["settings"]
    ci: Resampling = {"samples": settings["BOOTSTRAP_SAMPLES"], "seed": seed, "confidence": settings["CONFIDENCE"]}
    order = order_of(loaded, load_tokenizer(directory), settings["ORDER_CHAINS"], ci)
    made = to_json(text_figures(loaded, examples, seed, PanelSize())) | {"order": order and to_json(order)}
    written = run.parts["mechanism"]["results"][model]
    yield from unequal(made, {name: written[name] for name in made}, f"{file_of('mechanism')}, {model}", SAME_LOSS)


def _elsewhere(metadata: Mapping[str, Any]) -> list[str]:
    """In words, why a model may round otherwise here than where the results were made."""
    found = other_surroundings(metadata)
    if metadata.get("device_used", "cpu") != "cpu":
        found.append(f"made on {metadata['device']}, here on the CPU")
    return found


def _audit(run: SeedDirectory, section: str, arm: str, directories: Mapping[str, Path]) -> Iterator[str]:
    from utils.modeling.models import count_parameters, load_model
    from utils.modeling.monotonic import ffn_layers, min_ffn_weight
    from utils.training.audit import audit

    history = run.parts[section]["results"]
    model = load_model(directories[arm])
    made: dict[str, Any] = {
        "parameters": count_parameters(model),
        "ffn_parameters": sum(layer.weight.numel() for _, layer in ffn_layers(model)),
        "min_ffn_weight": min_ffn_weight(model),
        "audit": to_json(audit(model, arm=arm, pretrained=load_model(directories[STANDARD]))),
    }
    yield from unequal(made, {name: history[name] for name in made}, file_of(section))


class _Task(NamedTuple):
    """A summary to make again: whose it is, where it is written, what the model read, what is written.

    `labels`, `loss`: ids of the reference and its loss given the same ids, where the record has them.
    """

    model: str
    where: str
    ids: list[int]
    written: str
    labels: list[int] | None = None
    loss: float | None = None


def regenerated(run: SeedDirectory, number: int) -> Check:
    """Random summaries of the records (unattacked and attacked ones) and their losses, made again with the exported
    models.

    They are drawn anew each time, so that nobody knows beforehand which. Where versions or the device are not those of
    the run, another rounding may turn a beam: up to half of the summaries may differ then, and are named, not counted.
    """
    from utils.evaluation.decoding import decoding_settings
    from utils.evaluation.generation import generate
    from utils.evaluation.mechanism import mean_loss
    from utils.modeling.models import load_model, load_tokenizer

    check = Check(f"{number} random summaries and their losses, made again by the exported models", [])
    directories = _directories(run)
    pool = [task for task in _tasks(run) if task.model in directories]
    if absent := [model for model in run.models if model not in directories]:
        check.unseen.append(f"summaries of {', '.join(absent)} (its model is not on this machine)")
    drawn = random.SystemRandom().sample(pool, min(number, len(pool)))
    settings: Any = SimpleNamespace(**{"GENERATION": "fast"} | run.metadata["settings"])  # older runs had no choice
    differing = []
    for name in dict.fromkeys(task.model for task in drawn):
        tasks, model = [task for task in drawn if task.model == name], load_model(directories[name])
        for task in tasks:
            if task.labels and task.loss is not None:
                loss = mean_loss(model, [(task.ids, task.labels)])
                if not near(loss, task.loss):  # another processor's losses are within this, its beams need not be
                    check.problems.append(f"{task.where}: loss {task.loss} in the file, {loss:.6f} by the model")
        made = generate(
            model, load_tokenizer(directories[name]), [task.ids for task in tasks],
            decoding_settings(settings), batch_tokens=8 * settings.MAX_INPUT_LENGTH, precision=settings.PRECISION,
        ).texts  # fmt: skip
        for task, text in zip(tasks, made, strict=True):
            if text != task.written:
                differing.append(f"{task.where}: {task.written!r} in the file, {text!r} by the model")
    elsewhere = _elsewhere(run.parts["evaluation"]["_metadata"])
    if elsewhere and 2 * len(differing) <= len(drawn):
        check.unseen += [f"{words} (other rounding? {elsewhere[0]})" for words in differing]
    else:
        check.problems += differing
    if not drawn:
        check.unseen.append("any summary: neither models nor inputs are on this machine")
    return check


def _directories(run: SeedDirectory) -> dict[str, Path]:
    """The exported models that are here, by model key."""
    found = {}
    for model in run.models:
        places = [run.path / "models" / model]
        if run.work is not None:
            trained = run.work / f"seed_{run.metadata['seed']}" / f"{model}_model" / "best"
            places.append(run.work / "pretrained" if model == STANDARD else trained)
        there = [place for place in places if (place / "config.json").exists()]
        if there:
            found[model] = there[0]
    return found


def _tasks(run: SeedDirectory) -> Iterator[_Task]:
    """Every summary whose input is known: by HotFlip's records, and by the prepared data where they are here."""
    inputs: dict[tuple[str, str], list[int]] = {}
    attacked = run.metadata["settings"]["ATTACK_DATASET"]
    for row in read_rows(run.path / HOTFLIP, hotflip_row):
        if isinstance(row, HotFlipRecord) and row.clean_ids:
            inputs[attacked, row.id] = row.clean_ids
            if row.attacked_ids and row.attacked_prediction is not None:
                where, loss = f"{row.section} {row.id}, attacked", row.attacked_loss
                yield _Task(row.model, where, row.attacked_ids, row.attacked_prediction, row.labels, loss)
            if row.clean_prediction is not None:
                where, loss = f"{row.section} {row.id}, unattacked", row.clean_loss
                yield _Task(row.model, where, row.clean_ids, row.clean_prediction, row.labels, loss)
    prepared = run.input_named("prepared_data")
    if prepared is not None:
        from utils.data.store import load_prepared, read_manifest

        for name in read_manifest(prepared)["sets"]:
            if name.startswith("test_"):
                data = load_prepared(prepared, name)
                key = name.removeprefix("test_")
                inputs |= {(key, id_): ids for id_, ids in zip(data["id"], data["input_ids"], strict=True)}
    for line in read_jsonl(run.path / PREDICTIONS):
        made = from_json(Prediction, line)
        if (made.dataset, made.id) in inputs:
            where = f"{made.dataset} {made.model} {made.id}"
            yield _Task(made.model, where, inputs[made.dataset, made.id], made.prediction)
