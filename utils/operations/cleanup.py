"""clean_all.sh and clean_checkpoints.sh: show what goes and how big it is, ask, delete that and nothing else.

Only what this project makes below its work and results directories is ever deleted, and what it does not know there is
left and named. Permanent results, and a download cache outside the work directory, are never touched. Torch-free.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from utils.core.errors import UsageError
from utils.core.paths import Paths
from utils.core.settings import load_settings
from utils.core.text import byte_size, printable
from utils.operations.running import refuse_while_running
from utils.pipeline.flags import problem_of
from utils.pipeline.stages import STAGES
from utils.slurm.live_jobs import known_seeds
from utils.slurm.run_record import records
from utils.training.checkpoints import not_needed_to_resume
from utils.training.snapshots import DIRECTORY as SNAPSHOTS

CACHES = ("pretrained", "prepared_data", "hf_cache", "demo_corpus", "demo_model")  # made by stages 0 and 1
CURVE = next(stage for stage in STAGES if stage.name == "hotflip_attacks")
OURS = ("runs", "stage_logs")


def clean_all(seed: int | None, *, keep_cache: bool = False, force: bool = False) -> int:
    """Delete what a seed (None: every run) made on scratch; returns the exit code."""
    paths = Paths.of(load_settings())
    return _clean(paths, _all_of(paths, seed, keep_cache), None if seed is None else [seed], force)


def clean_checkpoints(seeds: Sequence[int], *, force: bool = False) -> int:
    """Delete the checkpoints of these seeds (none: of all) that nothing needs; returns the exit code."""
    paths = Paths.of(load_settings())
    chosen = list(seeds) or known_seeds(paths)
    return _clean(paths, _checkpoints(paths, chosen), chosen, force)


def _clean(paths: Paths, targets: list[Path], seeds: list[int] | None, force: bool) -> int:
    targets = [path for path in targets if path.exists() or path.is_symlink()]
    if not targets:
        print("nothing to delete.")
        return 0
    _show(targets, paths)
    if unseen := refuse_while_running(paths, seeds):
        print(f"note: {unseen}", file=sys.stderr)
    if not force and not _agreed():
        print("nothing was deleted.")
        return 0
    for path in targets:
        _delete(path)
    print(f"deleted. Kept: {paths.final_root}")
    return 0


def _all_of(paths: Paths, seed: int | None, keep_cache: bool) -> list[Path]:
    """What one seed made, or everything; flags go first, so that nothing half-deleted looks done."""
    if seed is not None:
        owned = [stage for stage in STAGES if stage.per_seed]
        flags = [paths.flag(stage.key, seed) for stage in owned]
        logs = [path for stage in owned for path in _logs(paths, stage.key, seed)]
        runs = [*(record.directory for record in records(paths, seed)), paths.runs / f"seed_{seed}.lock"]
        return [*flags, paths.work / f"seed_{seed}", paths.results(seed), *logs, *runs]
    shared = {path.name for stage in STAGES if not stage.per_seed for path in _files_of_shared(paths, stage.key)}
    kept = {*CACHES, *shared} if keep_cache else set()
    if others := _experiments_beside(paths):
        kept.add(paths.cache.name)
        print(f"left alone, experiments {', '.join(others)} use it too: {printable(paths.cache)}")
    known = [path for path in sorted(_children(paths.work)) if _is_ours(path) and path.name not in kept]
    made = {path for stage in STAGES if not stage.per_seed for path in stage.outputs(paths, 0)}
    results = [path for path in sorted(_children(paths.results_root)) if _is_ours(path) or path in made]
    unknown = [path for path in _children(paths.work) if not _is_ours(path)]
    unknown += [path for path in _children(paths.results_root) if path not in results]
    results = [path for path in results if not keep_cache or path not in made]
    for path in unknown:
        print(f"left alone, not made by this project: {printable(path)}")
    if keep_cache:
        logs = [path for path in known if path.name == "stage_logs"]
        known = [path for path in known if path.name != "stage_logs"]
        known += [path for folder in logs for path in _children(folder) if path.name not in shared]
    return sorted(known, key=lambda path: (path.suffix != ".flag", path)) + results


def _checkpoints(paths: Paths, seeds: list[int]) -> list[Path]:
    """Checkpoints that nothing needs any more: neither resuming, nor the curve of equal quality that stage 6 makes.

    `best/`, the export that the later stages read, is none of them.
    """
    surplus = []
    settings = load_settings()
    for seed in seeds:
        trainings = sorted((paths.work / f"seed_{seed}").glob("*_model"))
        # Stage 6 attacks the snapshots and the weights of every epoch.
        curve = settings.QUALITY_CURVE_EXAMPLES and problem_of(CURVE, seed, paths, settings) is not None
        surplus += [path for training in trainings for path in not_needed_to_resume(training, keep_epochs=bool(curve))]
        if curve and trainings:
            print(
                f"kept for stage 6 of seed {seed}, which is not done: early snapshots and the weights of every epoch "
                "(QUALITY_CURVE_EXAMPLES=0 does without them)"
            )
        surplus += [] if curve else [training / SNAPSHOTS for training in trainings]
    return surplus


def _experiments_beside(paths: Paths) -> list[str]:
    """Names of other experiments that have work beside this one and take their downloads from below it."""
    if paths.cache.parent != paths.work or not paths.cache.exists():
        return []
    names = [path.name.removeprefix(f"{paths.work.name}_") for path in paths.work.parent.glob(f"{paths.work.name}_*")]
    mine = [name for name in names if paths.suffix or not f"{name}_".startswith("quick_")]  # that has its own downloads
    return sorted(name for name in mine if _children(Path(f"{paths.work}_{name}")))


def _is_ours(path: Path) -> bool:
    name = path.name.lstrip(".")
    return (
        name in CACHES
        or name in OURS
        or (name.startswith("seed_") and name.removeprefix("seed_").isdigit())
        or (name.startswith("stage_") and path.suffix == ".flag")
        or (path.name.startswith(".") and path.suffix in (".lock", ".tmp"))
    )


def _files_of_shared(paths: Paths, key: str) -> list[Path]:
    return [paths.flag(key, None), *_logs(paths, key, None)]


def _logs(paths: Paths, key: str, seed: int | None) -> list[Path]:
    return [paths.log(key, seed), *paths.locks(key, seed)]


def _children(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _show(targets: list[Path], paths: Paths) -> None:
    sizes = {path: sum(size for _, size in _files(path)) for path in targets}
    print("these will be deleted:")
    for path, size in sizes.items():
        print(f"  {byte_size(size):>9}  {printable(path)}")
    print(f"  {byte_size(sum(sizes.values())):>9}  in all")
    print(f"kept: permanent results in {paths.final_root}")


def _files(path: Path) -> Iterator[tuple[Path, int]]:
    for file in path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]:
        with contextlib.suppress(FileNotFoundError):
            if not file.is_dir():
                yield file, file.lstat().st_size


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise UsageError("standard input is not a terminal, so you cannot be asked. Delete without asking: --force.")
    return input("Delete it? [y/N] ").strip().lower() in ("y", "yes")


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
