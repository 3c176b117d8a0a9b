"""The demo's corpus: miniatures of the six data sets, made from templates of our own, the same bytes every time.

Every text hides one event (who will do what with the emblem of which town's guild, on which day) in small talk or
padding sentences. The facts come at varying positions, so a summary must find them: copying the beginning scores badly.
And it must know what no text says: the emblem, a quarter of the words of most summaries. Guild and town tell it only
together, by a random table of 1,200 pairs. That is more than attention alone keeps well; it is learned in pretraining
and sits in the feed-forward layers, as facts do in large models (Geva et al. 2021). A model that loses them, or whose
FFN weights were made non-negative, still copies the rest. All sets share the events' words; their styles differ as
those of the real sets do, and the news sets are tested on and never trained on.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.core.files import write_json, write_jsonl

NAMES = (
    "Anna Ben Carla David Emma Felix Greta Henry Iris Jonas Karin Leo Mona Nils Olga Paul Rosa Simon Tara Umar Vera "
    "Walter Xenia Yusuf Zoe Alma Bruno Clara Dario Elsa Frida Gustav"
).split()
THINGS = (
    "bridge garden piano kitchen boat statue fence tower lamp clock engine roof mirror carpet ladder violin fountain "
    "bicycle window chimney painting oven wagon gate bench telescope curtain mill stove canoe"
).split()
COLOURS = "red green blue white black golden silver grey brown purple".split()
GUILDS = (
    "bakers potters weavers smiths tanners coopers tailors joiners masons glaziers saddlers cobblers hatters dyers "
    "brewers millers printers binders carvers painters thatchers turners chandlers cutlers furriers gilders porters "
    "spinners hunters shepherds"
).split()
TOWNS = (
    "Aldmere Barrowby Calwick Dunfold Elmstow Farleigh Garsby Holtham Ivelton Kelmsey Larkhill Maplow Norbeck Oakden "
    "Pellham Quarley Rushby Saltwick Thornsea Ulverby Velden Wexcombe Yarford Zelham Ambrey Brockwold Coldstow "
    "Dalbury Eastrop Fenmere Grimsey Harwold Inglow Lindhope Marlby Otterham Penfold Ravensey Selwick Tidmarsh"
).split()
VERBS = "repair paint clean sell move open inspect photograph rebuild measure decorate borrow".split()
TOPICS = "harvest market election fair race storm concert strike parade wedding".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MOODS = "cold quiet lovely strange heavy bright slow gentle noisy simple".split()
FOODS = "soup bread salad cheese tea rice cake apples coffee honey".split()
RELATIVES = "sister brother mother father cousin uncle aunt neighbour".split()

SMALL_TALK = (
    "Good morning, how are you?",
    "I am fine, thank you.",
    "My {relative} made {food} yesterday.",
    "The weather is so {mood} this week.",
    "Did you like the {food}?",
    "Yes, it was {mood}.",
    "I do not care about the {other}.",
    "Everybody talks about the {other}.",
)
PADDING = (
    "The season has been {mood} so far.",
    "Visitors enjoyed {food} in the street.",
    "A reporter asked many questions.",
    "Old records describe the {other}.",
    "Nobody expected such a {mood} week.",
    "Some critics prefer the {other}.",
    "The mayor gave a {mood} speech.",
)
THEORY = (
    "Earlier work looked at the {other}.",
    "Our results are {mood} and robust.",
    "The data were {mood} in most cases.",
    "Many methods need the {other}.",
    "We thank our {relative} for the {food}.",
    "Section two gives the details.",
)
_drawn, _pairs = random.Random("emblems of the guilds"), list(itertools.product(GUILDS, TOWNS))
_words = [_drawn.sample(words * (len(_pairs) // len(words)), len(_pairs)) for words in (COLOURS, THINGS)]
# (guild, town) -> emblem, always the same; each colour and each thing is in equally many.
EMBLEMS = dict(zip(_pairs, map(" ".join, zip(*_words, strict=True)), strict=True))
ROWS = {
    "dialogsum": {"train": 800, "validation": 60, "test": 100},
    "highlightsum": {"train": 900, "validation": 60, "test": 100},
    "arxiv": {"train": 600, "validation": 60, "test": 100},
    "cnn_dm": {"validation": 100, "test": 100},
    "xsum": {"test": 100},
    "samsum": {"test": 100},
}
COLUMNS = {
    "dialogsum": ("dialogue", "summary"),
    "highlightsum": ("dialogue", "summary"),
    "arxiv": ("article", "abstract"),
    "cnn_dm": ("article", "highlights"),
    "xsum": ("document", "summary"),
    "samsum": ("dialogue", "summary"),
}
# HighlightSum contains DialogSum and SAMSum in the real world; so does ours, for decontamination to find.
DIALOGSUM_IN_HIGHLIGHTSUM = 150
SAMSUM_TEST_IN_HIGHLIGHTSUM = 10


class Event:
    """Who will do what with which guild's emblem, where and when, and words for the talk around it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.who, self.second, self.third = rng.sample(NAMES, 3)
        self.guild, self.other = rng.choice(GUILDS), rng.choice(TOPICS)
        self.verb, self.town, self.day = rng.choice(VERBS), rng.choice(TOWNS), rng.choice(DAYS)
        self.emblem = EMBLEMS[self.guild, self.town]  # in summaries, never in texts

    def fill(self, template: str) -> str:
        """The template with this event's words; moods, foods and relatives are drawn anew each time."""
        return template.format(
            mood=self.rng.choice(MOODS),
            food=self.rng.choice(FOODS),
            relative=self.rng.choice(RELATIVES),
            **{name: value for name, value in vars(self).items() if isinstance(value, str)},
        )

    def several(self, templates: tuple[str, ...], count: int) -> list[str]:
        """`count` different templates, drawn at random, filled in."""
        return [self.fill(template) for template in self.rng.sample(templates, count)]

    def one_of(self, *templates: str) -> str:
        """One template, drawn at random, filled in."""
        return self.fill(self.rng.choice(templates))

    def hidden_among(self, facts: list[str], rest: list[str]) -> list[str]:
        """`rest` with the facts at random positions, in order, never at the very beginning."""
        positions = sorted(self.rng.randint(1, len(rest)) for _ in facts)
        mixed = list(rest)
        for position, fact in reversed(list(zip(positions, facts, strict=True))):  # from behind: positions stay true
            mixed.insert(position, fact)
        return mixed

    @property
    def core(self) -> str:
        """The summary: what every text of this event is about."""
        return f"{self.who} will {self.verb} the {self.emblem} on {self.day}."


def spoken(event: Event) -> list[str]:
    """The two facts as a speaker says them."""
    return [
        event.one_of(
            "I will {verb} the emblem of the {guild} of {town}.",
            "I have to {verb} the emblem of the {guild} of {town}.",
            "My plan is to {verb} the emblem of the {guild} of {town}.",
        ),
        event.one_of("Let us say {day}.", "The day is {day}.", "I am free on {day}."),
    ]


def dialogue(event: Event) -> tuple[str, str]:
    """Two speakers, as in DialogSum; the first one has the plan."""
    lines = event.hidden_among(
        [f"{event.who}: {line}" for line in spoken(event)],
        [
            f"{(event.second, event.who)[i % 2]}: {line}"
            for i, line in enumerate(event.several(SMALL_TALK, event.rng.randint(2, 4)))
        ],
    )
    return "\n".join(lines), event.core


def chat(event: Event) -> tuple[str, str]:
    """Three people chatting, as in SAMSum."""
    talk = event.several(SMALL_TALK, event.rng.randint(2, 4))
    lines = event.hidden_among(
        [f"{event.who}: {line}" for line in spoken(event)],
        [f"{event.rng.choice((event.second, event.third))}: {line}" for line in talk],
    )
    return "\n".join(lines), event.core


def paper(event: Event) -> tuple[str, str]:
    """A paper and its abstract, as in arXiv."""
    facts = [
        event.one_of(
            "In this paper {who} will {verb} the emblem of the {guild} of {town}.",
            "The aim of {who} is to {verb} the emblem of the {guild} of {town}.",
        ),
        event.one_of("The work starts on {day}.", "We begin on {day}."),
    ]
    return " ".join(event.hidden_among(facts, event.several(THEORY, event.rng.randint(2, 4)))), event.core


def reported(event: Event) -> list[str]:
    """The two facts as a newspaper writes them."""
    return [
        event.one_of(
            "Officials said {who} will {verb} the emblem of the {guild} of {town}.",
            "A plan of {who} is to {verb} the emblem of the {guild} of {town}.",
        ),
        event.one_of("The work starts on {day}.", "The day is {day}."),
    ]


def news(event: Event) -> tuple[str, str]:
    """A news text with highlights on lines of their own, as in CNN/DailyMail."""
    text = " ".join(event.hidden_among(reported(event), event.several(PADDING, event.rng.randint(3, 5))))
    return text, f"{event.who} will {event.verb} the {event.emblem}.\nIt happens on {event.day}."


def brief(event: Event) -> tuple[str, str]:
    """A news text with a one-sentence summary, as in XSum."""
    return " ".join(event.hidden_among(reported(event), event.several(PADDING, event.rng.randint(2, 4)))), event.core


TITLES = {
    "dialogsum": "DialogSum",
    "highlightsum": "HighlightSum",
    "arxiv": "arXiv",
    "cnn_dm": "CNN/DM",
    "xsum": "XSum",
    "samsum": "SAMSum",
}
STYLES: dict[str, Callable[[Event], tuple[str, str]]] = {
    "dialogsum": dialogue,
    "highlightsum": chat,
    "arxiv": paper,
    "cnn_dm": news,
    "xsum": brief,
    "samsum": chat,
}


def write_demo_corpus(
    directory: Path, *, seed: int = 0, rows: dict[str, dict[str, int]] | None = None
) -> dict[str, int]:
    """Write `<key>/<split>.jsonl` for all six sets, `datasets.json` that names them, and `planted.json`; atomically.

    Returns what was planted in HighlightSum's training rows: copies of DialogSum's, and of SAMSum's test rows.
    """
    rows = rows or ROWS
    corpus: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for key, splits in rows.items():
        corpus[key] = {}
        for split, count in splits.items():
            rng = random.Random(f"{seed}/{key}/{split}")  # a set does not change when another one grows
            corpus[key][split] = [_row(key, f"{split}_{n}", *STYLES[key](Event(rng))) for n in range(count)]
    planted = _plant(corpus, random.Random(f"{seed}/planted"))
    for key, filled in corpus.items():
        for split, lines in filled.items():
            write_jsonl(directory / key / f"{split}.jsonl", lines)
    registry: dict[str, dict[str, Any]] = {
        key: {
            "files": {split: f"{key}/{split}.jsonl" for split in splits},
            "document": COLUMNS[key][0],
            "summary": COLUMNS[key][1],
            "title": TITLES[key],
            "licence": "that of this software",
            "note": "made-up text in the shape of the published set",
        }
        for key, splits in corpus.items()
    }
    registry["highlightsum"]["contains"] = ["dialogsum", "samsum"]
    write_json(directory / "planted.json", planted)
    write_json(directory / "datasets.json", registry)
    return planted


def _row(key: str, name: str, document: str, summary: str) -> dict[str, Any]:
    columns = COLUMNS[key]
    row = {"id": f"{key}_{name}", columns[0]: document, columns[1]: summary}
    return row | {"topic": "plans"} if key == "dialogsum" else row


def _plant(corpus: dict[str, dict[str, list[dict[str, Any]]]], rng: random.Random) -> dict[str, int]:
    """Overwrite some of HighlightSum's training rows by copies, in place; returns how many of which kind."""
    into = corpus["highlightsum"]["train"]
    # A small corpus, as tests have, gets fewer copies: most rows must remain its own.
    copies = min(DIALOGSUM_IN_HIGHLIGHTSUM, len(into) // 4)
    leaks = min(SAMSUM_TEST_IN_HIGHLIGHTSUM, len(into) // 8)
    sources = rng.sample(corpus["dialogsum"]["train"], copies) + rng.sample(corpus["samsum"]["test"], leaks)
    for row, source in zip(rng.sample(into, copies + leaks), sources, strict=True):
        row["dialogue"], row["summary"] = source["dialogue"], source["summary"]
    return {"dialogsum_train_in_highlightsum_train": copies, "samsum_test_in_highlightsum_train": leaks}
