"""One page of quality against robustness about several experiments (EXPERIMENT), each with the same seeds.

    python scripts/compare_variants.py --variants t5-base,no_decay 42 1337

Reads mono_s2s_final_results_NAME/seed_N of each and writes mono_s2s_variants/, all below PROJECT_DIR. What is not
finished is named on the page.
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 some cells have no results (the page has the others).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    from utils.core.errors import UserError
    from utils.core.seeds import seed_argument

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="+", type=seed_argument, metavar="SEED")
    parser.add_argument("--variants", required=True, metavar="NAME,NAME", help="names of the experiments")
    options = parser.parse_args()
    try:
        return _compare(options.variants.split(","), options.seeds)
    except UserError as error:
        print(f"compare_variants.py: {error}", file=sys.stderr)
        return error.exit_code


def _compare(names: list[str], seeds: list[int]) -> int:
    from utils.analysis.multi_seed import SeedRun, load_seeds
    from utils.core.errors import InputError
    from utils.core.files import write_text
    from utils.core.paths import Paths
    from utils.core.settings import load_settings
    from utils.reports import variants

    settings = load_settings()
    target = Paths.of(settings).variants
    cells: dict[str, list[SeedRun]] = {}
    missing = []
    for name in names:
        paths = Paths.of(settings.replaced(EXPERIMENT=name))
        cells[name] = []
        for seed in seeds:
            if (paths.final(seed) / "final_results.json").exists():
                cells[name] += load_seeds([seed], paths)
            else:
                missing.append(f"{name}, seed {seed}")
    write_text(target / "report.html", variants.page(cells, missing, target / "figures"))
    print(variants.table(cells).text())
    print(f"report: {target / 'report.html'}")
    if missing:
        raise InputError(f"not finished: {'; '.join(missing)}. Run ./run_multi_seed.sh --variants FILE again.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
