"""run_all.sh --local: the wrappers of a plan, here, one after the other. Torch-free."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

from utils.core.paths import CHECKOUT
from utils.pipeline.plan import Step
from utils.slurm.requests import wrapper_arguments
from utils.slurm.run_record import RunRecord


def run_here(record: RunRecord, steps: Sequence[Step], force: bool) -> int:
    """Run the wrappers of these steps; stop at the first failure with its exit code."""
    started = time.time()
    for count, step in enumerate(steps, 1):
        print(f"\n[{count}/{len(steps)}] stage {step.stage.key}: {step.stage.purpose}", flush=True)
        arguments = wrapper_arguments(record.seed, record.settings_file, record.python, force)
        code = run_wrapper(["bash", str(CHECKOUT / step.stage.wrapper), *arguments])
        if code:
            print(
                f"\nrun_all.sh: stage {step.stage.key} ended with exit code {code} (see above). "
                f"The same command{' without --force' if force else ''} resumes from there.",
                file=sys.stderr,
            )
            return code
    print(f"\nall done in {time.time() - started:.0f} s")
    return 0


def run_wrapper(words: list[str]) -> int:
    """Run a wrapper to its end; whoever asks us to stop, asks it to stop, and we wait for it to save its progress."""
    process = subprocess.Popen(words, start_new_session=False)

    def pass_on(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT:  # a terminal sends Ctrl-C to both
            process.send_signal(number)
        caller = before[number]
        if callable(caller) and caller is not signal.default_int_handler:
            caller(number, frame)

    before: dict[int, Any] = {
        number: handler
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN  # nohup: what is ignored stays ignored
    }
    for number in before:
        signal.signal(number, pass_on)
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code
