"""The loss of triggers over a set of examples, its gradient at their slots, and what each token would gain there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.attacks.context import AttackContext
from utils.attacks.legal_tokens import TokenArray
from utils.attacks.objective import Objective, Targets
from utils.attacks.triggers.candidates import token_pool
from utils.attacks.triggers.inputs import TriggerExample
from utils.modeling.batching import Indices

UNUSABLE = -1e9  # nats; finite, so that means and differences of it stay comparable


class TriggerObjective:
    """The loss of triggers over examples, scored in one batch whatever their number."""

    def __init__(self, objective: Objective, items: Sequence[TriggerExample], trigger_type: str, seed: int) -> None:
        self.objective, self.items, self.kind, self.seed = objective, list(items), trigger_type, seed
        self.targets = Targets([item.labels for item in items], objective.device)

    def inputs(self, trigger: Sequence[int], rows: Sequence[int], boundary_key: object) -> list[TokenArray]:
        """The ids of examples `rows` with `trigger`; each `boundary_key` draws an infix's boundary anew."""
        return [self.items[i].with_trigger(self.kind, trigger, self.boundary(i, boundary_key)) for i in rows]

    def boundary(self, row: int, boundary_key: object) -> int | None:
        """The infix boundary of an example under `boundary_key`; None for the other types."""
        return self.items[row].draw_boundary(self.kind, self.seed, boundary_key)

    def losses(
        self, triggers: Sequence[Sequence[int]], rows: Sequence[int], boundary_key: object
    ) -> NDArray[np.float64]:
        """float64 [len(triggers), len(rows)]; a loss that is not finite counts as UNUSABLE: it never wins."""
        inputs = [ids for trigger in triggers for ids in self.inputs(trigger, rows, boundary_key)]
        flat = self.objective.losses(inputs, self.targets, list(rows) * len(triggers))
        return np.where(np.isfinite(flat), flat, UNUSABLE).reshape(len(triggers), len(rows))

    def clean_losses(self) -> NDArray[np.float64]:
        """float64 [examples]: without any trigger."""
        return self.objective.losses([i.clean for i in self.items], self.targets, np.arange(len(self.items)))

    def slot_gradients(
        self, triggers: Sequence[Sequence[int]], rows: Sequence[int], boundary_key: object
    ) -> NDArray[np.float32]:
        """Mean gradient at the trigger's slots, float32 [len(triggers), length, d]."""
        device = self.objective.device
        slots = [self.items[i].slot(self.kind, self.boundary(i, boundary_key)) for i in rows]
        # Input n is trigger n // len(rows) in example n % len(rows).
        inputs = [ids for trigger in triggers for ids in self.inputs(trigger, rows, boundary_key)]
        length, width = len(triggers[0]), self.objective.embedding.shape[1]
        total = torch.zeros(len(triggers), length, width, device=device)
        offsets = torch.arange(length, device=device)

        def use(batch: Indices, ids: Tensor, gradient: Tensor) -> None:
            # The slot differs from example to example, so each row of the batch picks positions of its own:
            # [b, 1] rows against [b, length] positions out of [b, T, d] give [b, length, d].
            starts = torch.tensor([slots[n % len(rows)] for n in batch], device=device)
            picked = gradient[torch.arange(len(batch), device=device)[:, None], starts[:, None] + offsets]
            total.index_add_(0, torch.tensor([n // len(rows) for n in batch], device=device), picked)

        self.objective.gradients(inputs, self.targets, list(rows) * len(triggers), use)
        return (total / len(rows)).cpu().numpy()


def slot_gains(
    context: AttackContext,
    train: TriggerObjective,
    triggers: Sequence[Sequence[int]],
    gradients: NDArray[np.float32],
) -> list[NDArray[np.float64]]:
    """First-order gain of every legal token at every slot, float64 [length, V] per trigger.

    Wallace et al. 2019, eq. 2: (e_new - e_old) . g for all new tokens at once, g the gradient averaged over examples.
    """
    table = train.objective.embedding
    rows = table[torch.from_numpy(token_pool(context.legal, train.kind)).to(table.device)].float()  # [V, d]
    slots = torch.from_numpy(gradients).to(table.device)  # [triggers, length, d]
    old = table[torch.tensor(triggers, device=table.device)].float()  # [triggers, length, d]
    with torch.inference_mode():
        gains = slots @ rows.T - (slots * old).sum(-1, keepdim=True)  # [triggers, length, V]
    return list(gains.double().cpu().numpy())
