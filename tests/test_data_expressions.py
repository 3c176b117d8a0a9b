"""No regular expression that sees a user's text is slower than linear: all of utils/, on texts made to stall them."""

from __future__ import annotations

import ast
import importlib
import re
import time
from pathlib import Path

import pytest

from tests.data_world import tokenizer
from utils.data.cleaning import clean_text, count_words
from utils.data.contamination import fingerprint
from utils.data.readers import Row
from utils.data.rows import Encoding, Task, Worker
from utils.data.statistics import lead3, novel_ngrams

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("data", "evaluation", "attacks", "analysis", "reports")  # rooms in which texts and summaries come by
PIECES = list("aA1 .:;'\"-_<>/\\[](){}|*\n\t\u00a0\u200b\u200d中ก\u0301!")
PIECES += ["a ", " .", ".\n", "a:", "a.", "<s", "</", "<extra_id_1", "1.", "Mr. ", "a' ", "\n\n", " \n", "a\u200d"]
PIECES += ["中\u200d", ". A", "e.g. ", "U.S. ", '." ']
SIZE, SECONDS = 100_000, 1.0


def expressions() -> dict[str, re.Pattern[str]]:
    """Every compiled expression of these rooms, and those given to re.sub, re.split and the like in place."""
    found = {}
    for room in ROOMS:
        for path in sorted((ROOT / "utils" / room).rglob("*.py")):
            module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
            for name, value in vars(module).items():
                if isinstance(value, re.Pattern) and isinstance(value.pattern, str):
                    found[f"{module.__name__}.{name}"] = value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                    first = node.args[0]
                    is_re = isinstance(node.func.value, ast.Name) and node.func.value.id == "re"
                    if is_re and isinstance(first, ast.Constant) and isinstance(first.value, str):
                        found[f"{module.__name__}:{node.lineno}"] = re.compile(first.value)
    return found


def texts(size: int) -> list[str]:
    made = [(piece * (size // len(piece) + 1))[:size] for piece in PIECES]
    return made + [text + "!" for text in made[:8]] + [" " + made[0]]


@pytest.mark.parametrize("name", expressions())
def test_an_expression_is_linear_on_every_adversarial_text(name):
    pattern = expressions()[name]
    for text in texts(SIZE):
        began = time.process_time()
        for _ in pattern.finditer(text):
            pass
        assert time.process_time() - began < SECONDS, f"{name} {pattern.pattern!r} on {text[:12]!r} * n"


def test_the_check_sees_a_quadratic_expression():
    began = time.process_time()
    list(re.finditer(r"[^\s:]+:(?=\s|$)", "a" * 20_000))  # what decontamination used: 40,000 characters took a minute
    assert time.process_time() - began > 0.1
    assert len(expressions()) >= 10


@pytest.mark.parametrize("piece", ["a", "中", "a:", ": ", "a ", "\u200d", "<s", "\n", "'"])
def test_a_row_of_a_million_characters_takes_seconds(piece):
    text = (piece * 1_000_000)[:1_000_000]
    began = time.process_time()
    clean = clean_text(text)
    fingerprint(text)
    count_words(clean)
    lead3(clean)
    novel_ngrams(clean[:200_000], clean[:1000])
    worker = Worker(Task(Encoding.of(tokenizer(), "summarize: ", 96, 16)))
    worker.process([Row(0, text, "a short summary")])
    assert time.process_time() - began < 20
