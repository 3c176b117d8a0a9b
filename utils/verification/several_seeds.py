"""Verification of the directory that puts several seeds together: what was read, the numbers, the report."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from utils.analysis.aggregate import FINAL
from utils.analysis.combined import COMBINED, CombinedResults
from utils.analysis.multi_seed import check_independent, differences, load_run
from utils.core.codec import from_json, to_json
from utils.core.errors import UserError
from utils.core.files import sha256_of
from utils.core.results import read_result
from utils.reports.multi_seed import combined, write_report
from utils.verification.check import Check, figures_of, tried, unequal
from utils.verification.provenance import changed_files
from utils.verification.written import differing_files


def verify_seeds(directory: Path) -> Iterator[Check]:
    """Every check of a directory of several seeds; InputError if its result file is missing or damaged.

    The seeds' own directories are only read here: each is verified by itself.
    """
    envelope = read_result(directory / COMBINED)
    metadata = envelope["_metadata"]
    homes = {seed: _home(directory, metadata, seed) for seed in envelope["results"]["seeds"]}
    yield _chain(directory, metadata, homes)
    again = Check(f"{COMBINED} from the seeds' files", [])
    again.unseen += [
        f"the results of seed {seed} (not on this machine)" for seed, home in homes.items() if home is None
    ]
    if not again.unseen:
        again.problems += tried(lambda: _numbers(homes, envelope))
    yield again
    with tempfile.TemporaryDirectory() as folder:
        note = figures_of(metadata)

        def remade() -> Iterator[str]:
            record = from_json(CombinedResults, envelope["results"], COMBINED)
            write_report(to_json(record), metadata, Path(folder))
            yield from differing_files(Path(folder), directory, same_figures=not note)

        yield Check(f"tables, summary, figures and page from {COMBINED}", tried(remade), note)


def _home(directory: Path, metadata: Mapping[str, Any], seed: int) -> Path | None:
    """Where the results of a seed lie: where they were read, else beside this directory as the pipeline has it."""
    recorded = {Path(place).parent for place in metadata["inputs"] if Path(place).parent.name == f"seed_{seed}"}
    suffix = directory.resolve().name.removeprefix("mono_s2s_multi_seed_results")
    beside = directory.resolve().parent / f"mono_s2s_final_results{suffix}" / f"seed_{seed}"
    return next((place for place in (beside, *sorted(recorded)) if (place / FINAL).exists()), None)


def _chain(directory: Path, metadata: Mapping[str, Any], homes: Mapping[int, Path | None]) -> Check:
    """The files that were read, and those that were written."""
    check = Check("hashes: the seeds' files that were read, and every file here", [])
    by_name = {f"seed_{seed}": home for seed, home in homes.items()}
    for place, digest in metadata["inputs"].items():
        home = by_name.get(Path(place).parent.name)
        path = home / Path(place).name if home else Path(place)
        if not path.exists():
            check.unseen.append(str(path))
        elif sha256_of(path) != digest:
            check.problems.append(f"{path} is not what {COMBINED} was made from")
    check.problems += changed_files(directory, metadata["files"], COMBINED)
    return check


def _numbers(homes: Mapping[int, Path | None], envelope: Mapping[str, Any]) -> Iterator[str]:
    results, metadata = envelope["results"], envelope["_metadata"]
    runs = [load_run(seed, home) for seed, home in homes.items() if home is not None]
    expected = {
        "seed": results["seeds"],
        "profile": runs[0].metadata["profile"],
        "full_test_sets": all(run.metadata["full_test_sets"] for run in runs),
        "config_fingerprint": runs[0].metadata["config_fingerprint"],
    }
    yield from unequal(expected, {name: metadata[name] for name in expected}, "_metadata")
    try:
        check_independent(runs)
    except UserError as error:
        yield str(error)
    made = combined(runs, metadata["settings"]["CONFIDENCE"], differences(runs))
    yield from unequal(to_json(made), results)
