"""Stage 4: summarise every test set with all three models and score the summaries."""

import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.pipeline.runner import StageContext, run_stage


def work(context: StageContext) -> None:
    from utils.analysis.evaluation_summary import evaluation_results
    from utils.analysis.records import Prediction
    from utils.core.codec import from_json, to_json
    from utils.core.files import write_jsonl
    from utils.core.hashes import weights_sha256
    from utils.core.paths import models_of
    from utils.data.store import load_prepared, missing_datasets
    from utils.evaluation.decoding import decoding_settings
    from utils.evaluation.generation import generate
    from utils.evaluation.mechanism import mechanism_of
    from utils.evaluation.predictions import FILE, score_summaries
    from utils.modeling.models import choose_device, load_model
    from utils.modeling.tokenizer import load_tokenizer
    from utils.pipeline.shards import Sections, join_shards

    settings, paths, seed = context.settings, context.paths, context.seed
    missing, models = missing_datasets(paths.prepared), models_of(settings)
    datasets = [key for key in settings.TEST_DATASETS if key not in missing]
    weights = {model: weights_sha256(paths.model(seed, model)) for model in models}
    device, tokenizer = choose_device(settings.DEVICE), load_tokenizer(paths.pretrained)
    context.provenance |= {"checkpoints": weights, "missing_datasets": missing, "device_used": device}

    # The unit of work is one model on one test set; a job array deals them out. Each model is loaded once.
    units, (index, count) = paths.units(seed, "evaluate"), context.shard
    cells = [(model, dataset) for model in models for dataset in datasets][index::count]
    sections: Sections = {}
    for name, group in itertools.groupby(cells, key=lambda cell: cell[0]):
        model = load_model(paths.model(seed, name), device=device)
        for _, dataset in group:
            test = load_prepared(paths.prepared, f"test_{dataset}")
            texts, seconds = generate(
                model,
                tokenizer,
                test["input_ids"],
                decoding_settings(settings),
                batch_tokens=settings.EVAL_BATCH_SIZE * settings.MAX_INPUT_LENGTH,
                precision=settings.PRECISION,
                done_file=units / f"{name}_{dataset}.jsonl",
                weights=weights[name],
                stop_requested=context.stop_requested,
                label=f"{name} on {dataset}",
            )
            processes = settings.NUM_WORKERS or None
            rows = score_summaries(dataset, name, test["id"], texts, list(test["summary"]), processes=processes)
            sections[f"{dataset}/{name}"] = [{"seconds": seconds}, *map(to_json, rows)]
            score = sum(row.rougeL for row in rows) / len(rows)
            context.log.info("%s on %s: ROUGE-L %.4f, %d summaries, %.1f s", name, dataset, score, len(rows), seconds)
    for name in models[index::count]:  # what its feed-forward layers are and do
        found = mechanism_of(name, settings, paths, seed, weights=weights, device=device, cache=units)
        sections[f"mechanism/{name}"] = [to_json(found)]
        context.log.info("%s: loss %.4f, without feed-forward layers %.4f", name, found.loss, found.loss_zeroed)

    def finish(sections: Sections) -> None:
        order = [(dataset, name) for dataset in datasets for name in models]
        rows = [row for cell in order for row in sections["/".join(cell)][1:]]
        seconds = {cell: sections["/".join(cell)][0]["seconds"] for cell in order}
        timed = seconds if settings.TRACK_INFERENCE_TIME else None
        write_jsonl(paths.results(seed) / FILE, rows)
        results = evaluation_results(
            [from_json(Prediction, row) for row in rows],
            datasets,
            samples=settings.BOOTSTRAP_SAMPLES,
            seed=settings.DATA_SEED,
            confidence=settings.CONFIDENCE,
            seconds=timed,
        )
        context.write_result("evaluation_results.json", to_json(results))
        context.write_result("mechanism_results.json", {name: sections[f"mechanism/{name}"][0] for name in models})

    join_shards(context, units, sections, finish)


if __name__ == "__main__":
    sys.exit(run_stage(4, work))
