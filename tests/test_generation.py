"""Bulk generation: input order, batches by tokens, resuming to the same bits, and what it refuses."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import T5Config, T5ForConditionalGeneration

from utils.core.errors import Interrupted, StageError
from utils.core.settings import Settings
from utils.evaluation import generation
from utils.evaluation.decoding import DecodingSettings, decoding_settings, input_fingerprint
from utils.evaluation.generation import MAX_ROWS, Summaries, generate, plan_batches

pytestmark = pytest.mark.slow

DECODING = DecodingSettings(num_beams=3, min_new_tokens=2, max_new_tokens=8)
VOCABULARY = 120


class Words:
    """A tokenizer whose text shows the ids, so that tests see what was generated."""

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        assert skip_special_tokens
        return [" " + " ".join(f"w{i}" for i in row if i > 2) + " " for row in rows]


@pytest.fixture(scope="module")
def model() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCABULARY, d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=1, decoder_start_token_id=0
    )
    return T5ForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def rows() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [[*rng.integers(3, VOCABULARY, size=n).tolist(), 1] for n in rng.integers(1, 30, size=25)]


def test_transformers_makes_the_same_texts_where_it_is_asked_for(model, rows, monkeypatch) -> None:
    fast = generate(model, Words(), rows, DECODING, batch_tokens=60).texts
    monkeypatch.setattr(generation, "beam_search", None)
    theirs = dataclasses.replace(DECODING, engine="transformers")
    assert generate(model, Words(), rows, theirs, batch_tokens=60).texts == fast


def test_texts_come_in_input_order_and_stripped(model, rows) -> None:
    texts, seconds = generate(model, Words(), rows, DECODING, batch_tokens=60)
    alone = [generate(model, Words(), [row], DECODING, batch_tokens=60).texts[0] for row in rows]
    assert texts == alone and seconds > 0
    assert len(set(texts)) > 10
    assert all(text == text.strip() and 2 <= len(text.split()) <= 8 for text in texts)


def test_the_experiments_decoding_comes_from_its_settings() -> None:
    """Four beams, length penalty 1.2, 10 to 80 new tokens, no trigram twice; each comes from a setting of its own."""
    names = ("NUM_BEAMS", "LENGTH_PENALTY", "MIN_NEW_TOKENS", "MAX_NEW_TOKENS", "NO_REPEAT_NGRAM_SIZE", "GENERATION")
    given = Settings(**dict(zip(names, (4, 1.2, 10, 80, 3, "fast"), strict=True)))
    assert decoding_settings(given) == DecodingSettings(4, 1.2, 10, 80, 3, "fast") == DecodingSettings()


def test_an_input_is_named_by_its_ids_alone() -> None:
    assert input_fingerprint([5, 1]) == input_fingerprint((5, 1)) == input_fingerprint(np.array([5, 1], dtype=np.int64))
    others = [[5, 1], [1, 5], [5], [5, 1, 0], [51], [32127, 1], [32126, 1]]
    assert len({input_fingerprint(ids) for ids in others}) == len(others)


def test_no_rows_no_texts(model) -> None:
    assert generate(model, Words(), [], DECODING, batch_tokens=60) == Summaries([], 0.0)


def test_training_mode_and_empty_rows_are_refused(model) -> None:
    with pytest.raises(ValueError, match="an input row is empty"):
        generate(model, Words(), [[5, 1], []], DECODING, batch_tokens=60)
    model.train()
    try:
        with pytest.raises(ValueError, match=r"model\.eval"):
            generate(model, Words(), [[5, 1]], DECODING, batch_tokens=60)
    finally:
        model.eval()


def test_bf16_is_used_when_asked_for(model, rows, monkeypatch) -> None:
    used = []
    original = generation.beam_search
    monkeypatch.setattr(generation, "beam_search", lambda e, *a: (used.append(e.dtype), original(e, *a))[1])
    generate(model, Words(), rows[:2], DECODING, batch_tokens=60, precision="bf16")
    generate(model, Words(), rows[:2], DECODING, batch_tokens=60, precision="auto")
    assert used == [torch.bfloat16, torch.float32]


@given(st.lists(st.integers(1, 600), max_size=400), st.integers(1, 4000))
def test_batches_hold_every_row_once_within_the_limit(lengths: list[int], batch_tokens: int) -> None:
    batches = plan_batches(lengths, batch_tokens)
    longest_first = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    assert [index for batch in batches for index in batch.tolist()] == longest_first
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or (len(batch) * longest <= batch_tokens and len(batch) <= MAX_ROWS)
    # Greedy: no two neighbours could have been one batch.
    for left, right in pairwise(batches):
        assert len(left) == MAX_ROWS or (len(left) + 1) * lengths[left[0]] > batch_tokens
        assert lengths[left[-1]] >= lengths[right[0]]


def test_killed_anywhere_it_goes_on_to_the_same_file_and_texts(model, rows, tmp_path: Path) -> None:
    """Stop before each batch in turn, then resume; and cut the file in the middle of a batch and of a line."""
    whole = tmp_path / "whole.jsonl"
    options = {"batch_tokens": 60, "weights": "a hash"}
    texts, seconds = generate(model, Words(), rows, DECODING, done_file=whole, **options)
    batches = len(plan_batches([len(row) for row in rows], 60))
    assert batches >= 4 and seconds > 0
    for stop_after in range(batches):
        done = tmp_path / f"{stop_after}.jsonl"
        answers = iter([False] * stop_after + [True])
        with pytest.raises(Interrupted, match=f"of {len(rows)} summaries done"):
            generate(
                model,
                Words(),
                rows,
                DECODING,
                done_file=done,
                **options,
                stop_requested=functools.partial(next, answers),
            )
        assert generate(model, Words(), rows, DECODING, done_file=done, **options).texts == texts
    data = whole.read_bytes()
    for cut in (len(data) - 3, len(data) // 2, data.index(b"\n") + 1):
        torn = tmp_path / "torn.jsonl"
        torn.write_bytes(data[:cut])
        assert generate(model, Words(), rows, DECODING, done_file=torn, **options).texts == texts


def test_finished_work_is_not_done_again_and_its_seconds_count(model, rows, tmp_path: Path, monkeypatch) -> None:
    done = tmp_path / "done.jsonl"
    first = generate(model, Words(), rows, DECODING, batch_tokens=60, done_file=done)

    def forbidden(*_: object) -> None:
        raise AssertionError("generated again")

    monkeypatch.setattr(generation, "beam_search", forbidden)
    assert generate(model, Words(), rows, DECODING, batch_tokens=60, done_file=done) == first


@pytest.mark.parametrize("change", ["weights", "decoding", "rows", "batch_tokens"])
def test_a_file_of_other_settings_is_thrown_away_with_one_message(model, rows, tmp_path, change, caplog) -> None:
    done = tmp_path / "done.jsonl"
    generate(model, Words(), rows, DECODING, batch_tokens=60, done_file=done, weights="a")
    lines = [json.loads(line) for line in done.read_text().splitlines()]
    for line in lines[1:]:
        line["text"] = "stale"
    done.write_text("".join(json.dumps(line) + "\n" for line in lines))
    other = {"decoding": DECODING, "input_ids": rows, "batch_tokens": 60, "weights": "a"}
    other |= {
        "weights": {"weights": "b"},
        "decoding": {"decoding": DecodingSettings(num_beams=3, min_new_tokens=2, max_new_tokens=7)},
        "rows": {"input_ids": [[7, 1], *rows[1:]]},
        "batch_tokens": {"batch_tokens": 90},
    }[change]
    with caplog.at_level(logging.WARNING):
        texts, _ = generate(model, Words(), done_file=done, **other)
    assert "stale" not in texts
    assert sum("Starting over" in record.message for record in caplog.records) == 1


def test_a_row_of_another_input_is_not_believed(model, rows, tmp_path: Path) -> None:
    """The header alone could be right by a copy; the hash beside each text says which input it is of."""
    done = tmp_path / "done.jsonl"
    texts, _ = generate(model, Words(), rows, DECODING, batch_tokens=60, done_file=done)
    lines = [json.loads(line) for line in done.read_text().splitlines()]
    lines[3] |= {"ids": "0" * 16, "text": "stale"}
    done.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert generate(model, Words(), rows, DECODING, batch_tokens=60, done_file=done).texts == texts


def test_out_of_memory_halves_the_batch_and_says_so(model, rows, monkeypatch, caplog) -> None:
    original, sizes = generation.beam_search, []

    def small(engine, part, decoding):
        sizes.append(len(part))
        if len(part) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(engine, part, decoding)

    expected = generate(model, Words(), rows, DECODING, batch_tokens=300).texts
    monkeypatch.setattr(generation, "beam_search", small)
    with caplog.at_level(logging.WARNING):
        assert generate(model, Words(), rows, DECODING, batch_tokens=300).texts == expected
    assert "Out of memory with a batch of 10 inputs. Limit is now 5 rows." in caplog.text
    # What did not fit once is not tried again.
    assert sizes[:2] == [10, 5] and max(sizes[2:]) == 2


def test_out_of_memory_with_one_row_is_an_error_of_one_line(model, monkeypatch) -> None:
    def never(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(generation, "beam_search", never)
    with pytest.raises(StageError, match="out of memory with a single input"):
        generate(model, Words(), [[5, 1]], DECODING, batch_tokens=60)
