"""Beam search with T5 that gives the token ids of transformers' `generate`, several times faster.

The bookkeeping follows transformers 5 (`GenerationMixin._beam_search` with early_stopping=False) rule by rule, so that
summaries are comparable with everybody else's: 2 × beams candidates a step, finished ones only from the first `beams`
of them, scores divided by length ** length_penalty, an example done when its best running score can no longer beat
its worst finished one. tests/test_beam_search.py compares ids with transformers over many models and inputs.

Faster, because: t5_inference.py does not copy caches; examples that are done leave the batch; candidates come from the
largest logits of each beam, so the log-softmax is never written out.

Shapes: E examples still in the batch, B beams, V vocabulary, T = 1 + max_new_tokens positions (start token first).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from utils.evaluation.decoding import DecodingSettings
from utils.modeling.t5_inference import T5Inference

# Stands for "impossible" in sums of log-probabilities, as in transformers: far below any, and still a number.
IMPOSSIBLE = -1.0e9
# Examples leave the batch when at least this share is done: moving the caches costs about one step.
SHARE_DONE = 0.25
# Asking a GPU what is done makes it wait; a few steps too many cost less.
STEPS_BETWEEN_CHECKS = {"cuda": 4}


@dataclasses.dataclass
class Beams:
    """The search of the examples still in the batch: running beams, and the best sequences that have ended.

    `open`: whether a running beam of the example may still beat a finished one.
    """

    sequences: Tensor  # int64 [E, B, T]; behind the tokens so far: padding
    scores: Tensor  # float32 [E, B], sums of log-probabilities
    finished: Tensor  # int64 [E, B, T]
    finished_scores: Tensor  # float32 [E, B], divided by length ** length_penalty, the best first
    is_finished: Tensor  # bool [E, B]: holds a sequence, not only room for one
    open: Tensor  # bool [E]

    @classmethod
    def begin(cls, examples: int, beams: int, steps: int, start: int, pad: int, device: torch.device) -> Beams:
        """Before the first token: every beam is the start token, nothing is finished."""
        sequences = torch.full((examples, beams, 1 + steps), pad, dtype=torch.int64, device=device)
        sequences[:, :, 0] = start
        # All beams start equal: only the first counts, or all of them would choose the same tokens.
        scores = torch.full((examples, beams), IMPOSSIBLE, device=device)
        scores[:, 0] = 0.0
        return cls(
            sequences=sequences,
            scores=scores,
            finished=sequences.clone(),
            finished_scores=torch.full((examples, beams), IMPOSSIBLE, device=device),
            is_finished=torch.zeros((examples, beams), dtype=torch.bool, device=device),
            open=torch.ones(examples, dtype=torch.bool, device=device),
        )

    def select(self, examples: Tensor) -> Beams:
        """Only these examples (int64 indices)."""
        return Beams(*(getattr(self, field.name).index_select(0, examples) for field in dataclasses.fields(self)))


@torch.inference_mode()
def beam_search(
    engine: T5Inference,
    rows: Sequence[np.ndarray],
    decoding: DecodingSettings,
    *,
    start: int = 0,
    end: int = 1,
    pad: int = 0,
) -> list[list[int]]:
    """Generated ids of each row of ids, without the start token and padding, </s> included where it was generated.

    start, end, pad: ids of the decoder's start token, </s> and padding (T5: 0, 1, 0). Rows of equal length should
    stand side by side (see T5Inference.encode). One beam is greedy search, which ends at the first </s>.
    """
    steps, device = decoding.max_new_tokens, engine.device
    lengths = [len(row) for row in rows]
    ids = torch.from_numpy(np.concatenate(rows).astype(np.int64)).to(device)
    state = engine.start(engine.encode(ids, lengths), lengths, decoding.num_beams, steps)
    beams = Beams.begin(len(rows), decoding.num_beams, steps, start, pad, device)
    best = beams.finished[:, 0].clone()  # int64 [rows, T], filled in when an example leaves the batch
    remaining = torch.arange(len(rows), device=device)  # int64 [E]: which row the example is
    steps_between = STEPS_BETWEEN_CHECKS.get(device.type, 1)
    for step in range(steps):
        logits = engine.step(beams.sequences[:, :, step], state, step)
        parents = _advance(beams, logits, step, decoding, end)
        if step + 1 == steps:
            break
        state.reorder(parents)
        if (step + 1) % steps_between:
            continue
        num_open = int(beams.open.sum())  # the one number of a step that is read back from the device
        if num_open == 0:
            break
        if num_open <= (1 - SHARE_DONE) * len(remaining):
            best[remaining] = beams.finished[:, 0]
            keep = beams.open.nonzero()[:, 0]
            remaining = remaining[keep]
            beams = beams.select(keep)
            state.select(keep, step + 1)
    best[remaining] = beams.finished[:, 0]
    return [through_end(row, end) for row in best[:, 1:].tolist()]


def through_end(ids: list[int], end: int) -> list[int]:
    """`ids` up to and including the first `end`; what follows it is padding (transformers pads with </s>)."""
    return ids[: ids.index(end) + 1] if end in ids else ids


def _advance(beams: Beams, logits: Tensor, step: int, decoding: DecodingSettings, end: int) -> Tensor:
    """Extend every beam by one token in place; returns the parent of each new beam, int64 [E, B].

    logits: float32 [E × B, V], overwritten.
    """
    examples, width = beams.scores.shape
    generated = step + 1
    # log-softmax = (logit − largest) − log Σ exp(logit − largest), rounded in this order as torch does: a sure token
    # then has a log-probability of 0 to 1e-12 instead of 1e-6, which decides ties. Bans come after: no renormalising.
    logits -= logits.amax(dim=-1, keepdim=True)
    log_total = logits.exp().sum(dim=-1).log()  # [E × B]
    if step < decoding.min_new_tokens:
        logits[:, end] = -torch.inf
    _ban_repeated_ngrams(
        logits, beams.sequences.view(examples * width, -1)[:, :generated], decoding.no_repeat_ngram_size
    )
    # The 2 × B best continuations of all beams are among the 2 × B best of each: so many can end, and B still run on.
    candidates, tokens = _largest(logits, 2 * width)  # [E × B, 2 B] each, best first
    candidates = (candidates - log_total[:, None]).view(examples, width, -1) + beams.scores[:, :, None]  # [E, B, 2 B]
    scores, order = candidates.view(examples, -1).topk(2 * width)  # [E, 2 B]; order counts beam × 2 B + candidate
    tokens = tokens.view(examples, -1).gather(1, order)  # [E, 2 B]
    parents = order // (2 * width)
    sequences = beams.sequences.gather(1, parents[:, :, None].expand(-1, -1, beams.sequences.shape[2]))  # [E, 2 B, T]
    sequences[:, :, generated] = tokens
    ends = tokens == end
    if generated == decoding.max_new_tokens:
        ends = torch.ones_like(ends)

    # The next beams: the best B of the 2 B that did not end.
    chosen = torch.topk(scores + ends * IMPOSSIBLE, width)
    beams.sequences, beams.scores = _pick(sequences, chosen.indices), chosen.values

    # The finished ones: the best B of those before and those that end now, from the first B candidates alone (as
    # transformers does: a worse one that ends does not push out one that may become better).
    just_finished = ends.clone()
    just_finished[:, width:] = False
    allowed = just_finished & beams.open[:, None]
    final_scores = scores / generated**decoding.length_penalty + ~allowed * IMPOSSIBLE
    merged = torch.topk(torch.cat([beams.finished_scores, final_scores], dim=1), width)  # of [E, 3 B]
    beams.finished = _pick(torch.cat([beams.finished, sequences], dim=1), merged.indices)
    beams.is_finished = torch.cat([beams.is_finished, just_finished], dim=1).gather(1, merged.indices)
    beams.finished_scores = merged.values
    # An example stays open while its best running beam, were it to end now, would beat the worst finished sequence.
    # Until all B are finished, anything beats: transformers compares with IMPOSSIBLE.
    worst = torch.where(beams.is_finished, merged.values.min(dim=1, keepdim=True).values, IMPOSSIBLE)
    beams.open &= (beams.scores[:, :1] / generated**decoding.length_penalty > worst).any(dim=1)
    if width == 1:
        beams.open &= ~just_finished[:, 0]  # greedy search ends at its first </s>
    return parents.gather(1, chosen.indices)


def _pick(sequences: Tensor, indices: Tensor) -> Tensor:
    """Sequences [E, n, T] at `indices` [E, m] of the second dimension, [E, m, T]."""
    return sequences.gather(1, indices[:, :, None].expand(-1, -1, sequences.shape[2]))


def _ban_repeated_ngrams(logits: Tensor, sequences: Tensor, size: int) -> None:
    """Set to −inf, in place, every token that would complete an n-gram that its sequence [rows, length] has already.

    The start token counts as a part of the sequence, as in transformers.
    """
    if size <= 0 or sequences.shape[1] < size:
        return
    windows = sequences.unfold(1, size, 1)  # [rows, length − size + 1, size]: every n-gram so far
    last = sequences[:, sequences.shape[1] - size + 1 :]  # [rows, size − 1]: the beginning of the next one
    repeated = (windows[:, :, :-1] == last[:, None]).all(dim=-1)  # [rows, windows]: begins as the next one does
    # Its last token is banned. Several windows may end in one token, and the smallest wins: +inf leaves a logit as it
    # is, and no window lifts the ban of another.
    limits = torch.where(repeated, -torch.inf, torch.inf)
    logits.scatter_reduce_(1, windows[:, :, -1], limits, "amin")


def _largest(logits: Tensor, count: int, chunk: int = 128) -> tuple[Tensor, Tensor]:
    """torch.topk(logits, count) of [rows, V], some three times faster on a CPU; values and indices [rows, count].

    The `count` largest numbers of a row lie in the `count` chunks with the largest maxima: a chunk outside has all its
    numbers below `count` others. So topk runs over V / 128 maxima and count × 128 numbers instead of V.
    """
    rows, size = logits.shape
    chunked = size // chunk * chunk
    if chunked < count * chunk:
        return torch.topk(logits, count)
    chunks = logits[:, :chunked].unflatten(1, (-1, chunk))  # [rows, chunks, 128]
    best_chunks = chunks.amax(dim=-1).topk(count).indices  # [rows, count]
    values = chunks.gather(1, best_chunks[:, :, None].expand(-1, -1, chunk)).flatten(1)  # [rows, count × 128]
    tokens = (best_chunks[:, :, None] * chunk + torch.arange(chunk, device=logits.device)).flatten(1)
    if chunked < size:  # the end of the vocabulary, which fills no chunk, competes as it is
        values = torch.cat([values, logits[:, chunked:]], dim=1)
        rest = torch.arange(chunked, size, device=logits.device)
        tokens = torch.cat([tokens, rest.expand(rows, -1)], dim=1)
    best = values.topk(count)
    return best.values, tokens.gather(1, best.indices)
