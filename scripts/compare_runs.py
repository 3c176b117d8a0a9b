"""Two runs side by side: what differs in how they were made, and their figures, paired where examples agree.

    python scripts/compare_runs.py RESULTS/seed_42 OTHER_RESULTS/seed_42 [--format text|markdown|latex]

Each DIR is the results directory of one seed. Every difference is the second run minus the first.
Exit codes: 0 done, 2 wrong usage, 3 a directory or a file of it is missing or damaged.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    from utils.reports.run_comparison import FORMATS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs=2, type=Path, metavar="DIR", help="results directory of a seed")
    parser.add_argument("--format", choices=tuple(FORMATS), default="text", help="of the tables (default: text)")
    options = parser.parse_args()

    from utils.analysis.run_comparison import compare_runs
    from utils.core.errors import UserError
    from utils.reports.run_comparison import comparison_text

    first, second = options.directories
    if first.resolve() == second.resolve():
        parser.error(f"{first} and {second} are the same directory.")
    try:
        print(comparison_text(compare_runs(first, second), options.format), end="")
    except UserError as error:
        print(f"compare_runs.py: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
