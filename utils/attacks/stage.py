"""What stages 5 and 6 do: set the attack up as the settings say, run it on all three models, write its results."""

from __future__ import annotations

from utils.analysis.bootstrap import Resampling
from utils.analysis.hotflip_summary import hotflip_results
from utils.analysis.records import decoded, hotflip_row, rows_of, trigger_row
from utils.analysis.trigger_summary import learned_triggers_csv, trigger_results
from utils.attacks.context import Victim
from utils.attacks.encoding import Example
from utils.attacks.from_settings import (
    attack_context,
    control_settings,
    gradient_free_types,
    hotflip_settings,
    trigger_settings,
)
from utils.attacks.hotflip.experiment import hotflip_sections
from utils.attacks.triggers.experiment import trigger_sections
from utils.core.codec import to_json
from utils.core.files import write_jsonl, write_text
from utils.core.paths import models_of
from utils.data.store import load_prepared, missing_datasets
from utils.evaluation.predictions import evaluated_summaries
from utils.modeling.models import choose_device, load_model, load_tokenizer, weights_sha256
from utils.pipeline.runner import StageContext
from utils.pipeline.shards import Sections, join_shards


class Attack:
    """The common editable of both attacks: victims by model key, tokenizer, legal tokens, examples."""

    def __init__(self, context: StageContext) -> None:
        settings, paths, seed = context.settings, context.paths, context.seed
        self.context = context
        self.device = choose_device(settings.DEVICE)
        self.models = models_of(settings)
        self.hashes = {key: weights_sha256(paths.model(seed, key)) for key in self.models}
        prepared = load_prepared(paths.prepared, "attack_evaluate")
        self.known = evaluated_summaries(prepared, paths.results(seed), self.hashes)
        directories = [paths.model(seed, key) for key in self.models]
        self.setup = attack_context(
            settings, load_tokenizer(paths.pretrained), *directories, stop_requested=context.stop_requested
        )
        context.provenance |= {
            "checkpoints": self.hashes,
            "device_used": self.device,
            "missing_datasets": missing_datasets(paths.prepared),
        }

    def victim(self, key: str) -> Victim:
        """The model of that key, loaded, with its summaries of stage 4."""
        model = load_model(self.context.paths.model(self.context.seed, key), device=self.device)
        return Victim(key, model, self.hashes[key], self.known[key])

    def examples(self, name: str) -> list[Example]:
        """The attack split of that name (attack_optimize or attack_evaluate)."""
        rows = load_prepared(self.context.paths.prepared, name)
        return [Example(*row) for row in zip(rows["id"], rows["document"], rows["summary"], strict=True)]

    @property
    def statistics(self) -> Resampling:
        """How intervals are made."""
        settings = self.context.settings
        return {
            "samples": settings.BOOTSTRAP_SAMPLES,
            "seed": settings.DATA_SEED,
            "confidence": settings.CONFIDENCE,
        }


def attack_with_hotflip(context: StageContext) -> None:
    """Write `hotflip_results.json` and `hotflip_records.jsonl`."""
    settings, paths, seed = context.settings, context.paths, context.seed
    attack = Attack(context)
    how = hotflip_settings(settings, seed)
    examples = attack.examples("attack_evaluate")
    controls = control_settings(settings)
    units = paths.units(seed, "hotflip")
    sections = hotflip_sections(
        attack.setup, attack.victim, attack.models, examples, how, controls, cache_dir=units, shard=context.shard
    )

    def finish(parts: Sections) -> None:
        sections = decoded(parts, hotflip_row)
        results = hotflip_results(sections, attack.models, threshold=how.success_threshold, **attack.statistics)
        write_jsonl(paths.results(seed) / "hotflip_records.jsonl", rows_of(sections))
        context.write_result("hotflip_results.json", to_json(results))
        for key, model in results.models.items():
            context.log.info("HotFlip on %s: success %.1f %%", key, 100 * (model.success_rate or 0))

    join_shards(context, units, to_json(sections), finish)


def attack_with_triggers(context: StageContext) -> None:
    """Write `uat_results.json`, `learned_triggers.csv` and `uat_records.jsonl`."""
    settings, paths, seed = context.settings, context.paths, context.seed
    attack = Attack(context)
    how = trigger_settings(settings, seed)
    units = paths.units(seed, "uat")
    sections = trigger_sections(
        attack.setup,
        attack.victim,
        attack.models,
        attack.examples("attack_optimize"),
        attack.examples("attack_evaluate"),
        how,
        cache_dir=units,
        shard=context.shard,
        gradient_free_types=gradient_free_types(settings),
    )

    def finish(parts: Sections) -> None:
        sections = decoded(parts, trigger_row)
        results = trigger_results(
            sections, attack.models, how.types, threshold=how.success_threshold, **attack.statistics
        )
        write_jsonl(paths.results(seed) / "uat_records.jsonl", rows_of(sections))
        write_text(paths.results(seed) / "learned_triggers.csv", learned_triggers_csv(results))
        context.write_result("uat_results.json", to_json(results))

    join_shards(context, units, to_json(sections), finish)
