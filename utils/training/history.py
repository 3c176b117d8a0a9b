"""A row of `<arm>_training_history.json`: what one epoch was. Torch-free, so that analysis can read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

TIMES = ("seconds", "examples_per_second", "tokens_per_second", "cumulative_seconds")


@dataclass(frozen=True, kw_only=True)
class NormSummary:
    """Global gradient norms of an epoch's steps, before clipping."""

    mean: float
    max: float


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """One epoch of a training.

    Losses are means over label tokens, in nats per token. Times are absent where TRACK_TRAINING_TIME is off.
    """

    epoch: int  # from 1
    steps: int  # optimizer steps
    train_loss: float  # with dropout, while the weights changed
    validation_loss: float  # without dropout, after the epoch
    learning_rate: float  # at the last step
    gradient_norm: NormSummary | None  # None with COMPUTE_GRADIENT_NORMS off
    peak_memory_mb: float  # MiB: of the GPU's tensors, on a CPU of the process
    seconds: float | None = None  # of the training steps, over all sessions, validation not counted
    examples_per_second: float | None = None
    tokens_per_second: float | None = None  # label tokens
    cumulative_seconds: float | None = None  # since the training began, over all sessions, with everything

    def without_times(self) -> EpochRow:
        """The same row as TRACK_TRAINING_TIME off reports it."""
        return replace(self, seconds=None, examples_per_second=None, tokens_per_second=None, cumulative_seconds=None)

    def to_json(self) -> dict[str, Any]:
        """The row as an object of the file; times that are None are left out."""
        return {name: value for name, value in asdict(self).items() if value is not None or name not in TIMES}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> EpochRow:
        """The row that `to_json` wrote."""
        norm = row["gradient_norm"]
        return cls(**{**row, "gradient_norm": None if norm is None else NormSummary(**norm)})
