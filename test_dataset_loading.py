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
import utils  # noqa: F401 - its hook tells which package this Python lacks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", action="store_true", help="the demo's own corpus (made by ./run_all.sh --demo)")
    options = parser.parse_args()
    if options.demo:
        os.environ["MONO_S2S_PROFILE"] = "demo"

    from huggingface_hub import constants

    from utils.core.errors import UserError
    from utils.core.output import keep_working_without_reader
    from utils.core.paths import Paths
    from utils.core.settings import load_settings
    from utils.core.text import printable
    from utils.data.preflight import look
    from utils.data.registry import chosen_sources, sources

    logging.basicConfig(level=logging.ERROR)
    keep_working_without_reader()
    try:
        settings = load_settings()
        file = Path(settings.DATASETS_FILE) if settings.DATASETS_FILE else None
        if file is None and options.demo:
            file = Paths.of(settings).demo_corpus / "datasets.json"
        keys = settings.TRAIN_DATASETS, settings.TEST_DATASETS, settings.ATTACK_DATASET
        chosen = list(chosen_sources(sources(file), *keys).values())
        cache_dir = Path(settings.HF_CACHE_DIR or constants.HF_HUB_CACHE)  # the latter is looked at in any case
        if not settings.HF_CACHE_DIR and settings.SCRATCH_DIR:
            cache_dir = Paths.of(settings).work / "hf_cache"
    except UserError as error:
        print(f"test_dataset_loading.py: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{'data set':<13} {'':<8} {'rows read':<22} {'seconds':>7}  {'revision':<11} from")
    working, hub_down = 0, False
    for source in chosen:
        if hub_down and not source.files:
            print(f"{source.key:<13} {'PROBLEM':<8} {'not asked':<22} {'-':>7}  {'-':<11} {source.repository}")
            continue
        finding = look(source, cache_dir)
        word = "ok" if finding.works else "PROBLEM"
        line = f"{finding.key:<13} {word:<8} {finding.rows:<22} {finding.seconds:7.1f}  {finding.revision:<11}"
        print(line, printable(finding.where), flush=True)
        for reason in finding.reasons:
            print(f"{'':<13} {'note' if finding.works else 'why'}: {printable(reason)}")
        for warning in finding.warnings:
            print(f"{'':<13} warning: {printable(warning)}")
        if finding.advice:
            print(f"{'':<13} do: {printable(finding.advice)}")
        working += finding.works
        hub_down = hub_down or finding.hub_down
    print(f"{working} of {len(chosen)} data sets can be had.")
    return 0 if working == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
