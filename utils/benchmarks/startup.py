"""Start-up: what a stage imports before it works, against torch and transformers alone; login-node commands."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from utils.benchmarks.measure import Comparison, Way, alternate, check
from utils.benchmarks.synthetic import Size

ROOT = Path(__file__).resolve().parents[2]
PLAIN = "import torch; from transformers import AutoTokenizer, T5ForConditionalGeneration, Trainer"
SECONDS_HELP, SECONDS_DRY_RUN = 0.2, 1.0


def stage_modules() -> dict[int, str]:
    """For every stage script the module of its work: the one that it imports inside `work`."""
    found = {}
    for script in sorted((ROOT / "scripts").glob("stage_[0-9]_*.py")):
        lines = [line.split()[1] for line in script.read_text().splitlines() if line.startswith("    from utils.")]
        found[int(script.name.split("_")[1])] = lines[0]
    return found


def case(size: Size, device: str) -> list[Comparison]:
    """Every stage's imports, and the commands that a login node sees."""
    ways = [
        Way(f"stage {stage} imports", lambda module=module: _python(f"import utils.pipeline.runner, {module}"))
        for stage, module in stage_modules().items()
    ]
    plain = Way("torch and transformers alone", lambda: _python(PLAIN))
    # The slowest stage stands for all: it takes the place of `ours`.
    imports = Comparison("start-up, imports of the stages", "starts", [*ways, plain])
    alternate(imports, rounds=max(size.rounds, 3), device="cpu")
    ways.sort(key=lambda way: -sorted(way.seconds)[len(way.seconds) // 2])
    imports.ways = [*ways, plain]
    imports.targets = {plain.name: 1 / 1.3}
    commands = Comparison(
        "start-up, commands of a login node",
        "starts",
        [
            Way("run_all.sh --help", lambda: _command("run_all.sh", "--help")),
            Way("run_all.sh --dry-run", lambda: _command("run_all.sh", "--local", "--dry-run")),
            Way("stage_2_train_baseline.py --help", lambda: _script("stage_2_train_baseline.py")),
            Way("benchmark.py --help", lambda: _script("benchmark.py")),
        ],
    )
    alternate(commands, rounds=max(size.rounds, 3), device="cpu")
    for way in commands.ways:
        wanted = SECONDS_DRY_RUN if "dry" in way.name else SECONDS_HELP
        commands.notes.append(f"{way.name}: {min(way.seconds):.2f} s, wanted below {wanted} s")
    commands.checks.append(check(not _imports_torch(), "the help of a stage imports no torch"))
    return [imports, commands]


def _python(code: str) -> None:
    _timed([sys.executable, "-c", code])


def _command(name: str, *arguments: str) -> None:
    _timed([str(ROOT / name), *arguments])


def _script(name: str) -> None:
    _timed([sys.executable, str(ROOT / "scripts" / name), "--help"])


def _timed(command: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:  # a dry run touches nothing, but wants to know where it would
        places = {"SCRATCH": folder, "PROJECT": folder}
        subprocess.run(command, cwd=ROOT, env={**os.environ, **places}, capture_output=True, check=True)


def _imports_torch() -> bool:
    code = "import sys, utils.pipeline.runner; sys.exit('torch' in sys.modules)"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode != 0
