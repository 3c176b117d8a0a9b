"""The sentences of the warnings and their order: nothing is computed or compared here."""

from __future__ import annotations

from collections.abc import Iterable

from utils.analysis.comparisons import AttackWarning
from utils.core.names import TRAINED_KEYS

# By the name of the warning; what follows "/" tells its variants apart.
TEXTS = {
    "cannot_summarise": "it hardly summarises, and what cannot summarise tells nothing about attacks: {reasons}",
    "nothing_attackable": "no example was attackable; its figures are empty",
    "ffn_hardly_takes_part": "the feed-forward layers hardly take part: with every matrix replaced by its best "
    "rank-one one the loss rises by {rank_one:.3f} nats, with all of them zero by {zeroed:.3f}",
    "no_collapse/attack": "with every token open the attack succeeds on {rate:.0%} only: it is too weak, or the model "
    "hardly reads its text",
    "no_collapse/score": "changing every token succeeds on {rate:.0%} only: the score or the threshold cannot tell a "
    "good summary from an unrelated one",
    "possibly_masked_gradients/success": "{rival} the white-box attack (success {change:+.1%}): robustness possibly "
    "masked gradients",
    "possibly_masked_gradients/loss": "{rival} the white-box attack (loss {change:+.3f} nats): robustness possibly "
    "masked gradients",
    "possibly_masked_gradients/found": "the first flip finds {share:.0%} of the loss rise that the best single flip "
    "gives: the gradients say little, and robustness is not shown",
    "unequal_search": "{attack} finds {own:.0%} of the loss rise that the best choice gives, and {other:.0%} on "
    "{rival}: the attack is the weaker one here, and less harm is no robustness",
    "surrogate_mismatch/hotflip": "{rival} succeeds {change:+.1%} more often than choosing by loss: the loss misleads "
    "the attack, which is no sign of masked gradients",
    "surrogate_mismatch/rival": "{rival} the white-box attack (success {change:+.1%}) though it raises the loss less: "
    "the loss misleads the attack, which is no sign of masked gradients",
    "surrogate_mismatch/trigger": "{kind}: the trigger learned by loss raises the loss {rise:+.3f} nats more than the "
    "best random one, but changes ROUGE-L by {change:+.3f} [{lower:+.3f}, {upper:+.3f}] against it (p = {p:.2g}): the "
    "loss misleads the search. By held-out ROUGE-L {chosen} was chosen",
    "zero_gradients": "{zero} of {attackable} inputs have a zero gradient",
    "low_taylor_fidelity": "first-order gains hardly predict exact ones (Spearman {fidelity:.2f}): the gradient attack "
    "is handicapped on this model",
    "no_better_than_random": "{attack} is not shown to raise the loss more than {control} ({change:+.3f} nats, "
    "one-sided p = {p:.3f})",
    "not_converged/hotflip": "twice the candidates change success by {success:+.1%} and the loss by {loss:+.3f} nats: "
    "not converged",
    "not_converged/triggers": "{kind}: the second half of the search still gained (success {success:+.1%}, loss "
    "{loss:+.3f} nats): not converged",
    "budget_not_monotone": "success falls by {lost:.1%} with {flips}",
}
# What undoes the comparison as a whole comes before what touches one attack's strength.
RANKS = {
    name: rank
    for rank, name in enumerate(dict.fromkeys(text.partition("/")[0] for text in TEXTS), start=1)
}  # fmt: skip


def warning(
    model: str, text: str, *, n: int, p_value: float | None = None, margin: float | None = None, **figures: object
) -> AttackWarning:
    """The warning of that name about a model, with its figures and its test in the sentence.

    n: examples it was seen on; p_value: one-sided, of what is doubted being within `margin` (in the unit of the
    figure); None: there is nothing to test, or the sentence has its tests already.
    """
    name, message = text.partition("/")[0], TEXTS[text].format(**figures)
    if p_value is not None and margin is not None:
        shown = "< 0.001" if p_value < 0.001 else f"= {p_value:.3f}"
        message += f" [{n} examples, beyond a margin of {margin:.3g} with p {shown}]"
    return AttackWarning(
        model=model, warning=name, message=message, rank=RANKS[name], n=n, p_value=p_value, margin=margin
    )


def ranked(warnings: Iterable[AttackWarning]) -> list[AttackWarning]:
    """Doubts about the compared models first, the gravest of them first; of one kind, the surest first."""
    return sorted(warnings, key=lambda w: (w.model not in TRAINED_KEYS, w.rank, w.p_value or 0.0))
