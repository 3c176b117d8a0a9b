"""Stage 3: fine-tune the treatment: T5 under W = softplus(V) >= 0 in every feed-forward matrix."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.pipeline.runner import StageContext, run_stage


def work(context: StageContext) -> None:
    from utils.training.stage import train_arm

    for arm in ("monotonic", *context.settings.CONTROL_ARMS):
        train_arm(context, arm)


if __name__ == "__main__":
    sys.exit(run_stage(3, work))
