"""README.md of an exported model: what it was trained on and how, what it scores, what it is not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from configs.arms import ARMS
from utils.analysis.final import FinalResults
from utils.core.results import profile_note
from utils.reports.table import NOT_AVAILABLE, interval, percent, set_titles, signed

USE = """```python
from transformers import AutoTokenizer, T5ForConditionalGeneration
model = T5ForConditionalGeneration.from_pretrained("this directory")
tokenizer = AutoTokenizer.from_pretrained("this directory")
inputs = tokenizer("{prefix}" + text, truncation=True, max_length={length}, return_tensors="pt")
ids = model.generate(**inputs, num_beams={beams}, length_penalty={penalty}, no_repeat_ngram_size={ngram},
                     min_new_tokens={least}, max_new_tokens={most})
print(tokenizer.decode(ids[0], skip_special_tokens=True))
```"""


def model_card(arm: str, results: FinalResults, metadata: Mapping[str, Any]) -> str:
    """The card of a trained model as Markdown with the front matter that model hubs read."""
    settings, training, model = metadata["settings"], results.trainings[arm], results.setup.model
    note = profile_note(metadata)
    parts = [
        "\n".join(
            [
                "---",
                "library_name: transformers",
                "pipeline_tag: summarization",
                f"base_model: {json.dumps(model.source)}",  # quoted: a path may hold what YAML reads as its own
                "language: en",
                "license: other",
                "---",
            ]
        ),
        f"# T5 summarizer, {arm}, seed {metadata['seed']}",
        f"Fine-tuned {ARMS[arm].summary}; an ordinary T5. Made by mono-s2s, run {metadata['run_id']}.",
    ]
    if note:
        parts.append(f"**{note}.**")
    parts += [
        "## Use",
        USE.format(
            prefix=settings["TASK_PREFIX"],
            length=settings["MAX_INPUT_LENGTH"],
            beams=settings["NUM_BEAMS"],
            penalty=settings["LENGTH_PENALTY"],
            least=settings["MIN_NEW_TOKENS"],
            most=settings["MAX_NEW_TOKENS"],
            ngram=settings["NO_REPEAT_NGRAM_SIZE"],
        ),
        "## Training",
        _list(
            [
                f"from {model.source}{f', revision {model.revision}' if model.revision else ''}, "
                f"{model.parameters:,} parameters",
                f"{results.data.prepared['train'].rows:,} examples, {len(training.epochs)} epochs, best "
                f"epoch {training.best_epoch} (validation loss {training.best_validation_loss:.3f})",
                *(f"{name}: {value}" for name, value in sorted(training.settings.items())),
                f"smallest feed-forward weight: {training.min_ffn_weight:.3g}",
                f"weights sha256: {training.weights_sha256}",
            ]
        ),
        "## Data trained on, and their licences",
        _list(
            [f"{e.title}: {e.licence}. {e.note}" for e in results.data.sets.values() if "train" in e.splits]
            + [f"{key}: {NOT_AVAILABLE}, this run went without it" for key in results.missing_datasets]
        ),
        "The licences above are those that the data sets state; whether they allow a use of this model is for its user "
        "to judge.",
        "## Results",
        _results(arm, results),
        "## Limits",
        _list([*results.limits, "It summarises English; it repeats the errors and the views of its training data."]),
    ]
    return "\n\n".join(parts) + "\n"


def _results(arm: str, results: FinalResults) -> str:
    lines = []
    for key, title in set_titles(results).items():
        cell = results.evaluation.datasets.get(key, {}).get(arm)
        lines.append(f"ROUGE-L on {title}: {interval(cell.rougeL) if cell else NOT_AVAILABLE}")
    hotflip = results.hotflip.models[arm]
    lines.append(
        f"HotFlip on {hotflip.num_attackable} attackable examples: success "
        + percent(hotflip.success_rate, hotflip.success_rate_ci)
    )
    worst = results.uat.models[arm].worst.worst_type
    change = results.uat.models[arm].types[worst].delta_rougeL if worst is not None else None
    if change is None:  # no example could be attacked, or no type was searched for
        lines.append(f"worst universal trigger: {NOT_AVAILABLE}")
    else:
        lines.append(f"worst universal trigger ({worst}): ROUGE-L {signed(change, digits=4)}")
    return _list(lines)


def _list(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
