"""One training on all GPUs of a job: torchrun starts a process for each, and they share every batch.

The stage's own process stays what the job wrapper sees: it starts torchrun, passes a stop on, and takes the history or
the error that the processes leave. `python -m utils.training.launcher JOB.json` is what torchrun runs in each of them.
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
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.core.errors import InputError, Interrupted, StageError, UserError
from utils.core.files import write_json
from utils.core.paths import CHECKOUT

if TYPE_CHECKING:
    from utils.training.train import TrainingSettings

SECONDS_BETWEEN_LOOKS = 0.5
ERRORS = {kind.__name__: kind for kind in (StageError, InputError, Interrupted)}


def processes_for(device: str, batch_size: int) -> int:
    """How many processes train here: one for each visible GPU, but none that would get no example of a batch."""
    if device != "cuda":
        return 1
    import torch

    return max(min(torch.cuda.device_count(), batch_size), 1)


def train_on_all(
    processes: int,
    *,
    arm: str,
    pretrained_dir: Path,
    prepared_dir: Path,
    output_dir: Path,
    settings: TrainingSettings,
    stop_requested: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """`train.train` by several processes that share each batch: returns the history, raises what it raises.

    The training and validation sets are those of `prepared_dir`.
    """
    with tempfile.TemporaryDirectory(prefix="mono_s2s_training_") as folder:
        job = Path(folder) / "job.json"
        places = {"pretrained_dir": pretrained_dir, "prepared_dir": prepared_dir, "output_dir": output_dir}
        paths = {name: str(Path(path).absolute()) for name, path in places.items()}
        write_json(job, {"arm": arm, "settings": asdict(settings), **paths})
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *torchrun, "-m", "utils.training.launcher", str(job)]
        path = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
        running = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})
        try:
            while running.poll() is None:
                if stop_requested():
                    (job.parent / "stop").touch()
                time.sleep(SECONDS_BETWEEN_LOOKS)
        finally:
            if running.poll() is None:
                running.terminate()  # torchrun ends its processes
                running.wait()
        return _outcome(job.parent, processes, running.returncode)


def _outcome(folder: Path, processes: int, status: int) -> dict[str, Any]:
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("outcome_*.json"))]
    for outcome in found:
        if "history" in outcome and status == 0:
            history: dict[str, Any] = outcome["history"]
            return history
    for outcome in found:
        if "error" in outcome:
            raise ERRORS[outcome["error"]](outcome["message"])
    raise StageError(f"the training by {processes} processes ended with exit status {status}; the reason stands above")


def main(job_file: Path) -> int:
    """What each process does: train, and leave its outcome beside `job_file`."""
    from utils.data.store import load_prepared
    from utils.training import ranks
    from utils.training.train import TrainingSettings, train

    number, stopped = int(os.environ["RANK"]), list[int]()
    signal.signal(signal.SIGTERM, lambda signum, _: stopped.append(signum))
    level = logging.INFO if number == 0 else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    job = json.loads(job_file.read_text(encoding="utf-8"))
    stop_file = job_file.parent / "stop"
    outcome: dict[str, Any]
    try:
        history = train(
            arm=job["arm"],
            pretrained_dir=Path(job["pretrained_dir"]),
            train_set=load_prepared(Path(job["prepared_dir"]), "train"),
            validation_set=load_prepared(Path(job["prepared_dir"]), "validation"),
            output_dir=Path(job["output_dir"]),
            settings=TrainingSettings(**job["settings"]),
            stop_requested=lambda: bool(stopped) or stop_file.exists(),
        )
        outcome = {"history": history} if number == 0 else {}
    except (UserError, Interrupted) as error:
        kind = next(name for name, known in ERRORS.items() if isinstance(error, known))
        outcome = {"error": kind, "message": str(error)}
    write_json(job_file.parent / f"outcome_{number}.json", outcome)
    if "error" in outcome and outcome["error"] != "Interrupted":
        os._exit(1)  # torchrun ends the others, which may be waiting for this one: so may a goodbye to them
    ranks.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
