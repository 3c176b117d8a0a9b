"""Universal triggers: the passes of one iteration, and the time to a gain on held-out texts."""

from __future__ import annotations

import dataclasses
import random
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import T5ForConditionalGeneration

from utils.attacks.context import AttackContext, Victim
from utils.attacks.encoding import Example
from utils.attacks.legal_tokens import LegalTokens
from utils.attacks.objective import Objective
from utils.attacks.triggers.candidates import random_triggers
from utils.attacks.triggers.inputs import TriggerExample, trigger_examples
from utils.attacks.triggers.search import TriggerObjective, TriggerSettings, optimise_trigger, split_examples
from utils.benchmarks.hotflip import attack_setup, padded_loss
from utils.benchmarks.measure import Comparison, Way, alternate, check, count_flops, relative_difference
from utils.benchmarks.synthetic import PREFIX, Size, examples, new_model, precision, product_dtype, tokenizer, word

LENGTH = 5
TRIGGERS, TEXTS = 4, 4  # scored against each other in the timing of passes
SINGLY = 4
SUBJECTS = 8  # of the texts that the searched model is trained on
WORDS_PER_SUBJECT = 12
SEARCHED = Size("searched", 64, 16, 256, 2, 4, 4096, max_input=96, max_target=16)
TRAINING_STEPS, TRAINING_BATCH = 250, 32
SEARCH_EXAMPLES = 80
PATIENCE = 15  # times the time that ours took: the reference gets that long
CANDIDATES = 32
GOAL = 0.9  # of the gain that ours ends with


def case(size: Size, device: str) -> list[Comparison]:
    """Passes near the matmul peak, and far fewer of them than a search that draws candidates at random."""
    return [_passes(size, device), _time_to_gain(size, device)]


# ---- passes ------------------------------------------------------------------------------------------------------


def _passes(size: Size, device: str) -> Comparison:
    model = new_model(size).to(device)
    setup = attack_setup(size, model, device)
    texts = TEXTS if device == "cpu" else 64
    items = trigger_examples(setup, examples(texts, size, seed=4), LENGTH)
    objective = Objective(model, batch_tokens=setup.batch_tokens, precision=precision(device))
    universe = TriggerObjective(objective, items, "lead", 0)
    triggers = random_triggers(setup.legal, "lead", LENGTH, TRIGGERS, np.random.default_rng(0))
    rows = range(len(items))
    kept: list[np.ndarray] = []

    def ours() -> None:
        kept[:] = [universe.losses(triggers, rows, "benchmark")]
        universe.slot_gradients(triggers[:1], rows, "benchmark")

    few = items[:: max(len(items) // SINGLY, 1)][:SINGLY]

    def singly() -> list[float]:
        return [padded_loss(model, item.with_trigger("lead", triggers[0]), item.labels, size) for item in few]

    passes = len(items) * (TRIGGERS + 3)  # a gradient costs about three passes
    ways = [
        Way("ours, losses and slot gradients", ours, passes, count_flops(ours)),
        Way("one input at a time, padded", lambda: singly() and None, len(few)),
    ]
    found = Comparison(f"triggers, {TRIGGERS} on {len(items)} texts", "example passes", ways, share_target=0.65)
    own = [float(kept[0][0, items.index(item)]) for item in few]
    tolerance = 1e-4 if device == "cpu" else 2e-2
    text = f"losses of {len(few)} attacked texts, each computed again alone and padded"
    found.checks.append(check(relative_difference(own, singly()) < tolerance, text))
    return alternate(found, rounds=size.rounds, device=device, dtype=product_dtype(device))


# ---- time to a gain ------------------------------------------------------------------------------------------------


def _time_to_gain(size: Size, device: str) -> Comparison:
    """Seconds until the held-out gain first reaches 90 % of what ours ends with; every round has another seed."""
    searched = SEARCHED if size.name != "tiny" else dataclasses.replace(SEARCHED, vocabulary=1024)
    steps = TRAINING_STEPS if size.name != "tiny" else 60
    model = _subject_model(searched, steps).to(device)
    setup = attack_setup(searched, model, device)
    items = trigger_examples(setup, _subject_examples(searched, SEARCH_EXAMPLES), LENGTH)
    victim = Victim("searched", model)
    ways = [Way("ours, gradient-guided", lambda: None), Way("random candidates, slot by slot", lambda: None)]
    found = Comparison("triggers, time to the same held-out gain", "searches", ways, targets={ways[1].name: 10.0})
    for seed in range(size.rounds):
        objective = Objective(model, batch_tokens=setup.batch_tokens, precision=precision(device))
        curve = _our_curve(setup, victim, objective, items, seed, iterations=40 if size.name != "tiny" else 6)
        goal = GOAL * max(gain for _, gain in curve)
        own = next(seconds for seconds, gain in curve if gain >= goal)
        objective = Objective(model, batch_tokens=setup.batch_tokens, precision=precision(device))
        theirs, reached = _random_search(setup, objective, items, seed, goal=goal, patience=PATIENCE * own)
        ways[0].seconds.append(own)
        ways[1].seconds.append(theirs)
        found.notes.append(
            f"seed {seed}: +{goal:.3f} nats in {own:.2f} s; random candidates "
            + (f"in {theirs:.2f} s" if reached >= goal else f"had +{reached:.3f} after {theirs:.2f} s: a lower bound")
        )
    found.checks.append(check(statistics.median(ways[0].seconds) > 0, "both gains are mean losses on the same texts"))
    return found


def _our_curve(
    setup: AttackContext,
    victim: Victim,
    objective: Objective,
    items: list[TriggerExample],
    seed: int,
    *,
    iterations: int,
) -> list[tuple[float, float]]:
    """(seconds, best held-out gain so far) after each iteration of the pipeline's search, one restart."""
    moments: list[float] = []

    def stamp() -> bool:
        moments.append(time.perf_counter())
        return False

    settings = TriggerSettings(
        types=("lead",),
        length=LENGTH,
        iterations=iterations,
        restarts=1,
        candidates=CANDIDATES,
        dev_every=1,
        random_controls=1,
        seed=seed,
    )
    watched = dataclasses.replace(setup, stop_requested=stamp)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        found = optimise_trigger(watched, victim, objective, items, "lead", settings, state_file=Path(folder) / "state")
    gains = np.maximum.accumulate([point["dev_gain"][0] for point in found["curve"]])
    return [(moment - start, float(gain)) for moment, gain in zip(moments, gains, strict=True)]


def _random_search(
    setup: AttackContext, objective: Objective, items: list[TriggerExample], seed: int, *, goal: float, patience: float
) -> tuple[float, float]:
    """Coordinate search without a gradient: for one slot after the other, random tokens scored on all texts.

    Scored in the same large batches as ours, and its look at the held-out texts is free. Returns the seconds it took
    to reach `goal`, or that it was given, and the gain reached.
    """
    train_items, dev_items = split_examples(items, seed)
    train, dev = (TriggerObjective(objective, part, "lead", seed) for part in (train_items, dev_items))
    rng = np.random.default_rng(seed)
    legal: LegalTokens = setup.legal
    trigger = random_triggers(legal, "lead", LENGTH, 1, rng, common=False)[0]
    everything, clean = range(len(train_items)), float(dev.clean_losses().mean())
    best = float(train.losses([trigger], everything, "random").mean())
    seconds, reached, slot = 0.0, -np.inf, 0
    while seconds < patience and reached < goal:
        start = time.perf_counter()
        tokens = rng.choice(legal.ids[: legal.whole], CANDIDATES)
        pool = [[*trigger[:slot], int(token), *trigger[slot + 1 :]] for token in tokens]
        losses = train.losses(pool, everything, "random").mean(axis=1)
        if losses.max() > best:
            best, trigger = float(losses.max()), pool[int(losses.argmax())]
        slot = (slot + 1) % LENGTH
        seconds += time.perf_counter() - start
        reached = float(dev.losses([trigger], range(len(dev_items)), "random").mean()) - clean
    return seconds, reached


def _subject_examples(size: Size, count: int, *, seed: int = 1) -> list[Example]:
    """Texts with three words of one subject among words of none; the summary names the subject."""
    rng = random.Random(seed)
    special = SUBJECTS * WORDS_PER_SUBJECT
    others = size.vocabulary - 128 - 6 - 3 * SUBJECTS
    found = []
    for n in range(count):
        subject = rng.randrange(SUBJECTS)
        words = [word(rng.randrange(special, others)) for _ in range(30)]
        for _ in range(3):
            own = word(subject * WORDS_PER_SUBJECT + rng.randrange(WORDS_PER_SUBJECT))
            words.insert(rng.randrange(len(words) + 1), own)
        name = " ".join(word(others + 3 * subject + i) for i in range(3))
        found.append(Example(f"subject/{seed}/{n}", " ".join(words) + ".", name))
    return found


def _subject_model(size: Size, steps: int) -> T5ForConditionalGeneration:
    """A small T5 that has learned what such texts are about, so that a trigger has something to spoil."""
    words = tokenizer(size.vocabulary)
    texts = _subject_examples(size, steps * TRAINING_BATCH, seed=2)
    inputs = words([PREFIX + item.document for item in texts], padding=True, return_tensors="pt")
    labels = words([item.summary for item in texts], return_tensors="pt").input_ids
    model = new_model(size, dropout=0.0).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for start in range(0, len(texts), TRAINING_BATCH):
        part = slice(start, start + TRAINING_BATCH)
        ids, mask = inputs.input_ids[part], inputs.attention_mask[part]
        model(input_ids=ids, attention_mask=mask, labels=labels[part]).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()
