"""ROUGE against rouge-score's own tokenizer, hand-worked examples and brute force, on text as the data sets have it."""

from __future__ import annotations

import itertools
import random
import re
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer

from utils.core.names import METRICS
from utils.scoring import rouge
from utils.scoring.rouge import rouge_scores, split_sentences

pytestmark = pytest.mark.slow

# (prediction, reference). In the style of the test sets: news with figures and quotes, CNN/DM's highlights on lines,
# dialogue summaries, and what a model writes that was trained on tokenised text.
PAIRS = [
    (
        'The U.S. said on Jan. 5 that 1,204 people had been moved. Dr. Elena M. Ruiz called it "a turning point."',
        "Officials in the U.S. moved 1,204 people by Jan. 5 .\nDr. Ruiz: 'It's a turning point'\nCosts rose to $3.5bn",
    ),
    (
        "the club won 3-2 at home . its striker scored in the 89th minute . fans were singing for hours .",
        "Club wins 3-2 at home .\nStriker scored in minute 89 .\nThe fans sang .",
    ),
    (
        "Amanda baked cookies and will bring Jerry some tomorrow.",
        "Amanda has baked cookies. She's bringing some to Jerry tomorrow!",
    ),
    (
        "A café in Zürich is naïve about “rising” prices… The owners don’t care.",
        "The owners of a Zürich café don't care about rising prices. “We're relaxed,” one of them says.",
    ),
    (
        "Police arrested two men, aged 23 and 42, after a chase. The men were aged 23 and 42. Police said so.",
        "Two men (23, 42) were arrested by police after a car chase on the A40. No one was hurt.",
    ),
    (
        "Running runners ran; flies and dying ties were relational, happily hopping. Agreed? Yes! Meetings were held.",
        "The runner runs. A fly died, tied to relations. Hop happily! He agreed to meet.",
    ),
    ("The report covers 2019 to 2021 and 45 countries.", "The report covers 2019 to 2024 and 54 countries."),
    (
        "Prices rose by 12.5% to £9.99, i.e. more than in No. 10's forecast.",
        "Prices: up 12.5% (£9.99) vs. the forecast.",
    ),
    ("London", "London"),
    ("London", "Paris"),
    ("", "Nothing was generated here."),
    ("Something was generated.", ""),
    ("", ""),
    ("...", "?!"),
    ("  \n\n ", "White space only."),
    ("Straße ∂x/∂t 北京 x2", "strasse x 2 北京"),
    ("one\n\ntwo three\n", "\none two\n\nthree"),
]


def on_lines(text: str) -> str:
    return "\n".join(split_sentences(text))


def f_measure(hits: int, prediction: int, reference: int) -> float:
    """2PR / (P + R) with P = hits / prediction and R = hits / reference, simplified by hand."""
    return 2 * hits / (prediction + reference) if hits else 0.0


def of_one(prediction: str, reference: str) -> dict[str, float]:
    return {metric: float(values[0]) for metric, values in rouge_scores([prediction], [reference]).items()}


# ---- rouge-score itself as the yardstick --------------------------------------------------------------------------


def test_scores_are_rouge_scores_to_the_last_bit() -> None:
    scorer = RougeScorer(METRICS, use_stemmer=True)
    predictions, references = zip(*PAIRS, *(pair[::-1] for pair in PAIRS), strict=True)
    scores = rouge_scores(predictions, references)
    for n, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        expected = scorer.score(on_lines(reference), on_lines(prediction))
        assert {m: scores[m][n] for m in METRICS} == {m: expected[m].fmeasure for m in METRICS}, prediction
        # Sentence breaks matter to rougeLsum alone.
        plain = scorer.score(reference, prediction)
        assert all(scores[m][n] == plain[m].fmeasure for m in METRICS if m != "rougeLsum")


def test_random_texts_score_as_rouge_score_does() -> None:
    rng = random.Random(7)
    scorer = RougeScorer(METRICS, use_stemmer=True)
    vocabulary = sorted({word for pair in PAIRS for text in pair for word in text.split()})

    def text() -> str:
        return "".join(rng.choice(vocabulary) + rng.choice("     \n.") for _ in range(rng.randint(0, 40)))

    pairs = [(text(), text()) for _ in range(300)]
    scores = rouge_scores(*zip(*pairs, strict=True))
    for n, (prediction, reference) in enumerate(pairs):
        expected = scorer.score(on_lines(reference), on_lines(prediction))
        assert [scores[m][n] for m in METRICS] == [expected[m].fmeasure for m in METRICS]
    assert min(len(set(scores[m])) for m in METRICS) > 50


def test_some_metrics_alone_are_those_of_all() -> None:
    predictions, references = zip(*PAIRS, strict=True)
    everything = rouge_scores(predictions, references)
    for chosen in (("rougeL",), ("rougeLsum",), ("rougeL", "rouge1")):
        alone = rouge_scores(predictions, references, metrics=chosen)
        assert tuple(alone) == chosen
        assert all(np.array_equal(alone[metric], everything[metric]) for metric in chosen)


# ---- what a word is -------------------------------------------------------------------------------------------------


def test_digits_are_words_and_parts_of_words() -> None:
    assert of_one("in 2019", "in 2024")["rouge1"] == 0.5
    assert of_one("covid19 42", "covid19 42")["rouge2"] == 1.0
    assert of_one("covid19", "covid")["rouge1"] == 0.0
    # 1,204 is two words, 3.5 too: 1 204 3 5 against 1 204.
    assert of_one("1,204 3.5", "1204 1,204")["rouge1"] == pytest.approx(f_measure(2, 4, 3))


def test_words_of_four_letters_are_stemmed_and_shorter_ones_are_not() -> None:
    assert PorterStemmer().stem("cats") == "cat" and PorterStemmer().stem("was") == "wa"
    assert of_one("cats", "cat")["rouge1"] == 1.0  # four letters
    assert of_one("dogs ties", "dog tie")["rouge1"] == 1.0
    assert of_one("gas", "ga")["rouge1"] == 0.0  # three letters stay as they are
    assert of_one("relational", "relate")["rouge1"] == 1.0


# ---- hand-worked ----------------------------------------------------------------------------------------------------


def test_the_paper_s_examples() -> None:
    """Lin, ROUGE (2004), sections 3.1 and 3.2: S1 against S2 and S3, and the union of two candidate sentences."""
    assert of_one("police kill the gunman", "police killed the gunman")["rougeL"] == 1.0  # stemmed
    s1, s2, s3 = "police ended the gunman", "police kill the gunman", "the gunman kill police"
    assert of_one(s2, s1)["rougeL"] == 0.75
    assert of_one(s3, s1)["rougeL"] == 0.5
    assert of_one(s3, s1)["rouge2"] == pytest.approx(1 / 3)
    # r = w1 w2 w3 w4 w5; LCS with c1 is w1 w2, with c2 it is w1 w3 w5; the union w1 w2 w3 w5 is 4 of r's 5 words.
    scores = of_one("W1 w2 w6 w7 w8. W1 w3 w8 w9 w5.", "w1 w2 w3 w4 w5")
    assert scores["rougeLsum"] == pytest.approx(f_measure(4, 10, 5))
    # One sequence: w1 w2 … w3 … w5, in this order, is a common subsequence of four as well.
    assert scores["rougeL"] == pytest.approx(f_measure(4, 10, 5))


def test_sentences_in_another_order_count_for_lsum_alone() -> None:
    scores = of_one("Rain fell. Dogs bark loud.", "Dogs bark loud.\nRain fell.")
    assert scores["rougeLsum"] == 1.0 and scores["rouge1"] == 1.0
    assert scores["rougeL"] == pytest.approx(f_measure(3, 5, 5))
    assert scores["rouge2"] == pytest.approx(f_measure(3, 4, 4))


def test_a_word_is_not_counted_more_often_than_it_occurs() -> None:
    """Both reference sentences match the one candidate sentence; without the clip of ROUGE 1.5.5 hits would be 4."""
    assert of_one("the bird", "the bird\nthe bird")["rougeLsum"] == pytest.approx(f_measure(2, 2, 4))
    assert of_one("the bird\nthe bird", "the bird")["rougeLsum"] == pytest.approx(f_measure(2, 4, 2))
    assert of_one("the the the", "the cat")["rouge1"] == pytest.approx(f_measure(1, 3, 2))


def test_cnn_dm_highlights_are_sentences() -> None:
    """Without a stop at their ends only the line breaks tell; each prediction sentence matches across both lines."""
    reference = "storm hits coast\nschools close early"
    assert of_one("Schools close early. Storm hits coast.", reference)["rougeLsum"] == 1.0
    assert of_one("Schools close early. Storm hits coast.", reference.replace("\n", " "))["rougeLsum"] == 1.0
    # Here the union over one long reference sentence would find a b (from one) and c d (from the other): 4 hits.
    # By lines, b a against "d c" has no hit and against "a b" one word, likewise d c: 2 hits.
    scores = of_one("b a\nd c", "d a\nb c")
    assert scores["rougeLsum"] == pytest.approx(f_measure(4, 4, 4))
    assert of_one("b a d c", "d a b c")["rougeLsum"] == pytest.approx(f_measure(2, 4, 4))


# ---- brute force ----------------------------------------------------------------------------------------------------


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Every subsequence of `a`, the longest first, until one is a subsequence of `b`."""
    for length in range(len(a), 0, -1):
        for chosen in itertools.combinations(a, length):
            rest = iter(b)
            if all(word in rest for word in chosen):
                return length
    return 0


def test_every_metric_is_its_definition_on_short_random_texts() -> None:
    rng = random.Random(3)
    stem = PorterStemmer().stem
    vocabulary = "the cat cats 12 ran running market markets of".split()
    for _ in range(150):
        prediction, reference = (" ".join(rng.choices(vocabulary, k=rng.randint(1, 8))) for _ in range(2))
        a, b = ([stem(w) if len(w) > 3 else w for w in text.split()] for text in (prediction, reference))
        scores = of_one(prediction, reference)
        for size in (1, 2):
            grams = [Counter(zip(*(words[i:] for i in range(size)), strict=False)) for words in (a, b)]
            expected = f_measure((grams[0] & grams[1]).total(), *(max(g.total(), 1) for g in grams))
            assert scores[f"rouge{size}"] == pytest.approx(expected, abs=1e-12)
        expected = f_measure(longest_common_subsequence(a, b), len(a), len(b))
        assert scores["rougeL"] == pytest.approx(expected, abs=1e-12)
        assert scores["rougeLsum"] == pytest.approx(expected, abs=1e-12)  # one sentence each: the same measure


# ---- sentences ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("He met Dr. Smith and Mr. Lee. They left.", ["He met Dr. Smith and Mr. Lee.", "They left."]),
        ("The U.S. Senate met at 9 a.m. Monday. It voted.", ["The U.S. Senate met at 9 a.m. Monday.", "It voted."]),
        ("It fell on Feb. 3 in St. Louis vs. Chicago.", ["It fell on Feb. 3 in St. Louis vs. Chicago."]),
        ("George W. Bush spoke. John F. Kennedy did not.", ["George W. Bush spoke.", "John F. Kennedy did not."]),
        ('"It works." She smiled. (So it does.) Good.', ['"It works."', "She smiled.", "(So it does.)", "Good."]),
        ("“We won!” He cried… Then 3 left.", ["“We won!”", "He cried… Then 3 left."]),
        ("the club won . its striker scored . fans sang .", ["the club won .", "its striker scored .", "fans sang ."]),
        ("It cost 3.50 pounds. then it cost more.", ["It cost 3.50 pounds. then it cost more."]),
        ("It ended in 1999. 12 people came.", ["It ended in 1999.", "12 people came."]),
        ("No stop at all", ["No stop at all"]),
        ("", []),
        ("First line\nSecond. Not split here.\n", ["First line", "Second. Not split here."]),
        ("\nOnly one. It is split.\n", ["\nOnly one.", "It is split.\n"]),
        ("storm hits\n\ncoast", ["storm hits", "coast"]),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


@pytest.mark.parametrize("part", [".", ". ", "?!)", "a", " ", "a.", ".\u201d", "\n", "e.g. ", ". a"])
def test_long_runs_take_linear_time(part: str) -> None:
    """300,000 characters; quadratic, one of them would take minutes."""
    start = time.process_time()
    split_sentences(part * (300_000 // len(part)) + "!")
    assert time.process_time() - start < 5


def test_no_character_is_lost_between_sentences() -> None:
    for text in itertools.chain(*PAIRS):
        assert re.sub(r"\s", "", "".join(split_sentences(text))) == re.sub(r"\s", "", text)


def test_a_split_after_an_abbreviation_would_change_lsum() -> None:
    """Split after "Dr." the union over two sentences a side would find all four words of the reference, not two."""
    assert of_one("Lee met Dr. Smith Dr", "Smith met Dr. Lee")["rougeLsum"] == pytest.approx(f_measure(2, 5, 4))
    assert of_one("Lee met Dr\nSmith Dr", "Smith met Dr\nLee")["rougeLsum"] == pytest.approx(f_measure(4, 5, 4))


# ---- many pairs -----------------------------------------------------------------------------------------------------


def test_more_than_eight_thousand_pairs_come_in_order_from_worker_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prediction n has the first of reference n's words: ROUGE-1 by hand, another one for every neighbour."""
    count = 8_203
    kept = [n % 9 + 1 for n in range(count)]
    total = [kept[n] + n % 11 for n in range(count)]
    references = [" ".join(f"w{place}" for place in range(total[n])) for n in range(count)]
    predictions = [" ".join(references[n].split()[: kept[n]]) for n in range(count)]
    context = rouge.multiprocessing.get_context("spawn")
    started: list[int] = []

    class Counting:
        def Pool(self, workers: int) -> object:
            started.append(workers)
            return context.Pool(workers)

    monkeypatch.setattr(rouge.multiprocessing, "get_context", lambda kind: Counting())
    scores = rouge_scores(predictions, references, processes=3)
    assert started == [3]
    expected = [f_measure(k, k, m) for k, m in zip(kept, total, strict=True)]
    for metric in ("rouge1", "rougeL", "rougeLsum"):
        np.testing.assert_allclose(scores[metric], expected, rtol=1e-12)
    few = slice(2700, 2800)  # the end of the first part is among them
    alone = rouge_scores(predictions[few], references[few], processes=3)
    assert started == [3]  # so few are not worth a process
    assert all(np.array_equal(scores[metric][few], alone[metric]) for metric in METRICS)


def test_lists_of_different_length_are_refused_and_no_pairs_are_no_scores() -> None:
    with pytest.raises(ValueError, match="2 predictions for 1 references"):
        rouge_scores(["a", "b"], ["a"])
    assert {metric: values.shape for metric, values in rouge_scores([], []).items()} == dict.fromkeys(METRICS, (0,))
