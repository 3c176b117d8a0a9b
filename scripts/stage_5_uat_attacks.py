"""Stage 5: search universal triggers of every type on every model, and measure them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.pipeline.runner import StageContext, run_stage


def work(context: StageContext) -> None:
    from utils.attacks.stage import attack_with_triggers

    attack_with_triggers(context)


if __name__ == "__main__":
    sys.exit(run_stage(5, work))
