"""Stage 0: fetch (or, in the demo, make) the pretrained model, check it, record the machine."""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.pipeline.runner import StageContext, run_stage


def work(context: StageContext) -> None:
    from utils.models import count_parameters, export, fetch_pretrained, load_model, load_tokenizer, weights_sha256
    from utils.provenance import surroundings

    settings, places = context.settings, context.places
    if settings.PROFILE == "demo" and settings.MODEL_NAME == "demo":
        from utils.demo.corpus import write_demo_corpus
        from utils.demo.model import build_demo_model

        context.log.info("writing the demo corpus to %s", places.demo_corpus)
        write_demo_corpus(places.demo_corpus)
        context.log.info("pretraining a small T5 on it (about a minute)")
        build_demo_model(places.demo_corpus, places.pretrained)
        source, revision = "demo model, pretrained by stage 0", None
    else:
        context.log.info("fetching %s", settings.MODEL_NAME)
        model, tokenizer, revision = fetch_pretrained(
            settings.MODEL_NAME,
            settings.MODEL_REVISION,
            max_retries=settings.DATASET_MAX_RETRIES,
            retry_delay=settings.DATASET_RETRY_DELAY,
            cache_dir=Path(settings.HF_CACHE_DIR or places.work / "hf_cache"),
        )
        export(model, tokenizer, places.pretrained)
        source = settings.MODEL_NAME
    model, tokenizer = load_model(places.pretrained), load_tokenizer(places.pretrained)
    for directory in (places.results_root, places.project):
        directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(places.work).free
    context.write_result(
        "setup_complete.json",
        {
            "model": {
                "source": source,
                "revision": revision,
                "parameters": count_parameters(model),
                "weights_sha256": weights_sha256(places.pretrained),
                "vocabulary": len(tokenizer),
                "feed_forward": model.config.feed_forward_proj,
            },
            "machine": {**surroundings(), "free_gb": round(free / 1e9, 1)},
            "directories": {
                "work": str(places.work),
                "results": str(places.results_root),
                "final": str(places.final_root),
            },
        },
        shared=True,
    )
    context.log.info("%s: %s parameters, vocabulary %d", source, f"{count_parameters(model):,}", len(tokenizer))


if __name__ == "__main__":
    sys.exit(run_stage(0, work))
