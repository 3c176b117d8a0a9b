"""Combine the final results of several seeds: means, spreads, tests over seeds, one report.

    python scripts/aggregate_multi_seed.py 42 1337 2024 [--allow-mixed]

Reads mono_s2s_final_results/seed_N of each seed and writes mono_s2s_multi_seed_results, both below PROJECT_DIR. It
refuses seeds that are one run counted twice, and, without --allow-mixed, runs that differ in more than the seed.
Exit codes: 0 done, 1 failed, 2 wrong usage or seeds that do not belong together, 3 seeds missing.
"""

import argparse
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

    try:
        return _aggregate(options.seeds, options.allow_mixed)
    except UserError as error:
        print(f"aggregate_multi_seed.py: {error}", file=sys.stderr)
        return error.exit_code


def _aggregate(seeds: list[int], allow_mixed: bool) -> int:
    from utils.analysis.multi_seed import aggregate, check_independent, differences, load_seeds
    from utils.core.codec import to_json
    from utils.core.errors import UsageError
    from utils.core.files import write_text
    from utils.core.paths import Paths
    from utils.core.provenance import surroundings, timestamp
    from utils.core.results import write_result
    from utils.core.settings import load_settings
    from utils.reports import multi_seed
    from utils.reports.latex import tex
    from utils.reports.multi_seed_figures import draw_all
    from utils.reports.verdict import verdict_over_seeds

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
    over_seeds = aggregate(runs, confidence=settings.CONFIDENCE)
    results = to_json(over_seeds) | {"verdict": to_json(verdict_over_seeds(over_seeds)), "mixed": mixed}
    metadata = {
        "timestamp": timestamp(now),
        "run_id": f"{time.strftime('%Y%m%d_%H%M%S', time.localtime(now))}_seeds_{'_'.join(map(str, seeds))}",
        "seed": seeds,
        "unix_timestamp": now,
        "profile": runs[0].metadata["profile"],
        "full_test_sets": all(run.metadata["full_test_sets"] for run in runs),
        "config_fingerprint": runs[0].metadata["config_fingerprint"],
        "seconds": round(time.time() - now, 3),
        **surroundings(),
    }
    target, warning = paths.multi_seed, " ".join(multi_seed.warnings(results, metadata))
    for table in multi_seed.tables(results):
        write_text(target / "tables" / f"{table.name}.csv", table.csv())
        write_text(target / "tables" / f"{table.name}.tex", tex(table, warning))
    alternative = draw_all(results, target / "figures")
    summary = multi_seed.text(results, metadata)
    write_text(target / "multi_seed_summary.txt", summary)
    write_text(target / "report.html", multi_seed.page(results, metadata, target / "figures", alternative))
    write_result(target / "multi_seed_results.json", results, metadata)
    print(summary)
    print(f"report: {target / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
