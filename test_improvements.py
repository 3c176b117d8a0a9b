#!/usr/bin/env python3
"""Pre-flight of the experiment's promises, on the settings at hand, in seconds and without network or GPU.

    python test_improvements.py [--demo]

Fair settings, full test sets, exact inverse of softplus at the start, retries, timestamps in every result.
Exit codes: 0 all kept, 1 some are not (each says which and what to do), 2 wrong usage or settings.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", action="store_true", help="check the settings of ./run_all.sh --demo")
    options = parser.parse_args()
    if options.demo:
        os.environ["MONO_S2S_PROFILE"] = "demo"

    from utils.core.errors import UserError
    from utils.core.output import keep_working_without_reader
    from utils.core.settings import load_settings
    from utils.operations.preflight_checks import CHECKS

    try:
        settings = load_settings()
    except UserError as error:
        print(f"test_improvements.py: {error}", file=sys.stderr)
        return error.exit_code
    keep_working_without_reader()
    broken = 0
    for name, check in CHECKS.items():
        kept, words = check(settings)
        print(f"{'ok' if kept else 'BROKEN':<7} {name}: {words}", flush=True)
        broken += not kept
    print(f"{len(CHECKS) - broken} of {len(CHECKS)} promises are kept.")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
