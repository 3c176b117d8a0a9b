"""Combine the final results of several seeds: means, spreads, tests over seeds, one report.

    python scripts/aggregate_multi_seed.py 42 1337 2024 [--allow-mixed]

Reads mono_s2s_final_results/seed_N of each seed and writes mono_s2s_multi_seed_results, both below PROJECT_DIR. It
refuses seeds that are one run counted twice, and, without --allow-mixed, runs that differ in more than the seed.
Exit codes: 0 done, 1 failed, 2 wrong usage or seeds that do not belong together, 3 seeds missing.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    from utils.core.seeds import seed_argument

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="+", type=seed_argument, metavar="SEED")
    parser.add_argument(
        "--allow-mixed", action="store_true", help="runs that differ in more than the seed; said on top"
    )
    options = parser.parse_args()

    from utils.core.errors import UserError
    from utils.core.settings import as_typed

    try:
        return _aggregate(options.seeds, options.allow_mixed)
    except UserError as error:
        print(as_typed(f"aggregate_multi_seed.py: {error}"), file=sys.stderr)
        return error.exit_code


def _aggregate(seeds: list[int], allow_mixed: bool) -> int:
    from utils.analysis.aggregate import hashes_below
    from utils.analysis.combined import COMBINED, inputs_of
    from utils.analysis.multi_seed import check_independent, differences, load_seeds
    from utils.core.codec import to_json
    from utils.core.errors import UsageError
    from utils.core.files import sha256_of
    from utils.core.locks import file_lock
    from utils.core.paths import Paths
    from utils.core.provenance import surroundings, timestamp
    from utils.core.results import write_result
    from utils.core.settings import load_settings
    from utils.reports.multi_seed import combined, write_report

    if len(set(seeds)) < max(2, len(seeds)):
        raise UsageError("give at least two different seeds.")
    settings = load_settings()
    paths = Paths.of(settings)
    runs = load_seeds(seeds, paths)
    check_independent(runs)
    mixed = differences(runs)
    if mixed and not allow_mixed:
        raise UsageError(
            "these runs differ in more than the seed: " + "; ".join(mixed) + ". Run them alike, or --allow-mixed."
        )
    now = time.time()
    results = to_json(combined(runs, settings.CONFIDENCE, mixed))
    metadata = {
        "timestamp": timestamp(now),
        "run_id": f"{time.strftime('%Y%m%d_%H%M%S', time.localtime(now))}_seeds_{'_'.join(map(str, seeds))}",
        "seed": seeds,
        "unix_timestamp": now,
        "profile": runs[0].metadata["profile"],
        "full_test_sets": all(run.metadata["full_test_sets"] for run in runs),
        "settings": {"CONFIDENCE": settings.CONFIDENCE},
        "config_fingerprint": runs[0].metadata["config_fingerprint"],
        "seconds": round(time.time() - now, 3),
        **surroundings(),
    }
    metadata["inputs"] = inputs_of(runs)
    target = paths.multi_seed
    # Of two at once, perhaps of two work directories, the directory holds one and not files of both.
    with file_lock(target.parent / f".{target.name}.lock", unprotected="two aggregates at once would mix their files"):
        for name in ("tables", "figures"):  # what an earlier aggregate had and this one has not must not stay
            shutil.rmtree(target / name, ignore_errors=True)
        write_report(results, metadata, target)
        metadata["files"] = hashes_below(target, without=COMBINED)
        write_result(target / COMBINED, results, metadata)
    print((target / "multi_seed_summary.txt").read_text(encoding="utf-8"))
    print(f"report: {target / 'report.html'}")
    print(f"sha256 of {COMBINED}: {sha256_of(target / COMBINED)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
