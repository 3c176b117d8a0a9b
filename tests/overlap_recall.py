"""Measure what decontamination finds in real text: the tables of docs/data.md. Not a test: it needs the real files.

    python -m tests.overlap_recall --dialogsum train.csv validation.csv test.csv --samsum validation.csv test.csv

Every file has the columns dialogue and summary. Overlaps between the parts are counted as stage 1 does it; then copies
of the test dialogues are planted with one edit each, and the share that is found is printed.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from utils.data.cleaning import clean_text
from utils.data.contamination import Fingerprint, OverlapIndex, fingerprint
from utils.data.readers import read_rows

FILLER = "table window river green seven under walk paper cloud winter garden bread silver north early".split()


def replaced(share: float) -> Callable[[random.Random, str], str]:
    def edit(rng: random.Random, text: str) -> str:
        words = text.split(" ")
        for place in rng.sample(range(len(words)), round(share * len(words))):
            words[place] = rng.choice(FILLER) + rng.choice(FILLER)
        return " ".join(words)

    return edit


def deleted(rng: random.Random, text: str) -> str:
    words = text.split(" ")
    gone = set(rng.sample(range(len(words)), round(0.1 * len(words))))
    return " ".join(word for place, word in enumerate(words) if place not in gone)


def inserted(rng: random.Random, text: str) -> str:
    words = text.split(" ")
    for _ in range(round(0.1 * len(words))):
        words.insert(rng.randrange(len(words) + 1), rng.choice(FILLER))
    return " ".join(words)


def other_speakers(rng: random.Random, text: str) -> str:
    return "\n".join(f"Dr. Quill: {line.partition(':')[2] or line}" for line in text.split("\n"))


def shuffled(rng: random.Random, text: str) -> str:
    lines = text.split("\n")
    return "\n".join(rng.sample(lines, len(lines)))


def neighbours(rng: random.Random, text: str) -> str:
    lines = text.split("\n")
    for place in range(0, len(lines) - 1, 2):
        lines[place], lines[place + 1] = lines[place + 1], lines[place]
    return "\n".join(lines)


def part(first: float, last: float) -> Callable[[random.Random, str], str]:
    def edit(rng: random.Random, text: str) -> str:
        words = text.split(" ")
        return " ".join(words[round(first * len(words)) : round(last * len(words))])

    return edit


EDITS: dict[str, Callable[[random.Random, str], str]] = {
    **{f"{share:.0%} of the words replaced": replaced(share) for share in (0.02, 0.05, 0.1, 0.2, 0.3)},
    "10% deleted": deleted,
    "10% inserted": inserted,
    "other speakers": other_speakers,
    "other case, punctuation, spacing": lambda rng, text: text.upper().replace(".", " !").replace("\n", " \n\n"),
    "turns shuffled": shuffled,
    "neighbours swapped": neighbours,
    "first half": part(0, 0.5),
    "second half": part(0.5, 1),
    "first quarter": part(0, 0.25),
    "behind 300 other words": lambda rng, text: " ".join(rng.choices(FILLER, k=300)) + "\n" + text,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogsum", nargs=3, type=Path, required=True)
    parser.add_argument("--samsum", nargs=2, type=Path, required=True)
    options = parser.parse_args()
    names = ("DialogSum train", "DialogSum validation", "DialogSum test", "SAMSum validation", "SAMSum test")
    texts = {name: _texts(path) for name, path in zip(names, (*options.dialogsum, *options.samsum), strict=True)}
    marks = {name: [fingerprint(text) for text in part] for name, part in texts.items()}
    for held_out, compared in (
        *(("DialogSum validation", "DialogSum train"), ("DialogSum test", "DialogSum train")),
        *(("DialogSum test", "DialogSum validation"), ("SAMSum test", "SAMSum validation")),
        ("SAMSum test", "DialogSum train"),
    ):
        index = _index(marks[held_out], marks[compared])
        found = [index.find(mark) for mark in marks[compared]]
        kinds = Counter(match.kind for match in found if match)
        met = len({match.id for match in found if match})
        print(f"{held_out} in {compared}: {kinds['exact']} the same, {kinds['near']} near copies, of {met} held out")
    for name in ("SAMSum test", "DialogSum test"):
        index = _index(marks[name], marks["DialogSum train"])
        for edit, change in EDITS.items():
            rng = random.Random(edit)
            copies = [fingerprint(clean_text(change(rng, text))) for text in texts[name]]
            print(f"{name}, {edit}: {sum(index.find(copy) is not None for copy in copies) / len(copies):.1%}")


def _texts(path: Path) -> list[str]:
    return [clean_text(row.document) for row in read_rows([path], "dialogue", "summary")]


def _index(held_out: Sequence[Fingerprint], compared: Sequence[Fingerprint]) -> OverlapIndex:
    index = OverlapIndex(compared)
    index.add("held out", [str(number) for number in range(len(held_out))], held_out)
    return index


if __name__ == "__main__":
    main()
