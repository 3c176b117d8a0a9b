"""The demo's corpus and tokenizer: always the same bytes, six styles, facts that have to be found, planted leaks."""

import json
import random

import pytest

from utils.core.files import sha256_of
from utils.demo.corpus import COLUMNS, ROWS, write_demo_corpus
from utils.demo.model import PREFIX, SENTINELS, corrupt, new_model, train_tokenizer, training_texts
from utils.modeling.tokenizer import load_tokenizer
from utils.scoring.rouge import rouge_scores


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus")
    write_demo_corpus(directory)
    return directory


def rows(corpus, key, split):
    return [json.loads(line) for line in (corpus / key / f"{split}.jsonl").read_text().splitlines()]


def same(text):
    """Equal texts stay equal, whatever their white space and case."""
    return " ".join(text.lower().split())


def test_it_is_the_same_to_the_last_byte(corpus, tmp_path):
    write_demo_corpus(tmp_path / "again")
    assert sha256_of(tmp_path / "again") == sha256_of(corpus)


def test_sizes_schemas_and_variety(corpus):
    for key, splits in ROWS.items():
        document, summary = COLUMNS[key]
        for split, count in splits.items():
            found = rows(corpus, key, split)
            assert len(found) == count and all(row[document] and row[summary] for row in found)
            assert len({row["id"] for row in found}) == count
        assert splits.get("test", 100) >= 100
        assert "train" not in splits or 600 <= splits["train"] <= 1000
    assert all("\n" in row["highlights"] for row in rows(corpus, "cnn_dm", "test"))  # highlights stand on lines
    assert all("\n" not in row["summary"] for row in rows(corpus, "xsum", "test"))


@pytest.mark.parametrize("key", ["cnn_dm", "xsum", "samsum"])
def test_the_first_sentence_is_a_poor_summary(corpus, key):
    document, summary = COLUMNS[key]
    found = rows(corpus, key, "test")
    first = [row[document].replace("\n", " ").split(". ")[0] for row in found]
    lead = rouge_scores(first, [row[summary] for row in found], processes=1)["rougeL"]
    assert lead.mean() < 0.45  # a trained demo model reaches 0.7 and more
    # What a summary needs stands in its document, at changing places.
    words = [next(word.strip(".,") for word in row[summary].split() if word[0].isupper()) for row in found]
    places = [row[document].find(word) / len(row[document]) for row, word in zip(found, words, strict=True)]
    inside = [place for place in places if place >= 0]
    assert len(inside) > 0.9 * len(found) and max(inside) - min(inside) > 0.3


def test_leaks_are_planted_as_recorded(corpus):
    planted = json.loads((corpus / "planted.json").read_text())
    test = {same(row["dialogue"]) for row in rows(corpus, "samsum", "test")}
    train = [same(row["dialogue"]) for row in rows(corpus, "highlightsum", "train")]
    assert sum(text in test for text in train) == planted["samsum_test_in_highlightsum_train"] > 0
    others = {same(row["dialogue"]) for row in rows(corpus, "dialogsum", "train")}
    assert sum(text in others for text in train) == planted["dialogsum_train_in_highlightsum_train"] > 0


def test_tokenizer_and_model_have_t5s_layout(corpus, tmp_path):
    texts = training_texts(corpus)
    train_tokenizer(texts, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    sentinels = tokenizer.convert_tokens_to_ids([f"<extra_id_{n}>" for n in range(SENTINELS)])
    assert sentinels == list(range(len(tokenizer) - 1, len(tokenizer) - 1 - SENTINELS, -1))
    ids = [token for text in texts[:200] for token in tokenizer(PREFIX + text)["input_ids"]]
    assert ids.count(tokenizer.unk_token_id) < 0.02 * len(ids)
    assert new_model(len(tokenizer), 0).config.vocab_size >= len(tokenizer)


def test_span_corruption_loses_nothing(corpus):
    sentinels = list(range(1000, 1100))
    ids = list(range(10, 90))
    inputs, targets = corrupt(ids, sentinels, random.Random(0))
    spans, current = {}, None
    for token in targets[:-1]:
        if token in sentinels:
            current = token
            spans[current] = []
        else:
            spans[current].append(token)
    restored = [token for item in inputs[:-1] for token in (spans[item] if item in sentinels else [item])]
    assert restored == ids and 0.05 < sum(map(len, spans.values())) / len(ids) < 0.4
