"""A copy of the checkout whose stages are quick: real runner, flags, logs and signals, but the work is a file or two.

What a stage does is told by a JSON file beside the work directory, `behaviour.json`: {"4_evaluate": {"fail": "words"}}.
  fail WORDS     end with that error            crash          end without a word (exit code 9)
  fail_shard I   task I of a job array ends with an error
  units N        do N units, one file line each, of `seconds` each (default 0.1); interrupted ones go on
  seconds S      how long                       deaf           do not listen to signals
The tasks of a job array share the units, and the last one to finish writes the outputs.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def children_cpu_seconds() -> float:
    """Processor seconds of this process's children that have ended: what a command costs, whatever else runs here."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


STAGE = '''"""A quick stage for the tests of the shell layer."""
import json, os, sys, time
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils.core.errors import Interrupted, StageError
from utils.core.files import append_jsonl, read_jsonl, write_text
from utils.pipeline.shards import join_shards
from utils.pipeline.runner import run_stage
from utils.slurm.shared_jobs import refuse_by_hand

def work(context):
    told = context.paths.scratch.parent / "behaviour.json"
    behaviour = json.loads(told.read_text()).get(context.stage.key, {}) if told.exists() else {}
    if behaviour.get("fail"):
        raise StageError(behaviour["fail"])
    if behaviour.get("crash"):
        os._exit(9)
    if behaviour.get("deaf"):
        context.stop_requested = lambda: False
    index, count = context.shard
    if behaviour.get("fail_shard") == index:
        raise StageError(f"shard {index} is unlucky")
    name = "units.jsonl" if count == 1 else f"units_{index}.jsonl"
    units = context.paths.units(context.seed, context.stage.name) / name
    done = {row["unit"] for row in read_jsonl(units)} if units.exists() else set()
    mine = range(index, behaviour.get("units", 1), count)
    for unit in mine:
        if unit in done:
            continue
        if context.stop_requested():
            raise Interrupted()
        time.sleep(behaviour.get("seconds", 0.1 if "units" in behaviour else 0))
        append_jsonl(units, [{"unit": unit, "job": os.environ.get("SLURM_JOB_ID"),
                              "restarts": os.environ.get("SLURM_RESTART_COUNT", "0"),
                              "device": os.environ.get("CUDA_VISIBLE_DEVICES")}])

    def finish(sections):
        made = json.dumps({"seed": context.seed, "lr": context.settings.LEARNING_RATE, "stage": context.stage.key,
                           "units": sorted(row["unit"] for row in sections["units"])})
        for path in context.stage.outputs(context.paths, context.seed):
            write_text(path if path.suffix else path / "file", made)

    join_shards(context, units.parent, {"units": [{"unit": unit} for unit in mine]}, finish)

may_start = {"may_start": refuse_by_hand} if NUMBER < 2 else {}  # as the real scripts
sys.exit(run_stage(NUMBER, work, **may_start))
'''


class World:
    """A checkout, a scratch and a project directory of its own, and the environment that names them."""

    def __init__(self, root: Path, name: str = "a checkout") -> None:
        self.root, self.checkout = root, root / name
        self.scratch, self.project = root / "scratch", root / "project"
        self.work = self.scratch / "mono_s2s_work"
        ignore = shutil.ignore_patterns("__pycache__", "demo_run", "logs", "tests", ".git", ".venv", ".*_cache")
        shutil.copytree(ROOT, self.checkout, ignore=ignore)
        for script in sorted((ROOT / "scripts").glob("stage_*.py")):
            number = script.name.split("_")[1]
            (self.checkout / "scripts" / script.name).write_text(STAGE.replace("NUMBER", number))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MONO_S2S_", "SBATCH_"))}
        self.environment = kept | {
            "SCRATCH": str(self.scratch),
            "PROJECT": str(self.project),
            "MONO_S2S_PYTHON": sys.executable,
        }

    def behave(self, **stages: dict[str, Any]) -> None:
        """Tell the stages what to do, by key with a leading s: behave(s4_evaluate={"fail": "no disk"})."""
        told = {key.removeprefix("s"): what for key, what in stages.items()}
        (self.root / "behaviour.json").write_text(json.dumps(told))

    def run(self, *command: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command of the checkout (first word relative to it), run from elsewhere."""
        words = [str(self.checkout / command[0]), *command[1:]]
        return subprocess.run(
            words,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd="/",
            stdin=subprocess.DEVNULL,
        )

    def all(self, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """run_all.sh with these options."""
        return self.run("run_all.sh", *options, **environment)

    def flags(self) -> set[str]:
        """Names of the flags that are there, without ending."""
        return {path.stem for path in self.work.glob("*.flag")}

    def snapshot(self) -> dict[str, tuple[int, int]]:
        """Size and modification time (ns) of every file and directory below the root."""
        stats = {str(path.relative_to(self.root)): path.lstat() for path in self.root.rglob("*")}
        return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}

    def record(self, seed: int = 42) -> dict[str, Any]:
        """run.json of the seed's newest run."""
        runs = [json.loads(path.read_text()) for path in (self.work / "runs").glob("*/run.json")]
        return max((run for run in runs if run["seed"] == seed), key=lambda run: run["unix_timestamp"])
