"""The whole tree of final_results.json, and with it the sections that other rooms write: set-up, data, training.

Whoever adds a key to one of those files adds it here: an unknown key is refused, so that nothing is in the final
results that the documented schema does not have. Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from utils.analysis.attribution import ArmAttribution
from utils.analysis.claims import Measure
from utils.analysis.comparisons import AttackWarning, P, PairedTest, SuccessTest
from utils.analysis.mechanism import Mechanism
from utils.analysis.quality_curve import Matched
from utils.analysis.records import Count, Loss, Share
from utils.analysis.results import EvaluationResults, HotFlipResults, Models, Seconds, TriggerResults
from utils.core.codec import Keys, Pattern, Range
from utils.core.names import BASELINE, CONTROLS, MONOTONIC
from utils.data.records import DataStatistics

Sha256 = Annotated[str, Pattern("[0-9a-f]{64}")]


# ---- where it comes from -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Code:
    """Revision of the code."""

    commit: str
    dirty: Annotated[bool | None, "tracked files differed; null: not known"]


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Code, versions and machine of a stage."""

    code: Code
    versions: Annotated[dict[str, str], "of Python and the packages that results depend on"]
    device: str
    cudnn_attention: Annotated[bool | None, "torch may choose cuDNN's attention; null: torch was not loaded"]
    host: str
    slurm_job_id: str | None
    slurm_restarts: Count


@dataclass(frozen=True, kw_only=True)
class Machine(Surroundings):
    """Where stage 0 ran."""

    free_gb: Annotated[float, "on the work directory's file system, 10^9 bytes"]


@dataclass(frozen=True, kw_only=True)
class Model:
    """The pretrained model."""

    source: str
    revision: str | None
    parameters: Count
    weights_sha256: Sha256
    vocabulary: Count
    feed_forward: str


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What stage 0 found."""

    model: Model
    machine: Machine
    directories: dict[str, str]


# ---- training ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NormSummary:
    """Gradient norms of an epoch, before clipping."""

    mean: float
    max: float


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """One epoch of a training history. Times are left out where TRACK_TRAINING_TIME is off."""

    epoch: Annotated[Count, "from 1"]
    steps: Annotated[Count, "optimizer steps"]
    train_loss: Annotated[Loss, "nats per label token, with dropout, while the weights changed"]
    validation_loss: Annotated[Loss, "nats per label token, without dropout, after the epoch"]
    learning_rate: Annotated[float, "at the last step"]
    gradient_norm: Annotated[NormSummary | None, "with COMPUTE_GRADIENT_NORMS"]
    peak_memory_mb: Annotated[float, "of the GPU, else of the process, MiB"]
    seconds: Annotated[Seconds | None, "of the training steps, over all sessions; validation not counted"] = None
    examples_per_second: float | None = None
    tokens_per_second: Annotated[float | None, "label tokens"] = None
    cumulative_seconds: Annotated[float | None, "since the training began, over all sessions"] = None

    def without_times(self) -> EpochRow:
        """The same row as TRACK_TRAINING_TIME off reports it."""
        return replace(self, seconds=None, examples_per_second=None, tokens_per_second=None, cumulative_seconds=None)


@dataclass(frozen=True, kw_only=True)
class DataHashes:
    """The data that a model was trained on."""

    train: Sha256
    validation: Sha256


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What the arm promises about the feed-forward blocks, measured on the exported model."""

    min_weight: float
    negative_weight_share: Share
    zero_weight_share: Share
    ffn_matrices: Count
    ffn_weights: Count
    ffn_class: str
    monotone_ffn_blocks: Annotated[bool, "no violation was found"]
    violations: Annotated[Count, "outputs that fell though an input rose"]
    comparisons: Annotated[Count, "outputs looked at"]
    largest_relative_decrease: float
    convex_ffn_blocks: Annotated[bool | None, "no output at a middle was above the mean of its ends"] = None
    promises: Annotated[dict[str, bool] | None, "of the arm (configs/arms.py), and whether each is kept"] = None
    kept: Annotated[bool | None, "all of them"] = None
    tried: str
    scope: str


@dataclass(frozen=True, kw_only=True)
class StepPath:
    """CUDA graphs or kernel by kernel: what the check at the start of a training found."""

    path: Literal["graphs", "eager"]
    reason: Annotated[str, "why not graphs; empty where they are used"]
    eager_ms: Annotated[float | None, "a step's gradients, where both were timed"] = None
    graph_ms: float | None = None
    module_reason: Annotated[str | None, "why transformers' module computed the loss, where it did"] = None


@dataclass(frozen=True, kw_only=True)
class Training:
    """A finished training."""

    arm: str
    epochs: list[EpochRow]
    best_epoch: Annotated[Count, "lowest validation loss: the exported one"]
    best_validation_loss: Annotated[Loss, "nats per token"]
    total_steps: Count
    total_seconds: Annotated[Seconds, "of all sessions"]
    resumes: Annotated[Count, "times it was stopped and resumed"]
    sessions: Annotated[list[dict[str, Any]], "when and where"]
    settings: Annotated[dict[str, Any], "every setting of this training"]
    bfloat16: Annotated[bool, "mixed precision was used"]
    parameters: Count
    ffn_parameters: Annotated[Count, "in feed-forward matrices"]
    min_ffn_weight: Annotated[float, "smallest feed-forward weight of the export: at least 0 for monotonic"]
    initial_weights_sha256: Sha256
    weights_sha256: Sha256
    data_sha256: DataHashes
    step_path: Annotated[StepPath | None, "how the last session computed gradients, and why"] = None
    micro_batch_size: Annotated[Count | None, "examples at once at the end, whose gradients added up to a batch's"] = (
        None
    )
    audit: Audit | None = None


# ---- all together --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sentences:
    """The answer in sentences; empty where nothing is to be said."""

    attack: Annotated[str, "the primary comparison, by the first measure that can tell the models apart"]
    cost: Annotated[str, "what the constraint costs in ROUGE-L, and which loss is ruled out"]
    matched: Annotated[str, "the primary difference at equal quality; empty where there is none"] = ""
    attribution: Annotated[str, "what caused it: control arms; empty where none was trained"] = ""
    triggers: str
    doubt: Annotated[str, "the first of the doubts; empty without any"]


@dataclass(frozen=True, kw_only=True)
class Verdict(Sentences):
    """The answer in sentences, and the figures behind them: baseline (a) and monotonic (b)."""

    measure: Annotated[Measure, "the one that `attack` reads"]
    primary: Annotated[SuccessTest, "worst-case success: the primary test, in no family"]
    quality: Annotated[PairedTest, "ROUGE-L on the attack data set; Holm over all ROUGE comparisons"]
    non_inferiority_p: Annotated[P, "one-sided t-test of a loss of at least the margin"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a section comes from."""

    run_id: str
    config_fingerprint: str
    code: Code
    seconds: Annotated[float | None, "whole stage"]
    device: str | None


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that one seed of the experiment found, in figures."""

    confidence: Annotated[float, Range(0, 1), "of every interval"]
    quality_margin: Annotated[float, Range(0), "QUALITY_MARGIN: a loss of ROUGE-L that is no more than this is small"]
    setup: Setup
    data: DataStatistics
    baseline_training: Training
    monotonic_training: Training
    control_training: Annotated[dict[str, Training], Keys(CONTROLS), "of the arms in CONTROL_ARMS"]
    evaluation: EvaluationResults
    mechanism: Annotated[dict[str, Mechanism], Models, "what the feed-forward layers of each model are and do"]
    uat: TriggerResults
    hotflip: HotFlipResults
    matched: Annotated[Matched, "attack success at equal clean quality"]
    attribution: Annotated[dict[str, ArmAttribution], Keys(CONTROLS), "what each control arm reproduces"]
    warnings: Annotated[list[AttackWarning], "all doubts raised by the checks"]
    missing_datasets: Annotated[dict[str, str], "data set: why"]
    sources: Annotated[dict[str, Source], "by section"]

    @property
    def trainings(self) -> dict[str, Training]:
        """Every training, by arm."""
        return {BASELINE: self.baseline_training, MONOTONIC: self.monotonic_training, **self.control_training}


@dataclass(frozen=True, kw_only=True)
class FinalResults(Findings):
    """Everything that one seed of the experiment found, and the answer in words."""

    verdict: Verdict
    limits: Annotated[list[str], "what the result does not say"]


@dataclass(frozen=True, kw_only=True)
class Metadata(Surroundings):
    """When, where and from what a result file was made."""

    timestamp: Annotated[str, Pattern(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"), "local time"]
    run_id: Annotated[str, Pattern(r"\d{8}_\d{6}_seed\d+")]
    seed: Annotated[Count, "of the training"]
    unix_timestamp: Annotated[float, "start of the stage"]
    stage: str
    profile: Literal["full", "quick", "demo"]
    experiment: Annotated[str, "EXPERIMENT: empty for the one without a name"] = ""
    full_test_sets: bool
    settings: Annotated[dict[str, Any], "every setting that this file depends on"]
    config_fingerprint: Annotated[str, "hash of those settings"]
    seconds: Seconds
    inputs: Annotated[dict[str, Sha256], "files that this was made from"]
    checkpoints: Annotated[dict[str, Sha256], Models, "weights of each model"]
    missing_datasets: Annotated[dict[str, str], "data set: why"]
    files: Annotated[dict[str, Sha256], "every other file of the results directory"]


@dataclass(frozen=True, kw_only=True)
class FinalFile:
    """final_results.json of mono-s2s.

    ROUGE, rates and shares are from 0 to 1, losses in nats per token, times in seconds.
    """

    results: FinalResults
    _metadata: Metadata
