"""Stage 6: flip up to five tokens of each example on every model, and measure what it does."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.pipeline.runner import StageContext, run_stage


def work(context: StageContext) -> None:
    from utils.attacks.stage import attack_with_hotflip

    attack_with_hotflip(context)


if __name__ == "__main__":
    sys.exit(run_stage(6, work))
