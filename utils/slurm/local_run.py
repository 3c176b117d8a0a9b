"""run_all.sh --local: the wrappers of a plan, here: independent stages side by side where cores and memory allow it,
as on a cluster, the others one after the other. Torch-free."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from utils.core.paths import CHECKOUT
from utils.core.settings import Settings
from utils.pipeline.plan import Step
from utils.pipeline.stages import upstream
from utils.slurm.requests import wrapper_arguments
from utils.slurm.run_record import RunRecord

# Stages ask SLURM for at least twice the memory that they take: a job over its request is killed, a process is not.
USED_OF_REQUEST = 0.5


def run_here(record: RunRecord, steps: Sequence[Step], settings: Settings, force: bool) -> int:
    """Run the wrappers of these steps; the exit code of the first failure, after which no other stage starts."""
    started, count = time.time(), 0
    arguments = wrapper_arguments(record.seed, record.settings_file, record.python, force)
    for group in side_by_side(steps, settings):
        for step in group:
            count += 1
            print(f"\n[{count}/{len(steps)}] stage {step.stage.key}: {step.stage.purpose}", flush=True)
        codes = run_wrappers(
            {step.stage.key: ["bash", str(CHECKOUT / step.stage.wrapper), *arguments] for step in group}
        )
        if codes:
            for key, code in codes.items():
                print(
                    f"\nrun_all.sh: stage {key} ended with exit code {code} (see above). "
                    f"The same command{' without --force' if force else ''} resumes from there.",
                    file=sys.stderr,
                )
            return next(iter(codes.values()))
    print(f"\nall done in {time.time() - started:.0f} s")
    return 0


def side_by_side(steps: Sequence[Step], settings: Settings) -> list[list[Step]]:
    """The steps in order, as groups that run at the same time: none needs another, and cores and memory suffice.

    One after the other with a GPU: two stages on one card take turns there, and each wants the card's memory.
    """
    groups: list[list[Step]] = []
    gpu = settings.DEVICE == "cuda" or (settings.DEVICE == "auto" and _has_gpu())
    for step in steps:
        group = groups[-1] if groups else []
        memory_gb = sum(one.stage.memory_gb for one in (*group, step)) * settings.SLURM_MEMORY_SCALE
        if (
            group
            and not any(one.stage in upstream(step.stage.number) for one in group)
            and not gpu
            and len(group) < len(os.sched_getaffinity(0))
            and memory_gb * USED_OF_REQUEST <= _free_memory_gb()
        ):
            group.append(step)
        else:
            groups.append([step])
    return groups


def run_wrapper(words: list[str]) -> int:
    """Run one wrapper to its end, its output as it is; returns the exit code."""
    return run_wrappers({"": words}).get("", 0)


def run_wrappers(commands: Mapping[str, list[str]]) -> dict[str, int]:
    """Run these wrappers at the same time, each to its end; the exit codes that are not 0 by key, the first one first.

    Whoever asks us to stop, asks them all to stop, and we wait until they have saved their progress. Where one fails,
    the others run to their end: their work is not lost. Several share the cores, and each line names its stage.
    """
    running: dict[str, _Child] = {}
    caught: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        if number != signal.SIGINT:  # a terminal sends Ctrl-C to all
            for child in running.values():
                child.process.send_signal(number)
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
    failed: dict[str, int] = {}
    try:
        for key, words in commands.items():
            if caught:  # between two starts: the next one would not know of it
                failed[key] = 128 + caught[0]
                continue
            child = _Child.started(words, key, len(commands))
            running[key] = child
            if caught:
                child.process.send_signal(signal.SIGTERM)
        while running:
            for key in [key for key, child in running.items() if child.process.poll() is not None]:
                code = running.pop(key).end()
                if code:
                    failed[key] = code
                    if running and not caught:
                        _tell_failure(key, list(running))
            time.sleep(0.05)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return failed


@dataclass(frozen=True)
class _Child:
    """A wrapper that runs; what it writes is copied by threads where it is one of several."""

    process: subprocess.Popen[bytes]
    readers: tuple[threading.Thread, ...] = ()

    @classmethod
    def started(cls, words: list[str], key: str, count: int) -> _Child:
        if count == 1:
            return cls(subprocess.Popen(words))
        threads = {"OMP_NUM_THREADS": str(max(len(os.sched_getaffinity(0)) // count, 1))}
        process = subprocess.Popen(
            words,
            env=threads | dict(os.environ),  # who has set it, means it
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        readers = tuple(
            threading.Thread(target=_copy_lines, args=(pipe, stream, f"[{key}] "), daemon=True)
            for pipe, stream in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
        )
        for reader in readers:
            reader.start()
        return cls(process, readers)

    def end(self) -> int:
        """Exit code of an ended process, as a shell gives it, after its last lines were copied."""
        for reader in self.readers:
            reader.join(timeout=5)  # a process that it left behind may keep the pipe open
        code = self.process.returncode
        return code if code >= 0 else 128 - code


_one_line_at_a_time = threading.Lock()


def _copy_lines(pipe: IO[bytes], stream: IO[str], prefix: str) -> None:
    """Copy whole lines to our own stream, each with a prefix, to the end: a full pipe would stop its writer."""
    with pipe:
        for line in pipe:
            # A full disk or closed terminal must not end the stage.
            with _one_line_at_a_time, contextlib.suppress(OSError):
                stream.write(prefix + line.decode(errors="replace"))
                stream.flush()


def _tell_failure(key: str, others: list[str]) -> None:
    with contextlib.suppress(OSError):
        print(
            f"run_all.sh: stage {key} failed; {', '.join(others)} runs to its end first.", file=sys.stderr, flush=True
        )


def _has_gpu() -> bool:
    """Whether there is a driver of an NVIDIA or AMD card; asking torch would take seconds."""
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd"))


def _free_memory_gb() -> float:
    """Memory that new processes can have, by the kernel and by the limit of a container; 0 where nobody tells."""
    try:
        kilobytes = re.search(r"^MemAvailable: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return 0.0
    free = int(kilobytes[1]) / 2**20 if kilobytes else 0.0
    with contextlib.suppress(OSError, ValueError):  # ValueError: "max", no limit
        free = min(free, int(Path("/sys/fs/cgroup/memory.max").read_text()) / 2**30)
    return free
