"""Batches by length: every row once, within the budget, in order; padding; and what happens when memory runs out."""

from __future__ import annotations

import logging
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils.core.errors import StageError
from utils.modeling.batching import BatchLimit, budget_batches, longest_first, pad, pad_with_mask, row_batches

PAIRS = st.lists(st.tuples(st.integers(1, 600), st.integers(1, 130)), max_size=200)
BUDGETS = st.integers(1, 4000)


@given(PAIRS)
def test_longest_first_sorts_by_length_then_ties_then_index_all_falling(pairs: list[tuple[int, int]]) -> None:
    lengths, ties = [a for a, _ in pairs], [b for _, b in pairs]
    expected = sorted(range(len(pairs)), key=lambda i: (lengths[i], ties[i], i), reverse=True)
    assert longest_first(lengths, ties).tolist() == expected
    by_index = longest_first(lengths, -np.arange(len(pairs))).tolist()
    assert by_index == sorted(range(len(pairs)), key=lambda i: (-lengths[i], i))


@given(PAIRS, BUDGETS, st.one_of(st.none(), st.integers(1, 20)), st.booleans(), st.randoms())
def test_batches_are_the_order_cut_greedily_under_the_budget(pairs, budget, max_rows, sort, random) -> None:
    lengths, targets = [a for a, _ in pairs], [b for _, b in pairs]
    order = longest_first(lengths, targets).tolist()
    if not sort:
        random.shuffle(order)
    for heights in (None, targets):

        def cost(batch: list[int], heights: list[int] | None = heights) -> int:
            return len(batch) * (max(lengths[i] for i in batch) + (max(heights[i] for i in batch) if heights else 0))

        batches = [
            b.tolist() for b in budget_batches(order, lengths, budget, target_lengths=heights, max_rows=max_rows)
        ]
        assert [i for batch in batches for i in batch] == order
        for batch in batches:
            assert len(batch) == 1 or cost(batch) <= budget
            assert max_rows is None or len(batch) <= max_rows
        for left, right in pairwise(batches):  # greedy: the next row would not have fitted
            assert cost([*left, right[0]]) > budget or len(left) == max_rows


@given(st.lists(st.lists(st.integers(3, 99), max_size=12), max_size=8), st.integers(1, 8))
def test_padding_keeps_every_id_and_rounds_the_width_up(rows: list[list[int]], multiple: int) -> None:
    padded = pad(rows, -100, multiple_of=multiple)
    assert padded.dtype == np.int64 and padded.shape[0] == len(rows)
    width = padded.shape[1]
    longest = max([*map(len, rows), 1])
    assert width % multiple == 0 and longest <= width < longest + multiple
    for line, row in zip(padded.tolist(), rows, strict=True):
        assert line == row + [-100] * (width - len(row))
    ids, mask = pad_with_mask([np.array(row, dtype=np.int32) for row in rows], 0, torch.device("cpu"))
    assert ids.dtype == mask.dtype == torch.int64
    assert [line[m.bool()].tolist() for line, m in zip(ids, mask, strict=True)] == rows
    assert not ids[mask == 0].any()


class Memory:
    """A device on which a batch of padded cost above `size` fails; remembers what was done."""

    def __init__(self, lengths: list[int], size: int, error: RuntimeError) -> None:
        self.lengths, self.size, self.error = lengths, size, error
        self.tried: list[int] = []
        self.done: list[int] = []

    def cost(self, batch: np.ndarray) -> int:
        return len(batch) * max(self.lengths[i] for i in batch)

    def work(self, batch: np.ndarray) -> None:
        self.tried.append(self.cost(batch))
        if self.cost(batch) > self.size:
            raise self.error
        self.done += batch.tolist()


CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
HOST = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(50, 500), st.sampled_from([CUDA, HOST]))
def test_out_of_memory_shrinks_the_budget_and_every_row_is_still_done_once(lengths, size, error) -> None:
    memory, limit, order = Memory(lengths, size, error), BatchLimit(10_000, "tokens"), longest_first(lengths)
    limit.run(order, lambda rest, tokens: budget_batches(rest, lengths, tokens), memory.work, cost=memory.cost)
    assert memory.done == order.tolist()
    failed = [cost for cost in memory.tried if cost > size]
    assert limit.value == (failed[-1] // 2 if failed else 10_000)
    assert all(after <= before // 2 for before, after in pairwise(failed))  # halved each time, nothing is tried twice


def test_the_limit_stays_and_one_line_says_so(caplog: pytest.LogCaptureFixture) -> None:
    memory, limit = Memory([1] * 30, 3, CUDA), BatchLimit(256)
    with caplog.at_level(logging.WARNING):
        limit.run(np.arange(10), row_batches, memory.work)
    assert memory.tried == [10, 5, 2, 2, 2, 2, 2] and memory.done == list(range(10))
    assert caplog.messages == [
        "Out of memory with a batch of 10 inputs. Limit is now 5 rows.",
        "Out of memory with a batch of 5 inputs. Limit is now 2 rows.",
    ]
    limit.run(np.arange(10, 14), row_batches, memory.work)
    assert memory.tried[7:] == [2, 2] and limit.value == 2


def test_one_row_that_does_not_fit_is_an_error_for_people_and_other_errors_pass() -> None:
    with pytest.raises(StageError, match="a single input"):
        BatchLimit(8).run([0, 1], row_batches, Memory([9, 9], 3, CUDA).work)
    limit = BatchLimit(8)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        limit.run([0, 1], row_batches, Memory([9, 9], 3, RuntimeError("shape mismatch")).work)
    assert limit.value == 8
