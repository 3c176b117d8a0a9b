"""The sentences of the warnings: nothing is computed or compared here."""

from __future__ import annotations

from utils.analysis.results import AttackWarning

# By the name of the warning; what follows "/" tells its variants apart.
TEXTS = {
    "nothing_attackable": "no example was attackable; its figures are empty",
    "no_better_than_random": "random flips of equal budget raise the loss as much as the attack",
    "no_better_than_random/trigger": "{kind}: the best random trigger raises the loss as much",
    "possibly_masked_gradients/success": "{rival} the white-box attack (success {other:.1%} against {own:.1%}): "
    "robustness possibly masked gradients",
    "possibly_masked_gradients/loss": "{rival} the white-box attack (loss +{other:.3f} against +{own:.3f} nats): "
    "robustness possibly masked gradients",
    "possibly_masked_gradients/free_trigger": "{kind}: a gradient-free search finds a stronger trigger (+{other:.3f} "
    "against +{own:.3f} nats): robustness possibly masked gradients",
    "possibly_masked_gradients/transferred_trigger": "{kind}: the trigger found on {source} is stronger here "
    "(+{other:.3f} against +{own:.3f} nats): robustness possibly masked gradients",
    "zero_gradients": "{zero} of {attackable} inputs have a zero gradient",
    "low_taylor_fidelity": "first-order gains hardly predict exact ones (Spearman {fidelity:.2f}): the gradient attack "
    "is handicapped on this model",
    "budget_not_monotone/within": "success falls by more than 2 points at {flips} flips",
    "budget_not_monotone/beyond": "success falls by {lost:.1%} with {flips}",
    "no_collapse/attack": "with every token open the attack succeeds on {rate:.0%} only: it is too weak, or the model "
    "hardly reads its text",
    "no_collapse/score": "changing every token succeeds on {rate:.0%} only: the score or the threshold cannot tell a "
    "good summary from an unrelated one",
    "not_converged/hotflip": "twice the candidates change success by {change:+.1%} and the loss gain by {gain:+.1%} "
    "({examples} examples): not converged",
    "not_converged/triggers": "the second half of the search still gained: {types}: not converged",
}
UNFINISHED = "{kind}"
UNFINISHED_BY = "{kind} (success {success:+.1%}, NLL {nll:+.3f})"


def warning(model: str, text: str, **figures: object) -> AttackWarning:
    """The warning of that name about a model, with its figures in the sentence."""
    return AttackWarning(model=model, warning=text.partition("/")[0], message=TEXTS[text].format(**figures))
