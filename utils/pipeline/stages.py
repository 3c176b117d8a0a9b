"""The stage graph, written once: number, name, needs, resources, settings, outputs. Torch-free.

python -m utils.pipeline.stages      prints the stage table of the README
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from utils.core.paths import Paths
from utils.core.text import slurm_time

_MODEL = ("PROFILE", "MODEL_NAME", "MODEL_REVISION")
_LENGTHS = ("TASK_PREFIX", "MAX_INPUT_LENGTH", "MAX_TARGET_LENGTH")
_TRAINING = ("LEARNING_RATE", "BATCH_SIZE", "WEIGHT_DECAY", "GRADIENT_CLIP", "PRECISION")
_DECODING = ("NUM_BEAMS", "LENGTH_PENALTY", "MIN_NEW_TOKENS", "MAX_NEW_TOKENS", "NO_REPEAT_NGRAM_SIZE")
_SCORING = ("BOOTSTRAP_SAMPLES", "CONFIDENCE")
_ATTACK = (
    "ATTACK_TOKEN_SET",
    "ATTACK_LOSS",
    "ATTACK_SUCCESS_THRESHOLD",
    "ATTACK_MIN_CLEAN_ROUGE",
    "ATTACK_CONTROLS",
)


@dataclass(frozen=True)
class Stage:
    """One stage. `minutes` and `memory_gb` are what its job asks for; `settings` are those it depends on itself."""

    number: int
    name: str
    wrapper: str
    needs: tuple[int, ...]
    gpu: bool
    memory_gb: int
    minutes: int
    purpose: str
    settings: tuple[str, ...]
    outputs: Callable[[Paths, int], list[Path]]
    per_seed: bool = True

    @property
    def resumable(self) -> bool:
        """Whether the stage saves finished units and goes on from them: the long ones, on the GPU."""
        return self.gpu

    @property
    def key(self) -> str:
        """Name with its number, as in flags and logs: 4_evaluate."""
        return f"{self.number}_{self.name}"

    @property
    def script(self) -> str:
        return f"scripts/stage_{self.key}.py"

    def seed_of(self, seed: int) -> int | None:
        """The seed that this stage's flag and log are named by: none for the stages that all seeds share."""
        return seed if self.per_seed else None


def _results(*names: str) -> Callable[[Paths, int], list[Path]]:
    return lambda paths, seed: [paths.results(seed) / name for name in names]


STAGES: tuple[Stage, ...] = (
    Stage(
        0,
        "setup",
        "jobs/job_0_setup.sh",
        (),
        False,
        16,
        30,
        "fetch and check T5-small, record the machine",
        (*_MODEL, "MAX_INPUT_LENGTH"),
        lambda paths, seed: [paths.pretrained, paths.results_root / "setup_complete.json"],
        per_seed=False,
    ),
    Stage(
        1,
        "prepare_data",
        "jobs/job_1_data.sh",
        (0,),
        False,
        32,
        120,
        "load, clean, decontaminate, tokenise",
        (
            *_LENGTHS,
            "TRAIN_DATASETS",
            "TEST_DATASETS",
            "DATASETS_FILE",
            "DATA_SEED",
            "USE_FULL_TEST_SETS",
            "QUICK_TEST_SIZE",
            "MAX_TRAIN_EXAMPLES",
            "DEDUPLICATE_TRAINING",
            "DATASET_ALLOW_PARTIAL",
            "TRIGGER_OPTIMIZE_SIZE_FULL",
            "TRIGGER_EVAL_SIZE_FULL",
        ),
        lambda paths, seed: [
            paths.prepared,
            paths.results_root / "data_statistics.json",
            paths.results_root / "removed_examples.jsonl",
        ],
        per_seed=False,
    ),
    Stage(
        2,
        "train_baseline",
        "jobs/job_2_baseline.sh",
        (0, 1),
        True,
        64,
        720,
        "fine-tune the control",
        (*_TRAINING, "NUM_EPOCHS", "WARMUP_RATIO"),
        lambda paths, seed: [
            paths.model(seed, "baseline"),
            paths.results(seed) / "baseline_training_history.json",
        ],
    ),
    Stage(
        3,
        "train_monotonic",
        "jobs/job_3_monotonic.sh",
        (0, 1),
        True,
        64,
        720,
        "fine-tune under W = softplus(V)",
        (*_TRAINING, "MONOTONIC_NUM_EPOCHS", "MONOTONIC_WARMUP_RATIO", "MONOTONIC_EPSILON", "CONTROL_ARMS"),
        lambda paths, seed: [
            paths.model(seed, "monotonic"),
            paths.results(seed) / "monotonic_training_history.json",
        ],
    ),
    Stage(
        4,
        "evaluate",
        "jobs/job_4_evaluate.sh",
        (2, 3),
        True,
        32,
        240,
        "summarise every test set with every model, ROUGE with confidence intervals",
        (*_DECODING, *_SCORING, "PRECISION"),
        _results("evaluation_results.json", "predictions.jsonl"),
    ),
    Stage(
        5,
        "uat_attacks",
        "jobs/job_5_uat.sh",
        (4,),
        True,
        16,
        180,
        "universal triggers: five types, transfer, controls",
        (
            *_ATTACK,
            *_DECODING,
            *_SCORING,
            "TRIGGER_TYPES",
            "TRIGGER_LENGTH",
            "TRIGGER_ITERATIONS",
            "TRIGGER_RESTARTS",
            "TRIGGER_CANDIDATES",
            "TRIGGER_GRADIENT_EXAMPLES",
            "TRIGGER_GRADIENT_FREE_TYPES",
            "TRIGGER_RANDOM_CONTROLS",
        ),
        _results("uat_results.json", "learned_triggers.csv", "uat_records.jsonl"),
    ),
    Stage(
        6,
        "hotflip_attacks",
        "jobs/job_6_hotflip.sh",
        (4,),
        True,
        16,
        120,
        "HotFlip: up to five flips an example, transfer, controls",
        (
            *_ATTACK,
            *_DECODING,
            *_SCORING,
            "HOTFLIP_NUM_FLIPS",
            "HOTFLIP_CANDIDATES",
            "HOTFLIP_SMOOTHGRAD_SAMPLES",
            "HOTFLIP_BEAM",
            "HOTFLIP_RESTARTS",
            "COMPUTE_GRADIENT_NORMS",
        ),
        _results("hotflip_results.json", "hotflip_records.jsonl"),
    ),
    Stage(
        7,
        "aggregate",
        "jobs/job_7_aggregate.sh",
        (5, 6),
        False,
        8,
        15,
        "combine, test, draw, copy to permanent storage",
        (*_SCORING,),
        lambda paths, seed: [
            *_results("final_results.json", "experiment_summary.txt", "report.html")(paths, seed),
            paths.final(seed) / "final_results.json",
        ],
    ),
)


def upstream(number: int) -> list[Stage]:
    """Every stage that `number` needs, directly or not, in order."""
    seen: set[int] = set()
    todo = list(STAGES[number].needs)
    while todo:
        needed = todo.pop()
        if needed not in seen:
            seen.add(needed)
            todo += STAGES[needed].needs
    return [STAGES[n] for n in sorted(seen)]


def table() -> str:
    """The stage table as markdown, as it stands in the README."""
    lines = ["| stage | needs | GPU | memory | time limit | what it does |", "|---|---|---|---|---|---|"]
    for item in STAGES:
        needs = ", ".join(map(str, item.needs)) or "-"
        gpu = "yes" if item.gpu else "no"
        lines.append(
            f"| {item.number} {item.name} | {needs} | {gpu} | {item.memory_gb} GB "
            f"| {slurm_time(item.minutes)} | {item.purpose} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
