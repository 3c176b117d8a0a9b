"""Robust, or only hard to differentiate? What the controls say, in words.

An attack that follows gradients can fail because the model resists, or because its gradients mislead ("gradient
masking", Athalye et al. 2018). The signs are in Carlini et al. 2019: a gradient-free or transferred attack that does
better, success that does not grow with the budget, zero gradients, first-order gains that predict nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from utils.analysis.measures import relative_gain

MARGIN = 0.02  # two points of success rate: below this a difference says nothing
LOSS_MARGIN = 0.05  # of the mean loss gain: what a converged attack may still add with twice the work
ENOUGH = 50  # examples: with fewer, one example is more than two points
COLLAPSE = 0.9  # success rate that is expected where nothing of the text is left
LOW_FIDELITY = 0.1  # Spearman correlation of predicted and exact gain


def hotflip_flags(results: Mapping[str, Any], model_keys: Sequence[str]) -> list[dict[str, str]]:
    """Warnings about the HotFlip results, each {model, flag, message}; an empty list means that no check failed."""
    flags: list[dict[str, str]] = []
    for key in model_keys:
        model = results[key]
        if not model["num_attackable"]:
            flags.append(_flag(key, "nothing_attackable", "no example was attackable; its figures are empty"))
            continue
        rate, controls = model["success_rate"], model["controls"]
        flags += _masking(key, model, results["transfer_matrix"], model_keys)
        tests = results["comparisons"]["attack_minus_control"][key]
        if "random" in controls and tests["random"]["loss_increase"]["difference"] <= 0:
            flags.append(
                _flag(key, "no_better_than_random", "random flips of equal budget raise the loss as much as the attack")
            )
        curve = [point["success_rate"] for point in model.get("budget_curve", [])]
        falls = [k + 2 for k in range(len(curve) - 1) if curve[k + 1] < curve[k] - MARGIN]
        if falls:
            flags.append(_flag(key, "budget_not_monotone", f"success falls by more than 2 points at {falls[0]} flips"))
        flags += _beyond_the_budget(key, model.get("long_budget_curve", []))
        all_replaced = controls.get("all_replaced")
        if all_replaced and all_replaced["success_rate"] < max(COLLAPSE, rate):
            flags.append(
                _flag(
                    key,
                    "no_collapse",
                    f"changing every token succeeds on {all_replaced['success_rate']:.0%} only: the score or the"
                    " threshold cannot tell a good summary from an unrelated one",
                )
            )
        double = tests.get("double")
        if double and double["num_common"]:
            rate_change, loss = 0.0 - double["success"]["difference"], double["loss_increase"]
            gain = relative_gain(loss["mean_b"], loss["mean_a"]) or 0.0
            if gain > LOSS_MARGIN or (abs(rate_change) >= MARGIN and double["num_common"] >= ENOUGH):
                words = f"twice the candidates change success by {rate_change:+.1%} and the loss gain by {gain:+.1%}"
                flags.append(_flag(key, "not_converged", f"{words} ({double['num_common']} examples): not converged"))
    return flags


def _beyond_the_budget(key: str, curve: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """With more and more flips success must grow, and with every token open next to nothing may be left."""
    flags = []
    for before, after in itertools.pairwise(curve):
        lost = before["success_rate"] - after["success_rate"]
        if lost > max(MARGIN, 1.5 / after["num_examples"]):  # one example alone says nothing
            flips = "every token open" if after["flips"] is None else f"{after['flips']} flips"
            flags.append(_flag(key, "budget_not_monotone", f"success falls by {lost:.1%} with {flips}"))
    if curve and curve[-1]["success_rate"] < COLLAPSE:
        reached = f"with every token open the attack succeeds on {curve[-1]['success_rate']:.0%} only"
        flags.append(_flag(key, "no_collapse", f"{reached}: it is too weak, or the model hardly reads its text"))
    return flags


def _masking(
    key: str, model: Mapping[str, Any], matrix: Mapping[str, Any], model_keys: Sequence[str]
) -> list[dict[str, str]]:
    flags = []
    rate, gain = model["success_rate"], model["mean_loss_increase"]
    rivals = {
        "a gradient-free search beats": model["controls"].get("greedy"),
        "random flips beat": model["controls"].get("random"),
    }
    rivals |= {f"flips found on {source} beat": matrix[source][key] for source in model_keys if source != key}
    for name, rival in rivals.items():
        if not rival or not rival["num_attackable"]:
            continue
        by_rate = rival["success_rate"] > rate + MARGIN
        by_loss = rival["mean_loss_increase"] > gain
        if by_rate or by_loss:
            what = (
                f"success {rival['success_rate']:.1%} against {rate:.1%}"
                if by_rate
                else f"loss +{rival['mean_loss_increase']:.3f} against +{gain:.3f} nats"
            )
            flags.append(
                _flag(
                    key,
                    "possibly_masked_gradients",
                    f"{name} the white-box attack ({what}): robustness possibly masked gradients",
                )
            )
    zero = model.get("zero_gradient_count", 0)
    if zero > 0.01 * model["num_attackable"]:
        flags.append(_flag(key, "zero_gradients", f"{zero} of {model['num_attackable']} inputs have a zero gradient"))
    fidelity = (model.get("taylor_fidelity_spearman") or {}).get("mean")
    if fidelity is not None and fidelity < LOW_FIDELITY:
        flags.append(
            _flag(
                key,
                "low_taylor_fidelity",
                f"first-order gains hardly predict exact ones (Spearman {fidelity:.2f}): the gradient attack is"
                " handicapped on this model",
            )
        )
    return flags


def trigger_flags(results: Mapping[str, Any], model_keys: Sequence[str]) -> list[dict[str, str]]:
    """Warnings about the universal triggers, each {model, flag, message}."""
    flags: list[dict[str, str]] = []
    matrix = results["transfer_matrix"]
    for key in model_keys:
        unfinished: list[str] = []
        for kind, cell in results[key].items():
            if not isinstance(cell, Mapping) or "trigger_ids" not in cell or cell.get("nll_increase") is None:
                continue
            own = cell["nll_increase"]
            random = cell.get("random_control")
            if random and random.get("nll_increase") is not None and random["nll_increase"] >= own:
                flags.append(
                    _flag(key, "no_better_than_random", f"{kind}: the best random trigger raises the loss as much")
                )
            free = cell.get("gradient_free_control")
            if free and free.get("nll_increase") is not None and free["nll_increase"] > own:
                flags.append(
                    _flag(
                        key,
                        "possibly_masked_gradients",
                        f"{kind}: a gradient-free search finds a stronger trigger (+{free['nll_increase']:.3f} against"
                        f" +{own:.3f} nats): robustness possibly masked gradients",
                    )
                )
            for source in model_keys:
                other = matrix[kind][source][key].get("nll_increase")
                if source != key and other is not None and other > own:
                    flags.append(
                        _flag(
                            key,
                            "possibly_masked_gradients",
                            f"{kind}: the trigger found on {source} is stronger here (+{other:.3f} against +{own:.3f}"
                            " nats): robustness possibly masked gradients",
                        )
                    )
            if not cell["converged"]:
                half = cell["halfway"]
                more = half and half["num_common"]
                changed = f" (success {half['success_change']:+.1%}, NLL {half['nll_change']:+.3f})" if more else ""
                unfinished.append(f"{kind}{changed}")
        if unfinished:
            message = f"the second half of the search still gained: {', '.join(unfinished)}: not converged"
            flags.append(_flag(key, "not_converged", message))
    return flags


def doubling_matters(half: Mapping[str, Any]) -> bool:
    """Whether twice the iterations changed success by two points or more, on enough examples to say so."""
    return half["num_common"] >= ENOUGH and abs(half["success_change"]) >= MARGIN


def _flag(model: str, flag: str, message: str) -> dict[str, str]:
    return {"model": model, "flag": flag, "message": message}
