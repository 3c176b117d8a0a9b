"""Stage 6: flip up to five tokens of each example on every model, and measure what it does."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.pipeline.runner import StageContext, run_stage


def work(context: StageContext) -> None:
    from utils.analysis.bootstrap import resampling
    from utils.analysis.hotflip_summary import hotflip_results
    from utils.analysis.records import decoded, encoded, hotflip_row, rows_of
    from utils.analysis.sections import Sections
    from utils.attacks.cache import shard_dir
    from utils.attacks.from_settings import attack_context, control_settings, hotflip_settings
    from utils.attacks.hotflip.experiment import HotFlipPlan, attack_with_controls, flips_of_others
    from utils.attacks.victims import Victims, load_examples
    from utils.core.codec import to_json
    from utils.core.files import write_jsonl
    from utils.data.store import missing_datasets
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

    def finish(parts: dict[str, list[Any]]) -> None:
        sections = decoded(parts, hotflip_row)
        results = hotflip_results(sections, models, threshold=hotflip.success_threshold, **resampling(settings))
        write_jsonl(paths.results(seed) / "hotflip_records.jsonl", rows_of(sections))
        context.write_result("hotflip_results.json", to_json(results))
        for key, result in results.models.items():
            context.log.info("HotFlip on %s: success %s", key, percent(result.success_rate))

    join_shards(context, cache, encoded(records), finish)


if __name__ == "__main__":
    sys.exit(run_stage(6, work))
