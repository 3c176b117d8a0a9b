"""Stage 4: summarise every test set with all three models and score the summaries."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.pipeline.runner import StageContext, run_stage


def work(context: StageContext) -> None:
    from utils.evaluation.experiment import evaluate

    evaluate(context)


if __name__ == "__main__":
    sys.exit(run_stage(4, work))
