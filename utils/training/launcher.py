"""One training on what the machine has: in this process, or on all GPUs of the job, which share every batch.

For several GPUs torchrun starts a process for each. The stage's own process stays what the job wrapper sees: it starts
torchrun, passes a stop on, and takes the history or the error that the processes leave behind. Each of them runs
`python -m utils.training.launcher JOB.json`.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from utils.core.errors import InputError, Interrupted, StageError, UserError
from utils.core.files import write_json
from utils.core.paths import CHECKOUT
from utils.data.store import load_prepared
from utils.training import ranks
from utils.training.train import TrainingSettings, train

SECONDS_BETWEEN_LOOKS = 0.5
ERRORS = {kind.__name__: kind for kind in (StageError, InputError, Interrupted)}


log = logging.getLogger("mono_s2s.training")


@dataclass(frozen=True)
class TrainingJob:
    """One training, as every process of it gets to know it."""

    arm: str  # decides the constraint: `monotonic.constrain`
    pretrained_dir: Path  # model and tokenizer that it starts from
    prepared_dir: Path  # with the data sets `train` and `validation`
    output_dir: Path  # gets epoch_1/, ... and best/
    settings: TrainingSettings

    def train_here(self, stop_requested: Callable[[], bool]) -> dict[str, Any]:
        """`train` in this process; the history, or an empty one where this is one of several and not the first."""
        return train(
            arm=self.arm,
            pretrained_dir=self.pretrained_dir,
            train_set=load_prepared(self.prepared_dir, "train"),
            validation_set=load_prepared(self.prepared_dir, "validation"),
            output_dir=self.output_dir,
            settings=self.settings,
            stop_requested=stop_requested,
        )

    def write(self, file: Path) -> None:
        paths = {name: str(Path(getattr(self, name)).absolute()) for name in _DIRECTORIES}
        write_json(file, {"arm": self.arm, "settings": asdict(self.settings), **paths})

    @classmethod
    def read(cls, file: Path) -> TrainingJob:
        job = json.loads(file.read_text(encoding="utf-8"))
        paths = {name: Path(job[name]) for name in _DIRECTORIES}
        return cls(arm=job["arm"], settings=TrainingSettings(**job["settings"]), **paths)


_DIRECTORIES = ("pretrained_dir", "prepared_dir", "output_dir")


def run_training(job: TrainingJob, stop_requested: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Train on the visible GPUs, or on the CPU; returns the history and raises as `train.train` does."""
    processes = processes_for(job.settings.device, job.settings.batch_size)
    if processes == 1:
        return job.train_here(stop_requested)
    log.info("%s: %d GPUs share every batch of %d", job.arm, processes, job.settings.batch_size)
    return train_in_processes(processes, job, stop_requested)


def processes_for(device: str, batch_size: int) -> int:
    """How many processes train: one for each visible GPU, but none that would get no example of a batch."""
    return max(min(torch.cuda.device_count(), batch_size), 1) if device == "cuda" else 1


def train_in_processes(
    processes: int, job: TrainingJob, stop_requested: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """The training by several processes that share each batch: returns the history, raises what one of them raised."""
    with tempfile.TemporaryDirectory(prefix="mono_s2s_training_") as folder:
        job_file = Path(folder) / "job.json"
        job.write(job_file)
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *torchrun, "-m", "utils.training.launcher", str(job_file)]
        path = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
        running = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})
        try:
            while running.poll() is None:
                if stop_requested():
                    (job_file.parent / "stop").touch()
                time.sleep(SECONDS_BETWEEN_LOOKS)
        finally:
            if running.poll() is None:
                running.terminate()  # torchrun ends its processes
                running.wait()
        return _outcome(job_file.parent, running.returncode)


def _outcome(folder: Path, exit_code: int) -> dict[str, Any]:
    """What the processes left in `folder`: the history, or else the first error."""
    outcomes = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("outcome_*.json"))]
    for outcome in outcomes:
        if "history" in outcome and exit_code == 0:
            history: dict[str, Any] = outcome["history"]
            return history
    for outcome in outcomes:
        if "error" in outcome:
            raise ERRORS[outcome["error"]](outcome["message"])
    raise StageError(f"Training failed with exit code {exit_code}; see the traceback above.")


def main(job_file: Path) -> int:
    """What each process does: train, and leave its outcome beside `job_file`."""
    number, signals = int(os.environ["RANK"]), list[int]()
    signal.signal(signal.SIGTERM, lambda signum, _: signals.append(signum))
    level = logging.INFO if number == 0 else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    stop_file = job_file.parent / "stop"
    outcome: dict[str, Any]
    try:
        history = TrainingJob.read(job_file).train_here(lambda: bool(signals) or stop_file.exists())
        outcome = {"history": history} if number == 0 else {}
    except (UserError, Interrupted) as error:
        kind = next(name for name, known in ERRORS.items() if isinstance(error, known))
        outcome = {"error": kind, "message": str(error)}
    write_json(job_file.parent / f"outcome_{number}.json", outcome)
    if "error" in outcome and outcome["error"] != "Interrupted":
        # Torchrun now ends the others. They may be waiting for this one in a collective operation, and an orderly end
        # of the group would wait for them.
        os._exit(1)
    ranks.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
