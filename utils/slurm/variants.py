"""run_multi_seed.sh --variants FILE: several experiments × several seeds as one graph, then a page. Torch-free.

Each variant is an EXPERIMENT with its settings: a cell is one seed of it, an ordinary run in directories of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from utils.core.errors import CommandStopped, UsageError, UserError, explain
from utils.core.paths import CHECKOUT, Paths, check_directory
from utils.core.settings import Settings, as_typed, load_settings, settings_with, variable_text
from utils.pipeline.stages import STAGES
from utils.slurm import multi_seed_submission
from utils.slurm.interpreter import interpreter_for
from utils.slurm.local_run import run_wrapper
from utils.slurm.multi_seed_submission import AGGREGATE, Chain, cancel_earlier, queue_together
from utils.slurm.options import MultiSeedOptions
from utils.slurm.run_record import PAGE, variant_pages

NOT_OF_A_VARIANT = ("EXPERIMENT", "PROFILE", "SCRATCH_DIR", "PROJECT_DIR")
DATA = STAGES[1]


@dataclass(frozen=True)
class Variant:
    """An experiment of the file: its name, and the variables that make its settings."""

    name: str
    variables: Mapping[str, str]


def main(options: MultiSeedOptions) -> int:
    """Returns the exit code. What keeps any cell from being done is said before the first one starts."""
    variants = read_variants(Path(options.variants))
    for variant in variants:
        with settings_with(variant.variables):
            try:
                paths = Paths.of(settings := load_settings())
                if not options.cancel:
                    multi_seed_submission.check(options, settings, paths)
            except UserError as error:
                raise _named(variant, error) from None
    settings = load_settings()
    paths = Paths.of(settings)
    check_directory("PROJECT_DIR", paths.variants)
    if options.cancel or options.dry_run or options.executor == "local":
        codes = [_one(variant, options) for variant in variants]
        if options.cancel:
            cancel_earlier(variant_pages(paths), options.seeds, [variant.name for variant in variants])
        elif options.dry_run:
            print(f"\nthen quality against robustness of {_names(variants)} into {paths.variants}")
        else:
            print("\n==== variants ====", flush=True)
            words = _page_words(variants, options, interpreter_for(options.executor, options.demo))
            codes.append(run_wrapper(["bash", str(CHECKOUT / AGGREGATE.wrapper), *words]))
        return next(filter(None, codes), 0)
    return _submit(variants, options, settings, paths)


def read_variants(path: Path) -> list[Variant]:
    """The variants of a JSON file {"name": {"SETTING": value, ...}, ...}; UsageError where it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--variants {explain(error)}") from None
    except ValueError as error:
        raise UsageError(f"--variants {path}: not JSON ({error}).") from None
    if not isinstance(content, dict) or len(content) < 2 or not all(isinstance(v, dict) for v in content.values()):
        raise UsageError(f'--variants {path}: expected {{"name": {{"SETTING": value}}, ...}}, at least two names.')
    for name, values in content.items():
        if wrong := sorted(set(values) & set(NOT_OF_A_VARIANT)):
            raise UsageError(f"--variants {path}: {name} sets {wrong[0]}, which is the same for all variants.")
    return [
        Variant(name, {f"MONO_S2S_{key}": variable_text(value) for key, value in settings.items()})
        for name, settings in ((name, values | {"EXPERIMENT": name}) for name, values in content.items())
    ]


def _one(variant: Variant, options: MultiSeedOptions) -> int:
    print(f"\n######## {variant.name} ########", flush=True)
    with settings_with(variant.variables):
        try:
            return multi_seed_submission.main(replace(options, variants=""))
        except CommandStopped:
            raise
        except UserError as error:  # the others are done none the less
            print(f"run_multi_seed.sh: {_named(variant, error)}", file=sys.stderr)
            return error.exit_code


def _named(variant: Variant, error: UserError) -> UserError:
    """The error with the variant's name; commands in it are about this variant."""
    return type(error)(as_typed(f"variant {variant.name}: {error}"))


def _submit(variants: list[Variant], options: MultiSeedOptions, settings: Settings, paths: Paths) -> int:
    """All cells, at most MAX_PARALLEL_SEEDS side by side; a variant's data wait for the same data of another."""
    chain, last = Chain(), []
    names = tuple(variant.name for variant in variants)
    data: dict[str, str] = {}  # job of stage 1 by the settings that it reads
    for variant in variants:
        print(f"\n######## {variant.name} ########", flush=True)
        with settings_with(variant.variables):
            theirs = Paths.of(own := load_settings())
            key = json.dumps(own.subset(DATA.settings))
            chain.data = (data[key],) if key in data else ()
            try:
                last.append(multi_seed_submission.submit(options, theirs, own, chain))
            except UserError as error:
                rest = "The variants before it are in the queue: the same command adds the rest, --cancel ends all."
                raise type(error)(f"{_named(variant, error)}" + (f"\n{rest}" if last else "")) from None
            made = next((run.jobs.get(DATA.key) for run in multi_seed_submission.records(theirs)), None)
            if made and key not in data:
                data[key] = made.job_id
    earlier = cancel_earlier(variant_pages(paths), options.seeds, names)
    words = _page_words(variants, options, interpreter_for(options.executor, options.demo))
    file = str(Path(options.variants).absolute())
    after = [*last, *(record.job.job_id for record in earlier)]
    record = queue_together(PAGE, words, settings, paths, options.seeds, after, variants=names, file=file)
    print(f"\nquality against robustness of {_names(variants)}: job {record.job.job_id}, after {', '.join(after)}")
    for other in earlier:
        print(f"note: the {other} (job {other.job.job_id}) stays in the queue. This one runs last: both write there.")
    print(f"results: {paths.variants}. Watch, or end all:")
    for name in names:
        print(f"  MONO_S2S_EXPERIMENT={name} ./check_training_status.sh")
    print(as_typed(f"  {record.command} --cancel"))
    return 0


def _page_words(variants: list[Variant], options: MultiSeedOptions, python: str) -> list[str]:
    names = ",".join(variant.name for variant in variants)
    return ["--seeds", ",".join(map(str, options.seeds)), "--variants", names, "--python", python]


def _names(variants: list[Variant]) -> str:
    return ", ".join(variant.name for variant in variants)
