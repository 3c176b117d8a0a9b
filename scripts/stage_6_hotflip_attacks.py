"""Stage 6: flip up to five tokens of each example on every model, and measure what it does."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.pipeline.runner import StageContext, run_stage


def work(context: StageContext) -> None:
    from utils.analysis.attack_suite import strongest
    from utils.analysis.attribution import attribution, rouge_by_id
    from utils.analysis.bootstrap import resampling
    from utils.analysis.hotflip_summary import hotflip_results
    from utils.analysis.quality_curve import QualityRow, matched
    from utils.analysis.records import decoded, encoded, hotflip_row, rows_of
    from utils.analysis.sections import Sections
    from utils.attacks.cache import shard_dir
    from utils.attacks.from_settings import attack_context, control_settings, hotflip_settings
    from utils.attacks.hotflip.experiment import HotFlipPlan, attack_with_controls, flips_of_others
    from utils.attacks.quality import CANDIDATES, attack_snapshots, kept_snapshots
    from utils.attacks.victims import Victims, load_examples
    from utils.core.codec import from_json, to_json
    from utils.core.files import write_jsonl
    from utils.core.names import STANDARD
    from utils.data.store import missing_datasets
    from utils.evaluation.predictions import FILE
    from utils.modeling.tokenizer import load_tokenizer
    from utils.pipeline.shards import join_shards
    from utils.reports.table import percent

    settings, paths, seed = context.settings, context.paths, context.seed
    victims, cache = Victims.of(settings, paths, seed), paths.units(seed, "hotflip")
    models = list(victims.directories)
    context.provenance |= {"checkpoints": victims.weights, "device_used": victims.device}
    context.provenance["missing_datasets"] = missing_datasets(paths.prepared)
    tokenizer = load_tokenizer(paths.pretrained)
    attack = attack_context(settings, tokenizer, *victims.directories.values(), stop_requested=context.stop_requested)
    hotflip, controls = hotflip_settings(settings, seed), control_settings(settings)
    plan = HotFlipPlan.of(attack, load_examples(paths.prepared, "attack_evaluate"), controls, context.shard)
    home = shard_dir(cache, context.shard)

    records: Sections = {}
    for model in models:  # search and controls
        victim = victims.load(model)
        records |= attack_with_controls(attack, victim, plan, hotflip, controls, cache_dir=home / model)
        del victim  # before the next one is loaded
    for model in models:  # transfer: flips found on the other models
        victim = victims.load(model)
        records |= flips_of_others(attack, victim, records, hotflip, cache_dir=home / "transfer")
        del victim

    # At equal quality: a small attack on every snapshot of each training; a job array deals the snapshots out.
    cells, missing = kept_snapshots(paths, seed, models) if settings.QUALITY_CURVE_EXAMPLES else ([], [])
    index, count = context.shard
    few = load_examples(paths.prepared, "attack_evaluate")[: settings.QUALITY_CURVE_EXAMPLES]
    curve = attack_snapshots(
        attack, cells[index::count], few, hotflip, device=victims.device, cache_dir=home / "quality"
    )

    def finish(parts: dict[str, list[Any]]) -> None:
        write_jsonl(paths.results(seed) / "quality_curve_records.jsonl", rows := parts.pop("quality", []))
        quality = [from_json(QualityRow, row) for row in rows]
        found = matched(quality, candidates=CANDIDATES, missing=missing, **resampling(settings))
        context.write_result("quality_curve_results.json", to_json(found))
        sections = decoded(parts, hotflip_row)
        results = hotflip_results(sections, models, threshold=hotflip.success_threshold, **resampling(settings))
        write_jsonl(paths.results(seed) / "hotflip_records.jsonl", rows_of(sections))
        context.write_result("hotflip_results.json", to_json(results))
        worst = {model: strongest(sections, model, models) for model in models if model != STANDARD}
        rouge = rouge_by_id(paths.results(seed) / FILE, settings.ATTACK_DATASET)
        causes = attribution(worst, rouge, threshold=hotflip.success_threshold, ci=resampling(settings))
        context.write_result("attribution_results.json", to_json(causes))
        for key, result in results.models.items():
            context.log.info("HotFlip on %s: success %s", key, percent(result.success_rate))

    join_shards(context, cache, encoded(records) | {"quality": to_json(curve)}, finish)


if __name__ == "__main__":
    sys.exit(run_stage(6, work))
