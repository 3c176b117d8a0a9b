"""The order test: order that was planted is found, random states and mere length are not, and models are read right."""

import numpy as np
import pytest
import torch

from tests.test_monotonic import tiny
from utils.analysis.order import all_chains, drawn_chains, order_test
from utils.evaluation.mechanism import sentence_states

CI = {"samples": 300, "confidence": 0.95}
CHAINS = all_chains()
LEVELS = np.concatenate([np.linspace(-1, 1, len(chain.sentences)) for chain in CHAINS])
WIDTH = 24


def words_of(rng, width=WIDTH):
    """A random state for every sentence: most of it its word's, which the chains of a scale share."""
    made, known = [], {}
    for chain in CHAINS:
        if chain.scale not in known:
            known[chain.scale] = rng.normal(size=(len(chain.sentences), width))
        made.append(known[chain.scale] + rng.normal(size=width) + 0.3 * rng.normal(size=(len(chain.sentences), width)))
    return np.concatenate(made)


def lengths_of(rng, lean):
    """Tokens of every sentence: with `lean` the stronger ones tend to be longer."""
    made, known = [], {}
    for chain in CHAINS:
        if chain.scale not in known:
            count = len(chain.sentences)
            known[chain.scale] = np.round(6 + 1.5 * rng.normal(size=count) + lean * np.arange(count))
        made.append(known[chain.scale])
    return np.concatenate(made).astype(int)


def test_the_chains_are_many_diverse_and_no_sentence_comes_twice_in_a_chain():
    assert len(CHAINS) == 200 and len({chain.topic for chain in CHAINS}) == 10
    assert len({chain.sentences for chain in CHAINS}) == 200
    for chain in CHAINS:
        assert 3 <= len(set(chain.sentences)) == len(chain.sentences) <= 4
        assert all(one.endswith(".") and one[0].isupper() and "{" not in one for one in chain.sentences)
    assert drawn_chains(200, 1) == list(CHAINS) and len(drawn_chains(30, 1)) == 30


def test_a_planted_order_is_found():
    rng = np.random.default_rng(0)
    states = words_of(rng) + np.outer(LEVELS, 2 * rng.normal(size=WIDTH))
    found = order_test(states, lengths_of(rng, 0), CHAINS, CI | {"seed": 0})
    assert found.accuracy > 0.95 and found.lower > 0.9 > found.shuffled and found.p_value < 0.005
    weak = order_test(words_of(rng) + np.outer(LEVELS, 0.4 * rng.normal(size=WIDTH)), lengths_of(rng, 0), CHAINS,
                      CI | {"seed": 0})  # fmt: skip
    assert 0.6 < weak.accuracy < 0.95 and weak.lower > 0.5 and weak.p_value < 0.05


@pytest.mark.slow
def test_random_states_are_at_chance_and_the_level_is_held():
    """Of 20 tests at 5 %, more than 3 reject in 1 of 60 cases. With chains, not scales, shuffled one by one 4 do."""
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        found.append(order_test(words_of(rng), lengths_of(rng, 1), CHAINS, CI | {"seed": seed}))
    assert sum(one.p_value < 0.05 for one in found) <= 3
    assert 0.47 < np.mean([one.accuracy for one in found]) < 0.53
    assert sum(one.lower > one.shuffled for one in found) <= 1


@pytest.mark.slow
def test_length_alone_is_no_order():
    """States that hold the number of tokens, which tells the order of three pairs of four."""
    found = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        lengths = lengths_of(rng, 1)
        states = words_of(rng) + np.outer(lengths, 2 * rng.normal(size=WIDTH))
        found.append(order_test(states, lengths, CHAINS, CI | {"seed": seed}))
    assert min(one.longer_is_stronger for one in found) > 0.7
    assert sum(one.p_value < 0.05 for one in found) <= 2 and np.mean([one.accuracy for one in found]) < 0.54


def test_pairs_by_hand():
    """A readout of length: right in every pair that is longer, wrong in the shorter, half of the equal."""
    chains = [chain for chain in CHAINS if len(chain.sentences) == 3][:12]
    lengths = np.tile([5, 7, 5], 12)  # of the pairs: longer, equal, shorter
    found = order_test(lengths[:, None].astype(float), lengths.tolist(), chains, CI | {"seed": 0})
    assert found.accuracy == found.lower == found.upper == 0.5 and found.longer_is_stronger == 0.5
    same = order_test(np.ones((36, 4)), lengths.tolist(), chains, CI | {"seed": 0})
    assert same.accuracy == 0.5 and same.p_value == 1.0  # a model to which all sentences are one


def test_states_are_the_means_of_the_encoders_own():
    model, ids = tiny(), [[5, 6, 7, 1], [8, 1], [9, 10, 11, 1], [12, 13, 1]]
    states = sentence_states(model, ids)
    for row, one in zip(states, ids, strict=True):
        with torch.no_grad():
            whole = model.encoder(torch.tensor([one])).last_hidden_state[0]
        assert row == pytest.approx(whole[:-1].mean(0).double().numpy(), abs=1e-6)
