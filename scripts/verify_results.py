"""Check a seed's results: every headline number made again from the per-example files, every hash followed.

    python scripts/verify_results.py $PROJECT/mono_s2s_final_results/seed_42

Exit codes: 0 everything matches, 1 something does not (it is named), 2 wrong usage, 3 files missing.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SHOWN = 8  # mismatches of one check that are named


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR", help="results directory of a seed")
    options = parser.parse_args()

    from utils.core.errors import UserError
    from utils.reports.verification import verify

    wrong = 0
    try:
        if not options.directory.is_dir():
            print(f"verify_results.py: {options.directory}: no such directory", file=sys.stderr)
            return 3
        for check in verify(options.directory):
            print(f"{'MISMATCH' if check.problems else 'ok':<9} {check.title}", flush=True)
            for words in check.problems[:SHOWN]:
                print(f"          {words}")
            if len(check.problems) > SHOWN:
                print(f"          and {len(check.problems) - SHOWN} more")
            for words in check.unseen:
                print(f"          not looked at, it is gone: {words}")
            wrong += len(check.problems)
    except UserError as error:
        print(f"verify_results.py: {error}", file=sys.stderr)
        return error.exit_code
    print("everything matches." if not wrong else f"{wrong} numbers or files do not match.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
