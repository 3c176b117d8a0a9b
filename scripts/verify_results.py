"""Check results: every headline number made again from the per-example files, every hash followed, the report remade.

    python scripts/verify_results.py $PROJECT/mono_s2s_final_results/seed_42
    python scripts/verify_results.py $PROJECT/mono_s2s_multi_seed_results

Exit codes: 0 everything matches, 1 something does not (it is named), 2 wrong usage, 3 files missing.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SHOWN = 8  # mismatches of one check that are named


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR", help="results directory of a seed, or of several seeds")
    parser.add_argument(
        "--regenerate", type=int, default=0, metavar="N",
        help="also make N random summaries, their losses and the mechanism panel again with a seed's exported models",
    )  # fmt: skip
    options = parser.parse_args()
    if options.regenerate < 0:
        parser.error(f"--regenerate {options.regenerate}: expected a number of summaries, 0 or more")

    os.environ.setdefault("TQDM_DISABLE", "1")  # --regenerate takes seconds
    from utils.core.errors import UserError
    from utils.verification.seed import anchor, surroundings, verify

    wrong = 0
    try:
        if not options.directory.is_dir():
            print(f"verify_results.py: {options.directory}: no such directory", file=sys.stderr)
            return 3
        for check in verify(options.directory, options.regenerate):
            print(f"{'MISMATCH' if check.problems else 'ok':<9} {check.title}", flush=True)
            for words in check.problems[:SHOWN]:
                print(f"          {words}")
            if len(check.problems) > SHOWN:
                print(f"          and {len(check.problems) - SHOWN} more")
            for words in check.unseen:
                print(f"          not looked at, or not counted: {words}")
            wrong += len(check.problems)
        if wrong:
            for words in surroundings(options.directory):
                print(f"note: made with {words}. Last digits, and what is decided by them, may differ for that alone.")
        print(anchor(options.directory) + " (compare it with the one that stage 7 printed)")
    except UserError as error:
        print(f"verify_results.py: {error}", file=sys.stderr)
        return error.exit_code
    print("everything matches." if not wrong else f"{wrong} numbers or files do not match.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
