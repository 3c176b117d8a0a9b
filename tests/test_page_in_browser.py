"""The page in a real browser: its script works from a file and asks nobody, and it opens at full size."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from utils.reports.examples import Examples
from utils.reports.table import Table
from utils.reports.template import Section, render_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium")]
MODELS = ("standard", "baseline", "monotonic")


class Browser:
    """A headless Chromium, spoken to by the DevTools protocol over two pipes."""

    def __init__(self, profile: Path) -> None:
        commands, self._out = os.pipe()
        self._in, answers = os.pipe()
        # Chromium reads commands from descriptor 3 and writes answers to 4.
        switches = "--headless=new --no-sandbox --disable-gpu --no-first-run --remote-debugging-pipe"
        shell = f'exec "{CHROMIUM}" {switches} "--user-data-dir={profile}" 3<&{commands} 4>&{answers}'
        self.process = subprocess.Popen(
            ["bash", "-c", shell], pass_fds=(commands, answers), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        os.close(commands)
        os.close(answers)
        self._rest, self._number, self.events = b"", 0, list[dict[str, Any]]()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable", session=self.session)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        os.write(self._out, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            got = os.read(self._in, 1 << 20)
            assert got, "the browser is gone"
            self._rest += got
        message, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer

    def open(self, path: Path) -> float:
        """Seconds until the page is loaded and its script has run."""
        self.events.clear()
        start = time.perf_counter()
        self.call("Page.navigate", session=self.session, url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())
        return time.perf_counter() - start

    def run(self, script: str) -> Any:
        answer = self.call("Runtime.evaluate", session=self.session, expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def problems(self) -> list[dict[str, Any]]:
        """Errors of the page, and whatever it asked for beside itself."""
        requests = [e["params"] for e in self.events if e.get("method") == "Network.requestWillBeSent"][1:]
        names = ("Log.entryAdded", "Runtime.exceptionThrown")
        return requests + [e["params"] for e in self.events if e.get("method") in names]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    running = Browser(tmp_path_factory.mktemp("profile"))
    yield running
    running.call("Browser.close")
    running.process.wait(timeout=20)


def full_size() -> Examples:
    """1,500 articles of 400 words, three models, two attacks, every tenth skipped."""
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 9))) for _ in range(5000)]

    def words(count: int) -> str:
        return " ".join(rng.choices(vocabulary, k=count))

    examples = Examples(texts=[[f"cnn_dm/test/{n}", words(50), words(400)] for n in range(1500)])
    for attack in ("HotFlip", "universal trigger"):
        for model in MODELS:
            rows: list[list[Any]] = []
            for place in range(1500):
                text = examples.texts[place][2]
                if place % 10 == 0:
                    rows.append([place, "clean_rouge_below_minimum"])
                    continue
                start = text.index(" ") + 1
                changes = [[start, text[start:].split(" ")[0], "<b>new</b>"]] if attack == "HotFlip" else []
                rows.append([place, 0.5, place / 3000, int(place < 1275), words(40), words(40), changes, 1])
            examples.attacks.setdefault(attack, {})[model] = rows
    examples.notes["universal trigger"] = {"baseline": "lead: of the"}
    return examples


ROWS = [("b", "-0.5 [-1.0, 0.0]", "x"), ("a", "+1,200.0", "z"), ("c", "not available", "y"), ("d", "12.5 %", "w")]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = Table("numbers", "Numbers", ("name", "figure", "word"), ROWS)
    sections = [Section("Tables", tables=[table]), Section("Attacked examples", browser=True)]
    path = tmp_path_factory.mktemp("a directory") / "report.html"
    path.write_text(render_page("Page", ["Answer."], [], sections, examples=full_size().data()), encoding="utf-8")
    return path


def test_a_full_size_page_opens_in_two_seconds_and_asks_nobody(browser: Browser, page: Path) -> None:
    assert min(browser.open(page) for _ in range(2)) < 2.0
    assert not browser.problems()
    assert browser.run("document.querySelectorAll('.example').length") == 10
    assert browser.run("document.getElementById('browser').textContent").count("1 to 10 of 4,500") == 1
    assert page.stat().st_size < 20e6


def choose(browser: Browser, **values: str) -> tuple[str, str]:
    """The status line and the titles of the examples, after choosing in the filters by their names."""
    for name, value in values.items():
        browser.run(
            f"""(() => {{ const label = [...document.querySelectorAll('.filters label')]
            .find((one) => one.textContent.startsWith({name!r})); const input = label.querySelector('select, input');
            input.value = {value!r};
            input.dispatchEvent(new Event(input.tagName === 'SELECT' ? 'change' : 'input')); }})()"""
        )
    status = browser.run("document.querySelector('#browser .note').textContent")
    return status, browser.run("[...document.querySelectorAll('#browser h3')].map((h) => h.textContent).join('\\n')")


def test_examples_are_filtered_by_attack_model_outcome_and_words(browser: Browser, page: Path) -> None:
    browser.open(page)
    status, titles = choose(browser, model="baseline")
    # By hand: of 1,500 every tenth is skipped (150), of the rest those below 1,275 succeed: 1,275 - 128 = 1,147.
    assert status == "1 to 10 of 1,500 (1,147 successes, 150 skipped)" and titles.count("baseline: ") == 10
    assert "cnn_dm/test/1, ROUGE-L 0.500 to 0.000, success" in titles.split("\n")[0]
    assert choose(browser, outcome="skipped")[0] == "1 to 10 of 150 (0 successes, 150 skipped)"
    assert "skipped: clean rouge below minimum" in choose(browser)[1]
    status, titles = choose(browser, outcome="no success", order="smallest drop first")
    assert status == "1 to 10 of 203 (0 successes, 0 skipped)" and "cnn_dm/test/1499" in titles.split("\n")[0]
    assert choose(browser, outcome="all", **{"with": "test/1499"})[0].startswith("1 to 1 of 1")
    assert browser.run("document.querySelector('#browser mark ins').textContent") == "<b>new</b>"
    assert browser.run("document.querySelectorAll('#browser b b, #browser mark b').length") == 0
    assert choose(browser, attack="universal trigger")[0].startswith("1 to 1 of 1")
    assert browser.run("document.querySelector('#browser mark').textContent") == "lead: of the"
    choose(browser, **{"with": ""})
    browser.run("[...document.querySelectorAll('#browser button')].find((b) => b.textContent === 'next').click()")
    assert browser.run("document.querySelector('#browser .note').textContent").startswith("11 to 20 of 1,500")


def test_tables_sort_by_figures_and_words_and_are_copied(browser: Browser, page: Path) -> None:
    browser.open(page)
    column = "[...document.querySelectorAll('table[data-name=numbers] tbody th')].map((c) => c.textContent).join('')"

    def click(number: int) -> str:
        browser.run(f"document.querySelectorAll('table[data-name=numbers] .sort')[{number}].click()")
        order: str = browser.run(column)
        return order

    assert browser.run(column) == "bacd"
    assert [click(1) for _ in range(3)] == ["bdac", "adbc", "bacd"]  # what is not available comes last both times
    assert [click(2) for _ in range(2)] == ["dbca", "acbd"] and click(0) == "abcd"
    copied = "window.copied = []; navigator.clipboard.writeText = async (text) => { window.copied.push(text); };"
    browser.run(copied + "for (const button of document.querySelectorAll('.copy button')) button.click();")
    markdown, csv, latex = browser.run("window.copied")
    assert markdown.startswith("| name | figure | word |\n| --- | ---: | --- |\n| b | -0.5 [-1.0, 0.0] | x |\n")
    assert csv.startswith("name,figure,word\n") and r"b & $-$0.5 [$-$1.0, 0.0] & x \\" in latex
