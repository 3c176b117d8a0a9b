"""What all attacks of one experiment share (`AttackContext`), and the model under attack (`Victim`)."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration

from utils.attacks.encoding import EncodedText, Example, encode_texts
from utils.attacks.legal_tokens import LegalTokens, TokenIds, TokenizerView
from utils.attacks.objective import Objective, Targets
from utils.core.errors import Interrupted
from utils.core.fingerprint import fingerprint
from utils.evaluation.decoding import DecodingSettings, input_fingerprint
from utils.evaluation.generation import generate
from utils.scoring.rouge import rouge_scores

log = logging.getLogger(__name__)
LOSSES = ("reference", "own_output")  # what an attack raises: the reference's loss, or that of the clean summary


@dataclass(frozen=True)
class AttackContext:
    """Tokenizer, legal tokens, lengths and decoding: the same for every model and every attack.

    `batch_tokens`: padded tokens in one forward pass of an attack; `generation_tokens`: input tokens in one batch of
    summaries. `precision`: "fp32", "bf16" or "auto" (bf16 where the GPU has it), of the summaries (as of stage 4's),
    and of the search where it ranks candidates as float32 does; reported losses are float32 always.
    """

    tokenizer: PreTrainedTokenizerBase
    legal: LegalTokens
    prefix: str
    max_input_length: int
    max_target_length: int
    decoding: DecodingSettings
    batch_tokens: int
    generation_tokens: int
    precision: str = "auto"
    rouge_processes: int | None = 1
    stop_requested: Callable[[], bool] = lambda: False

    @property
    def view(self) -> TokenizerView:
        """The tokenizer's vocabulary as arrays."""
        return self.legal.view

    def encode(self, examples: Sequence[Example], *, reserved: int = 0) -> list[EncodedText]:
        """Ids, labels and attackable positions of each example, with room for `reserved` tokens of a trigger."""
        return encode_texts(
            self.view,
            examples,
            prefix=self.prefix,
            max_input_length=self.max_input_length,
            max_target_length=self.max_target_length,
            typable=self.legal.typable,
            reserved=reserved,
        )

    def labels(self, texts: Sequence[str]) -> list[list[int]]:
        """Target ids of each summary in `texts`, ending in eos."""
        ids: list[list[int]] = self.tokenizer(list(texts), truncation=True, max_length=self.max_target_length)[
            "input_ids"
        ]
        return ids

    def fingerprint(self, *more: object) -> str:
        """Names all that decides an attack's numbers, `more` included; cache entries carry it."""
        return fingerprint(
            self.prefix,
            self.max_input_length,
            self.max_target_length,
            self.decoding,
            self.legal.token_set,
            len(self.legal.ids),
            self.precision,
            *more,
        )

    def check_stop(self) -> None:
        """Raise Interrupted where the job was told to stop; call it only after saving."""
        if self.stop_requested():
            raise Interrupted("stopped as asked; finished units are saved")


@dataclass(eq=False)
class Victim:
    """A loaded model under its model key, with the hash of its weights.

    `known`: summaries that it has made already with the same decoding, by `input_fingerprint`.
    """

    key: str
    model: T5ForConditionalGeneration
    weights: str = ""
    known: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Names weights and known summaries: what ties cache entries with summaries in them to this victim."""
        if not self.known:
            return self.weights
        return fingerprint(self.weights, self.known)


def summaries(
    context: AttackContext,
    victim: Victim,
    inputs: Sequence[TokenIds],
    *,
    done_file: Path | None = None,
    label: str = "",
) -> list[str]:
    """Summaries of `inputs` by the evaluation's own decoding; known ones are taken, equal inputs generated once."""
    found: dict[tuple[int, ...], str] = {}
    todo: list[tuple[int, ...]] = []
    for row in dict.fromkeys(tuple(map(int, row)) for row in inputs):
        key = input_fingerprint(row) if victim.known else ""
        if key in victim.known:
            found[row] = victim.known[key]
        else:
            todo.append(row)
    if found and label:
        log.info("%s: %d of %d summaries are known from the evaluation", label, len(found), len(found) + len(todo))
    if todo:
        texts, _ = generate(
            victim.model,
            context.tokenizer,
            todo,
            context.decoding,
            batch_tokens=context.generation_tokens,
            precision=context.precision,
            done_file=done_file,
            weights=victim.weights,
            stop_requested=context.stop_requested,
            label=label,
        )
        found |= zip(todo, texts, strict=True)
    return [found[tuple(map(int, row))] for row in inputs]


def rouge_l(context: AttackContext, predictions: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
    """ROUGE-L F of each pair, float64 [N]."""
    if not predictions:
        return np.zeros(0)
    scores = rouge_scores(predictions, references, metrics=("rougeL",), processes=context.rouge_processes)
    return scores["rougeL"]


def exact_losses(
    context: AttackContext, victim: Victim, inputs: Sequence[TokenIds], labels: Sequence[TokenIds]
) -> NDArray[np.float64]:
    """Float32 mean NLL of `labels[n]` given `inputs[n]`, float64 [N]: the losses that are reported."""
    if not len(inputs):
        return np.zeros(0)
    objective = Objective(victim.model, batch_tokens=context.batch_tokens)
    return objective.losses(inputs, Targets(labels, objective.device), np.arange(len(inputs)))
