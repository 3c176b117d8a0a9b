#!/usr/bin/env python3
"""Make a small T5 that reads its text from dialogues of yours, and measure how much a model reads."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.core.errors import InputError, UsageError, UserError
from utils.core.paths import Paths, models_of
from utils.core.seeds import seed_argument
from utils.core.settings import Settings, load_settings

EPILOG = """
Data and settings are those of the experiment (docs/own-data.md), from the same environment:

  export MONO_S2S_DATASETS_FILE=datasets.json MONO_S2S_TRAIN_DATASETS=dialogsum ...
  python scripts/reading_model.py make reading_t5       training sets -> tokenizer and pretrained T5
  MONO_S2S_MODEL_NAME=reading_t5 ./run_all.sh --local
  python scripts/reading_model.py measure               its models, on the attacked test texts

measure: how much the loss per token of each reference summary rises, in nats, when its document is exchanged for
another text's: mean over texts, with a bootstrap interval. A model that ignores its input has 0.
exit codes: 0 done, 2 wrong usage, 3 data or models are missing
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="train the tokenizer and pretrain the T5", allow_abbrev=False)
    make.add_argument("output", type=Path, metavar="DIRECTORY", help="new directory of the model (MODEL_NAME)")
    make.add_argument("--steps", type=int, help="training steps (default: those of utils/demo/reading.py)")
    measure = commands.add_parser("measure", help="exchange documents and compare losses", allow_abbrev=False)
    measure.add_argument("--model-dir", type=Path, action="append", help="a T5 instead of the models of the seed")
    measure.add_argument("--seed", type=seed_argument, default=42, help="of the trained models (default 42)")
    measure.add_argument("-n", type=int, default=300, help="attacked test texts (default 300)")
    given = parser.parse_args(argv)
    try:
        if given.command == "make":
            make_model(load_settings(), given.output, given.steps)
        else:
            for figures in measured(load_settings(), given):
                print(json.dumps(figures), flush=True)
    except UserError as error:
        print(f"reading_model.py: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def make_model(settings: Settings, output: Path, steps: int | None) -> None:
    """Read the training splits of TRAIN_DATASETS from local files, each document once, and train on them."""
    from utils.data.cleaning import clean_text
    from utils.data.readers import read_rows
    from utils.data.registry import chosen_sources, sources
    from utils.demo.reading import STEPS, build_reading_model

    if output.exists():  # what is made takes the place of a directory of that name
        raise UsageError(f"{output} is there already. Name a new directory, or remove it first.")
    known = sources(Path(settings.DATASETS_FILE) if settings.DATASETS_FILE else None)
    chosen = chosen_sources(known, settings.TRAIN_DATASETS, settings.TEST_DATASETS, settings.ATTACK_DATASET)
    pairs: dict[str, str] = {}
    for key in settings.TRAIN_DATASETS:
        if not chosen[key].files:
            raise InputError(f"{key}: name its files in DATASETS_FILE (docs/own-data.md); nothing is downloaded here.")
        for row in read_rows(chosen[key].files["train"], **chosen[key].reading):
            document, summary = (" ".join(clean_text(text).split()) for text in (row.document, row.summary))
            if document and summary:
                pairs.setdefault(document, summary)
    build_reading_model(list(pairs.items()), output, steps=steps or STEPS)
    print(f"{output}: made from {len(pairs):,} documents")


def measured(settings: Settings, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the figures of each model: name, texts, loss, and its mean rise with interval."""
    from utils.analysis.bootstrap import bootstrap_ci
    from utils.attacks.context import Victim
    from utils.attacks.from_settings import attack_context
    from utils.attacks.victims import load_examples
    from utils.modeling.models import load_model
    from utils.modeling.tokenizer import load_tokenizer

    paths = Paths.of(settings)
    directories = {key: paths.model(given.seed, key) for key in models_of(settings)}
    if given.model_dir:
        directories = {str(directory): directory for directory in given.model_dir}
    examples = load_examples(paths.prepared, "attack_evaluate")[: given.n]
    for name, directory in directories.items():
        context = attack_context(settings, load_tokenizer(directory), directory)
        own, other = exchanged_losses(context, Victim(name, load_model(directory)), examples)
        mean, lower, upper = bootstrap_ci(other - own, samples=settings.BOOTSTRAP_SAMPLES)
        yield {
            "model": name,
            "texts": len(own),
            "loss": round(float(own.mean()), 3),
            "rise": [round(value, 3) for value in (mean, lower, upper)],
            "texts_that_rise": round(float((other > own).mean()), 3),
        }


def exchanged_losses(context: Any, victim: Any, examples: Any) -> tuple[Any, Any]:
    """Losses per token of each reference with its document, and with the document half the list further on.

    Two float64 [texts]. Where that document is the same text, the next other one is taken.
    """
    from utils.attacks.context import exact_losses

    texts = context.encode(examples)
    if len({text.document for text in texts}) < 2:
        raise InputError("all test texts have one document: there is nothing to exchange. Take more with -n.")
    labels, inputs = [text.labels for text in texts], [text.ids for text in texts]
    others = []
    for n, text in enumerate(texts):
        place = n + len(texts) // 2
        while texts[place % len(texts)].document == text.document:
            place += 1
        others.append(inputs[place % len(texts)])
    return exact_losses(context, victim, inputs, labels), exact_losses(context, victim, others, labels)


if __name__ == "__main__":
    sys.exit(main())
