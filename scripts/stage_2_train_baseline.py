"""Stage 2: fine-tune the control: T5 as it is."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.pipeline.runner import StageContext, run_stage


def work(context: StageContext) -> None:
    from utils.core.hashes import weights_sha256
    from utils.core.names import BASELINE
    from utils.data.store import missing_datasets
    from utils.training.launcher import TrainingJob, run_training
    from utils.training.train import TrainingSettings

    settings, paths, seed = context.settings, context.paths, context.seed
    job = TrainingJob(
        prepared_dir=paths.prepared,  # data: stage 1's sets `train` and `validation`
        pretrained_dir=paths.pretrained,  # model: stage 0's T5 and its tokenizer
        arm=BASELINE,  # constraint: none
        settings=TrainingSettings.of(
            settings, seed=seed, epochs=settings.NUM_EPOCHS, warmup_ratio=settings.WARMUP_RATIO
        ),
        output_dir=paths.training(seed, BASELINE),  # epoch_1/, ..., and best/: the lowest validation loss
    )
    history = run_training(job, context.stop_requested)  # resumes where an earlier run of this stage was stopped

    context.provenance["missing_datasets"] = missing_datasets(paths.prepared)
    context.provenance["checkpoints"] = {BASELINE: weights_sha256(paths.model(seed, BASELINE))}
    context.write_result(f"{BASELINE}_training_history.json", history)


if __name__ == "__main__":
    sys.exit(run_stage(2, work))
