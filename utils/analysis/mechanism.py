"""What the feed-forward (FFN) layers of a model are and do: the mechanism panel's record and its doubt. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from configs.arms import ARMS
from utils.analysis.comparisons import AttackWarning
from utils.analysis.order import OrderTest
from utils.analysis.records import Count, Loss, Share
from utils.analysis.warning_texts import warning
from utils.core.codec import Inline, Keys, Range
from utils.core.names import STANDARD

# |W| of a zero-mean normal matrix has this share of its energy in its constant part: E|w|^2 / E w^2 = 2 / pi.
FIRST_DIRECTION_OF_ABSOLUTE = 0.6366
HARDLY = 0.05  # nats per token: FFN layers whose loss without all but one direction rises less are hardly used


@dataclass(frozen=True, kw_only=True)
class MatrixFigures:
    """One FFN matrix."""

    spectral_norm: Annotated[float, "largest singular value"]
    stable_rank: Annotated[float, "squared Frobenius norm over squared spectral norm; 0 for a matrix of zeros"]
    first_direction: Annotated[Share, "of its energy in the first singular direction; 2/pi for |W| of a random matrix"]


@dataclass(frozen=True, kw_only=True)
class BlockFigures:
    """The hidden units of one FFN block over all tokens of the examples."""

    dead_units: Annotated[Share, "never above 0"]
    always_on_units: Annotated[Share, "above 0 at every token"]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Largest singular value of the Jacobian from input embeddings to logits, at each of some examples."""

    median: float
    most: float
    num_examples: Count


@dataclass(frozen=True, kw_only=True)
class Premise:
    """How often the monotonicity argument applies: FFN inputs that a one-token change moves, all up or all down."""

    moved: Annotated[Count, "FFN inputs that were moved"]
    comparable: Annotated[Count, "of them, with every coordinate up, or every one down"]
    rate: Annotated[Share, "comparable over moved; 0 where none moved"]


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """The panel of one model, measured on validation examples."""

    num_examples: Annotated[Count, "drawn from the validation set"]
    spectral_norm: Annotated[float, "largest of all FFN matrices"]
    stable_rank: Annotated[float, "mean over the matrices"]
    first_direction: Annotated[Share, "mean over the matrices"]
    dead_units: Annotated[Share, "mean over the blocks"]
    always_on_units: Annotated[Share, "mean over the blocks"]
    ffn_change: Annotated[float, Range(0), "distance of all FFN weights from where training started, over their norm"]
    ffn_change_from_pretrained: Annotated[float, Range(0), "the same from the pretrained weights"]
    other_change: Annotated[float, Range(0), "the same of all other weights"]
    unmoved_share: Annotated[Share, "of the FFN weights within 1 % of where training started"]
    loss: Annotated[Loss, "nats per label token"]
    loss_zeroed: Annotated[Loss, "with every FFN matrix set to 0"]
    loss_rank_one: Annotated[Loss, "with every FFN matrix replaced by its best rank-one matrix"]
    loss_without_rank_one: Annotated[Loss, "with that rank-one matrix taken away"]
    gain: Gain
    premise: Premise
    order: Annotated[OrderTest | None, "sentences of growing strength; null: ORDER_CHAINS is 0"]
    matrices: Annotated[dict[str, MatrixFigures], "by name"]
    blocks: Annotated[dict[str, BlockFigures], "by name"]


@dataclass(frozen=True, kw_only=True)
class MechanismResults:
    """The panels, by model."""

    models: Annotated[dict[str, Mechanism], Inline, Keys((STANDARD, *ARMS))]


def doubts(panels: Mapping[str, Mechanism]) -> list[AttackWarning]:
    """A doubt about each model whose FFN layers hardly take part: an attack through them has nothing to hold on to.

    Not about arms that have no more by definition: no FFN, or one of rank one.
    """
    found = []
    for model, panel in panels.items():
        if model in ARMS and ARMS[model].ffn != "whole":
            continue
        rise, zeroed = panel.loss_rank_one - panel.loss, panel.loss_zeroed - panel.loss
        if min(rise, zeroed) < HARDLY:
            found.append(warning(model, "ffn_hardly_takes_part", n=panel.num_examples, rank_one=rise, zeroed=zeroed))
    return found
