"""Judge a set by what was counted: an error where nothing is left of it, warnings where a large share is odd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from utils.core.errors import StageError
from utils.data.cleaning import clean_text, is_written_value, problem_of
from utils.data.readers import Row
from utils.data.records import SplitFacts
from utils.data.registry import DatasetSource

# Shares of rows from which on a reader must know. The published sets are far below all of them but REPEATED, where
# HighlightSum has 46 %: it contains DialogSum.
DROPPED = 0.20
REPEATED = 0.60
LONGER = 0.20
IDENTICAL = 0.01
SAME_SUMMARY, SAME_ROWS = 0.05, 5  # share of the rows, and at least so many
WRITTEN_LISTS = 0.20
UNKNOWN = 0.05  # of characters or tokens; English text has under 1 %


class NothingKept(StageError):
    """Nothing is left of a set that was asked for; `key` and `reason` tell of which, and why."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{reason}. Fix the files or DATASETS_FILE, or go on without it: DATASET_ALLOW_PARTIAL=true.")
        self.key, self.reason = key, reason


def check_kept(source: DatasetSource, split: str, facts: SplitFacts) -> None:
    """NothingKept unless rows are left, or all that left repeat other training text (then nothing is lost)."""
    left = {reason: rows for reason, rows in facts.removed.items() if reason not in ("not_drawn", "duplicate")}
    if facts.kept or not left:
        return
    reasons = ", ".join(f"{rows:,} {reason.replace('_', ' ')}" for reason, rows in sorted(left.items()))
    columns = f"columns {source.document!r} (document) and {source.summary!r} (summary)"
    raise NothingKept(source.key, f"{source.key}/{split}: nothing is left of {facts.raw:,} rows ({reasons}); {columns}")


def warnings_of(name: str, facts: SplitFacts) -> list[str]:
    """What is odd about a split ("xsum/test"), a sentence each, without full stop."""
    drawn = facts.raw - facts.removed.get("not_drawn", 0)
    if not drawn:
        return []
    found = []
    dropped = drawn - facts.kept - facts.removed.get("duplicate", 0)
    if dropped > DROPPED * drawn:
        reasons = sorted(facts.removed.items(), key=lambda item: -item[1])
        why = ", ".join(f"{rows:,} {reason.replace('_', ' ')}" for reason, rows in reasons if reason != "not_drawn")
        found.append(f"{dropped:,} of {drawn:,} rows were dropped ({why})")
    if facts.repeated_documents > REPEATED * drawn:
        found.append(f"{facts.repeated_documents:,} of {drawn:,} rows have a document that came before")
    if facts.several_references:
        found.append(f"{facts.several_references:,} rows have several references; the first is used")
    found += _text_warnings(
        rows=facts.sampled["rows"] if facts.sampled else 0,
        same_summary=facts.sampled["same_summary"] if facts.sampled else 0.0,
        longer=facts.summary_longer or 0.0,
        identical=facts.identical or 0.0,
        written_lists=facts.written_lists or 0.0,
        unknown=max(facts.unknown.characters, facts.unknown.tokens) if facts.unknown else 0.0,
        examples=facts.unknown.examples if facts.unknown else "",
    )
    return [f"{name}: {text}" for text in found]


def usable(row: Row, split: str) -> bool:
    """Whether a row as published has enough text for its split."""
    return problem_of(clean_text(row.document), clean_text(row.summary), test=split == "test") is None


def sample_warnings(name: str, rows: Sequence[Row]) -> list[str]:
    """The same of a few rows as published, before anything is tokenised: for the pre-flight. Empty rows count."""
    texts = [(clean_text(row.document), clean_text(row.summary)) for row in rows]
    problems = [problem_of(*pair, test=name.endswith("test")) for pair in texts]
    dropped = [problem for problem in problems if problem]
    found = []
    if len(dropped) > DROPPED * len(rows):
        kinds = ", ".join(sorted({problem.replace("_", " ") for problem in dropped}))
        found.append(f"{len(dropped)} of the first {len(rows)} rows will be dropped ({kinds})")
    kept = [pair for pair, problem in zip(texts, problems, strict=True) if not problem]
    if kept:
        share = 1 / len(kept)
        letters = [character for pair in kept for text in pair for character in text if character.isalpha()]
        foreign = [character for character in letters if character > "\u024f"]  # behind the Latin blocks
        found += _text_warnings(
            rows=len(kept),
            same_summary=share * Counter(summary for _, summary in kept).most_common(1)[0][1],
            longer=share * sum(len(summary) > len(document) for document, summary in kept),
            identical=share * sum(summary == document for document, summary in kept),
            written_lists=share * sum(any(map(is_written_value, pair)) for pair in kept),
            unknown=len(foreign) / max(1, len(letters)),
            examples="".join(dict.fromkeys(foreign))[:10],
        )
    return [f"{name}: {text}" for text in found]


def _text_warnings(
    *,
    rows: int,
    same_summary: float,
    longer: float,
    identical: float,
    written_lists: float,
    unknown: float,
    examples: str,
) -> list[str]:
    found = []
    if longer > LONGER:
        found.append(f"{longer:.0%} of the summaries are longer than their documents; are the columns swapped?")
    if identical > IDENTICAL:
        found.append(f"in {identical:.0%} of the rows the summary is the document")
    if same_summary > SAME_SUMMARY and same_summary * rows >= SAME_ROWS:
        found.append(f"{same_summary:.0%} of the rows have one and the same summary; is the column a label?")
    if written_lists > WRITTEN_LISTS:
        found.append(
            f"{written_lists:.0%} of the texts are lists written as text, such as ['a', 'b'], or all in quotes"
        )
    if unknown > UNKNOWN:
        found.append(
            f"{unknown:.0%} of the text is <unk> to the model's vocabulary ({examples}), and ROUGE counts only Latin "
            "letters and digits: figures on this set mean little"
        )
    return found
