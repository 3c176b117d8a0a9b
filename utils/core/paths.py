"""Where everything lies: the directories and file names of the contract, in one place. Torch-free."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from utils.core.errors import UsageError
from utils.core.names import MODEL_KEYS, STANDARD
from utils.core.settings import Settings

CHECKOUT = Path(__file__).resolve().parents[2]


def models_of(settings: Settings) -> tuple[str, ...]:
    """The models that stages 4-6 look at: the three of the experiment, then the control arms, where there are any."""
    return (*MODEL_KEYS, *settings.CONTROL_ARMS)


@dataclass(frozen=True)
class Paths:
    """Directories of one profile and experiment. `suffix` keeps quick runs and named experiments apart.

    cache: downloads of the hub, which the experiments share.
    """

    scratch: Path
    project: Path
    suffix: str = ""
    cache: Path = Path()

    @classmethod
    def of(cls, settings: Settings) -> Paths:
        """The directories that the settings name; UsageError where SCRATCH_DIR or PROJECT_DIR is not set."""
        for name, variable in (("SCRATCH_DIR", "SCRATCH"), ("PROJECT_DIR", "PROJECT")):
            if not getattr(settings, name):
                raise UsageError(
                    f"{name} is not set: export {variable}=/a/directory (or MONO_S2S_{name}), "
                    "or edit configs/experiment_config.py."
                )
        profile = "_quick" if settings.PROFILE == "quick" else ""
        suffix = f"{profile}_{settings.EXPERIMENT}" if settings.EXPERIMENT else profile
        cache = Path(settings.HF_CACHE_DIR or Path(settings.SCRATCH_DIR) / f"mono_s2s_work{profile}" / "hf_cache")
        return cls(Path(settings.SCRATCH_DIR), Path(settings.PROJECT_DIR), suffix, cache)

    def check_writable(self, *seeds: int) -> None:
        """UsageError unless all directories that a run writes to exist or can be made, and take files; touches nothing.

        Also those of the last stage: a permanent directory that takes no results is found out now, not a day later.
        """
        check_directory("SCRATCH_DIR", self.scratch)
        check_directory("PROJECT_DIR", self.project)
        for path in (self.work, self.results_root, *(self.results(seed) for seed in seeds)):
            check_directory("SCRATCH_DIR", path)
        for path in (self.final_root, *(self.final(seed) for seed in seeds)):
            check_directory("PROJECT_DIR", path)

    @property
    def work(self) -> Path:
        return self.scratch / f"mono_s2s_work{self.suffix}"

    @property
    def results_root(self) -> Path:
        return self.scratch / f"mono_s2s_results{self.suffix}"

    @property
    def final_root(self) -> Path:
        return self.project / f"mono_s2s_final_results{self.suffix}"

    @property
    def multi_seed(self) -> Path:
        return self.project / f"mono_s2s_multi_seed_results{self.suffix}"

    @property
    def variants(self) -> Path:
        """The page about several experiments."""
        return self.project / f"mono_s2s_variants{self.suffix}"

    @property
    def pretrained(self) -> Path:
        """The `standard` model and the tokenizer of all models."""
        return self.work / "pretrained"

    @property
    def prepared(self) -> Path:
        """Tokenised data sets and their manifest."""
        return self.work / "prepared_data"

    def prepared_elsewhere(self) -> list[Path]:
        """Prepared data of other experiments, finished."""
        flags = self.scratch.glob(f"mono_s2s_work*/{self._tag('1_prepare_data', None)}.flag")
        return sorted(flag.parent / self.prepared.name for flag in flags if flag.parent != self.work)

    @property
    def demo_corpus(self) -> Path:
        return self.work / "demo_corpus"

    @property
    def runs(self) -> Path:
        """Records of submitted runs: job ids, sbatch lines, frozen settings."""
        return self.work / "runs"

    def results(self, seed: int) -> Path:
        return self.results_root / f"seed_{seed}"

    def final(self, seed: int) -> Path:
        return self.final_root / f"seed_{seed}"

    def training(self, seed: int, arm: str) -> Path:
        """Checkpoints of one training: epoch_1/ ... and best/."""
        return self.work / f"seed_{seed}" / f"{arm}_model"

    def model(self, seed: int, key: str) -> Path:
        """The plain export that evaluation and attacks read."""
        return self.pretrained if key == STANDARD else self.training(seed, key) / "best"

    def units(self, seed: int, stage: str) -> Path:
        """The cache of a resumable stage (by its name): finished pieces that a restarted stage takes over."""
        return self.work / f"seed_{seed}" / f"{stage}_units"

    def flag(self, stage: str, seed: int | None) -> Path:
        return self.work / f"{self._tag(stage, seed)}.flag"

    @property
    def known_hashes(self) -> Path:
        """A cache of content hashes (utils/core/hashes.py)."""
        return self.work / "stage_logs" / "hashes.json"

    def forced(self, stage: str, seed: int) -> Path:
        """Which forced run removed the stage's earlier progress: it does that once, and resumes afterwards."""
        return self.work / f"seed_{seed}" / f"{stage}_forced.json"

    def log(self, stage: str, seed: int | None) -> Path:
        return self.work / "stage_logs" / f"{self._tag(stage, seed)}.log"

    def lock(self, stage: str, seed: int | None, shard: tuple[int, int] = (0, 1)) -> Path:
        """The lock file that a process holds while it does this shard of the stage."""
        return self.log(stage, seed).with_suffix(f".{shard[0]}of{shard[1]}.lock")

    def locks(self, stage: str, seed: int | None) -> list[Path]:
        """The lock files of all shards of the stage that were ever started."""
        log = self.log(stage, seed)
        return sorted(log.parent.glob(f"{log.stem}.*of*.lock"))

    @staticmethod
    def _tag(stage: str, seed: int | None) -> str:
        return f"stage_{stage}" if seed is None else f"stage_{stage}_seed{seed}"


def check_directory(setting: str, directory: Path) -> None:
    """UsageError unless `directory` exists or can be made, and takes files; touches nothing. `setting` named it."""
    there = directory
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what_it_is = "" if there.is_dir() else ", which is no directory"
        raise UsageError(f"{setting} ({directory}): cannot write to {there}{what_it_is}. Choose a directory of yours.")
