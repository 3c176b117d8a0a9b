"""Batches of token rows of unequal length: sorted, under a budget of padded tokens, smaller when memory runs out.

Every batch costs what its padded rectangle costs, so rows of like length belong together, and the budget counts padded
tokens, not rows. All functions are pure but for `BatchLimit`, which remembers what did not fit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from utils.core.errors import StageError

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Indices = NDArray[np.int64]
Row = Sequence[int] | NDArray[np.integer[Any]]


def longest_first(lengths: ArrayLike, *ties: ArrayLike) -> Indices:
    """Indices int64 [n] of rows by falling `lengths` [n], then by each of `ties` [n], falling too.

    Rows that are equal in all of them come in falling order of their index. Longest first for two reasons: a batch that
    is too big for the memory shows itself at once, and the first row of a batch is as wide as the batch.
    """
    # lexsort's last key is the most important one; it sorts upwards and keeps ties in order, hence the reversal.
    return np.lexsort([np.asarray(key) for key in (*reversed(ties), lengths)])[::-1]


def budget_batches(
    order: ArrayLike,
    lengths: ArrayLike,
    max_tokens: int,
    *,
    target_lengths: ArrayLike | None = None,
    max_rows: int | None = None,
) -> list[Indices]:
    """Cut `order` (indices into `lengths`) into batches that are filled one after the other; int64 [rows] each.

    A batch of r rows costs r × (its longest length + its longest target length, if any); it costs at most `max_tokens`
    and has at most `max_rows` rows, except that a row which is too long by itself still gets a batch of its own.
    Joined, the batches are `order`.
    """
    order = np.asarray(order, dtype=np.int64)
    widths: list[int] = np.asarray(lengths)[order].tolist()  # Python ints: this loop runs over every input of an attack
    heights: list[int] = [0] * len(order) if target_lengths is None else np.asarray(target_lengths)[order].tolist()
    batches: list[Indices] = []
    begin = widest = tallest = 0
    for end, (width, height) in enumerate(zip(widths, heights, strict=True)):
        wider, taller, rows = max(widest, width), max(tallest, height), end - begin + 1
        full = rows * (wider + taller) > max_tokens or (max_rows is not None and rows > max_rows)
        if full and end > begin:
            batches.append(order[begin:end])
            begin, wider, taller = end, width, height
        widest, tallest = wider, taller
    if begin < len(order):
        batches.append(order[begin:])
    return batches


def pad(rows: Sequence[Row], fill: int, *, multiple_of: int = 1) -> Indices:
    """`rows` of token ids as one array int64 [rows, width], filled up with `fill` on the right.

    width: the longest row, rounded up to `multiple_of`; at least `multiple_of`.
    """
    longest = max(map(len, rows), default=1)
    padded = np.full((len(rows), round_up(max(longest, 1), multiple_of)), fill, dtype=np.int64)
    for line, row in zip(padded, rows, strict=True):
        line[: len(row)] = row
    return padded


def pad_with_mask(
    rows: Sequence[Row], fill: int, device: torch.device, *, multiple_of: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """`pad` on `device`, and its attention mask (1: a token, 0: padding); both int64 [rows, width]."""
    ids = pad(rows, fill, multiple_of=multiple_of)
    mask = np.arange(ids.shape[1]) < np.array(list(map(len, rows)), dtype=np.int64)[:, None]
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask.astype(np.int64)).to(device)


def round_up(number: int, multiple_of: int) -> int:
    """The smallest multiple of `multiple_of` that is at least `number`."""
    return -(-number // multiple_of) * multiple_of


@dataclass
class BatchLimit:
    """How much one batch may hold; halves when a batch does not fit into memory, and stays halved.

    `value` counts `unit`: rows or (padded) tokens. A batch of another size may round differently, so a run that met the
    limit can differ in the last bits from one that did not.
    """

    value: int
    unit: str = "rows"

    def run(
        self,
        order: ArrayLike,
        plan: Callable[[Indices, int], Iterable[Indices]],
        work: Callable[[Indices], Any],
        *,
        cost: Callable[[Indices], int] = len,
    ) -> None:
        """Do `work(batch)` once for each batch that `plan(order, value)` makes of the indices `order`.

        plan: cuts what is left of `order` into batches of at most `value` units, in order. cost: units of one batch.
        When `work` runs out of memory, the limit becomes half of what that batch cost and the rest is planned anew;
        `work` must leave nothing behind then. StageError if one row alone does not fit. Other errors pass through.
        """
        order = np.asarray(order, dtype=np.int64)
        done = 0
        while done < len(order):
            for batch in plan(order[done:], self.value):
                if not self._fits(work, batch):
                    self._halve(len(batch), cost(batch))
                    break
                done += len(batch)

    def halving(self, work: Callable[[int], Result], rows: int) -> Result:
        """`work(value)` on `rows` rows, done anew with half of it while memory runs out; StageError if one is too many.

        `work` takes at most `value` rows at once, adds up what it finds, and leaves nothing behind that matters.
        """
        while True:
            at_once = min(self.value, rows)
            try:
                return work(at_once)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if at_once == 1:
                    raise StageError(
                        "out of memory with a single example at once. Set MONO_S2S_GRADIENT_CHECKPOINTING=true, or use "
                        "a GPU with more memory."
                    ) from error
            self._halve(at_once, at_once)

    def _fits(self, work: Callable[[Indices], Any], batch: Indices) -> bool:
        try:
            work(batch)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if len(batch) == 1:
                raise StageError(
                    "out of memory with a single input in a batch. Use a device with more memory."
                ) from error
            return False
        return True

    def _halve(self, rows: int, cost: int) -> None:
        # Here the exception is gone, and with its traceback the references to the tensors that filled the memory.
        torch.cuda.empty_cache()  # does nothing without a GPU
        self.value = max(min(self.value, cost) // 2, 1)
        log.warning("Out of memory with a batch of %d inputs. Limit is now %d %s.", rows, self.value, self.unit)


def row_batches(order: Indices, limit: int) -> list[Indices]:
    """`order` in batches of at most `limit` rows: the plan of a `BatchLimit` that counts rows."""
    return [order[start : start + limit] for start in range(0, len(order), limit)]


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory: on the CPU that is a plain RuntimeError with these words."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
