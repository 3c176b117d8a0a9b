"""The models of a seed as victims, loaded one at a time, and the examples that they are attacked on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from utils.attacks.context import Victim
from utils.attacks.encoding import Example
from utils.core.hashes import weights_sha256
from utils.core.paths import Paths, models_of
from utils.core.settings import Settings
from utils.data.store import load_prepared
from utils.evaluation.predictions import evaluated_summaries
from utils.modeling.models import choose_device, load_model


@dataclass(frozen=True)
class Victims:
    """What is known of each model before it is loaded, by model key.

    `directories`: the plain exports; `weights`: the hash of each one's weights; `summaries`: what stage 4 generated for
    the attack examples, by `generation.row_key` of the input, so that no clean summary is made twice.
    """

    directories: Mapping[str, Path]
    weights: Mapping[str, str]
    summaries: Mapping[str, Mapping[str, str]]
    device: str

    @classmethod
    def of(cls, settings: Settings, paths: Paths, seed: int) -> Victims:
        """The models of that seed; InputError where stage 4 evaluated others."""
        directories = {key: paths.model(seed, key) for key in models_of(settings)}
        weights = {key: weights_sha256(directory) for key, directory in directories.items()}
        examples = load_prepared(paths.prepared, "attack_evaluate")
        known = evaluated_summaries(examples, paths.results(seed), weights)
        return cls(directories, weights, known, choose_device(settings.DEVICE))

    def load(self, key: str) -> Victim:
        """The model of that key. Keep no reference to it for longer than it is attacked: memory holds one."""
        model = load_model(self.directories[key], device=self.device)
        return Victim(key, model, self.weights[key], self.summaries[key])


def load_examples(prepared: Path, split: str) -> list[Example]:
    """The attack examples of a split of stage 1: "attack_optimize" or "attack_evaluate"."""
    rows = load_prepared(prepared, split)
    return [Example(*row) for row in zip(rows["id"], rows["document"], rows["summary"], strict=True)]
