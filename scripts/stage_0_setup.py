"""Stage 0: fetch (or, in the demo, make) the pretrained model, check it, record the machine."""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.pipeline.runner import StageContext, run_stage
from utils.slurm.shared_jobs import refuse_by_hand


def work(context: StageContext) -> None:
    from utils.core.hashes import weights_sha256
    from utils.core.provenance import surroundings
    from utils.modeling.models import count_parameters, export, fetch_pretrained, load_model
    from utils.modeling.tokenizer import load_tokenizer

    settings, paths = context.settings, context.paths
    if settings.PROFILE == "demo" and settings.MODEL_NAME == "demo":
        from utils.demo.corpus import write_demo_corpus
        from utils.demo.model import build_demo_model

        context.log.info("writing the demo corpus to %s", paths.demo_corpus)
        write_demo_corpus(paths.demo_corpus)
        context.log.info("pretraining a small T5 on it (about two minutes)")
        build_demo_model(paths.demo_corpus, paths.pretrained)
        source, revision = "demo model, pretrained by stage 0", None
    else:
        context.log.info("fetching %s", settings.MODEL_NAME)
        model, tokenizer, revision = fetch_pretrained(
            settings.MODEL_NAME,
            settings.MODEL_REVISION,
            max_retries=settings.DATASET_MAX_RETRIES,
            retry_delay=settings.DATASET_RETRY_DELAY,
            cache_dir=paths.cache,
        )
        export(model, tokenizer, paths.pretrained)
        source = settings.MODEL_NAME
    model, tokenizer = load_model(paths.pretrained), load_tokenizer(paths.pretrained)
    for directory in (paths.results_root, paths.project):
        directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(paths.work).free
    context.write_result(
        "setup_complete.json",
        {
            "model": {
                "source": source,
                "revision": revision,
                "parameters": count_parameters(model),
                "weights_sha256": weights_sha256(paths.pretrained),
                "vocabulary": len(tokenizer),
                "feed_forward": model.config.feed_forward_proj,
            },
            "machine": {**surroundings(), "free_gb": round(free / 1e9, 1)},
            "directories": {
                "work": str(paths.work),
                "results": str(paths.results_root),
                "final": str(paths.final_root),
            },
        },
        shared=True,
    )
    context.log.info("%s: %s parameters, vocabulary %d", source, f"{count_parameters(model):,}", len(tokenizer))


if __name__ == "__main__":
    sys.exit(run_stage(0, work, may_start=refuse_by_hand))
