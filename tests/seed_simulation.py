"""Does the interval over seeds cover, does its test hold its level, does it find what is there? Simulated worlds.

    python -m tests.seed_simulation [--replications 2000]

prints the table of docs/statistics.md. The truth is known in every world: the mean of the differences is 0 for coverage
and level (the interval is shifted with the mean, so coverage does not depend on it), -0.36 for power.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from utils.analysis.statistics import crossed_difference

SEEDS = (3, 5, 10)
SPREADS = (0.0, 0.005, 0.01, 0.02)  # standard deviation between trainings, 0 to 2 points of success
EXAMPLE_SPREADS = (0.2, 0.4)  # of the examples' own differences, the same in every seed
REST = 0.3  # what is left: an example in one seed
EXAMPLES = 1500
EFFECT = -0.36  # the difference in success that earlier runs of the recipe found


@dataclass(frozen=True)
class Design:
    """One world; `binary`: each difference is that of two successes (-1, 0 or 1), else it is normal."""

    seeds: int
    spread: float
    example_spread: float
    examples: int = EXAMPLES
    binary: bool = False
    rate: float = 0.5  # of success on both sides without an effect

    def differences(self, mean: float, rng: np.random.Generator) -> NDArray[np.float64]:
        """Paired differences float [seeds, examples] of one experiment."""
        shape = (self.seeds, self.examples)
        of_seed = self.spread * rng.normal(size=(self.seeds, 1))
        if not self.binary:
            of_example = self.example_spread * rng.normal(size=(1, self.examples))
            return np.asarray(mean + of_seed + of_example + REST * rng.normal(size=shape))
        # Every example has its own two probabilities of success, drawn around the rate, which all seeds share.
        own = self.rate + self.example_spread * rng.uniform(-1, 1, size=(2, 1, self.examples)) * min(
            self.rate, 1 - self.rate
        )
        shift = np.stack([np.zeros_like(of_seed), of_seed + mean])
        baseline, monotonic = rng.random((2, *shape)) < own + shift
        return monotonic.astype(np.float64) - baseline


@dataclass(frozen=True)
class Rates:
    """Shares of the replications."""

    coverage: float
    level: float
    power: float


def designs() -> list[Design]:
    """The 24 worlds of the table."""
    return [Design(s, spread, of_examples) for s in SEEDS for spread in SPREADS for of_examples in EXAMPLE_SPREADS]


def simulate(design: Design, replications: int, seed: int = 0, effect: float = EFFECT) -> Rates:
    """Coverage and level where there is no difference, power where there is one, at 95 %."""
    rng = np.random.default_rng(seed)
    null = [crossed_difference(design.differences(0.0, rng)) for _ in range(replications)]
    real = [crossed_difference(design.differences(effect, rng)) for _ in range(max(1, replications // 4))]
    return Rates(
        coverage=float(np.mean([found["lower"] <= 0 <= found["upper"] for found in null])),
        level=float(np.mean([found["p_value"] < 0.05 for found in null])),
        power=float(np.mean([found["p_value"] < 0.05 and found["difference"] < 0 for found in real])),
    )


def table(replications: int) -> Iterator[str]:
    """The lines of the Markdown table."""
    yield "| seeds | between trainings | between examples | coverage | level | power, -36 points |"
    yield "|---|---|---|---|---|---|"
    for number, design in enumerate(designs()):
        rates = simulate(design, replications, seed=number)
        yield (
            f"| {design.seeds} | {100 * design.spread:g} points | {100 * design.example_spread:g} points | "
            f"{100 * rates.coverage:.1f} % | {100 * rates.level:.1f} % | {100 * rates.power:.1f} % |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replications", type=int, default=2000, help="experiments for each row (default 2000)")
    for line in table(parser.parse_args().replications):
        print(line, flush=True)


if __name__ == "__main__":
    main()
