"""Stage 2: fine-tune the control: T5 as it is."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.pipeline.runner import StageContext, run_stage


def work(context: StageContext) -> None:
    from utils.training.stage import train_arm

    train_arm(context, "baseline")


if __name__ == "__main__":
    sys.exit(run_stage(2, work))
