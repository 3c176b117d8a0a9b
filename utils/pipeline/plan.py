"""Which stages a run has to do, and why each of them. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from utils.core.errors import InputError
from utils.core.paths import Paths
from utils.core.settings import Settings
from utils.pipeline.flags import Completion
from utils.pipeline.stages import STAGES, Stage


@dataclass(frozen=True)
class Step:
    """One stage of a run: `reason` says why it has to run, None that it is done."""

    stage: Stage
    reason: str | None


def make_plan(
    seed: int, paths: Paths, settings: Settings, *, first: int = 0, last: int = 7, force: bool = False
) -> list[Step]:
    """The stages `first` to `last` in order. `force` runs them all; a stage behind one that runs, runs too.

    A stage that only has to write a report again (Stage.reports) leaves what later stages read as it is.

    InputError if a stage before `first` would have to run for them.
    """
    completion = Completion(seed, paths, settings)
    steps: list[Step] = []
    running: set[int] = set()
    for stage in STAGES[first : last + 1]:
        ahead = [number for number in stage.needs if number in running]
        reason: str | None
        if force:
            reason = "forced"
        elif ahead:
            reason = "follows stage " + " and ".join(STAGES[number].key for number in ahead)
        else:
            reason = completion.problem(stage)
        steps.append(Step(stage, reason))
        if reason is None:
            continue
        if force or ahead or completion.stale(stage):
            running.add(stage.number)
        for number in stage.needs:
            if number < first and (problem := completion.stale(STAGES[number])):
                raise InputError(
                    f"stage {stage.key} needs stage {STAGES[number].key}: {problem}. "
                    f"Start with that one, --stage {number}, or leave --stage out."
                )
    return steps


def to_run(steps: list[Step]) -> list[Step]:
    """The steps that are not done."""
    return [step for step in steps if step.reason is not None]


def table(steps: list[Step]) -> str:
    """Stage, what happens to it, why: one line each."""
    width = max(len(step.stage.key) for step in steps)
    return "\n".join(
        f"  {step.stage.key:<{width}}  " + ("done" if step.reason is None else f"will run: {step.reason}")
        for step in steps
    )
