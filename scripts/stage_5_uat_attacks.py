"""Stage 5: search universal triggers of every type on every model, and measure them."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.pipeline.runner import StageContext, run_stage


def work(context: StageContext) -> None:
    from utils.analysis.bootstrap import resampling
    from utils.analysis.records import decoded, encoded, rows_of, trigger_row
    from utils.analysis.sections import Sections
    from utils.analysis.trigger_summary import learned_triggers_csv, trigger_results
    from utils.attacks.from_settings import attack_context, gradient_free_types, trigger_settings
    from utils.attacks.triggers.experiment import measure_triggers, search_triggers
    from utils.attacks.victims import Victims, load_examples
    from utils.core.codec import to_json
    from utils.core.files import write_jsonl, write_text
    from utils.data.store import missing_datasets
    from utils.modeling.tokenizer import load_tokenizer
    from utils.pipeline.shards import join_shards

    settings, paths, seed = context.settings, context.paths, context.seed
    victims, cache = Victims.of(settings, paths, seed), paths.units(seed, "uat")
    models = list(victims.directories)
    context.provenance |= {"checkpoints": victims.weights, "device_used": victims.device}
    context.provenance["missing_datasets"] = missing_datasets(paths.prepared)
    tokenizer = load_tokenizer(paths.pretrained)
    attack = attack_context(settings, tokenizer, *victims.directories.values(), stop_requested=context.stop_requested)
    triggers, no_gradient = trigger_settings(settings, seed), gradient_free_types(settings)
    ceilings = settings.CEILING_EXAMPLES if settings.ATTACK_CONTROLS else 0
    optimise_on, evaluate_on = (load_examples(paths.prepared, f"attack_{use}") for use in ("optimize", "evaluate"))

    # The unit of work is one trigger type on one model; a job array deals them out.
    index, count = context.shard
    mine = [(model, trigger_type) for model in models for trigger_type in triggers.types][index::count]
    searched: Sections = {}
    for model in models:
        types = [trigger_type for owner, trigger_type in mine if owner == model]
        if types:
            searched |= search_triggers(
                attack, victims.load(model), types, optimise_on, triggers,
                cache_dir=cache / model, gradient_free_types=no_gradient,
                ceiling_examples=ceilings, ceiling_moves=settings.CEILING_MOVES,
            )  # fmt: skip
    records = dict(searched)
    for model in models:  # controls, and transfer: every trigger on every model
        victim = victims.load(model)
        records |= measure_triggers(attack, victim, searched, evaluate_on, triggers, cache_dir=cache / model)
        del victim  # before the next one is loaded

    def finish(parts: dict[str, list[Any]]) -> None:
        sections = decoded(parts, trigger_row)
        threshold = triggers.success_threshold
        results = trigger_results(sections, models, triggers.types, threshold=threshold, **resampling(settings))
        write_jsonl(paths.results(seed) / "uat_records.jsonl", rows_of(sections))
        write_text(paths.results(seed) / "learned_triggers.csv", learned_triggers_csv(results))
        context.write_result("uat_results.json", to_json(results))

    join_shards(context, cache, encoded(records), finish)


if __name__ == "__main__":
    sys.exit(run_stage(5, work))
