"""One attack on one text, for a person to look at: the text with its changes, the summary before and after."""

from __future__ import annotations

import difflib
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from utils.analysis.measures import reaches_threshold, relative_drop
from utils.analysis.records import given
from utils.attacks.context import AttackContext, Victim, exact_losses, rouge_l, summaries
from utils.attacks.encoding import LOW_CLEAN_ROUGE, Example, Segment, segments
from utils.attacks.hotflip.attack import HotFlipSettings, attack_examples
from utils.attacks.triggers.inputs import trigger_examples
from utils.core.errors import StageError, UsageError

REASONS = {
    "empty_article": "the text is empty",
    "empty_reference": "the summary to compare with is empty",
    "clean_rouge_below_minimum": "the model's summary has nothing in common with the reference",
    "loss_not_finite": "the model's loss on this text is not a finite number",
    "no_legal_flip": "no token of the text can be changed",
}
RED, GREEN, YELLOW, BOLD, PLAIN = "\x1b[31m\x1b[9m", "\x1b[32m\x1b[1m", "\x1b[33m", "\x1b[1m", "\x1b[0m"
INDENT = 10


@dataclass(frozen=True)
class ShownText:
    """The text to attack: `id` seeds the random choices, as in stage 6; `reference` None: there is none."""

    id: str
    document: str
    reference: str | None


@dataclass(frozen=True)
class Shown:
    """All that is printed about one attack. Losses in nats per token; ROUGE-L only where there is a reference."""

    title: str
    segments: list[Segment]
    before: str
    after: str
    loss: tuple[float, float]
    rouge: tuple[float, float] | None = None
    threshold: float = 0.15
    steps: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def show_hotflip(context: AttackContext, victim: Victim, text: ShownText, settings: HotFlipSettings) -> Shown:
    """Attack `text` by HotFlip. Without a reference the model's own summary is what the attack destroys."""
    with tempfile.TemporaryDirectory() as name:
        example = _with_reference(context, victim, text)
        records = attack_examples(
            context, victim, [example], replace(settings, min_clean_rouge=0.0), cache_dir=Path(name), every_budget=False
        )
    record = records[0]
    if record.skipped:
        raise StageError(f"this text cannot be attacked: {REASONS[record.skipped]}")
    (item,) = context.encode([example])
    view, search, clean_rouge = context.view, given(record.search), given(record.clean_rougeL)
    steps = [
        f"{flip.position - item.start + 1:>4}  {view.text([flip.old]).strip()!r} -> "
        f"{view.text([flip.new]).strip()!r}  {flip.actual_gain:+.3f} nats"
        + ("" if flip.predicted_gain is None else f" (first order: {flip.predicted_gain:+.3f})")
        for flip in search.flips
    ]
    notes = [] if search.flips else ["No change raised the loss: the text stays as it is."]
    if not record.typable and context.legal.typable:
        notes.append("The attacked ids could not be written as text.")
    if item.end - item.start < len(context.tokenizer(text.document, add_special_tokens=False)["input_ids"]):
        notes.append(f"The model reads the first {item.end - item.start} tokens of this text.")
    if text.reference is not None and not reaches_threshold(clean_rouge, settings.min_clean_rouge):
        notes.append(f"In the experiment this text would not count: {REASONS[LOW_CLEAN_ROUGE]}.")
    return Shown(
        title=f"HotFlip on {victim.key}, {len(search.flips)} of at most {settings.num_flips} tokens changed,"
        f" {search.queries} exact scores",
        segments=segments(view, item, given(record.attacked_ids)),
        before=given(record.clean_prediction),
        after=given(record.attacked_prediction),
        loss=(given(record.clean_loss), given(record.attacked_loss)),
        rouge=None if text.reference is None else (clean_rouge, given(record.attacked_rougeL)),
        threshold=settings.success_threshold,
        steps=steps,
        notes=notes,
    )


def show_trigger(
    context: AttackContext,
    victim: Victim,
    text: ShownText,
    *,
    kind: str,
    words: str,
    threshold: float,
) -> Shown:
    """Put the trigger `words` into `text` where a trigger of type `kind` stands, and summarise both."""
    trigger = context.view.encode([words])[0]
    if not trigger:
        raise UsageError("the trigger is empty")
    (item,) = trigger_examples(context, [_with_reference(context, victim, text)], len(trigger))
    if item.problem:
        raise StageError(f"this text cannot be attacked: {REASONS[item.problem]}")
    place = item.draw_boundary(kind, "show")
    inputs = [item.clean, item.with_trigger(kind, trigger, place)]
    before, after = summaries(context, victim, inputs, done_file=None, label=victim.key)
    losses = exact_losses(context, victim, inputs, [item.labels] * 2)
    typed = item.attacked_text(kind, "\x00", context.prefix, place)
    left, right = typed.split("\x00")
    rouge = None
    if text.reference is not None:
        clean, attacked = rouge_l(context, [before, after], [item.summary] * 2).tolist()
        rouge = (clean, attacked)
    return Shown(
        title=f"{kind} trigger on {victim.key}",
        segments=[part for part in (Segment(left, left), Segment("", words), Segment(right, right)) if part.new],
        before=before,
        after=after,
        loss=(float(losses[0]), float(losses[1])),
        rouge=rouge,
        threshold=threshold,
        notes=[]
        if len(item.visible_text) >= len(text.document.rstrip())
        else ["The model reads only the part shown here."],
    )


def _with_reference(context: AttackContext, victim: Victim, text: ShownText) -> Example:
    """`text` with the model's own summary where it has no reference; StageError where there is none to attack."""
    if text.reference is not None:
        return Example(text.id, text.document, text.reference)
    (item,) = context.encode([Example(text.id, text.document, "x")])
    if not item.attackable:
        raise StageError(f"this text cannot be attacked: {REASONS['empty_article']}")
    (summary,) = summaries(context, victim, [item.ids], done_file=None, label=victim.key)
    if not summary.strip():
        raise StageError("the model's summary of this text is empty: there is nothing to attack. Give a --summary.")
    return Example(text.id, text.document, summary)


def render(shown: Shown, *, colour: bool, width: int = 100) -> str:
    """The whole picture as text of at most `width` columns; without colour, changes stand as [old -> new]."""

    def paint(text: str, style: str) -> str:
        # Word by word, so that a line break never falls into an escape sequence.
        return " ".join(f"{style}{word}{PLAIN}" for word in text.split(" ")) if colour and text else text

    pieces = []
    for part in shown.segments:
        old, new = part.old.strip(), part.new.strip()
        if not part.changed:
            pieces.append(part.new)
        elif colour:
            pieces.append(" ".join(bit for bit in (paint(old, RED), paint(new, GREEN)) if bit))
        else:
            pieces.append(f"[{old} -> {new}]" if old else f"[+ {new}]")
    lost, gained = _changed_words(shown.before, shown.after)
    lines = [paint(shown.title, BOLD), ""]
    lines += _block("text", "".join(pieces), width)
    lines += _block("before", _marked(shown.before, lost, lambda word: paint(word, YELLOW)), width)
    lines += _block("after", _marked(shown.after, gained, lambda word: paint(word, YELLOW)), width)
    first, last = shown.loss
    lines += _block("loss", f"{first:.3f} -> {last:.3f} nats per token ({last - first:+.3f})", width)
    if shown.rouge is not None:
        lines += _block("ROUGE-L", _rouge_line(*shown.rouge, shown.threshold), width)
    lines += [*_table("changes", shown.steps), *(line for note in shown.notes for line in _block("note", note, width))]
    return "\n".join(lines)


def _rouge_line(before: float, after: float, threshold: float) -> str:
    if before <= 0:
        return f"{before:.3f} -> {after:.3f} (nothing to lose)"
    drop = relative_drop(before, after)
    verdict = "success" if reaches_threshold(drop, threshold) else "no success"
    return f"{before:.3f} -> {after:.3f} ({-drop:+.1%}; {verdict} at {threshold:.0%})"


def _changed_words(before: str, after: str) -> tuple[set[int], set[int]]:
    """Indices of the words of each summary that the other one does not have in their place."""
    old, new = before.split(), after.split()
    lost, gained = set(range(len(old))), set(range(len(new)))
    for match in difflib.SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks():
        lost -= set(range(match.a, match.a + match.size))
        gained -= set(range(match.b, match.b + match.size))
    return lost, gained


def _marked(text: str, words: set[int], mark: Callable[[str], str]) -> str:
    return " ".join(mark(word) if k in words else word for k, word in enumerate(text.split()))


def _block(label: str, text: str, width: int) -> list[str]:
    # textwrap counts escape sequences as columns: coloured lines come out a little short, never too long.
    lines = [
        line
        for paragraph in (text.splitlines() or [""])
        for line in (
            textwrap.wrap(paragraph, max(width - INDENT, 20), break_long_words=False, break_on_hyphens=False) or [""]
        )
    ]
    return [f"{label if k == 0 else '':<{INDENT}}{line}" for k, line in enumerate(lines)] + [""]


def _table(label: str, rows: Sequence[str]) -> list[str]:
    if not rows:
        return []
    return [f"{label if k == 0 else '':<{INDENT}}{row}" for k, row in enumerate(rows)] + [""]
