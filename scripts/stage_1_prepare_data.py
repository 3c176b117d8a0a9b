"""Stage 1: load the data sets, clean them, keep test text out of training, tokenise once."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.pipeline.runner import StageContext, run_stage
from utils.slurm.shared_jobs import refuse_by_hand


def work(context: StageContext) -> None:
    from utils.core.files import copy_file
    from utils.data.preparation import prepare
    from utils.data.registry import sources
    from utils.data.store import REMOVED
    from utils.modeling.tokenizer import load_tokenizer
    from utils.pipeline.flags import is_as_flagged

    settings, paths = context.settings, context.paths
    datasets_file = Path(settings.DATASETS_FILE) if settings.DATASETS_FILE else None
    if datasets_file is None and settings.PROFILE == "demo":
        datasets_file = paths.demo_corpus / "datasets.json"
    statistics = prepare(
        sources=sources(datasets_file),
        train_keys=settings.TRAIN_DATASETS,
        test_keys=settings.TEST_DATASETS,
        attack_dataset=settings.ATTACK_DATASET,
        tokenizer=load_tokenizer(paths.pretrained),
        task_prefix=settings.TASK_PREFIX,
        max_input_length=settings.MAX_INPUT_LENGTH,
        max_target_length=settings.MAX_TARGET_LENGTH,
        output_dir=paths.prepared,
        cache_dir=paths.cache,
        # By other experiments: the same data are not prepared twice, unless that is what --force asks for.
        twins=[] if context.forced else paths.prepared_elsewhere(),
        intact=lambda twin: is_as_flagged(twin, twin.parent / paths.flag("1_prepare_data", None).name),
        seed=settings.DATA_SEED,
        attack_optimize_size=settings.TRIGGER_OPTIMIZE_SIZE_FULL,
        attack_evaluate_size=settings.TRIGGER_EVAL_SIZE_FULL,
        use_full_test_sets=settings.USE_FULL_TEST_SETS,
        quick_test_size=settings.QUICK_TEST_SIZE,
        max_train_examples=settings.MAX_TRAIN_EXAMPLES or None,
        allow_partial=settings.DATASET_ALLOW_PARTIAL,
        deduplicate_training=settings.DEDUPLICATE_TRAINING,
        max_retries=settings.DATASET_MAX_RETRIES,
        retry_delay=settings.DATASET_RETRY_DELAY,
        workers=settings.NUM_WORKERS or None,
    )
    context.provenance["missing_datasets"] = statistics["missing"]
    for directory in (paths.results_root, paths.results(context.seed)):
        copy_file(paths.prepared / REMOVED, directory / REMOVED)
    context.write_result("data_statistics.json", statistics, shared=True)


if __name__ == "__main__":
    sys.exit(run_stage(1, work, may_start=refuse_by_hand))
