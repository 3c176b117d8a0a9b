"""The arms of the experiment as data: what training does to the feed-forward (FFN) matrices, one record an arm.

`baseline` and `monotonic` are the pair that is compared; CONTROL_ARMS names others to train beside them. An arm of your
own is one more entry of ARMS: training, export, audit, evaluation, attacks, statistics, tables, schema and model card
read it from here. Standard library only.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

SIGNS = ("free", "positive", "frozen", "unit")
STARTS = ("pretrained", "absolute", "positive_part")
MAPS = ("softplus", "exp", "square", "clamp")
FFNS = ("whole", "rank_one", "none")
STACKS, MATRICES = ("encoder", "decoder"), ("wi", "wo")
SCOPE = re.compile(r"all|(?:(?:encoder|decoder|wi|wo)(?: |$))?(?:(?:wi|wo)(?: |$))?(?:layers (\d+)-(\d+))?")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train the FFN matrices W of the model.

    summary: what it is, after "fine-tuned", as model cards and tables print it.
    signs: of W. free; positive: W >= 0; frozen: those of the pretrained weights; unit: one sign s_j per hidden unit j,
    s_j W_in[j, :] >= 0 and s_j W_out[:, j] >= 0, half of them negative: monotone like positive, but not convex.
    scope: the matrices that this is about, the others are free and start pretrained. "all", or some of encoder |
    decoder, wi | wo, "layers a-b" (from 0, both included, in each stack), in this order: "decoder wo layers 0-2".
    start: pretrained: W itself; absolute: |W|; positive_part: what of W has the right sign, the rest 0. All + epsilon.
    map: from a free V to the size of a W with a sign. clamp: W itself is stepped, and set to 0 where it leaves its sign
    ffn: whole; rank_one: each matrix an outer product that starts as the best one of `start`; none: zero, not trained.
    """

    summary: str
    signs: str = "free"
    scope: str = "all"
    start: str = "pretrained"
    map: str = "softplus"
    ffn: str = "whole"

    def __post_init__(self) -> None:
        for field, allowed in (("signs", SIGNS), ("start", STARTS), ("map", MAPS), ("ffn", FFNS)):
            if getattr(self, field) not in allowed:
                raise ValueError(f"an arm's {field} {getattr(self, field)!r}: must be one of {', '.join(allowed)}")
        found = SCOPE.fullmatch(self.scope)
        if not found or not self.scope or self.scope != self.scope.strip():
            raise ValueError(f"an arm's scope {self.scope!r}: all, or of encoder | decoder, wi | wo, layers a-b")
        if (layers := self.layers) and layers[0] > layers[1]:
            raise ValueError(f"an arm's scope {self.scope!r}: the first layer comes after the last")
        if self.signs in ("positive", "unit") and self.start == "pretrained":
            raise ValueError(f"signs {self.signs!r}: pretrained weights have both; start absolute or positive_part")
        if self.signs == "frozen" and self.start != "pretrained":
            raise ValueError("signs 'frozen' are those of the pretrained weights: start must be pretrained")
        if self.ffn != "whole" and self.signs != "free":
            raise ValueError(f"ffn {self.ffn!r} has signs 'free'")

    @property
    def layers(self) -> tuple[int, int] | None:
        """First and last layer of the scope; None: every layer."""
        found = re.search(r"layers (\d+)-(\d+)", self.scope)
        return (int(found[1]), int(found[2])) if found else None

    @property
    def stacks(self) -> tuple[str, ...]:
        return _named(self.scope, STACKS)

    @property
    def matrices(self) -> tuple[str, ...]:
        """`wi` stands for wi_0 and wi_1 of gated models as well."""
        return _named(self.scope, MATRICES)

    @property
    def changes_nothing(self) -> bool:
        """Whether training is that of the model as it is."""
        return (self.signs, self.start, self.ffn) == ("free", "pretrained", "whole")

    def covers(self, stack: str, layer: int, matrix: str) -> bool:
        """Whether a matrix is in the scope: encoder or decoder, layer from 0, wi, wi_0, wi_1 or wo."""
        first, last = self.layers or (0, layer)
        return stack in self.stacks and matrix[:2] in self.matrices and first <= layer <= last

    def beyond(self, layers: dict[str, int]) -> str | None:
        """Why the scope does not fit a model with so many layers per stack, in words; None where it does."""
        last = self.layers[1] if self.layers else 0
        for stack in self.stacks:
            if last >= layers[stack]:
                return f"scope {self.scope!r} goes to layer {last}, the {stack} has layers 0-{layers[stack] - 1}"
        return None


def _named(scope: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if name in scope.split()) or names


BASELINE, MONOTONIC = "baseline", "monotonic"
ARMS: dict[str, Arm] = {
    BASELINE: Arm(summary="without any constraint: the control of the experiment"),
    MONOTONIC: Arm(summary="with every feed-forward matrix W = softplus(V) >= 0", signs="positive", start="absolute"),
    "sign_frozen": Arm(summary="with the same softplus, but the pretrained signs kept", signs="frozen"),
    "abs_init_free": Arm(summary="from |W| like monotonic, but unconstrained", start="absolute"),
    "wi_only": Arm(summary="with wi >= 0 alone", signs="positive", start="absolute", scope="wi"),
    "wo_only": Arm(summary="with wo >= 0 alone", signs="positive", start="absolute", scope="wo"),
    "encoder_only": Arm(summary="with encoder W >= 0 alone", signs="positive", start="absolute", scope="encoder"),
    "decoder_only": Arm(summary="with decoder W >= 0 alone", signs="positive", start="absolute", scope="decoder"),
    "two_sided": Arm(summary="with one sign per hidden unit: monotone, but not convex", signs="unit", start="absolute"),
    "no_ffn": Arm(summary="with every feed-forward matrix zero: no FFN at all", ffn="none"),
    "rank1_ffn": Arm(summary="with FFN matrices of rank one, from |W|, signs free", start="absolute", ffn="rank_one"),
}  # fmt: skip
TRAINED_PAIR = (BASELINE, MONOTONIC)
CONTROLS = tuple(name for name in ARMS if name not in TRAINED_PAIR)  # what stage 3 can train beside monotonic


def control_problem(name: str) -> str | None:
    """Why CONTROL_ARMS cannot name this, in words with the list and the nearest name; None if it can."""
    if name in CONTROLS:
        return None
    if name in TRAINED_PAIR:
        return f"{name} is always trained: leave it out. The control arms are {', '.join(CONTROLS)}"
    close = difflib.get_close_matches(name, CONTROLS, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"there is no arm {name!r}.{hint} The control arms are {', '.join(CONTROLS)}"
