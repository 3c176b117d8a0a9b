"""The stage graph, written once: number, name, needs, resources, settings, outputs. Torch-free.

python -m utils.pipeline.stages      prints the stage table of the README
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from utils.core.names import ARMS, BASELINE, MONOTONIC
from utils.core.output import keep_working_without_reader
from utils.core.paths import Paths
from utils.core.settings import Settings
from utils.core.text import slurm_time
from utils.pipeline.external_inputs import data_files, model_files

_LENGTHS = ("TASK_PREFIX", "MAX_INPUT_LENGTH", "MAX_TARGET_LENGTH")
_TRAINING = (
    "LEARNING_RATE",
    "BATCH_SIZE",
    "WEIGHT_DECAY",
    "GRADIENT_CLIP",
    "PRECISION",
    "COMPUTE_GRADIENT_NORMS",
    "TRACK_TRAINING_TIME",
)
_DECODING = ("NUM_BEAMS", "LENGTH_PENALTY", "MIN_NEW_TOKENS", "MAX_NEW_TOKENS", "NO_REPEAT_NGRAM_SIZE", "GENERATION")
_SCORING = ("BOOTSTRAP_SAMPLES", "CONFIDENCE")
_ATTACK = (
    "PRECISION",
    "ATTACK_TOKEN_SET",
    "ATTACK_LOSS",
    "ATTACK_SUCCESS_THRESHOLD",
    "ATTACK_MIN_CLEAN_ROUGE",
    "ATTACK_CONTROLS",
)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the experiment.

    needs: numbers of the stages whose outputs it reads. memory_gb, minutes, gpu: what its job asks for.
    settings: the settings that its results depend on, not counting those of the stages that it needs
    (tests/test_stage_settings.py traces what each stage reads). external: files of the user that it reads, by name.
    outputs: files and directories that a finished stage leaves. reports: names of those outputs that tell about the run
    (machine, time) and decide nothing that later stages compute: losing one, or writing it again, makes nothing stale.
    copies: numbers of the stages whose files it copies as they are, and so again when they were written again.
    progress: what a restarted stage resumes from; --force removes it. resumable: whether the stage saves progress when
    it is asked to stop, and continues from it. per_seed: False for what all seeds share.
    """

    number: int
    name: str
    wrapper: str
    needs: tuple[int, ...]
    gpu: bool = False
    memory_gb: int
    minutes: int
    purpose: str
    settings: tuple[str, ...]
    external: Callable[[Settings], Mapping[str, Path]] = lambda settings: {}
    outputs: Callable[[Paths, int], list[Path]]
    reports: tuple[str, ...] = ()
    copies: tuple[int, ...] = ()
    progress: Callable[[Paths, int], list[Path]] = lambda paths, seed: []
    resumable: bool = False
    per_seed: bool = True

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


def _cache(stage: str) -> Callable[[Paths, int], list[Path]]:
    return lambda paths, seed: [paths.units(seed, stage)]


STAGES: tuple[Stage, ...] = (
    Stage(
        number=0,
        name="setup",
        wrapper="jobs/job_0_setup.sh",
        needs=(),
        memory_gb=16,
        minutes=30,
        purpose="fetch and check T5-small, record the machine",
        settings=("PROFILE", "MODEL_NAME", "MODEL_REVISION"),
        external=model_files,
        outputs=lambda paths, seed: [paths.pretrained, paths.results_root / "setup_complete.json"],
        reports=("setup_complete.json",),
        per_seed=False,
    ),
    Stage(
        number=1,
        name="prepare_data",
        wrapper="jobs/job_1_data.sh",
        needs=(0,),
        memory_gb=32,
        minutes=120,
        purpose="load, clean, decontaminate, tokenise",
        settings=(
            *_LENGTHS,
            "TRAIN_DATASETS",
            "TEST_DATASETS",
            "ATTACK_DATASET",
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
        external=data_files,
        outputs=lambda paths, seed: [
            paths.prepared,
            paths.results_root / "data_statistics.json",
            paths.results_root / "removed_examples.jsonl",
        ],
        reports=("data_statistics.json", "removed_examples.jsonl"),
        per_seed=False,
    ),
    Stage(
        number=2,
        name="train_baseline",
        wrapper="jobs/job_2_baseline.sh",
        needs=(0, 1),
        gpu=True,
        memory_gb=64,
        minutes=720,
        purpose="fine-tune the control",
        settings=(*_TRAINING, "NUM_EPOCHS", "WARMUP_RATIO"),
        outputs=lambda paths, seed: [
            paths.model(seed, BASELINE),
            paths.results(seed) / "baseline_training_history.json",
        ],
        progress=lambda paths, seed: [paths.training(seed, BASELINE)],
        resumable=True,
    ),
    Stage(
        number=3,
        name="train_monotonic",
        wrapper="jobs/job_3_monotonic.sh",
        needs=(0, 1),
        gpu=True,
        memory_gb=64,
        minutes=720,
        purpose="fine-tune under W = softplus(V)",
        settings=(*_TRAINING, "MONOTONIC_NUM_EPOCHS", "MONOTONIC_WARMUP_RATIO", "MONOTONIC_EPSILON", "CONTROL_ARMS"),
        outputs=lambda paths, seed: [
            paths.model(seed, MONOTONIC),
            paths.results(seed) / "monotonic_training_history.json",
        ],
        progress=lambda paths, seed: [paths.training(seed, arm) for arm in ARMS if arm != BASELINE],
        resumable=True,
    ),
    Stage(
        number=4,
        name="evaluate",
        wrapper="jobs/job_4_evaluate.sh",
        needs=(2, 3),
        gpu=True,
        memory_gb=32,
        minutes=240,
        purpose="summarise every test set with every model, ROUGE with confidence intervals; mechanism panel",
        settings=(*_DECODING, *_SCORING, "PRECISION", "TRACK_INFERENCE_TIME", "ORDER_CHAINS"),
        outputs=_results("evaluation_results.json", "mechanism_results.json", "predictions.jsonl"),
        progress=_cache("evaluate"),
        resumable=True,
    ),
    Stage(
        number=5,
        name="uat_attacks",
        wrapper="jobs/job_5_uat.sh",
        needs=(4,),
        gpu=True,
        memory_gb=16,
        minutes=180,
        purpose="universal triggers: five types, transfer, controls",
        settings=(
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
            "CEILING_EXAMPLES",
            "CEILING_MOVES",
        ),
        outputs=_results("uat_results.json", "learned_triggers.csv", "uat_records.jsonl"),
        progress=_cache("uat"),
        resumable=True,
    ),
    Stage(
        number=6,
        name="hotflip_attacks",
        wrapper="jobs/job_6_hotflip.sh",
        needs=(4,),
        gpu=True,
        memory_gb=16,
        minutes=120,
        purpose="HotFlip: up to five flips an example, transfer, controls; every snapshot on 200 examples",
        settings=(
            *_ATTACK,
            *_DECODING,
            *_SCORING,
            "HOTFLIP_NUM_FLIPS",
            "HOTFLIP_CANDIDATES",
            "HOTFLIP_SMOOTHGRAD_SAMPLES",
            "HOTFLIP_BEAM",
            "HOTFLIP_RESTARTS",
            "CEILING_EXAMPLES",
            "CEILING_MOVES",
            "CEILING_SUMMARIES",
            "HOTFLIP_METRIC_EXAMPLES",
            "HOTFLIP_METRIC_POSITIONS",
            "HOTFLIP_METRIC_REPLACEMENTS",
            "HOTFLIP_METRIC_ROUNDS",
            "HOTFLIP_METRIC_SUMMARIES",
            "COMPUTE_GRADIENT_NORMS",
            "QUALITY_CURVE_EXAMPLES",
        ),
        outputs=_results(
            "hotflip_results.json",
            "hotflip_records.jsonl",
            "quality_curve_results.json",
            "quality_curve_records.jsonl",
            "attribution_results.json",
        ),
        progress=_cache("hotflip"),
        resumable=True,
    ),
    Stage(
        number=7,
        name="aggregate",
        wrapper="jobs/job_7_aggregate.sh",
        needs=(5, 6),
        memory_gb=8,
        minutes=15,
        purpose="combine, test, draw, copy to permanent storage",
        settings=("QUALITY_MARGIN",),
        copies=(2, 3, 4, 5, 6),
        outputs=lambda paths, seed: [
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
    keep_working_without_reader()
    print(table())
