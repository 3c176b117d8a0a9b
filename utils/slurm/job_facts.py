"""What a job wrapper asks before it starts its stage: one line each for JOB_SETUP, requeues, resumable, code.

Torch-free.
"""

from __future__ import annotations

import sys

from utils.core.errors import UserError
from utils.core.provenance import code_revision, why_no_revision
from utils.core.seeds import parse_seed
from utils.core.settings import load_settings
from utils.pipeline.stages import STAGES


def main(arguments: list[str]) -> int:
    """Print setup line, most requeues, whether a stage can save its progress (1 or 0), and the commit.

    arguments: number of the stage, and the seed, which is checked.
    """
    try:
        parse_seed(arguments[1])
        settings = load_settings()
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(settings.JOB_SETUP.replace("\n", "; "))
    print(settings.SLURM_MAX_REQUEUES)
    print(int(STAGES[int(arguments[0])].resumable))
    print(code_revision()["commit"] if not why_no_revision() else f"unknown ({why_no_revision()})")
    return 0
