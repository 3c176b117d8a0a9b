"""Tokenised rows and the batches they come in: memory-mapped, at random, the same order for every model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset

from utils.modeling.batching import budget_batches, longest_first, pad, row_batches

Batch = dict[str, Any]  # what `TokenRows.collate` and `share` make, by name
IGNORED_LABEL = -100  # targets that cross entropy leaves out


@dataclass(frozen=True)
class Padding:
    """How large a batch is made. Padding changes neither its loss nor its gradients but for rounding."""

    inputs: int = 1  # width of input_ids: a multiple of this
    labels: int = 1  # width of labels: a multiple of this
    rows: int = 0  # at least so many rows and always a mask, so that batches have few shapes: a CUDA graph is for one


EXACT = Padding()
TENSOR_CORES = Padding(8, 8)  # they want dimensions that are multiples of 8
GRAPH_WIDTHS = 128, 32  # with 512 and 128 tokens at most: 14 shapes, and 99 % of random batches in the largest


class TokenRows(torch.utils.data.Dataset):
    """Columns `input_ids` and `labels` of a data set as flat int32 arrays, read from the memory-mapped file when used.

    Item i is i itself: `collate` makes tensors of a whole batch at once.
    """

    def __init__(self, dataset: Dataset, *, pad_id: int = 0, padding: Padding = EXACT) -> None:
        table = dataset.select_columns(["input_ids", "labels"]).with_format("arrow")[:]
        self.inputs, self.input_lengths = _Column(table["input_ids"]), _lengths(table["input_ids"])
        self.labels, self.label_lengths = _Column(table["labels"]), _lengths(table["labels"])
        self.pad_id, self.padding = pad_id, padding

    def __len__(self) -> int:
        return len(self.input_lengths)

    def __getitem__(self, index: int) -> int:
        return index

    def largest_id(self) -> int:
        """Largest token id in inputs and labels; -1 where there are none."""
        return max(self.inputs.largest(), self.labels.largest())

    def sha256(self) -> str:
        """Hex sha256 of all ids and lengths: equal for equal content, whatever file it came from."""
        digest = hashlib.sha256()
        for lengths, column in ((self.input_lengths, self.inputs), (self.label_lengths, self.labels)):
            digest.update(lengths.tobytes())
            for values in column.flat():
                digest.update(np.ascontiguousarray(values, dtype=np.int32).data)
        return digest.hexdigest()

    def collate(self, rows: Sequence[int]) -> Batch:
        """Batch of `rows`: int64 input_ids [n, s] and labels [n, t] (padding -100), attention_mask, num_tokens (int).

        n, s and t: how many rows there are (at least one) and the longest of them, as `padding` says. Rows that fill up
        have no label, and so no weight in the loss. The mask is bool [n, 1, 1, s], which T5 takes as it is, and None
        where nothing is padded and any shape will do: of a mask [n, s] it would ask the GPU, twice a step, whether
        anything is padded, and wait for the answer.
        """
        filler: list[Sequence[int]] = [()] * (max(self.padding.rows, 1) - len(rows))
        inputs = pad([*(self.inputs[row] for row in rows), *filler], self.pad_id, multiple_of=self.padding.inputs)
        labels = pad([*(self.labels[row] for row in rows), *filler], IGNORED_LABEL, multiple_of=self.padding.labels)
        # A row that fills up attends to its first pad token: a softmax over nothing would be NaN.
        lengths = np.array([*self.input_lengths[list(rows)], *[1] * len(filler)])
        mask = np.arange(inputs.shape[1]) < lengths[:, None]
        return {
            "input_ids": torch.from_numpy(inputs),
            "attention_mask": None if mask.all() and not self.padding.rows else torch.from_numpy(mask[:, None, None]),
            "labels": torch.from_numpy(labels),
            "num_tokens": int(self.label_lengths[list(rows)].sum()),
        }

    def share(self, rows: Sequence[int], rank: int, processes: int) -> Batch:
        """`collate` of every `processes`-th row of a batch, beginning with `rank`, which may be none.

        Also num_examples, and of the whole batch num_batch_tokens, for the device as the float32 scalar batch_tokens.
        """
        mine = list(rows[rank::processes])
        tokens = int(self.label_lengths[list(rows)].sum())
        numbers = {"num_examples": len(mine), "num_batch_tokens": tokens, "batch_tokens": torch.tensor(float(tokens))}
        return self.collate(mine) | numbers


class _Column:
    """Rows of a chunked Arrow list column as NumPy views, without a Python object per token."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.chunks = [
            (chunk.offsets.to_numpy(), chunk.values.to_numpy(zero_copy_only=False)) for chunk in column.chunks
        ]
        self.starts = np.cumsum([0, *(len(chunk) for chunk in column.chunks)])

    def flat(self) -> Iterator[np.ndarray]:
        """All values in order, a chunk at a time."""
        return (values[offsets[0] : offsets[-1]] for offsets, values in self.chunks)

    def largest(self) -> int:
        return max((int(values.max()) for values in self.flat() if len(values)), default=-1)

    def __getitem__(self, row: int) -> np.ndarray:
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        offsets, values = self.chunks[number]
        local = row - int(self.starts[number])
        return values[offsets[local] : offsets[local + 1]]


def _lengths(column: pa.ChunkedArray) -> np.ndarray:
    if not len(column):
        return np.zeros(0, dtype=np.int64)
    return np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks]).astype(np.int64)


class RandomBatches:
    """Batch sampler: every epoch a fresh seeded shuffle, cut into batches.

    Not grouped by length, though that would save a tenth of the tokens: T5's loss is the mean over the tokens of a
    batch, so that a short summary weighs what its share of its batch is. Of the experiment's mixture the dialogues have
    6.4 % of the gradient's weight in random batches and 15.2 % in batches of like length; a loss divided by a constant
    number of tokens would give them 5.2 %. Which of them is trained on is a matter of the recipe, not of speed.

    The order depends on seed, epoch, lengths and batch size alone, so that every arm sees the same batches. The longest
    batch of the run comes first: what does not fit into memory fails at once, not after an hour.
    """

    def __init__(self, rows: TokenRows, batch_size: int, *, seed: int) -> None:
        self.rows, self.batch_size, self.seed, self.epoch = rows, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.rows))
        batches = [batch.tolist() for batch in row_batches(order, self.batch_size)]
        whole = range(len(self.rows) // self.batch_size or 1)  # a last batch of fewer rows stays the last one
        longest = max(whole, key=lambda i: self._size(batches[i]))
        batches[0], batches[longest] = batches[longest], batches[0]
        return iter(batches)

    def _size(self, batch: list[int]) -> tuple[int, int]:
        return int(self.rows.input_lengths[batch].max()), int(self.rows.label_lengths[batch].max())


def sorted_batches(rows: TokenRows, *, max_tokens: int) -> list[list[int]]:
    """All rows, longest first, in batches of at most `max_tokens` padded input tokens (at least one row each)."""
    order = longest_first(rows.input_lengths, rows.label_lengths)
    return [batch.tolist() for batch in budget_batches(order, rows.input_lengths, max_tokens)]
