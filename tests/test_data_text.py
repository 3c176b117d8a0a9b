"""Texts cleaned, compared, tokenised and counted: each against what it should be, worked out by hand or another way."""

from __future__ import annotations

import itertools
import random
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data_world import tokenizer, words
from tests.tiny import write_model
from utils.data.cleaning import clean_text, count_words, problem_of
from utils.data.contamination import OverlapIndex, fingerprint
from utils.data.rows import Encoding
from utils.data.statistics import SplitStatistics, draw, lead3, novel_ngrams
from utils.modeling.tokenizer import load_tokenizer

CLEAN = {
    "highlights keep their lines": ("First one .\nSecond one .", "First one .\nSecond one ."),
    "spaces at line ends, empty lines": (" a \n\n \t b  c\u00a0 \n", "a\nb c"),
    "every kind of line end": ("a\r\nb\rc\vd\fe\u0085f\u2028g\u2029h", "a\nb\nc\nd\ne\nf\ng\nh"),
    "what nobody sees": ("\ufeffso\u00adft\u200b \u0000text\u2060", "soft text"),
    "what a tokenizer would obey": ("a</s>b <pad>c<extra_id_7> d<unk>", "a b c d"),
    "one form of each letter": ("cafe\u0301", "caf\u00e9"),
    "half a character": ("a\ud83db", "a?b"),
    "nothing": (" \n\u200b\t", ""),
    "an emoji family": (
        "hi \U0001f468\u200d\U0001f469\u200d\U0001f467",
        "hi \U0001f468\u200d\U0001f469\u200d\U0001f467",
    ),
    "Persian, whose letters do not join": (
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    ),
    "joiners in Latin text": ("so\u200dft \u200ctext\u200d", "soft text"),
    "a control word in joiners": ("a <\u200d/s> b", "a b"),
}


@pytest.mark.parametrize("name", CLEAN)
def test_cleaning(name):
    text, clean = CLEAN[name]
    assert clean_text(text) == clean == clean_text(clean)


@settings(max_examples=200, deadline=None)
@given(
    st.text(alphabet=st.sampled_from(list("ab \n\r\t\v\x85\u2028\u200b\u200d\u0301\u4e2d</s>pad\ud800é")), max_size=40)
)
def test_cleaning_twice_is_cleaning_once_and_leaves_words_and_lines_alone(text):
    clean = clean_text(text)
    assert clean_text(clean) == clean
    assert all(line and line == " ".join(line.split()) for line in clean.split("\n")) or not clean
    clean.encode("utf-8")


def test_why_a_row_is_dropped():
    long = "one two three four five six seven eight"
    assert problem_of("", long, test=True) == "empty_document" and problem_of(long, "", test=True) == "empty_summary"
    assert problem_of("short", long, test=False) == "too_short" == problem_of(long, "one", test=False)
    assert problem_of("short", "one", test=True) is None and problem_of(long, "two words", test=False) is None


def edited(rng: random.Random, text: str, share: float) -> str:
    """`text` with that share of its words replaced."""
    parts = text.split(" ")
    for place in rng.sample(range(len(parts)), round(share * len(parts))):
        parts[place] = words(rng, 1)
    return " ".join(parts)


def dialogue(rng: random.Random, turns: int = 8) -> str:
    return "\n".join(f"{'Anna' if turn % 2 else 'Ben'}: {words(rng, 12)}." for turn in range(turns))


COPIES = {
    "the same": ("exact", lambda rng, text: text),
    "case, punctuation, spacing": ("exact", lambda rng, text: text.upper().replace(".", "!").replace("\n", "  \n")),
    "other speakers": ("exact", lambda rng, text: text.replace("Anna:", "#Person1#:").replace("Ben:", "Dr. Ben Oz:")),
    "2 % of the words": ("near", lambda rng, text: edited(rng, text, 0.02)),
    "10 % of the words": ("near", lambda rng, text: edited(rng, text, 0.10)),
    "turns in another order": ("near", lambda rng, text: "\n".join(rng.sample(text.split("\n"), 8))),
    "its first half": ("near", lambda rng, text: text[: len(text) // 2]),
    "inside a longer text": ("near", lambda rng, text: words(rng, 300) + "\n" + text),
}


@pytest.fixture(scope="module")
def held_out() -> tuple[list[str], OverlapIndex]:
    rng = random.Random(5)
    texts = [dialogue(rng) for _ in range(60)]
    index = OverlapIndex()
    index.add("set/test", [f"set/test/{n}" for n in range(60)], [fingerprint(text) for text in texts])
    return texts, index


@pytest.mark.parametrize("name", COPIES)
def test_planted_copies_are_found(held_out, name):
    texts, index = held_out
    kind, copy = COPIES[name]
    rng = random.Random(6)
    for number, text in enumerate(texts):
        match = index.find(fingerprint(clean_text(copy(rng, text))))
        assert match is not None and match.id == f"set/test/{number}", name
        assert match.kind == kind or copy(rng, text) == text


def test_other_texts_are_left_alone(held_out, tmp_path):
    texts, index = held_out
    rng = random.Random(7)
    stock = "Good morning, can I help you? Thank you very much, have a nice day."
    index.add("set/stock", ["set/stock/0"], [fingerprint(stock + " " + words(rng, 60))])
    index.save(tmp_path)
    for found in (index, OverlapIndex.open(tmp_path)):
        assert found.find(fingerprint(dialogue(rng))) is None
        assert found.find(fingerprint(stock + " " + words(rng, 60))) is None  # phrases are no copy
        assert found.find(fingerprint(edited(rng, texts[0], 0.6))) is None
        assert found.find(fingerprint("")) is None and found.find(fingerprint("yes no")) is None
        assert found.find(fingerprint(texts[3])).id == "set/test/3"


def test_what_is_protected_first_wins_and_a_short_text_must_share_more():
    rng = random.Random(8)
    text, short = dialogue(rng), words(rng, 11)
    index = OverlapIndex()
    index.add("a/test", ["a/test/0"], [fingerprint(edited(rng, text, 0.1))])
    index.add("b/test", ["b/test/0", "b/test/1"], [fingerprint(text), fingerprint(short)])
    assert index.find(fingerprint(text)).group == "a/test"  # though b has it word for word
    assert index.find(fingerprint(short + " " + words(rng, 1))).id == "b/test/1"
    assert index.find(fingerprint(" ".join(short.split()[:7]) + " " + words(rng, 5))) is None


@pytest.mark.parametrize("own", ["words", "sentencepiece"])
def test_long_texts_are_cut_before_they_are_tokenised_and_the_ids_are_the_same(own, tmp_path):
    tok = tokenizer() if own == "words" else load_tokenizer(write_model(tmp_path / "model"))
    encoding = Encoding.of(tok, "summarize: ", 24, 8)
    rng = random.Random(9)
    texts = [words(rng, count).replace(" ", rng.choice(" \n")) for count in (1, 5, 20, 60, 400)]
    texts += ["ka " * 400, "kalomi" * 400, "x" * 300 + " ka" * 5, "Kä\u0301 " * 90, "ka", "\u3042" * 50 + " lo mi" * 60]
    texts += ["\u0301".join(words(rng, 30).split(" ")), "unbreakable" * 30 + " " + words(rng, 30)]
    for text, (ids, length) in zip(texts, encoding.documents(texts), strict=True):
        whole = tok("summarize: " + text).input_ids
        assert ids.tolist() == tok("summarize: " + text, truncation=True, max_length=24).input_ids
        assert length == len(whole) if len(whole) <= 24 else length > 24
    for text, (ids, _) in zip(texts, encoding.summaries(texts), strict=True):
        assert ids.tolist() == tok(text, truncation=True, max_length=8).input_ids


def test_statistics_are_those_of_a_few_rows_counted_by_hand():
    assert novel_ngrams("the cat sat on the mat", "The cat ran home") == {1: 0.5, 2: 2 / 3, 3: 1.0, 4: 1.0}
    assert novel_ngrams("a b", "c")[2] is None
    assert lead3("One. Two!\nThree? Four.") == "One.\nTwo!\nThree?"
    counted = SplitStatistics(max_input_length=16, max_target_length=8, seed=0)
    rows = [((10, 2), (12, 4)), ((40, 4), (90, 8)), ((30, 3), (17, 9))]
    for number, (lengths, tokens) in enumerate(rows):
        counted.keep(lengths, tokens)
        counted.sample(str(number), "One. Two. Three. Four.", "One two three.")
    counted.remove("empty_document")
    counted.remove("duplicate")
    result = asdict(counted.result())
    assert (result["raw"], result["usable"], result["kept"]) == (5, 4, 3)
    assert result["document"]["words"] == {
        "min": 10,
        "median": 30,
        "p90": 40,
        "max": 40,
        "mean": pytest.approx(80 / 3),
        "histogram": {"from": [0, 25, 50, 100, 200, 400, 800, 1600, 3200, 6400, 12800], "rows": [1, 2] + [0] * 9},
    }
    assert result["document"]["share_truncated"] == pytest.approx(2 / 3)  # 90 and 17 tokens into 16
    assert result["summary"]["share_truncated"] == pytest.approx(1 / 3)  # 8 fit, 9 do not
    assert result["document"]["tokens"]["histogram"]["rows"] == [0, 0, 0, 0, 0, 1, 0, 0, 2]
    assert result["compression"] == pytest.approx((5 + 10 + 10) / 3)
    assert result["sampled"]["rows"] == 3 and result["sampled"]["lead3"]["rouge1"] == pytest.approx(1.0)


def test_samples_are_seeded_spread_and_independent_of_order():
    ids = [f"set/test/{n}" for n in range(2000)]
    drawn = draw(ids, 200, seed=0, purpose="attack")
    assert drawn == sorted(drawn) == draw(ids, 200, seed=0, purpose="attack") and len(set(drawn)) == 200
    assert abs(np.mean(drawn) - 1000) < 3 * 577 / 200**0.5  # 577: deviation of a uniform draw
    reverse = draw(ids[::-1], 200, seed=0, purpose="attack")
    assert {ids[::-1][n] for n in reverse} == {ids[n] for n in drawn}
    for other in (draw(ids, 200, seed=1, purpose="attack"), draw(ids, 200, seed=0, purpose="quick")):
        assert len(set(other) & set(drawn)) < 60  # 20 are expected
    assert draw(ids[:5], 200, seed=0, purpose="attack") == [0, 1, 2, 3, 4]


CHINESE = "昨天下午三点钟左右我们在学校门口见到了老师他说明天不上课所以大家都很高兴然后一起去公园里玩了很久才回家吃饭"
SCRIPTS = {
    "Chinese": CHINESE,
    "Tibetan": "ང་ཚོ་སློབ་གྲྭར་འགྲོ་དགོས་རེད་ཁྱེད་རང་གི་མིང་ལ་ག་རེ་ཟེར་",
    "narrow kana": "ｷﾉｳﾊｶﾞｯｺｳﾆｲｷﾏｼﾀｾﾝｾｲﾆｱｲﾏｼﾀｱｼﾀﾊﾔｽﾐﾃﾞｽﾐﾝﾅﾃﾞｺｳｴﾝﾍ",
    "Javanese": "ꦲꦏꦸꦭꦸꦔꦲꦶꦁꦱꦼꦏꦺꦴꦭꦲꦤ꧀ꦱꦧꦼꦤ꧀ꦢꦶꦤꦭꦸꦔꦲꦶꦁꦱꦏꦺꦭꦧꦼꦤ",
    "Yi": "ꆈꌠꁱꂷꀉꒉꆏꋍꃅꄮꐚꑌꋦꇁꂷꐚꈜꂷꄮꒉꆏꁱꐚꀉꌠꈜꑌꋍꇁꋦꃅꆈꂷꒉꐚꄮꀉꌠ꒐ꋍꑌꇁ",
    "Japanese": "昨日の午後三時ごろ学校の門の前で先生に会いました明日は授業がないのでみんなで公園へ行きました",
    "Thai": "เมื่อวานตอนบ่ายเราพบคุณครูที่หน้าโรงเรียนครูบอกว่าพรุ่งนี้ไม่มีเรียนพวกเราจึงไปเล่นที่สวนสาธารณะด้วยกันจนเย็น",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_without_spaces_are_counted_and_compared_by_characters(script):
    text = SCRIPTS[script]
    assert count_words(text) > 35 and problem_of(text, text[:6], test=False) is None
    assert problem_of(text[:4], text[:6], test=False) == "too_short"
    rng = random.Random(3)
    others = ["".join(rng.sample(text, len(text))) for _ in range(30)]
    index = OverlapIndex(fingerprint(other) for other in others)
    index.add("set/test", ["set/test/0", "set/test/1"], [fingerprint(text), fingerprint(others[0])])
    place = len(text) // 2
    changed = text[:place] + "X" + text[place + 1 :]
    assert index.find(fingerprint(changed)).kind == "near"
    assert index.find(fingerprint(text[: 3 * len(text) // 4])).id == "set/test/0"
    assert all(index.find(fingerprint(other)) is None for other in others[1:])


def test_words_between_spaces_are_what_they_were_and_mixed_text_adds_up():
    rng = random.Random(4)
    for text in ("", "a", "it's 3.5 °C — ok", words(rng, 50), "привет мир", "안녕 세상"):
        assert count_words(text) == len(text.split())
    assert count_words("我 like 苹果 and T恤") == 1 + 1 + 2 + 1 + 2


def test_signs_alone_are_the_same_as_themselves_only():
    marks = [fingerprint(text).digest for text in ("", "\U0001f600", "\U0001f622", "!!!")]
    assert len(set(marks)) == 4


def test_an_indic_word_is_one_word():
    hindi = "हिन्दी में यह एक छोटा वाक्य है और यह दूसरा वाक्य है"
    assert len(fingerprint(hindi).ngrams) == len(hindi.split()) - 3


WEATHER = (
    "Good evening, here is the weather for {0}. Tomorrow the day begins with {1} in the north and {2} in the south. "
    "Temperatures reach {3} degrees at noon and fall to {4} degrees during the night. The wind comes from the {5} at "
    "{6} kilometres an hour. The outlook for {7}: {8}. Thank you for watching, and have a nice evening."
)
MATCH = (
    "Full time at the {0} ground. The home side won {3} to {4} in front of {6} thousand people. The first goal was of "
    "{1} after a corner kick in minute {5}, and {2} added another one before the break. The visitors made {7} changes "
    "in the second half but could not find a way through. The next match is on {8} and tickets are on sale now."
)
PAGE = (
    "This page includes the show transcript. Use the transcript to help students with reading comprehension. At the "
    "bottom of the page, comment for a chance to be mentioned on the show. You must be a teacher or be of age {3} "
    "or older. {0} {1} {2} {7} {8} On this page you will find today's show transcript and a place for you to leave "
    "feedback. Students in grade {4} can answer {5} questions, or {6} of them, for extra credit with their teacher."
)


@pytest.mark.parametrize("held", [3, 10, 11, 20, 40])
@pytest.mark.parametrize("template", [WEATHER, MATCH, PAGE])
def test_templates_are_no_copies_however_few_are_held_out(template, held):
    rng = random.Random(f"{held}")

    def report() -> str:
        number = lambda: str(rng.randrange(100))  # noqa: E731
        return template.format(words(rng, 3), words(rng, 3), words(rng, 3), number(), number(), number(), number(),
                               words(rng, 3), words(rng, 5))  # fmt: skip

    texts = [report() for _ in range(held)]
    others = [fingerprint(report()) for _ in range(200)]
    index = OverlapIndex(others)
    index.add("set/test", [str(number) for number in range(held)], [fingerprint(text) for text in texts])
    assert sum(index.find(other) is not None for other in others) == 0
    copies = [index.find(fingerprint(text.upper())) for text in texts]
    assert [match.id for match in copies] == [str(number) for number in range(held)]
    near = [index.find(fingerprint(edited(rng, text, 0.03))) for text in texts]
    assert sum(match is not None for match in near) >= 0.6 * held


def test_the_weight_of_a_sequence_falls_smoothly_with_the_documents_that_have_it():
    """One phrase in ever more of the others: what two texts share by it fades, without a cliff."""
    rng = random.Random(12)
    phrase, own = words(rng, 30), [words(rng, 30) for _ in range(2)]
    seen = []
    for count in range(0, 60, 2):
        others = [fingerprint(phrase + " " + words(rng, 30)) for _ in range(count)]
        index = OverlapIndex(others)
        index.add("set/test", ["0"], [fingerprint(f"{phrase} {own[0]}")])
        match = index.find(fingerprint(f"{phrase} {own[1]}"))
        seen.append(match.containment if match else 0.0)
    assert seen[0] > 0.45 and seen[-1] == 0.0
    steps = [before - after for before, after in itertools.pairwise(seen) if after]
    assert all(-1e-9 <= step < 0.1 for step in steps) and len(steps) > 4


def test_a_document_in_many_copies_is_still_found():
    rng = random.Random(13)
    text = dialogue(rng)
    index = OverlapIndex(fingerprint(edited(rng, text, 0.02)) for _ in range(30))
    index.add("set/test", ["0"], [fingerprint(text)])
    assert index.find(fingerprint(edited(rng, text, 0.05))).id == "0"
