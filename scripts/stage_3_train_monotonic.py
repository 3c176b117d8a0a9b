"""Stage 3: fine-tune the treatment, T5 under W = softplus(V) >= 0 in every feed-forward matrix, then control arms."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.pipeline.runner import StageContext, run_stage


def work(context: StageContext) -> None:
    from utils.core.hashes import weights_sha256
    from utils.core.names import MONOTONIC
    from utils.data.store import missing_datasets
    from utils.modeling.models import check_arms
    from utils.training.launcher import TrainingJob, run_training
    from utils.training.train import TrainingSettings

    settings, paths, seed = context.settings, context.paths, context.seed
    # Everything is as for the baseline in stage 2, but for the constraint and the warm-up.
    training_settings = TrainingSettings.of(
        settings,
        seed=seed,
        epochs=settings.MONOTONIC_NUM_EPOCHS,
        warmup_ratio=settings.MONOTONIC_WARMUP_RATIO,
        epsilon=settings.MONOTONIC_EPSILON,
    )
    arms = (MONOTONIC, *settings.CONTROL_ARMS)
    check_arms(paths.pretrained, arms)  # before hours are spent on the first one
    context.provenance["missing_datasets"] = missing_datasets(paths.prepared)
    for arm in arms:
        job = TrainingJob(
            prepared_dir=paths.prepared,  # data: stage 1's sets `train` and `validation`
            pretrained_dir=paths.pretrained,  # model: stage 0's T5 and its tokenizer
            arm=arm,  # constraint: its entry in configs/arms.py
            settings=training_settings,
            output_dir=paths.training(seed, arm),  # epoch_1/, ..., and best/: folded, an ordinary T5
        )
        history = run_training(job, context.stop_requested)  # resumes where an earlier run of this stage was stopped

        context.provenance["checkpoints"] = {arm: weights_sha256(paths.model(seed, arm))}
        context.write_result(f"{arm}_training_history.json", history)


if __name__ == "__main__":
    sys.exit(run_stage(3, work))
