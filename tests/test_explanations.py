"""Planted worlds: feed-forward weights whose cause of robustness is known, attacked by a search, up to the verdict.

The summarizer is one T5 feed-forward block (FFN) with a residual, as each arm's parametrisation makes it of the same
planted matrices, after some steps of its own parameters. A text has 14 facts, each to be said in a word. At the slot of
fact f the input has f's own coordinate and some evidence for its word; the word is said where it gets more than its
decoy, which is the next fact's word. The attack puts up to four tokens into the text, one after the other: whichever
of all tokens spoils most words. A decoy's token adds to that word at every slot; what the others do is up to the FFN.
"""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5DenseActDense

from tests.test_attribution import record
from utils.analysis.attribution import attribution
from utils.analysis.claims import measure_read, outcomes
from utils.analysis.comparisons import AttackTests
from utils.analysis.explanations import QUALITY, explanations
from utils.analysis.measures import relative_drop
from utils.analysis.quality_curve import QualityRow, matched
from utils.analysis.statistics import compare_models, mcnemar
from utils.core.names import TRAINED_KEYS
from utils.modeling.monotonic import constrain, ffn_layers, fold
from utils.reports.cause_sentences import attribution_sentence

CI = {"samples": 200, "confidence": 0.95}
THRESHOLD = 0.15
FACTS, OTHERS, UNITS, FLIPS = 14, 4, 40, 4
TEXTS, SNAPSHOT_TEXTS = 100, 60
WIDTH = 2 * FACTS + OTHERS  # coordinates: facts, words, four tokens of no meaning
FACT, WORD, OTHER = (slice(0, FACTS), slice(FACTS, 2 * FACTS), slice(2 * FACTS, WIDTH))
HARD = slice(FACTS // 2, FACTS)  # facts of the world "quality" that hang on negative weights
SUPPORT = 0.8
ARMS = ("sign_frozen", "rank1_ffn", "wi_only", "wo_only")
KNOWN = (4, 7, 10, FACTS)  # facts that the snapshots of a training have learned
# By world what must be named: rivals, parts, and whether the sign is left. Parts are told where no rival explains it.
WORLDS = {
    "sign": ((), (), True),
    "rank": (("rank1_ffn",), None, False),
    "scope": ((), ("wo_only",), True),
    "quality": ((QUALITY,), None, False),
}
TOKENS = np.zeros((FACTS + OTHERS, WIDTH), dtype=np.float32)
TOKENS[:FACTS, WORD] = np.roll(np.eye(FACTS), 1, axis=1)  # token f: the decoy of fact f
TOKENS[FACTS:, OTHER] = 3 * np.eye(OTHERS)


def planted(world, rng):
    """wi [units, width], wo [width, units] and the evidence that the residual has for a word of margin 0."""
    wi, wo = np.zeros((UNITS, WIDTH)), np.zeros((WIDTH, UNITS))
    facts, others = np.arange(FACTS), FACTS + np.arange(OTHERS)  # units that fire on a fact, and on another token
    evidence = np.full(FACTS, -SUPPORT)
    if world == "rank":  # signs at random, sizes equal: |W| is of rank one, and moves all words alike
        for matrix in (wi, wo):
            matrix[:] = 0.2 * rng.choice([-1, 1], matrix.shape) * rng.normal(1, 0.03, matrix.shape)
        return wi, wo, np.zeros(FACTS)
    wi[facts, facts], wo[FACTS + facts, facts] = 1, SUPPORT
    if world in ("sign", "scope"):  # tokens that fire a unit against half of the words: closed by wo >= 0
        wi[others, 2 * FACTS + np.arange(OTHERS)] = 0.4
        wo[WORD, others] = rng.choice([-1, 1], (FACTS, OTHERS))
    if world == "sign":  # two of them turn off the units of half of the facts instead: closed by wi >= 0
        wo[WORD, others[:2]] = 0
        wi[:FACTS, 2 * FACTS : 2 * FACTS + 2] = rng.choice([-1, 1], (FACTS, 2))
    if world == "quality":  # what is known by holding the decoy down is lost, decoys held up, by wo >= 0
        hard = facts[HARD]
        wo[WORD, hard], wo[FACTS + (hard + 1) % FACTS, hard] = 0, -SUPPORT
        evidence[HARD], evidence[: FACTS // 2] = -SUPPORT - 0.6, -SUPPORT + 0.9  # and hangs by a thread
    return wi, wo, evidence


def trained(wi, wo, arm, seed):
    """The block as an arm trains it: its start, and steps of 1 % of its own parameters, folded."""
    config = T5Config(d_model=WIDTH, d_ff=UNITS, dropout_rate=0.0)
    tree = {name: nn.ModuleList([nn.ModuleDict({"layer": nn.ModuleList([T5DenseActDense(config)])})])
            for name in ("encoder", "decoder")}  # fmt: skip
    model = nn.ModuleDict({name: nn.ModuleDict({"block": blocks}) for name, blocks in tree.items()})
    for name, linear in ffn_layers(model):
        linear.weight.data = torch.tensor(wi if name.endswith("wi") else wo, dtype=torch.float32)
    constrain(model, arm=arm)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * parameter * torch.randn_like(parameter))
    fold(model)
    return tree["encoder"][0]["layer"][0]


def margins(block, inputs):
    """By how much each word is ahead of its decoy, [..., facts], of inputs [..., facts, width]."""
    with torch.no_grad():
        words = inputs[..., WORD] + block(torch.from_numpy(inputs)).numpy()[..., WORD]
    own = np.diagonal(words, axis1=-2, axis2=-1)
    return own - np.diagonal(np.roll(words, -1, axis=-1), axis1=-2, axis2=-1)


def attacked(block, inputs):
    """Inputs [texts, facts, width] with the tokens that a greedy search over all of them puts in."""
    wi, wo = (getattr(block, name).weight.detach().numpy() for name in ("wi", "wo"))
    ahead = wo[WORD] - np.roll(wo[WORD], -1, axis=0)  # [facts, units]: what a unit does for a word against its decoy
    own = TOKENS[:, WORD] - np.roll(TOKENS[:, WORD], -1, axis=1)  # [tokens, facts]: what a token does by itself
    inputs, rows = inputs.copy(), np.arange(len(inputs))
    for _ in range(FLIPS):
        residual = margins(lambda x: 0 * x, inputs)[:, None] + own  # [texts, tokens, facts]
        hidden = np.maximum((inputs @ wi.T)[:, None] + (TOKENS @ wi.T)[:, None], 0)  # [texts, tokens, facts, units]
        after = residual + np.einsum("ntfu,fu->ntf", hidden, ahead)
        worth = (after <= 0).sum(-1) + 0.01 * np.exp(-2 * np.maximum(after, 0)).sum(-1)  # spoiled words; then the loss
        inputs += TOKENS[worth.argmax(1)][rows, None]
    return inputs


def outcome(block, evidence, margin, known):
    """Clean ROUGE-L and relative drop of each text; `margin` [texts, facts] as planted, the first `known` learned."""
    inputs = np.zeros((len(margin), FACTS, WIDTH), dtype=np.float32)
    facts = np.arange(FACTS)
    inputs[:, facts, facts] = 1
    inputs[:, facts, FACTS + facts] = np.where(facts < known, margin + evidence, -3)
    clean, after = ((margins(block, x) > 0).mean(1).tolist() for x in (inputs, attacked(block, inputs)))
    return [(before, relative_drop(before, now)) for before, now in zip(clean, after, strict=True)]


def experiment(world, seed):
    """The worst case's records and clean ROUGE-L by arm, and the rows of the quality curve."""
    rng = np.random.default_rng((seed, len(world)))
    wi, wo, evidence = planted(world, rng)
    base = 0.85 + rng.uniform(-0.2, 0.25, (TEXTS, 1)) + 1.2 * rng.uniform(size=(TEXTS, FACTS))
    worst, rouge, rows = {}, {}, []
    for n, arm in enumerate((*TRAINED_KEYS, *ARMS)):
        block = trained(wi, wo, arm, 100 * seed + n)
        margin = base + rng.normal(0, 0.05, base.shape)  # the other weights of a training differ as well
        final = outcome(block, evidence, margin, FACTS)
        worst[arm] = [record(arm, i, drop) for i, (_, drop) in enumerate(final)]
        rouge[arm] = {f"e{i:03}": clean for i, (clean, _) in enumerate(final)}
        for step, known in enumerate(KNOWN if arm in TRAINED_KEYS else ()):
            rows += [
                QualityRow(arm=arm, step=step, epoch=float(step), id=f"e{i:03}", clean_rougeL=clean,
                           success=drop >= THRESHOLD, relative_drop=drop, loss_increase=drop)
                for i, (clean, drop) in enumerate(outcome(block, evidence, margin[:SNAPSHOT_TEXTS], known))
            ]  # fmt: skip
    return worst, rouge, rows


def named(world, seed):
    """(rivals, parts, whether the sign is left), None where no difference is shown; and the verdict's sentence."""
    worst, rouge, rows = experiment(world, seed)
    ci = CI | {"seed": seed}
    found = attribution(worst, rouge, threshold=THRESHOLD, ci=ci)
    curve = matched(rows, candidates=8, missing=[], **ci)
    drops = [np.array([one.relative_drop for one in worst[model]]) for model in TRAINED_KEYS]
    mean = compare_models(*drops, **ci)
    success = mcnemar(*(drop >= THRESHOLD for drop in drops), confidence=0.95)
    tests = AttackTests(num_common=TEXTS, success=success, relative_drop=mean, loss_increase=mean, delta_rougeL=mean)
    measure = measure_read(outcomes(tests))
    shown = outcomes(tests)[measure].shown(0.05)
    sentence = attribution_sentence(found, curve, measure, shown=shown)
    if not shown:
        return None, sentence
    shares = {arm: one.reproduced(measure) for arm, one in found.items()}
    one = explanations(shares, curve.differences(measure)["monotonic"])
    return (one.explaining, None if one.explaining else one.parts, one.only_the_sign_is_left), sentence


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
def test_the_cause_that_was_planted_is_named(world):
    answers = [named(world, seed) for seed in range(20)]
    assert sum(answer == WORLDS[world] for answer, _ in answers) >= 19, answers
    right = next(sentence for answer, sentence in answers if answer == WORLDS[world])
    assert ("The sign constraint is the explanation left" in right) == (world in ("sign", "scope"))
    assert ("gone at equal quality" in right) == (world == "quality")
    assert ("comes without the constraint: rank1_ffn (" in right) == (world == "rank")
    assert ("wo_only alone reproduces more than half" in right) == (world == "scope")


@pytest.mark.slow
def test_no_cause_is_named_where_there_is_no_difference():
    answers = [named("none", seed) for seed in range(20)]
    assert sum(answer is None and "could reproduce" in sentence for answer, sentence in answers) >= 19, answers


def test_the_search_of_the_worlds_finds_the_best_two_tokens(monkeypatch):
    """By every pair of tokens, in the world whose other tokens matter: as many words lost in nearly every text."""
    monkeypatch.setattr("tests.test_explanations.FLIPS", 2)
    rng = np.random.default_rng(5)
    wi, wo, evidence = planted("sign", rng)
    block = trained(wi, wo, "baseline", 0)
    inputs = np.zeros((20, FACTS, WIDTH), dtype=np.float32)
    inputs[:, np.arange(FACTS), np.arange(FACTS)] = 1
    inputs[:, np.arange(FACTS), FACTS + np.arange(FACTS)] = evidence + rng.uniform(0.8, 2, (20, FACTS))
    pairs = [a + b for a in TOKENS for b in TOKENS]
    most = np.max([(margins(block, inputs + pair) <= 0).sum(1) for pair in pairs], axis=0)
    lost = (margins(block, attacked(block, inputs)) <= 0).sum(1)
    assert (lost <= most).all() and lost.sum() >= 0.9 * most.sum() and most.min() > 0


def test_what_the_data_cannot_tell_is_not_decided():
    """Without a quality curve nothing is known at equal quality."""
    worst, rouge, _ = experiment("sign", 1)
    found = attribution(worst, rouge, threshold=THRESHOLD, ci=CI | {"seed": 1})
    off = matched([], candidates=8, missing=[], seed=1, **CI)
    one = explanations({arm: part.success_reproduced for arm, part in found.items()}, None)
    assert one.undecided == (QUALITY,) and not one.only_the_sign_is_left
    sentence = attribution_sentence(found, off, "success", shown=True)
    assert "Whether lower quality would explain half of it is not decided." in sentence
