"""Two work directories, one permanent directory: a seed's results are copied there by one run at a time. Torch-free.

Whoever submits or runs a seed leaves a note in the permanent directory that names the work directory. Runs in another
SCRATCH are recorded there, not here, so without the note they would only meet when one overwrites the other's results.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from utils.core.errors import UsageError
from utils.core.files import write_json
from utils.core.locks import is_locked
from utils.core.paths import Paths
from utils.slurm.live_jobs import live_jobs
from utils.slurm.run_record import records


def refuse_if_claimed(seed: int, paths: Paths) -> None:
    """UsageError if a run in another SCRATCH has jobs or a local run of this seed for the same PROJECT."""
    with contextlib.suppress(OSError, ValueError, KeyError):  # no note, or none that can be read: nobody is known
        scratch = Path(json.loads(_note(seed, paths).read_text(encoding="utf-8"))["scratch"])
        if scratch == paths.scratch:
            return
        other = Paths(scratch, paths.project, paths.suffix)
        live = live_jobs(records(other, seed))
        busy = ", ".join(job_id for ids in live.values() for job_id in ids)
        if not busy and is_locked(other.runs / f"seed_{seed}.lock"):
            busy = "a local run"
        if busy:
            raise UsageError(
                f"seed {seed} is in progress for the same PROJECT_DIR={paths.project} from another "
                f"SCRATCH_DIR={scratch} ({busy}). Both would write {paths.final(seed)}: wait for it, or choose another "
                "PROJECT_DIR."
            )


def claim(seed: int, paths: Paths) -> None:
    """Leave the note that this work directory is at the seed."""
    write_json(_note(seed, paths), {"scratch": str(paths.scratch)})


def _note(seed: int, paths: Paths) -> Path:
    return paths.final_root / f".seed_{seed}.scratch.json"
