"""Universal triggers: one short token sequence that raises the loss on every text it is put into.

Coordinate ascent guided by gradients (Wallace et al. 2019; candidates as in GCG, Zou et al. 2023), all restarts in
lock-step. Every comparison is paired: candidates and incumbent are scored on the same examples, and a candidate wins
only by a gain on examples that did not help to pick it. Selection happens on a held-out part of the optimisation set.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.attacks.cache import load_cached, save_cached
from utils.attacks.context import LOSSES, AttackContext, Victim
from utils.attacks.objective import Objective, Targets
from utils.attacks.seeding import generator
from utils.attacks.triggers.candidates import candidate_triggers, random_triggers, token_pool
from utils.attacks.triggers.inputs import TriggerExample
from utils.core.errors import Interrupted, StageError, UsageError
from utils.core.names import TRIGGER_TYPES
from utils.core.progress import progress

log = logging.getLogger(__name__)
RACE_EXAMPLES = 16  # that a step's candidates are raced on
RACE_SURVIVORS = 4  # candidates that go on to be confirmed
CONFIRM_EXAMPLES = 64  # more, on which the incumbent and the survivors meet
TOP_K = 64  # tokens per slot, by first-order gain, that candidates are drawn from
DEV_SHARE = 0.2  # of the optimisation set: selects, and is never climbed on
PATIENCE = 30  # iterations without a dev gain after which a restart rests
SNAPSHOTS = 3  # triggers that each restart keeps for the choice at the end
UNUSABLE = -1e9  # nats; finite, so that means and differences of it stay comparable


@dataclass(frozen=True)
class TriggerSettings:
    """How hard the search tries.

    Per iteration and restart: a gradient over `gradient_examples`; `candidates` triggers raced on RACE_EXAMPLES, the
    best RACE_SURVIVORS and the incumbent scored on CONFIRM_EXAMPLES more. Every `dev_every` iterations the held-out
    part of the optimisation set selects. `method`: "gradient", or "random": the gradient-free control with the same
    number of forward passes. `loss`: what is raised, that of the "reference" or of the model's "own_output".
    """

    types: tuple[str, ...] = TRIGGER_TYPES
    length: int = 5
    iterations: int = 100
    restarts: int = 5
    candidates: int = 32
    gradient_examples: int = 32
    dev_every: int = 10
    random_controls: int = 20
    success_threshold: float = 0.15
    min_clean_rouge: float = 0.05
    seed: int = 0
    method: str = "gradient"
    loss: str = "reference"

    def __post_init__(self) -> None:
        for trigger_type in self.types:
            if trigger_type not in TRIGGER_TYPES:
                raise UsageError(f"trigger type {trigger_type!r}: must be one of {', '.join(TRIGGER_TYPES)}")
        if self.method not in ("gradient", "random"):
            raise UsageError(f"trigger search method {self.method!r}: must be gradient or random")
        if self.loss not in LOSSES:
            raise UsageError(f"attack loss {self.loss!r}: must be one of {', '.join(LOSSES)}")
        for name in ("length", "iterations", "restarts", "candidates", "gradient_examples", "dev_every",
                     "random_controls"):  # fmt: skip
            if getattr(self, name) < 1:
                raise UsageError(f"trigger {name} = {getattr(self, name)}: must be at least 1")


@dataclass
class TriggerSearchState:
    """Everything that a search carries from one iteration to the next; as JSON it is the state file."""

    iteration: int = 0
    triggers: list[list[int]] = field(default_factory=list)
    active: list[bool] = field(default_factory=list)
    snapshots: list[list[list[Any]]] = field(default_factory=list)  # per restart [[dev gain, trigger], ...] best first
    last_gain: list[int] = field(default_factory=list)  # iteration of the last dev improvement, per restart
    halfway: list[int] = field(default_factory=list)  # the best trigger by dev gain after half of the iterations
    curve: list[dict[str, Any]] = field(default_factory=list)
    forward_rows: int = 0
    gradient_rows: int = 0
    seconds: float = 0.0
    finished: bool = False


class TriggerObjective:
    """The loss of triggers over examples, scored in one batch whatever their number."""

    def __init__(self, objective: Objective, items: Sequence[TriggerExample], trigger_type: str, seed: int) -> None:
        self.objective, self.items, self.kind, self.seed = objective, list(items), trigger_type, seed
        self.targets = Targets([item.labels for item in items], objective.device)

    def inputs(self, trigger: Sequence[int], rows: Sequence[int], boundary_key: object) -> list[np.ndarray]:
        """The ids of examples `rows` with `trigger`; each `boundary_key` draws an infix's boundary anew."""
        return [self.items[i].with_trigger(self.kind, trigger, self.boundary(i, boundary_key)) for i in rows]

    def boundary(self, row: int, boundary_key: object) -> int | None:
        """The infix boundary of an example under `boundary_key`; None for the other types."""
        return self.items[row].draw_boundary(self.kind, self.seed, boundary_key)

    def losses(self, triggers: Sequence[Sequence[int]], rows: Sequence[int], boundary_key: object) -> np.ndarray:
        """float64 [len(triggers), len(rows)]; a loss that is not finite counts as UNUSABLE: it never wins."""
        inputs = [ids for trigger in triggers for ids in self.inputs(trigger, rows, boundary_key)]
        flat = self.objective.losses(inputs, self.targets, list(rows) * len(triggers))
        return np.where(np.isfinite(flat), flat, UNUSABLE).reshape(len(triggers), len(rows))

    def clean_losses(self) -> np.ndarray:
        """float64 [examples]: without any trigger."""
        return self.objective.losses([i.clean for i in self.items], self.targets, np.arange(len(self.items)))

    def slot_gradients(
        self, triggers: Sequence[Sequence[int]], rows: Sequence[int], boundary_key: object
    ) -> np.ndarray:
        """Mean gradient at the trigger's slots, float32 [len(triggers), length, d]."""
        slots = [self.items[i].slot(self.kind, self.boundary(i, boundary_key)) for i in rows]
        inputs = [ids for trigger in triggers for ids in self.inputs(trigger, rows, boundary_key)]
        length, width = len(triggers[0]), self.objective.embedding.shape[1]
        total = torch.zeros(len(triggers), length, width, device=self.objective.device)
        offsets = torch.arange(length, device=self.objective.device)

        def use(batch: np.ndarray, ids: torch.Tensor, gradient: torch.Tensor) -> None:
            starts = torch.tensor([slots[n % len(rows)] for n in batch], device=gradient.device)
            picked = gradient[torch.arange(len(batch), device=gradient.device)[:, None], starts[:, None] + offsets]
            total.index_add_(0, torch.tensor([n // len(rows) for n in batch], device=gradient.device), picked)

        self.objective.gradients(inputs, self.targets, list(rows) * len(triggers), use)
        return (total / len(rows)).cpu().numpy()


def split_examples(items: Sequence[TriggerExample], seed: int) -> tuple[list[TriggerExample], list[TriggerExample]]:
    """Usable examples as (train, dev), dealt by a hash of their ids; StageError if either would be empty."""
    usable = [item for item in items if item.problem is None]
    order = sorted(usable, key=lambda item: (generator(seed, "split", item.id).random(), item.id))
    dev = round(DEV_SHARE * len(order))
    if len(order) < 2 or not 0 < dev < len(order):
        raise StageError(
            f"{len(usable)} usable examples of {len(items)} are too few to optimise and to select a trigger"
        )
    return order[dev:], order[:dev]


def optimise_trigger(
    context: AttackContext,
    victim: Victim,
    objective: Objective,
    items: Sequence[TriggerExample],
    trigger_type: str,
    settings: TriggerSettings,
    *,
    state_file: Path,
) -> dict[str, Any]:
    """Search one trigger of `trigger_type` against one model; goes on from `state_file` after an interruption.

    Returns a JSON-ready dict: `trigger_ids`, `trigger_text`, `dev_gain` (mean NLL increase in nats on the dev part,
    float32), `restarts` (each one's best trigger and dev gain), `random_control` (the best of `random_controls` random
    triggers on the same dev examples), `halfway_trigger_ids` (what half of the iterations had found), `curve`, costs,
    and `converged` (by the dev gain alone).
    """
    train_items, dev_items = split_examples(items, settings.seed)
    content = [(item.id, item.ids, item.labels) for item in (*train_items, *dev_items)]
    constants = (RACE_EXAMPLES, RACE_SURVIVORS, CONFIRM_EXAMPLES, TOP_K, DEV_SHARE, PATIENCE, SNAPSHOTS)
    fingerprint = context.fingerprint(victim.key, victim.weights, trigger_type, settings, constants, content)
    saved = load_cached(state_file, fingerprint)
    if saved and saved.get("result"):
        result: dict[str, Any] = saved["result"]
        return result
    state = TriggerSearchState(**saved["state"]) if saved else TriggerSearchState()
    train = TriggerObjective(objective, train_items, trigger_type, settings.seed)
    dev = TriggerObjective(objective, dev_items, trigger_type, settings.seed)
    with progress(total=settings.iterations, what=f"{victim.key}: {trigger_type} trigger", unit="iteration") as bar:
        bar.update(state.iteration)
        clean_dev = float(np.mean(dev.clean_losses()))
        began = time.perf_counter()
        while state.iteration < settings.iterations and not state.finished:
            if not state.triggers:
                _start(context, train, settings, state)
            _iterate(context, train, settings, state)
            if state.iteration % settings.dev_every == 0 or state.iteration == settings.iterations:
                _select_on_dev(dev, clean_dev, settings, state)
                bar.set_postfix(refresh=False, dev=f"+{max(s[0][0] for s in state.snapshots):.3f}")
            bar.update(1)
            stop = context.stop_requested()
            if stop or state.iteration % settings.dev_every == 0:
                now = time.perf_counter()
                state.seconds, began = state.seconds + now - began, now
                save_cached(state_file, fingerprint, {"state": asdict(state)})
            if stop:
                raise Interrupted(f"{victim.key}: {trigger_type} trigger stopped at iteration {state.iteration}, saved")
    state.seconds += time.perf_counter() - began
    result = _result(context, victim, dev_items, trigger_type, settings, state)
    save_cached(state_file, fingerprint, {"state": asdict(state), "result": result})
    return result


def _start(
    context: AttackContext, train: TriggerObjective, settings: TriggerSettings, state: TriggerSearchState
) -> None:
    """Each restart begins with the best of its own random triggers (the first one also tries a common word)."""
    rng = generator(settings.seed, train.kind, "start")
    rows = _draw(rng, len(train.items), RACE_EXAMPLES)
    for restart in range(settings.restarts):
        own = generator(settings.seed, train.kind, "start", restart)
        pool = random_triggers(context.legal, train.kind, settings.length, settings.candidates, own)
        losses = train.losses(pool, rows, "start")
        state.triggers.append(pool[int(np.argmax(losses.mean(axis=1)))])
        state.forward_rows += losses.size
    state.active = [True] * settings.restarts
    state.snapshots = [[] for _ in range(settings.restarts)]
    state.last_gain = [0] * settings.restarts


def _iterate(
    context: AttackContext, train: TriggerObjective, settings: TriggerSettings, state: TriggerSearchState
) -> None:
    """One step of all restarts that are still active: gradient, candidates, race, confirmation, paired acceptance."""
    iteration = state.iteration  # of this step: it seeds all draws, the infix boundaries among them
    rng = generator(settings.seed, train.kind, "iteration", iteration)
    active = [r for r, on in enumerate(state.active) if on]
    now = [state.triggers[r] for r in active]
    count = settings.candidates
    gains: Sequence[np.ndarray | None] = [None] * len(active)
    if settings.method == "gradient":
        rows = _draw(rng, len(train.items), settings.gradient_examples)
        gradients = train.slot_gradients(now, rows, iteration)
        gains = slot_gains(context, train, now, gradients)
        state.gradient_rows += len(rows) * len(active)
    else:  # the gradient's cost, spent on more candidates
        count += -(-3 * settings.gradient_examples // RACE_EXAMPLES)
    pools = [
        candidate_triggers(
            context.legal, train.kind, trigger, gain, count=count, top_k=TOP_K,
            pairs=iteration < settings.iterations // 2,
            rng=generator(settings.seed, train.kind, "candidates", iteration, r),
        )
        for r, trigger, gain in zip(active, now, gains, strict=True)
    ]  # fmt: skip
    rows = _draw(rng, len(train.items), RACE_EXAMPLES + CONFIRM_EXAMPLES)
    race, confirm = rows[:RACE_EXAMPLES], rows[RACE_EXAMPLES:]
    heats = [[trigger, *pool] for trigger, pool in zip(now, pools, strict=True)]
    first = _split(train.losses([t for heat in heats for t in heat], race, iteration), [len(heat) for heat in heats])
    best = [np.argsort(-losses[1:].mean(axis=1), kind="stable")[:RACE_SURVIVORS] + 1 for losses in first]
    finals = [[heat[0], *(heat[i] for i in kept)] for heat, kept in zip(heats, best, strict=True)]
    state.forward_rows += sum(losses.size for losses in first)
    second = [np.zeros((len(final), 0)) for final in finals]
    if confirm:
        second = _split(train.losses([t for f in finals for t in f], confirm, iteration), [len(f) for f in finals])
        state.forward_rows += sum(losses.size for losses in second)
    point: dict[str, Any] = {"iteration": iteration + 1, "loss": [None] * len(state.triggers), "accepted": []}
    for r, losses, kept, more, final in zip(active, first, best, second, finals, strict=True):
        both = np.concatenate([losses[[0, *kept]], more], axis=1)
        gain = both[1:].mean(axis=1) - both[0].mean() if len(kept) else np.zeros(0)
        winner = int(np.argmax(gain)) if len(gain) else -1
        honest = winner >= 0 and (not confirm or more[1 + winner].mean() > more[0].mean())
        if winner >= 0 and gain[winner] > 0 and honest:
            state.triggers[r] = list(final[1 + winner])
            point["accepted"].append(r)
            point["loss"][r] = round(float(both[1 + winner].mean()), 5)
        else:
            point["loss"][r] = round(float(both[0].mean()), 5)
    state.curve.append(point)
    state.iteration += 1


def slot_gains(
    context: AttackContext, train: TriggerObjective, triggers: Sequence[Sequence[int]], gradients: np.ndarray
) -> list[np.ndarray]:
    """First-order gain of every legal token at every slot, float64 [length, V] per trigger."""
    table = train.objective.embedding
    rows = table[torch.from_numpy(token_pool(context.legal, train.kind)).to(table.device)].float()
    slots = torch.from_numpy(gradients).to(table.device)
    old = table[torch.tensor(triggers, device=table.device)].float()
    with torch.inference_mode():
        gains = slots @ rows.T - (slots * old).sum(-1, keepdim=True)
    return list(gains.double().cpu().numpy())


def _select_on_dev(dev: TriggerObjective, clean: float, settings: TriggerSettings, state: TriggerSearchState) -> None:
    """Score the current triggers on the dev part; keep each restart's best few, and rest those that stopped gaining."""
    active = [r for r, on in enumerate(state.active) if on]
    losses = dev.losses([state.triggers[r] for r in active], range(len(dev.items)), "dev")
    state.forward_rows += losses.size
    scores: list[float | None] = [None] * len(state.triggers)
    for r, row in zip(active, losses, strict=True):
        gain = float(row.mean()) - clean
        usable = math.isfinite(gain) and row.min() > UNUSABLE
        scores[r] = round(gain, 5) if usable else None
        kept = state.snapshots[r]
        if usable and all(state.triggers[r] != trigger for _, trigger in kept):
            if not kept or gain > kept[0][0]:
                state.last_gain[r] = state.iteration
            kept.append([gain, state.triggers[r]])
            kept.sort(key=lambda pair: -pair[0])
            del kept[SNAPSHOTS:]
        if state.iteration - state.last_gain[r] >= PATIENCE:
            state.active[r] = False
    if not any(state.snapshots):
        raise StageError(f"{dev.kind} trigger: no loss on the dev part is finite")
    if 2 * state.iteration <= settings.iterations:
        state.halfway = list(max((kept[0] for kept in state.snapshots if kept), key=lambda best: best[0])[1])
    state.curve[-1]["dev_gain"] = scores
    state.finished = not any(state.active)


def _result(
    context: AttackContext,
    victim: Victim,
    dev_items: Sequence[TriggerExample],
    kind: str,
    settings: TriggerSettings,
    state: TriggerSearchState,
) -> dict[str, Any]:
    """Choose among all restarts' snapshots by float32 loss on the whole dev part, and set it beside random triggers."""
    exact = TriggerObjective(Objective(victim.model, batch_tokens=context.batch_tokens), dev_items, kind, settings.seed)
    clean = exact.clean_losses()
    rows = range(len(dev_items))
    pool = [(r, trigger) for r, kept in enumerate(state.snapshots) for _, trigger in kept]
    losses = exact.losses([trigger for _, trigger in pool], rows, "dev").mean(axis=1)
    winner = int(np.argmax(losses))
    rng = generator(settings.seed, kind, "control")
    random = random_triggers(context.legal, kind, settings.length, settings.random_controls, rng, common=False)
    random_gains = exact.losses(random, rows, "dev").mean(axis=1) - clean.mean()
    best = int(np.argmax(random_gains))
    restarts = []
    for r in range(settings.restarts):
        own = [(loss, trigger) for (owner, trigger), loss in zip(pool, losses, strict=True) if owner == r]
        loss, trigger = max(own, key=lambda pair: pair[0])
        restarts.append({"trigger_ids": trigger, "trigger_text": context.view.text(trigger).strip(),
                         "dev_gain": float(loss - clean.mean())})  # fmt: skip
    trigger = pool[winner][1]
    return {
        "trigger_type": kind,
        "source": victim.key,
        "method": settings.method,
        "trigger_ids": trigger,
        "trigger_text": context.view.text(trigger).strip(),
        "dev_gain": float(losses[winner] - clean.mean()),
        "restarts": restarts,
        "random_control": {
            "trigger_ids": random[best],
            "trigger_text": context.view.text(random[best]).strip(),
            "dev_gain": float(random_gains[best]),
            "dev_gain_mean": float(random_gains.mean()),
            "draws": len(random),
        },
        "num_dev": len(dev_items),
        "iterations": state.iteration,
        "halfway_trigger_ids": state.halfway,
        "curve": state.curve,
        "converged": _converged(state),
        "forward_rows": state.forward_rows,
        "gradient_rows": state.gradient_rows,
        "seconds": round(state.seconds, 3),
    }


def _converged(state: TriggerSearchState) -> bool:
    """Whether the second half of the iterations added less than 5 % to the best dev gain."""
    scores = [(p["iteration"], [g for g in p.get("dev_gain", []) if g is not None]) for p in state.curve]
    points = [(iteration, max(gains)) for iteration, gains in scores if gains]
    half = [gain for iteration, gain in points if iteration <= state.iteration / 2]
    best = max(gain for _, gain in points)
    return bool(half) and best > 0 and max(half) >= 0.95 * best


def _draw(rng: np.random.Generator, total: int, count: int) -> list[int]:
    drawn: list[int] = rng.permutation(total)[:count].tolist()
    return drawn


def _split(table: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    return np.split(table, np.cumsum(sizes)[:-1])
