"""Tables about what caused a difference: the mechanism panel of each model."""

from __future__ import annotations

from utils.analysis.final import FinalResults
from utils.analysis.mechanism import FIRST_DIRECTION_OF_ABSOLUTE
from utils.reports.table import Table, percent


def mechanism(results: FinalResults) -> Table:
    """What the feed-forward layers of each model are, and what the model does without them."""
    rows: list[tuple[str, ...]] = [
        (
            model,
            f"{panel.spectral_norm:.3g}",
            f"{panel.stable_rank:.1f}",
            percent(panel.first_direction),
            f"{percent(panel.dead_units)}, {percent(panel.always_on_units)}",
            f"{percent(panel.ffn_change)}, {percent(panel.other_change)}",
            f"{panel.loss:.3f}",
            f"{panel.loss_zeroed - panel.loss:+.3f}",
            f"{panel.loss_rank_one - panel.loss:+.3f}",
            f"{panel.loss_without_rank_one - panel.loss:+.3f}",
            f"{panel.gain.median:.3g}",
            f"{panel.premise.comparable} of {panel.premise.moved}",
        )
        for model, panel in results.mechanism.items()
    ]
    return Table(
        "mechanism",
        "What the feed-forward layers are and do",
        (
            "model",
            "spectral norm",
            "stable rank",
            "first direction",
            "dead, always on",
            "moved: FFN, rest",
            "loss",
            "FFN zero",
            "FFN rank one",
            "without it",
            "gain",
            "comparable",
        ),
        rows,
        "Stable rank and the energy in the first direction are means over the FFN matrices; |W| of a random matrix "
        f"has {100 * FIRST_DIRECTION_OF_ABSOLUTE:.0f} % there (2/pi). Moved: distance from where training started, "
        "over the norm. Loss in nats per token on validation examples, and its rise with every FFN matrix set to zero, "
        "replaced by its best rank-one matrix, or without that. Gain: largest singular value of the Jacobian from "
        "embeddings to logits. Comparable: FFN inputs that a one-token change moves all up or all down, which is the "
        "premise of the monotonicity argument.",
    )
