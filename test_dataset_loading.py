#!/usr/bin/env python3
"""Pre-flight: load a few rows of each data set and say in a table what works, from where, at which revision.

    python test_dataset_loading.py [--demo]

Exit codes: 0 every set can be had, 1 some cannot (the table says what to do), 2 wrong usage.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", action="store_true", help="the demo's own corpus (made by ./run_all.sh --demo)")
    options = parser.parse_args()
    if options.demo:
        os.environ["MONO_S2S_PROFILE"] = "demo"

    from utils.data_preflight import look
    from utils.datasets_registry import sources
    from utils.errors import UserError
    from utils.places import Places
    from utils.settings import load_settings

    logging.basicConfig(level=logging.ERROR)
    try:
        settings = load_settings()
        file = Path(settings.DATASETS_FILE) if settings.DATASETS_FILE else None
        if file is None and options.demo:
            file = Places.of(settings).demo_corpus / "datasets.json"
        wanted = {*settings.TRAIN_DATASETS, *settings.TEST_DATASETS}
        chosen = [source for key, source in sources(file).items() if key in wanted]
    except UserError as error:
        print(f"test_dataset_loading.py: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{'data set':<13} {'':<8} {'rows read':<22} {'seconds':>7}  {'revision':<11} from")
    failed = 0
    for source in chosen:
        finding = look(source)
        word = "PROBLEM" if finding.problem else "ok"
        line = f"{finding.key:<13} {word:<8} {finding.rows:<22} {finding.seconds:7.1f}  {finding.revision:<11}"
        print(line, finding.where, flush=True)
        for label, text in (("why", finding.problem), ("do" if finding.problem else "note", finding.advice)):
            if text:
                print(f"{'':<13} {label}: {text}")
        failed += bool(finding.problem)
    print(f"{len(chosen) - failed} of {len(chosen)} data sets can be had.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
