"""Verification of one seed's results directory: from the data to the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from utils.analysis.aggregate import FINAL
from utils.analysis.combined import COMBINED
from utils.core.errors import UsageError
from utils.core.files import sha256_of
from utils.core.results import read_result
from utils.verification.check import Check, other_surroundings, tried
from utils.verification.models import audits, regenerated, texts_of_mechanism, weights_of_mechanism
from utils.verification.numbers import checks_of_numbers
from utils.verification.provenance import (
    SeedDirectory,
    chain,
    identity,
    prepared_copies,
    settings,
    training,
    weights,
)
from utils.verification.several_seeds import verify_seeds
from utils.verification.written import checks_of_report


def verify(directory: Path, regenerate: int = 0) -> Iterator[Check]:
    """Every check of a results directory; InputError if a result file is missing or damaged.

    regenerate: so many random summaries, their losses and, if any, the mechanism panel's are made again by the models.
    """
    if result_file(directory).name == COMBINED:
        if regenerate:
            raise UsageError("--regenerate is for one seed: several seeds have no summaries of their own.")
        yield from verify_seeds(directory)
        return
    run = SeedDirectory(directory)
    _ = run.envelopes  # a file that is missing ends it here
    yield identity(run)
    yield Check("settings, fingerprints, seeds and run ids of all parts", tried(lambda: settings(run)))
    yield chain(run)
    yield Check("weights: set-up, trainings, evaluation, attacks, exports", tried(lambda: weights(run)))
    yield Check("trainings against their settings, weights and data", tried(lambda: training(run)))
    yield prepared_copies(run)
    yield from checks_of_numbers(run)
    yield from checks_of_report(run)
    yield audits(run)
    yield weights_of_mechanism(run)
    if regenerate:
        yield regenerated(run, regenerate)
        yield texts_of_mechanism(run)


def result_file(directory: Path) -> Path:
    """The file of a results directory that holds the hashes of all others: of a seed, or of several."""
    several = directory / COMBINED
    return several if several.exists() else directory / FINAL


def surroundings(directory: Path) -> list[str]:
    """What is not here as it was where the results were made; to be known where something does not match."""
    return other_surroundings(read_result(result_file(directory))["_metadata"])


def anchor(directory: Path) -> str:
    """The line that was printed at the end of the run."""
    return f"sha256 of {result_file(directory).name}: {sha256_of(result_file(directory))}"
