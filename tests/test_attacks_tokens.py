"""Which tokens may be used where, and that triggers and flips stand in the ids that the model reads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import T5Tokenizer

from tests import attack_world as world
from utils.attacks.encoding import (
    EMPTY_ARTICLE,
    EMPTY_REFERENCE,
    Example,
    attacked_document,
    encode_texts,
    reads_as,
)
from utils.attacks.hotflip.proposals import EditablePositions, State, random_flips
from utils.attacks.legal_tokens import LegalTokens, TokenizerView, word_bounds
from utils.attacks.triggers.candidates import candidate_triggers, random_triggers, token_pool, typable
from utils.attacks.triggers.inputs import check_in_place, trigger_examples
from utils.core.errors import StageError, UsageError
from utils.core.names import TRIGGER_TYPES

TOKENIZER = world.tokenizer()
VIEW = TokenizerView(TOKENIZER)
LIMITS = {"prefix": "summarize: ", "max_input_length": 48, "max_target_length": 16}


def test_no_special_is_legal() -> None:
    for token_set in ("roundtrip", "raw"):
        legal = LegalTokens(VIEW, token_set=token_set, embedding_size=VIEW.size + 28)
        pieces = [VIEW.pieces[i] for i in legal.ids]
        assert not {"<pad>", "</s>", "<unk>"} & set(pieces)
        assert not [piece for piece in pieces if piece.startswith("<extra_id_")]
        assert legal.ids.max() < VIEW.size
        assert len(set(legal.ids.tolist())) == len(legal.ids) == VIEW.size - 3 - 20


def test_whole_words_encode_to_themselves_anywhere() -> None:
    legal = LegalTokens(VIEW)
    rng = np.random.default_rng(0)
    for _ in range(50):
        ids = rng.choice(legal.ids[: legal.whole], 6).tolist()
        text = TOKENIZER.decode(ids)
        assert TOKENIZER(text, add_special_tokens=False)["input_ids"] == ids


def test_view_text_is_what_the_tokenizer_decodes() -> None:
    rng = np.random.default_rng(1)
    legal = LegalTokens(VIEW, token_set="raw")
    for _ in range(100):
        ids = rng.choice(legal.ids, 8).tolist()
        assert VIEW.text(ids).strip() == TOKENIZER.decode(ids).strip()


def test_a_vocabulary_without_a_typable_token_is_refused() -> None:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), ("ab", -2.0), ("a", -1.0), ("b", -1.0)]
    pieces += [("▁ab", -50.0), ("<extra_id_0>", 0.0)]  # "▁" + "ab" always beats "▁ab"
    view = TokenizerView(T5Tokenizer(vocab=pieces, extra_ids=1))
    with pytest.raises(StageError, match="ATTACK_TOKEN_SET=raw"):
        LegalTokens(view)
    assert LegalTokens(view, token_set="raw").ids.tolist() == [3, 4, 5, 6, 7]


def test_a_tokenizer_larger_than_the_model_is_refused() -> None:
    with pytest.raises(StageError, match="do not belong together"):
        LegalTokens(VIEW, embedding_size=VIEW.size - 1)


def test_unknown_token_set_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="roundtrip, raw"):
        LegalTokens(VIEW, token_set="any")


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.data())
def test_word_bounds(starts: list[bool], data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, len(starts) - 1))
    end = data.draw(st.integers(begin + 1, len(starts)))
    first, last = word_bounds(np.array(starts), begin, end)
    for k, position in enumerate(range(begin, end)):
        expected = max([begin, *(i for i in range(begin, position + 1) if starts[i])])
        after = min([end, *(i for i in range(position + 1, end) if starts[i])])
        assert (first[k], last[k]) == (expected, after)


def test_encoded_ids_are_those_of_the_pipeline() -> None:
    examples = [*world.examples(8, words=40), Example("odd", "The  «weird» text\n\tof… 你好 babe", "ba")]
    for item, example in zip(encode_texts(VIEW, examples, **LIMITS), examples, strict=True):
        whole = TOKENIZER("summarize: " + example.document, truncation=True, max_length=48)["input_ids"]
        assert list(item.ids) == whole
        prefix = TOKENIZER("summarize: ", add_special_tokens=False)["input_ids"]
        assert item.start == len(prefix) and list(item.ids[: item.start]) == prefix
        assert set(item.attackable) <= set(range(item.start, item.end)) and item.end == len(item.ids) - 1
        assert attacked_document(VIEW, item, item.ids) == example.document


def test_a_half_visible_last_word_is_left_alone_only_where_text_is_needed() -> None:
    examples = [Example("cut", "ba " * 44 + "bakazo", "ba")]
    (item,) = encode_texts(VIEW, examples, **LIMITS)
    words = TOKENIZER(examples[0].document, add_special_tokens=False)["input_ids"]
    assert len(words) > item.end - item.start and not VIEW.starts_word[words[item.end - item.start]]  # cut in a word
    assert item.end - 1 not in item.attackable and item.end - 2 in item.attackable
    (raw,) = encode_texts(VIEW, examples, **LIMITS, typable=False)
    assert raw.end - 1 in raw.attackable


def test_what_cannot_be_attacked_names_its_reason() -> None:
    examples = [Example("a", "  ", "ba"), Example("b", "ba be", " \n"), Example("c", "ba", "be"), Example("d", "", "")]
    problems = [item.problem for item in encode_texts(VIEW, examples, **LIMITS)]
    assert problems == [EMPTY_ARTICLE, EMPTY_REFERENCE, None, EMPTY_ARTICLE]


def test_a_prefix_glued_to_the_document_is_refused() -> None:
    with pytest.raises(UsageError, match="must end in a space"):
        encode_texts(VIEW, world.examples(1), prefix="summarize:", max_input_length=48, max_target_length=8)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 5))
def test_random_flips_are_typable_text(seed: int, words: int, count: int) -> None:
    legal = LegalTokens(VIEW)
    (item,) = encode_texts(VIEW, [Example("x", world.document(seed, words), "ba")], **LIMITS)
    state, rng = State(np.array(item.ids), 0.0), np.random.default_rng(seed)
    for _ in range(count):
        for flip in random_flips(EditablePositions(legal, item, state), 1, rng):
            assert flip.position in item.attackable
            state = state.child(flip, 0.0)
    text = attacked_document(VIEW, item, state.ids)
    assert reads_as(VIEW, [text], [state.ids], prefix="summarize: ", max_input_length=48).all()
    positions = [flip.position for flip in state.flips]
    assert len(set(positions)) == len(positions)


@pytest.mark.parametrize("length", [10, 11, 40, 44, 45, 46, 47, 48, 49, 100, 511, 512, 513, 2000])
def test_triggers_are_whole_in_the_final_ids(length: int) -> None:
    legal = LegalTokens(VIEW)
    limits = LIMITS | {"max_input_length": 48 if length < 500 else 512}
    document = " ".join(world.document(length, 3 * length).split())
    ids = TOKENIZER(document, add_special_tokens=False)["input_ids"][:length]
    text = TOKENIZER.decode(ids)
    context = world.attack_context(TOKENIZER, max_input_length=limits["max_input_length"])
    (item,) = trigger_examples(context, [Example("x", text, "ba")], 5)
    trigger = random_triggers(legal, "lead", 5, 1, np.random.default_rng(length), common=False)[0]
    clean = item.clean.tolist()
    stage4 = TOKENIZER("summarize: " + text, truncation=True, max_length=limits["max_input_length"])["input_ids"]
    assert clean[:-1] == stage4[: len(clean) - 1]  # the evaluation's ids, but for the room of the trigger
    assert len(stage4) - len(clean) <= 5 + 3  # and at most a split word shorter
    for kind in TRIGGER_TYPES:
        for boundary in item.boundaries[:3] if kind == "infix" else (None,):
            attacked = item.with_trigger(kind, trigger, boundary).tolist()
            check_in_place(item, kind, trigger, boundary, limits["max_input_length"])
            slot = item.slot(kind, boundary)
            assert attacked[slot : slot + 5] == trigger and attacked != clean
            assert attacked[:slot] + attacked[slot + 5 :] == clean
            assert len(attacked) <= limits["max_input_length"] and attacked[-1] == TOKENIZER.eos_token_id
            typed = item.attacked_text(kind, VIEW.text(trigger).strip(), "summarize: ", boundary)
            assert reads_as(VIEW, [typed], [attacked], prefix="", max_input_length=limits["max_input_length"]).all()


def test_slots_of_the_five_types() -> None:
    (item,) = trigger_examples(world.attack_context(TOKENIZER), [Example("x", "ba be. bi bo! bu", "ba")], 5)
    start = item.start
    assert [item.slot(kind) for kind in ("instruction", "lead", "natural")] == [0, start, start]
    assert item.slot("tail") == item.end
    assert [VIEW.text(item.ids[start + b : item.end]).split()[0] for b in item.boundaries] == ["bi", "bu"]
    assert not item.one_sentence
    (single,) = trigger_examples(world.attack_context(TOKENIZER), [Example("x", "ba be bi", "ba")], 5)
    assert single.one_sentence and single.boundaries == (1, 2)


def test_a_trigger_longer_than_the_input_is_refused() -> None:
    with pytest.raises(UsageError, match="no room for a document"):
        trigger_examples(world.attack_context(TOKENIZER), world.examples(1), 45)


@pytest.mark.parametrize("kind", ["lead", "natural"])
@pytest.mark.parametrize("token_set", ["roundtrip", "raw"])
def test_candidates_are_legal_new_and_typable(kind: str, token_set: str) -> None:
    legal = LegalTokens(VIEW, token_set=token_set)
    rng = np.random.default_rng(0)
    pool = set(token_pool(legal, kind).tolist())
    trigger = random_triggers(legal, kind, 5, 1, rng)[0]
    gains = rng.normal(size=(5, len(pool)))
    found = candidate_triggers(legal, kind, trigger, gains, count=32, top_k=16, pairs=True, rng=rng)
    assert len(found) == 32 == len({tuple(t) for t in found})
    assert trigger not in found
    assert all(set(t) <= pool and len(t) == 5 for t in found)
    assert all(1 <= sum(a != b for a, b in zip(t, trigger, strict=True)) <= 2 for t in found)
    if token_set == "roundtrip":
        assert all(typable(legal, found))
    if kind == "natural":
        assert all(VIEW.text(t).strip().replace(" ", "").isalpha() for t in found)
    best = np.unravel_index(int(np.argmax(gains)), gains.shape)
    if token_set == "raw":  # the single swap of largest first-order gain is always among them
        top = list(trigger)
        top[best[0]] = int(token_pool(legal, kind)[best[1]])
        assert top in found


def test_natural_needs_words() -> None:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0), ("▁A1", -1.0), ("<extra_id_0>", 0.0)]
    legal = LegalTokens(TokenizerView(T5Tokenizer(vocab=pieces, extra_ids=1)))
    with pytest.raises(StageError, match="lowercase words"):
        token_pool(legal, "natural")
