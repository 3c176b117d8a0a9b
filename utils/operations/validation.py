"""validate_setup.sh: is this machine, this configuration and this cluster ready? Torch-free but for the smoke test.

Each check is a line: ok, warning or PROBLEM, with what was found and, where it is not ok, what to do about it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from utils.core.errors import InputError, UserError
from utils.core.packages import missing, other_versions
from utils.core.paths import CHECKOUT, Paths
from utils.core.provenance import code_revision, why_no_revision
from utils.core.results import read_result
from utils.core.settings import Settings, load_settings
from utils.core.text import last_line, one_line, slurm_time
from utils.data.deadlines import host_to_find, is_found
from utils.data.hub import known_pin
from utils.data.registry import DatasetSource
from utils.operations.check import OK, PROBLEM, WARNING, Check
from utils.operations.cluster_checks import cluster_checks
from utils.operations.training_memory import gpu_count, memory_check
from utils.pipeline.external_inputs import model_directory
from utils.pipeline.flags import problem_of
from utils.pipeline.stages import STAGES
from utils.slurm import sbatch
from utils.slurm.inputs import check_inputs, own_sources
from utils.training.snapshots import FRACTIONS

HUB_SECONDS = 10
QUOTA_SECONDS = 20
SMOKE_SECONDS = 300
CHECKPOINT_GB = 0.95  # T5-small: weights 0.24 GB, two Adam moments, scheduler; two of them are kept, and every epoch
EPOCH_GB = 0.24
DATA_GB = 12.0  # downloads 9 GB, tokenised cache 1.5 GB, the model


def main(python: str) -> int:
    """Check everything for stages that `python` ("" for none) will run; returns 0 ready, 1 there is a problem."""
    try:
        settings = load_settings()
        paths = Paths.of(settings)
    except UserError as error:
        Check(PROBLEM, "settings", str(error), "correct configs/experiment_config.py or the variables named").show()
        return 1
    worst = 0
    for check in _checks(settings, paths, python):
        check.show()
        worst = max(worst, check.state == PROBLEM)
    print()
    print(_needs(settings))
    print("\nNot ready: fix the items marked PROBLEM." if worst else "\nready.")
    return int(worst)


def _checks(settings: Settings, paths: Paths, python: str) -> Iterator[Check]:
    yield Check(OK, "settings", f"profile {settings.PROFILE}, {settings.NUM_EPOCHS} epochs for both models")
    environment = _python(python)
    yield environment
    if environment.state == OK:
        yield from _packages(python)
    yield _revision()
    yield from _directories(settings, paths)
    yield from cluster_checks(settings)
    yield from _inputs(settings, paths)
    if memory := memory_check(settings, paths):
        yield memory
    if environment.state == OK:
        yield _smoke(settings, python)


def _python(python: str) -> Check:
    if not python:
        fix = "activate an environment, or: python3 -m venv .venv && .venv/bin/pip install -r requirements.txt"
        return Check(PROBLEM, "environment", "none is active, and there is no .venv", fix)
    code = "import sys; print('.'.join(map(str, sys.version_info[:3])))"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        cause = last_line(getattr(error, "stderr", "")) or one_line(error)
        fix = "deactivate it, or activate another (MONO_S2S_PYTHON, VIRTUAL_ENV, CONDA_PREFIX choose, in this order)"
        return Check(PROBLEM, "environment", f"{python} does not start: {cause}", fix)
    version = done.stdout.strip()
    fits = (3, 10) <= tuple(map(int, version.split(".")[:2])) <= (3, 12)
    fix = "" if fits else "Python 3.10 to 3.12 is needed"
    return Check(OK if fits else PROBLEM, "environment", f"{python}, Python {version}", fix)


def _packages(python: str) -> Iterator[Check]:
    requirements = CHECKOUT / "requirements.txt"
    if Path(python).resolve() != Path(sys.executable).resolve():  # ask the interpreter that will run the stages
        words = [python, str(CHECKOUT / "scripts" / "mono_s2s.py"), "packages", str(requirements)]
        lacks = subprocess.run(words, capture_output=True, text=True).stdout.split()
        odd = {}
    else:
        lacks, odd = missing(requirements), other_versions(requirements)
    if lacks:
        yield Check(PROBLEM, "packages", f"lacking: {', '.join(lacks)}", f"{python} -m pip install -r {requirements}")
    else:
        yield Check(OK, "packages", "all of requirements.txt")
    for name, (here, pinned) in odd.items():
        yield Check(WARNING, "packages", f"{name} {here}, tested with {pinned}", f"pip install {name}=={pinned}")


def _revision() -> Check:
    code = code_revision()
    if code["commit"] == "unknown":
        return Check(WARNING, "code", "the revision is unknown, results will not name it", why_no_revision())
    dirty = "changed since" if code["dirty"] else "unchanged"
    fix = "commit the changes, so that results name what made them" if code["dirty"] else ""
    return Check(WARNING if code["dirty"] else OK, "code", f"{code['commit'][:10]}, {dirty}", fix)


def _directories(settings: Settings, paths: Paths) -> Iterator[Check]:
    try:
        paths.check_writable()
        yield Check(OK, "directories", f"{paths.scratch} and {paths.project} can be written")
    except UserError as error:
        yield Check(PROBLEM, "directories", str(error), "export SCRATCH=/yours PROJECT=/yours")
        return
    for name, root, needed in (("scratch", paths.scratch, _disk_gb(settings)), ("project", paths.project, 1.0)):
        there = root
        while not there.exists():
            there = there.parent
        free = shutil.disk_usage(there).free / 1e9
        words = f"{free:,.0f} GB free, a seed needs about {needed:,.1f}"
        fix = "" if free > needed else "make room: ./clean_checkpoints.sh, or another directory (df -h, quota -s)"
        yield Check(OK if free > needed else PROBLEM, f"space in {name}", words, fix)
    yield from _quota()


def _quota() -> Iterator[Check]:
    """What `quota` says of this user; the free space of a shared file system does not tell what one may use of it."""
    if not shutil.which("quota"):
        return
    try:
        done = subprocess.run(["quota", "--quiet"], capture_output=True, text=True, timeout=QUOTA_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Check(WARNING, "quota", f"not known: {error}", "the cluster's own command tells (Alpine: curc-quota)")
        return
    over = " ".join(done.stdout.split())  # with --quiet it names only what is over its limit
    if over:
        yield Check(PROBLEM, "quota", over, "make room: ./clean_checkpoints.sh, or another directory")
    else:
        yield Check(OK, "quota", "nothing over its limit, as far as quota tells")


def _inputs(settings: Settings, paths: Paths) -> Iterator[Check]:
    problems = {stage: problem_of(stage, 42, paths, settings) for stage in STAGES[:2]}
    for stage, problem in problems.items():
        if problem and paths.flag(stage.key, None).exists():
            yield Check(WARNING, "model and data", f"stage {stage.key} will run again: {problem}")
    model_done, data_done = (problem is None for problem in problems.values())
    try:
        lacking = _missing_sets(paths) if data_done else []
        check_inputs([stage for stage, problem in problems.items() if problem], settings)
        wanted = own_sources(settings)
    except UserError as error:
        yield Check(PROBLEM, "model and data", str(error), "correct what is named")
        return
    if model_done and data_done:
        words = "prepared: later stages need no network"
        if lacking:
            fix = "if they can be had now: ./run_all.sh --stage 1 --stop-stage 1 --force"
            yield Check(WARNING, "model and data", f"{words}; but without {', '.join(lacking)}", fix)
        else:
            yield Check(OK, "model and data", words)
        return
    local = all(source.files for source in wanted)
    model = settings.PROFILE == "demo" or model_directory(settings) or model_done
    if local and model:
        yield Check(OK, "model and data", "local: no network is needed")
        return
    if _hub_answers():
        words = "the hub answers here; nodes that run stages 0 and 1 need it as well"
        yield Check(
            OK, "model and data", words, "nodes without internet: ./run_all.sh --local --stop-stage 1 here first"
        )
        return
    cache = paths.cache
    if model and all(source.files or _pinned(cache, source) for source in wanted):
        words = f"the hub does not answer here; stage 1 can take all from {cache}, if an earlier run got that far"
        yield Check(WARNING, "model and data", words, "./run_all.sh --local --stop-stage 1 tries it in seconds")
    else:
        fix = "run stages 0 and 1 where there is internet, or name local copies (docs/own-data.md)"
        yield Check(PROBLEM, "model and data", "not prepared, and the hub does not answer here", fix)


def _missing_sets(paths: Paths) -> list[str]:
    path = paths.results_root / "data_statistics.json"
    results = read_result(path)["results"]
    missing = results.get("missing") if isinstance(results, dict) else None
    if not isinstance(missing, dict):
        raise InputError(f"{path} is damaged: ./run_all.sh --stage 1 --stop-stage 1 --force writes it again.")
    return sorted(missing)


def _pinned(cache: Path, source: DatasetSource) -> bool:
    return any(known_pin(copy.repository, copy.revision, cache_dir=cache) for copy in source.hub_copies)


def _hub_answers() -> bool:
    import http.client
    import urllib.error
    import urllib.request

    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/") + "/api/models/google-t5/t5-small"
    try:
        if not is_found(host_to_find(url), HUB_SECONDS):
            return False
        with urllib.request.urlopen(url, timeout=HUB_SECONDS):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, ValueError, http.client.HTTPException):  # ValueError: HF_ENDPOINT is no address
        return False


def _smoke(settings: Settings, python: str) -> Check:
    """Two training steps of a tiny T5 on the device that the settings name, where this machine has it."""
    words = [python, str(CHECKOUT / "scripts" / "smoke_training.py"), "--device", settings.DEVICE]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SMOKE_SECONDS)
    except subprocess.TimeoutExpired:
        return Check(
            PROBLEM, "two training steps", f"not done within {SMOKE_SECONDS} s", "look at the load of this machine"
        )
    last = last_line(done.stdout) or last_line(done.stderr, default="it printed nothing")
    if done.returncode == 0:
        return Check(OK, "two training steps", last)
    if done.returncode == 3:
        fix = "right for a login node; where the GPU stages run there must be one"
        return Check(WARNING, "two training steps", last, fix)
    return Check(PROBLEM, "two training steps", last, f"{' '.join(words)} shows the whole error")


def _disk_gb(settings: Settings) -> float:
    if settings.PROFILE == "demo":
        return 0.2
    arms = 2 + len(settings.CONTROL_ARMS)
    weights = (settings.NUM_EPOCHS + len(FRACTIONS)) * EPOCH_GB  # of one arm: every epoch, and early snapshots
    return DATA_GB + arms * (settings.CHECKPOINTS_TO_KEEP * CHECKPOINT_GB + weights) + 0.5


def _needs(settings: Settings) -> str:
    """What one seed asks of the cluster, by stage; hours are limits, not expectations."""
    lines = ["one seed asks for (limits, not expectations):"]
    gpu_minutes = 0
    gpus = gpu_count(settings.SLURM_GRES.split("|")[0])
    for stage in STAGES:
        minutes, tasks = sbatch.time_limit(stage, settings), sbatch.array_tasks(stage, settings)
        gpu_minutes += minutes * tasks * gpus if stage.gpu else 0
        memory = f"{sbatch.memory_mb(stage, settings) / 1024:.0f} GB"
        times = f"{tasks} x " if tasks > 1 else ""
        kind = f"{gpus} GPU{'s' if gpus > 1 else ''}" if stage.gpu else "no GPU"
        lines.append(f"  {stage.key:<18} {times}{slurm_time(minutes)}  {memory:>6}  {kind}")
    if settings.QUALITY_CURVE_EXAMPLES:
        snapshots = (2 + len(settings.CONTROL_ARMS)) * (settings.NUM_EPOCHS + len(FRACTIONS))
        lines.append(
            f"  stage 6 attacks {snapshots} snapshots on {settings.QUALITY_CURVE_EXAMPLES} examples each "
            "(QUALITY_CURVE_EXAMPLES=0: none)"
        )
    lines.append(f"  together at most {gpu_minutes / 60:.1f} GPU hours, and {_disk_gb(settings):.1f} GB of scratch")
    return "\n".join(lines)
