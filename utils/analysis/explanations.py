"""Which explanations of the difference between monotonic and baseline the data leave. Torch-free.

A rival explanation is a control arm without the sign constraint, or the lower quality of the model. It explains the
difference if it accounts for more than half of it, beyond the interval of its share, and is excluded if for less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from configs.arms import ARMS
from utils.analysis.attribution import Reproduced
from utils.analysis.quality_curve import MatchedDifference

HALF = 0.5
QUALITY = "quality"


@dataclass(frozen=True, kw_only=True)
class Explanations:
    """Rivals of the sign constraint by what the data say of them, QUALITY among them, and parts of the constraint.

    explaining: rivals that account for more than half of the difference; excluded: for less than half; undecided: the
    interval of the share has one half in it, or there is no share. parts: arms that constrain a part of the matrices,
    or less than the sign, and reproduce more than half.
    """

    explaining: tuple[str, ...]
    excluded: tuple[str, ...]
    undecided: tuple[str, ...]
    parts: tuple[str, ...]

    @property
    def only_the_sign_is_left(self) -> bool:
        """Whether every rival is excluded: the quality, and at least one arm."""
        return not self.explaining and not self.undecided and len(self.excluded) > 1


def explanations(shares: Mapping[str, Reproduced | None], matched: MatchedDifference | None) -> Explanations:
    """What `shares` of the difference, by arm, and what is left of it at equal quality say about its cause.

    Both are of the measure that the headline reads. matched: monotonic's; None: not known at equal quality.
    """
    rivals = {arm: share for arm, share in shares.items() if not _constrained(arm)}
    left = None if matched is None else matched.left_of_final
    # What is gone at equal quality is what the lower quality accounts for.
    rivals[QUALITY] = left and Reproduced(share=1 - left.share, lower=1 - left.upper, upper=1 - left.lower)
    kinds = {name: _kind(share) for name, share in rivals.items()}
    return Explanations(
        explaining=tuple(name for name, kind in kinds.items() if kind == "explaining"),
        excluded=tuple(name for name, kind in kinds.items() if kind == "excluded"),
        undecided=tuple(name for name, kind in kinds.items() if kind == "undecided"),
        parts=tuple(arm for arm, share in shares.items() if _constrained(arm) and _kind(share) == "explaining"),
    )


def _constrained(arm: str) -> bool:
    return ARMS[arm].signs in ("positive", "unit")


def _kind(share: Reproduced | None) -> str:
    if share is None or share.lower <= HALF <= share.upper:
        return "undecided"
    return "explaining" if share.lower > HALF else "excluded"
