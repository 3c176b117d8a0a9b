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
from numpy.typing import NDArray

from utils.analysis.records import RandomTrigger, TriggerCurvePoint, TriggerFound, TriggerSearch
from utils.attacks.cache import load_cached, save_cached
from utils.attacks.context import LOSSES, AttackContext, Victim, rouge_l, summaries
from utils.attacks.objective import Objective
from utils.attacks.seeding import generator
from utils.attacks.triggers.candidates import candidate_triggers, random_triggers
from utils.attacks.triggers.inputs import TriggerExample
from utils.attacks.triggers.objective import UNUSABLE, TriggerObjective, slot_gains
from utils.core.codec import from_json
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
) -> TriggerSearch:
    """Search one trigger of `trigger_type` against one model; goes on from `state_file` after an interruption.

    Its dev gain is the mean NLL increase on the dev part in float32; it is chosen there by generated ROUGE-L, among the
    restarts' best and `random_controls` random triggers, the best of which is the control; `converged` is by the gain.
    """
    train_items, dev_items = split_examples(items, settings.seed)
    content = [(item.id, item.ids, item.labels) for item in (*train_items, *dev_items)]
    constants = (RACE_EXAMPLES, RACE_SURVIVORS, CONFIRM_EXAMPLES, TOP_K, DEV_SHARE, PATIENCE, SNAPSHOTS)
    fingerprint = context.fingerprint(victim.key, victim.weights, trigger_type, settings, constants, content)
    saved = load_cached(state_file, fingerprint)
    if saved and saved.get("result"):
        return from_json(TriggerSearch, saved["result"], state_file.name)
    state = TriggerSearchState(**saved["state"]) if saved else TriggerSearchState()
    train = TriggerObjective(objective, train_items, trigger_type, settings.seed)
    dev = TriggerObjective(objective, dev_items, trigger_type, settings.seed)
    with progress(total=settings.iterations, label=f"{victim.key}: {trigger_type} trigger", unit="iteration") as bar:
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
        restart_rng = generator(settings.seed, train.kind, "start", restart)
        pool = random_triggers(context.legal, train.kind, settings.length, settings.candidates, restart_rng)
        losses = train.losses(pool, rows, "start")
        state.triggers.append(pool[int(np.argmax(losses.mean(axis=1)))])
        state.forward_rows += losses.size
    state.active = [True] * settings.restarts
    state.snapshots = [[] for _ in range(settings.restarts)]
    state.last_gain = [0] * settings.restarts


def _iterate(
    context: AttackContext, train: TriggerObjective, settings: TriggerSettings, state: TriggerSearchState
) -> None:
    """One step of all active restarts: gradient, candidates, race, confirmation, paired acceptance.

    All restarts are scored together: their candidates fill one batch, and they see the same examples.
    """
    iteration = state.iteration  # of this step: it seeds all draws, the infix boundaries among them
    rng = generator(settings.seed, train.kind, "iteration", iteration)
    active = [r for r, on in enumerate(state.active) if on]
    incumbents = [state.triggers[r] for r in active]
    pools = _candidates(context, train, settings, state, active, rng)
    rows = _draw(rng, len(train.items), RACE_EXAMPLES + CONFIRM_EXAMPLES)
    race, confirm = rows[:RACE_EXAMPLES], rows[RACE_EXAMPLES:]
    # Race: incumbent (row 0) and all candidates on a few examples, float64 [1 + candidates, race] per restart.
    starters = [[trigger, *pool] for trigger, pool in zip(incumbents, pools, strict=True)]
    raced = _scored(train, starters, race, iteration, state)
    best = [np.argsort(-losses[1:].mean(axis=1), kind="stable")[:RACE_SURVIVORS] + 1 for losses in raced]
    # Confirmation: incumbent and survivors on more examples, float64 [1 + survivors, confirm] per restart. The race
    # picked the luckiest of many, so its own gain is biased upwards; on fresh examples it is not.
    finalists = [[pool[0], *(pool[i] for i in kept)] for pool, kept in zip(starters, best, strict=True)]
    confirmations = _scored(train, finalists, confirm, iteration, state)
    point: dict[str, Any] = {"iteration": iteration + 1, "loss": [None] * len(state.triggers), "accepted": []}
    for r, losses, kept, fresh, pool in zip(active, raced, best, confirmations, finalists, strict=True):
        # Paired: incumbent and survivors on the very same examples, race and confirmation together.
        both = np.concatenate([losses[[0, *kept]], fresh], axis=1)
        gain = both[1:].mean(axis=1) - both[0].mean()
        winner = int(np.argmax(gain)) if len(gain) else -1
        confirmed = winner >= 0 and (not confirm or fresh[1 + winner].mean() > fresh[0].mean())
        accepted = confirmed and gain[winner] > 0
        if accepted:
            state.triggers[r] = list(pool[1 + winner])
            point["accepted"].append(r)
        point["loss"][r] = round(float(both[1 + winner if accepted else 0].mean()), 5)
    state.curve.append(point)
    state.iteration += 1


def _candidates(
    context: AttackContext,
    train: TriggerObjective,
    settings: TriggerSettings,
    state: TriggerSearchState,
    active: Sequence[int],
    rng: np.random.Generator,
) -> list[list[list[int]]]:
    """Candidates of each active restart: by gradient, or more of them at random where the method has none."""
    incumbents = [state.triggers[r] for r in active]
    gains: Sequence[NDArray[np.float64] | None] = [None] * len(active)
    count = settings.candidates
    if settings.method == "gradient":
        rows = _draw(rng, len(train.items), settings.gradient_examples)
        gains = slot_gains(context, train, incumbents, train.slot_gradients(incumbents, rows, state.iteration))
        state.gradient_rows += len(rows) * len(active)
    else:  # the gradient's cost (3 forward passes an example, rounded up) spent on more candidates
        count += -(-3 * settings.gradient_examples // RACE_EXAMPLES)
    return [
        candidate_triggers(
            context.legal,
            train.kind,
            state.triggers[r],
            gain,
            count=count,
            top_k=TOP_K,
            pairs=state.iteration < settings.iterations // 2,
            rng=generator(settings.seed, train.kind, "candidates", state.iteration, r),
        )
        for r, gain in zip(active, gains, strict=True)
    ]


def _scored(
    train: TriggerObjective,
    pools: Sequence[Sequence[Sequence[int]]],
    rows: Sequence[int],
    iteration: int,
    state: TriggerSearchState,
) -> list[NDArray[np.float64]]:
    """Losses float64 [triggers of the pool, rows] of each pool, scored in one call; counted in `state`."""
    if not rows:
        return [np.zeros((len(pool), 0)) for pool in pools]
    losses = train.losses([trigger for pool in pools for trigger in pool], rows, iteration)
    state.forward_rows += losses.size
    return np.split(losses, np.cumsum([len(pool) for pool in pools])[:-1])


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
) -> TriggerSearch:
    """Choose a trigger by what is reported: the ROUGE-L of summaries of the dev part that it spoils.

    The choice is among all restarts' snapshots and the random triggers. The loss only ranks during the search: where
    a random trigger does more harm than every learned one, that one is chosen, and `chosen_from` says so.
    """
    exact = TriggerObjective(Objective(victim.model, batch_tokens=context.batch_tokens), dev_items, kind, settings.seed)
    clean = exact.clean_losses()
    rows = range(len(dev_items))
    learned = [(r, trigger) for r, kept in enumerate(state.snapshots) for _, trigger in kept]
    rng = generator(settings.seed, kind, "control")
    random = random_triggers(context.legal, kind, settings.length, settings.random_controls, rng, common=False)
    pool = [*(trigger for _, trigger in learned), *random]
    gains = exact.losses(pool, rows, "dev").mean(axis=1) - clean.mean()
    changes = rouge_changes(context, victim, exact, pool)
    found = [
        TriggerFound(
            trigger_ids=list(trigger),
            trigger_text=context.view.text(trigger).strip(),
            dev_gain=float(gain),
            dev_rouge_change=float(change),
        )
        for trigger, gain, change in zip(pool, gains, changes, strict=True)
    ]
    searched, drawn = found[: len(learned)], found[len(learned) :]
    chosen = min(found, key=_harm)  # learned ones come first: a random one must do more harm to be chosen
    own = {r: [t for (owner, _), t in zip(learned, searched, strict=True) if owner == r] for r, _ in learned}
    best = min(drawn, key=_harm)
    return TriggerSearch(
        trigger_type=kind,
        source=victim.key,
        method="gradient" if settings.method == "gradient" else "random",
        **vars(chosen),
        chosen_from="search" if any(chosen is one for one in searched) else "random",
        by_loss=max(searched, key=lambda one: one.dev_gain),
        restarts=[min(triggers, key=_harm) for triggers in own.values()],  # one without a usable trigger has none
        random_control=RandomTrigger(
            **vars(best), dev_gain_mean=float(np.mean([one.dev_gain for one in drawn])), draws=len(drawn)
        ),
        num_dev=len(dev_items),
        iterations=state.iteration,
        halfway_trigger_ids=state.halfway,
        curve=[from_json(TriggerCurvePoint, point) for point in state.curve],
        converged=_converged(state),
        forward_rows=state.forward_rows,
        gradient_rows=state.gradient_rows,
        seconds=round(state.seconds, 3),
    )


def _harm(trigger: TriggerFound) -> tuple[float, float]:
    """Sorts triggers by falling harm: the lowest ROUGE-L first, of equals the one of larger loss."""
    return round(trigger.dev_rouge_change, 9), -trigger.dev_gain


def rouge_changes(
    context: AttackContext, victim: Victim, dev: TriggerObjective, triggers: Sequence[Sequence[int]]
) -> NDArray[np.float64]:
    """Mean ROUGE-L change on the dev part by each trigger, float64 [len(triggers)]; negative: it does harm."""
    rows = range(len(dev.items))
    # All triggers on all examples in one call, clean inputs first, so that batches are full.
    inputs = [item.clean for item in dev.items]
    inputs += [ids for trigger in triggers for ids in dev.inputs(trigger, rows, "dev")]
    texts = summaries(context, victim, inputs)
    references = [item.summary for item in dev.items] * (1 + len(triggers))
    scores = rouge_l(context, texts, references).reshape(1 + len(triggers), len(rows)).mean(axis=1)
    return scores[1:] - scores[0]


def _converged(state: TriggerSearchState) -> bool:
    """Whether the second half of the iterations added less than 5 % to the best dev gain."""
    scores = [(p["iteration"], [g for g in p.get("dev_gain", []) if g is not None]) for p in state.curve]
    points = [(iteration, max(gains)) for iteration, gains in scores if gains]
    half = [gain for iteration, gain in points if iteration <= state.iteration / 2]
    best = max(gain for _, gain in points)
    return bool(half) and best > 0 and max(half) >= 0.95 * best


def _draw(rng: np.random.Generator, total: int, count: int) -> list[int]:
    """Up to `count` different numbers below `total`, in random order."""
    drawn: list[int] = rng.permutation(total)[:count].tolist()
    return drawn
