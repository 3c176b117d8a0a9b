#!/usr/bin/env python3
"""TextAttack's Seq2Sick search against a summarizer of this project: an attack from outside to compare HotFlip with."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

STOP = "the a an of to in at on and is it for will with has so been".split()
WORDS = 50  # replacements tried for a word
EPILOG = """
pip install textattack==0.3.11      in an environment of its own: it pins old versions of many packages
Nothing is downloaded: its counter-fitted synonyms are replaced by random words of the model's vocabulary, only words of
one token are exchanged (the moves of a token flip), and the goal is the relative ROUGE-L drop of the experiment.
Importance ranking, greedy order, no word twice and no stop word are those of the recipe (Cheng et al. 2020).
"""


def options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, parsed."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", action="store_true", help="the models and texts of ./run_all.sh --demo")
    parser.add_argument("--model", action="append", help="model key; can be given several times (default: all)")
    parser.add_argument("--seed", type=int, default=42, help="of the trained models (default: 42)")
    parser.add_argument("-n", type=int, default=40, help="texts of the attack set (default: 40)")
    parser.add_argument("--ours", action="store_true", help="run this project's search by the metric instead")
    parser.add_argument("--rate", action="store_true", help="how fast that search generates summaries, beside stage 4")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Attack each model; prints one JSON line for each: success at 1, 2, ... changed tokens, and what it cost."""
    given = options(argv)
    if given.demo:
        os.environ["MONO_S2S_PROFILE"] = "demo"
    from utils.attacks.context import Victim
    from utils.attacks.from_settings import attack_context
    from utils.attacks.victims import load_examples
    from utils.core.paths import Paths, models_of
    from utils.core.settings import load_settings
    from utils.modeling.models import load_model
    from utils.modeling.tokenizer import load_tokenizer

    settings = load_settings()
    paths = Paths.of(settings)
    directories = {key: paths.model(given.seed, key) for key in given.model or models_of(settings)}
    tokenizer = load_tokenizer(paths.pretrained)
    context = attack_context(settings, tokenizer, *directories.values())
    examples = load_examples(paths.prepared, "attack_evaluate")[: given.n]
    for key, directory in directories.items():
        victim, began = Victim(key, load_model(directory)), time.process_time()
        if given.rate:
            print(key, rate(context, victim, examples, settings, given.seed), flush=True)
            continue
        attack = ours if given.ours else textattack
        rows, flips = attack(context, victim, examples, settings, given.seed), settings.HOTFLIP_NUM_FLIPS
        if not rows:
            say = f"peer_attack.py: none of {len(examples)} texts can be attacked on {key}. Take more with -n."
            print(say, file=sys.stderr)
            return 1
        figures = {
            "model": key,
            "attack": attack.__name__,
            "examples": len(rows),
            "success_at_tokens": [
                round(sum(bool(n) and n <= k for n, _ in rows) / len(rows), 3) for k in range(1, flips + 1)
            ],
            "forward_equivalents": round(sum(cost for _, cost in rows) / len(rows)),
            "cpu_seconds_per_example": round((time.process_time() - began) / len(rows), 3),
        }
        print(json.dumps(figures), flush=True)
    return 0


def ours(context: Any, victim: Any, examples: Any, settings: Any, seed: int) -> list[tuple[int, float]]:
    """(changed tokens at the first success, or 0; cost in forward passes) of each attackable example: our search."""
    from utils.analysis.measures import GRADIENT_COST, SUMMARY_COST, reaches_threshold
    from utils.analysis.records import attackable, given

    rows = []
    for record in attackable(by_metric(context, victim, examples, settings, seed)):
        reached = [reaches_threshold(drop, settings.ATTACK_SUCCESS_THRESHOLD) for drop in given(record.budget_drop)]
        first = reached.index(True) + 1 if True in reached and record.success else 0
        search = given(record.search)
        rows.append((first, search.generations * SUMMARY_COST + search.gradients * GRADIENT_COST + search.queries))
    return rows


def rate(context: Any, victim: Any, examples: Any, settings: Any, seed: int) -> str:
    """Summaries a CPU second that our search asks for, beside the same from one call, as stage 4 makes it."""
    from utils.benchmarks.report import as_text
    from utils.benchmarks.reranking import beside_stage_4

    def attack() -> object:
        return by_metric(context, victim, examples, settings, seed)

    return as_text(beside_stage_4(f"{len(examples)} texts by metric", context, victim, attack, rounds=5))


def by_metric(context: Any, victim: Any, examples: Any, settings: Any, seed: int) -> Any:
    """Records of our search by the metric, as stage 6 runs it; nothing is kept between runs."""
    from utils.attacks.from_settings import hotflip_settings
    from utils.attacks.hotflip.attack import attack_examples

    with tempfile.TemporaryDirectory() as name:
        by = hotflip_settings(settings, seed, method="metric")
        return attack_examples(context, victim, examples, by, cache_dir=Path(name))


def textattack(context: Any, victim: Any, examples: Any, settings: Any, seed: int) -> list[tuple[int, float]]:
    """The same of TextAttack's search."""
    _import_offline()
    from textattack import Attack
    from textattack.constraints.overlap import MaxWordsPerturbed
    from textattack.constraints.pre_transformation import RepeatModification, StopwordModification
    from textattack.goal_functions.text import TextToTextGoalFunction
    from textattack.models.wrappers import ModelWrapper
    from textattack.search_methods import GreedyWordSwapWIR
    from textattack.transformations import WordSwap

    from utils.analysis.measures import SUMMARY_COST, reaches_threshold, relative_drop
    from utils.attacks.context import rouge_l, summaries

    random.seed(seed)
    tokenizer, view = context.tokenizer, context.view
    words = [view.pieces[i][1:] for i in context.legal.ids[: context.legal.whole]]
    words = [word for word in words if word.isalpha() and len(word) > 1]
    generated = 0

    class Wrapper(ModelWrapper):
        model = victim.model

        def __call__(self, texts: list[str]) -> list[str]:
            nonlocal generated
            generated += len(texts)
            typed = [context.prefix + text for text in texts]
            ids = tokenizer(typed, truncation=True, max_length=context.max_input_length)["input_ids"]
            return summaries(context, victim, ids)

    class RougeDrop(TextToTextGoalFunction):
        reference, clean = "", 1.0

        def clear_cache(self) -> None:
            if self.use_cache:
                self._call_model_cache.clear()

        def _get_score(self, output: str, _: object) -> float:
            return relative_drop(self.clean, float(rouge_l(context, [output], [self.reference])[0]))

        def _is_goal_complete(self, output: str, _: object) -> bool:
            return reaches_threshold(self._get_score(output, _), settings.ATTACK_SUCCESS_THRESHOLD)

    class OneTokenSwap(WordSwap):
        def _get_replacement_words(self, word: str) -> list[str]:
            one_token = len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1
            return random.sample(words, min(WORDS, len(words))) if one_token else []

    limits = [
        RepeatModification(),
        StopwordModification(stopwords=set(STOP)),
        MaxWordsPerturbed(max_num_words=settings.HOTFLIP_NUM_FLIPS),
    ]
    wrapper = Wrapper()
    goal = RougeDrop(wrapper, query_budget=float("inf"))
    attack = Attack(goal, limits, OneTokenSwap(), GreedyWordSwapWIR(wir_method="unk", unk_token="[UNK]"))
    rows = []
    for item in context.encode(examples):
        # What the model does not read is no word to rank: each would cost the peer a summary for nothing.
        document = item.document[: item.spans[-1][1]] if item.spans else ""
        if not document:
            continue
        goal.reference = item.summary
        goal.clean = float(rouge_l(context, wrapper([document]), [item.summary])[0])
        if not reaches_threshold(goal.clean, settings.ATTACK_MIN_CLEAN_ROUGE):
            continue
        before, changed = generated, 0
        result = attack.attack(document, item.summary)
        if type(result).__name__ == "SuccessfulAttackResult":
            text = result.original_result.attacked_text
            changed = len(text.all_words_diff(result.perturbed_result.attacked_text))
        rows.append((changed, (generated - before) * SUMMARY_COST))
    return rows


def _import_offline() -> None:
    """Import TextAttack without what it would download: optional models, and nltk's stop words."""
    for name in ("flair", "flair.data", "flair.models", "flair.embeddings", "jieba", "jieba.posseg", "pinyin",
                 "OpenHowNet"):  # fmt: skip
        stub = MagicMock()
        stub.__path__, stub.__spec__ = [], None
        sys.modules[name] = stub
    home = Path(tempfile.mkdtemp())
    stop_words = home / "corpora" / "stopwords" / "english"
    stop_words.parent.mkdir(parents=True)
    stop_words.write_text("\n".join(STOP), encoding="utf-8")
    os.environ["TA_CACHE_DIR"] = str(home)
    import nltk

    nltk.data.path.insert(0, str(home))
    nltk.download = lambda *_, **__: False


if __name__ == "__main__":
    sys.exit(main())
